"""Measure what workers of a local cluster cost and gain beside one process: training steps, and tokenizing.

    python benchmarks/workers.py --text PATH/input.txt [--recipe small] [--steps 60] [--megabytes 60] [--rounds 3]
    python benchmarks/workers.py --text PATH/input.txt --layers 12 --width 768 --batch 2 --steps 4 --megabytes 0

The sides take turns. All have the same cores: one process with all threads, or workers that share them. Steps are timed
after the first tenth, so the start of the workers does not count; it is shown by itself, with the memory of the
cluster's processes (PSS, which counts shared pages once). The workers train twice: each with the whole model, and with
its blocks in shards, in a cluster of its own. The peak is that of the process, or worker, that scores.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch

from bardflow.engine.cluster import Cluster, connected
from bardflow.engine.folders import Folder
from bardflow.engine.legs import Job, trained
from bardflow.engine.tokens import encode_on
from bardflow.home import computing_environment
from bardflow.model.leg import Leg, LegRun
from bardflow.model.machine import Execution, device
from bardflow.model.training import Training, TrainingSpec, begin, load_snapshot, save_snapshot
from bardflow.model.vocabulary import VocabularySpec, encode, learn, token_dtype
from bardflow.storage.handles import Checkpoint, Handle, TokenShards
from bardflow.storage.manifests import Origin
from bardflow.storage.shards import ShardSpec, read_shards, write_shards
from bardflow.storage.store import Store
from bardflow.tasks.recipes import Recipe, load_recipe

MADE = Origin(task="benchmark@1", inputs={}, spec={}, run=None, commit=None, packages={}, at="", measured={})


def rate(leg: Leg, tokens_a_step: int) -> float:
    """Return the tokens per second after the first tenth of a leg's steps."""
    first, last = leg.points[len(leg.points) // 10], leg.points[-1]
    return (last.step - first.step) * tokens_a_step / (last.seconds - first.seconds)


def alone(store: Store, begun: Handle, shards: Handle, spec: TrainingSpec, execution: Execution) -> Leg:
    """Train a leg in this process."""
    here = device.choose(spec.precision)
    run = LegRun(
        lambda: Training(load_snapshot(store.folder(begun)), spec, here, execution),
        read_shards(store.folder(shards), "train"),
        read_shards(store.folder(shards), "validation"),
        spec.steps,
        here,
    )
    for _ in run.steps():
        pass
    return run.finished()


def together(
    threads: int, store: Store, begun: Handle, shards: Handle, spec: TrainingSpec, execution: Execution
) -> Leg:
    """Train the same leg by the workers of a cluster of its own, in processes that did nothing before."""
    with tempfile.TemporaryDirectory() as into, connected(execution.workers, threads) as cluster:
        folders = [Folder(str(store.folder(handle)), handle.digest, cluster.node) for handle in (begun, shards)]
        job = Job(folders[0], folders[1], spec, spec.steps, execution)
        return trained(cluster, job, Path(into), lambda step, loss: None, print)


def memory() -> int:
    """Return the bytes of all processes that this one started."""
    found = 0
    for process in psutil.Process().children(recursive=True):
        try:
            found += process.memory_full_info().pss
        except psutil.Error:
            continue
    return found


def measure_training(workers: int, recipe: Recipe, text: str, steps: int, rounds: int) -> None:
    """Print the tokens per second of both sides."""
    tokenizer = learn(lambda: [text], VocabularySpec(kind="char"), characters=len(text), unseen=False)
    [ids] = encode(tokenizer, [text])
    size = tokenizer.get_vocab_size()
    spec = recipe.training.model_copy(update={"steps": steps, "leg_steps": steps, "validation_tokens": 2000})
    with tempfile.TemporaryDirectory() as home:
        store = Store(Path(home))
        with store.draft() as draft:
            write_shards(
                draft.folder,
                [("train", 0, ids[:-2000]), ("validation", 0, ids[-2000:])],
                ShardSpec(),
                dtype=token_dtype(size),
            )
            shards = store.keep(draft, TokenShards, {}, MADE)
        with store.draft() as draft:
            save_snapshot(begin(recipe.gpt, size, 1), draft.folder)
            begun = store.keep(draft, Checkpoint, {"step": 0}, MADE)
        execution = Execution(micro_batch=min(spec.batch, 4096 // recipe.gpt.context))
        shared = execution.model_copy(update={"workers": workers})
        threads = torch.get_num_threads()
        sides: dict[str, Callable[[], Leg]] = {
            "one process": lambda: alone(store, begun, shards, spec, execution),
            f"{workers} workers": lambda: together(threads, store, begun, shards, spec, shared),
            f"{workers} workers, in shards": lambda: together(
                threads, store, begun, shards, spec, shared.model_copy(update={"sharded": True})
            ),
        }
        legs: dict[str, list[Leg]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                before = time.monotonic()
                legs[name].append(leg := side())
                around = time.monotonic() - before - leg.train_seconds
                print(f"  {name}: {around:.1f} s beside the steps")
        losses = {name: [point.train_nats for point in found[0].points] for name, found in legs.items()}
        for name, found in legs.items():
            rates = [round(rate(leg, spec.batch * recipe.gpt.context)) for leg in found]
            difference = float(np.abs(np.subtract(losses[name], losses["one process"])).max())
            print(
                f"  {name}: {statistics.median(rates):,.0f} tokens per second, of {rates}; peak "
                f"{max(leg.peak_bytes for leg in found) / 1e6:,.0f} MB of a {found[0].peak_of}; losses of steps "
                f"differ by at most {difference:.2g} nats ({found[0].precision})"
            )


def measure_tokenizing(cluster: Cluster, text: str, megabytes: int, rounds: int) -> None:
    """Print the MB/s of both sides, by characters and by BPE."""
    lines = text.splitlines(keepends=True)
    pieces = ["".join(lines[first : first + 200]) for first in range(0, len(lines), 200)]
    pieces *= -(-megabytes * 10**6 // len(text.encode()))
    size = sum(len(piece.encode()) for piece in pieces)
    for spec in (VocabularySpec(kind="char"), VocabularySpec(kind="bpe", size=2048)):
        tokenizer = learn(lambda: [text], spec, characters=len(text), unseen=False)
        for _ in range(rounds):
            before = time.monotonic()
            one = sum(int(ids.sum()) for ids in encode(tokenizer, pieces))
            between = time.monotonic()
            several = sum(int(ids.sum()) for ids in encode_on(cluster, tokenizer, pieces))
            after = time.monotonic()
            assert one == several
            print(
                f"  {spec.kind}: {size / 1e6:.0f} MB, one process {size / 1e6 / (between - before):.1f} MB/s, "
                f"{cluster.processes} processes {size / 1e6 / (after - between):.1f} MB/s"
            )


def main() -> None:
    """Measure both, in the environment of a run (threads that sleep while they wait)."""
    if computing_environment().items() - os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | computing_environment())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--layers", type=int, help="instead of the recipe's")
    parser.add_argument("--width", type=int, help="instead of the recipe's")
    parser.add_argument("--batch", type=int, help="instead of the recipe's")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--megabytes", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    text = given.text.read_text(encoding="utf-8")
    before = time.monotonic()
    with connected(given.workers, torch.get_num_threads()) as cluster:
        print(f"a local cluster starts in {time.monotonic() - before:.1f} s and takes {memory() / 1e6:,.0f} MB")
        if given.megabytes:
            print("tokenizing:")
            measure_tokenizing(cluster, text, given.megabytes, given.rounds)
    if given.steps:
        print(f"training, recipe {given.recipe}, {torch.get_num_threads()} cores in all:")
        asked = {name: getattr(given, name) for name in ("layers", "width", "batch")}
        shape = {name: value for name, value in asked.items() if value is not None}
        recipe = load_recipe(given.recipe).recipe.changed(**shape)
        measure_training(given.workers, recipe, text, given.steps, given.rounds)


if __name__ == "__main__":
    main()
