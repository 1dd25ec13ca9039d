"""What grows with the number of files, entries, documents, record batches and tasks: inputs of docs/scale.md.

    python benchmarks/growth.py                measure everything here (2 minutes of processor time)
    python benchmarks/growth.py keep refs      measure only these

Each is measured in a process and a home of its own.
"""

import argparse
import json
import os
import re
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak_bytes() -> int:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_keep(home: Path, files: int) -> dict[str, float]:
    """Store an artifact of many files of 64 bytes: seconds, and the manifest's bytes."""
    from bardflow.storage.handles import Source
    from bardflow.storage.manifests import MANIFEST, Origin
    from bardflow.storage.store import Store

    origin = Origin(task="a", inputs={}, spec={}, run=None, commit=None, packages={}, at="", measured={})
    store = Store(home)
    with store.draft() as draft:
        for number in range(files):
            (draft.folder / f"part-{number:08}.parquet").write_bytes(number.to_bytes(64, "big"))
        began = time.perf_counter()
        handle = store.keep(draft, Source, {}, origin)
        kept = time.perf_counter() - began
    began = time.perf_counter()
    assert store.damage(handle) is None
    checked = time.perf_counter() - began
    size_ = (store.place(handle) / MANIFEST).stat().st_size
    return {"keep_seconds": kept, "check_seconds": checked, "manifest_bytes": size_, "peak_bytes": peak_bytes()}


def measure_refs(home: Path, entries: int) -> dict[str, float]:
    """Add entries to one name: seconds of the last 100, and the bytes of an entry with its copy."""
    from bardflow.storage.handles import Source
    from bardflow.storage.refs import Refs

    refs = Refs(home)
    head = None
    began = time.perf_counter()
    for number in range(entries):
        if number == entries - 100:
            began = time.perf_counter()
        notes = {"recipe": "small", "report": "ab" * 32, "evaluation": "cd" * 32}
        head = refs.move(
            "own/champion",
            Source(digest=f"{number:064x}"),
            after=refs.head("own/champion"),
            by="a",
            why="b",
            notes=notes,
        )
    seconds = (time.perf_counter() - began) / 100
    space = sum(path.stat().st_size for path in home.rglob("*.json")) / entries
    assert head is not None and head.number == entries
    return {"seconds_per_entry": seconds, "bytes_per_entry": space}


def measure_duplicates(home: Path, documents: int) -> dict[str, float]:
    """Index documents of 1,000 characters of random words: peak memory and seconds."""
    import random

    from bardflow.sources.documents import Piece
    from bardflow.sources.duplicates import find_duplicates

    del home
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(20_000)]
    before, began = peak_bytes(), time.perf_counter()
    found = find_duplicates(
        ("train", Piece(number, " ".join(draw.choices(words, k=167)))) for number in range(documents)
    )
    assert found.counts.documents == documents and found.counts.total == 0
    return {"bytes": peak_bytes() - before, "seconds": time.perf_counter() - began}


def anonymous_bytes() -> int:
    """Return this process's memory without mapped files (Linux)."""
    [found] = re.findall(r"^RssAnon:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found) * 1024


def measure_order(home: Path, windows: int) -> dict[str, float]:
    """Draw the order of an epoch of so many windows: seconds for each."""
    import numpy as np

    del home
    began = time.perf_counter()
    np.random.Generator(np.random.PCG64([1, 0])).permutation(windows)
    return {"order_seconds_per_window": (time.perf_counter() - began) / windows}


def measure_chunks(home: Path, chunks: int) -> dict[str, float]:
    """Open shards of so many record batches: memory for each."""
    import pyarrow as pa

    from bardflow.storage.datasets_layout import write_dataset
    from bardflow.storage.shards import read_shards

    schema = pa.schema([("input_ids", pa.list_(pa.uint16())), ("document", pa.int32())])
    batch = pa.record_batch([pa.array([[1]], pa.list_(pa.uint16())), pa.array([0], pa.int32())], schema=schema)
    batches = (("train", batch) for _ in range(chunks))
    write_dataset(home, schema, ("train",), batches, shard_bytes=2**40)
    before, began = anonymous_bytes(), time.perf_counter()
    tokens = read_shards(home, "train")
    assert len(tokens) == chunks
    return {"chunk_bytes": (anonymous_bytes() - before) / chunks, "seconds": time.perf_counter() - began}


def measure_prefect(home: Path, tasks: int) -> dict[str, float]:
    """Run a flow of so many tasks on a server of its own: database bytes, events and result bytes for each task."""
    os.environ["BARDFLOW_HOME"] = str(home)
    from bardflow.home import prefect_environment

    os.environ.update(prefect_environment() | {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"})
    from bardflow.commands.up import running_flows

    def database() -> tuple[int, int]:
        with sqlite3.connect(home / "prefect" / "prefect.db") as connection:
            connection.execute("pragma wal_checkpoint(truncate)")
            [(pages,)] = connection.execute("pragma page_count")
            [(page,)] = connection.execute("pragma page_size")
            [(events,)] = connection.execute("select count(*) from events")
        return pages * page, events

    def without_events() -> int:
        """The bytes that the database has less without its events, both compacted."""
        sizes = []
        with sqlite3.connect(home / "prefect" / "prefect.db", isolation_level=None) as connection:
            for statement in ("pragma user_version", "delete from event_resources; delete from events"):
                connection.executescript(f"{statement}; vacuum; pragma wal_checkpoint(truncate)")
                sizes.append((home / "prefect" / "prefect.db").stat().st_size)
        return sizes[0] - sizes[1]

    def flow() -> Any:
        from prefect import flow, task

        @task
        def small(number: int) -> dict[str, Any]:
            return {"kind": "checkpoint", "digest": f"{number:064x}"}

        @flow
        def many(count: int) -> None:
            for number in range(count):
                small(number)

        return many

    found = []
    for number in (10, tasks):
        with running_flows(flow) as many:
            many(number)
            time.sleep(10)  # the server writes events in batches
        found.append(database())
    results = [path.stat().st_size for path in (home / "prefect" / "results").iterdir()]
    (before, events_before), (after, events_after) = found
    return {
        "database_bytes_per_task": (after - before) / tasks,
        "events_per_task": (events_after - events_before) / tasks,
        "event_bytes": without_events() / events_after,
        "result_bytes": sum(results) / len(results),
    }


def measure_hash(home: Path, megabytes: int) -> dict[str, float]:
    """Hash a file that is in memory: seconds for each byte."""
    from bardflow.storage.manifests import file_facts

    (home / "file").write_bytes(os.urandom(megabytes * 10**6))
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        file_facts(home / "file")
        seconds.append(time.perf_counter() - began)
    return {"hash_seconds_per_gigabyte": sorted(seconds)[1] / megabytes * 1000}


MEASURES: dict[str, tuple[Callable[[Path, int], dict[str, float]], tuple[int, ...]]] = {
    "keep": (measure_keep, (1_000, 10_000, 100_000)),
    "refs": (measure_refs, (100, 1_000, 4_000)),
    "duplicates": (measure_duplicates, (10_000, 20_000, 40_000)),
    "order": (measure_order, (10_000_000, 100_000_000)),
    "chunks": (measure_chunks, (100_000, 400_000)),
    "prefect": (measure_prefect, (400,)),
    "hash": (measure_hash, (1_000,)),
}


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description="What grows with files, entries, documents, batches and tasks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="all, or some of: " + ", ".join(MEASURES))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.names) - MEASURES.keys():
        parser.error(f"there is no {min(unknown)!r}; give some of: {', '.join(MEASURES)}")
    if options.one:
        name, number, folder = options.one
        print(json.dumps(MEASURES[name][0](Path(folder), int(number))))
        return
    for name in options.names or MEASURES:
        for number in MEASURES[name][1]:
            command = [sys.executable, __file__, "--one", name, str(number)]
            with tempfile.TemporaryDirectory() as folder:
                done = subprocess.run([*command, folder], stdout=subprocess.PIPE, text=True, check=True)
            print(f"{name:<12} {number:>12,}  {done.stdout.strip().splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
