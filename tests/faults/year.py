"""A year of schedules in compressed time: `python -m tests.faults.year --days 365 --seed 1`.

Each day runs the flows of prefect.yaml on a small corpus whose text changes on some days, with tiny trainings. On some
days the training or the clean-up is killed with SIGKILL and run again. Then a day passes: all times that the home and
Prefect's database have stored are moved back by a day. Nothing else is simulated: flows, server and store are real.

The command fails if the home or the database is ever larger than its bound, if a champion of the history is damaged or
its lineage cannot be read, or if an artifact is damaged.
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from bardflow.home import prefect_environment
from bardflow.storage.copies import Copies
from bardflow.storage.garbage import delete, size
from bardflow.storage.handles import Handle
from bardflow.storage.lineage import lineage
from bardflow.storage.manifests import canonical_json
from bardflow.storage.refs import Refs
from bardflow.storage.store import Store
from tests.conftest import make_project, one_certificate, own_text

CHANGED, NEW_SYMBOL, TUNED = 0.15, 0.3, 0.1
# What the home and the database may have at any moment, in bytes. The nightly clean-up leaves room for a day.
HOME, DAY, DATABASE = 60_000_000, 10_000_000, 40_000_000
POLICY = {"keep_last": 2, "keep_days": 3.0, "budget": f"{HOME - DAY}B"}
SMALL = {"steps": 12, "leg_steps": 4, "width": 16, "context": 16, "batch": 4, "samples": 1, "sample_characters": 20}
CHILD = """
import json, sys
from bardflow.home import prefect_environment
from bardflow.commands.console import prepare_prefect
prepare_prefect()
from bardflow.flows.clean_up import clean_up
from bardflow.flows.train_gpt import train_gpt
from bardflow.tasks.recipes import Overrides
print("ready", flush=True)
sys.stdin.readline()
what, arguments = json.loads(sys.argv[1])
train_gpt("own", "tiny", Overrides.model_validate(arguments)) if what == "train" else clean_up(**arguments)
"""


class Year:
    """A project, and what happened in it."""

    def __init__(self, folder: Path, seed: int, kills: float) -> None:
        self.folder, self.home = folder, folder / "home"
        self.random = random.Random(seed)
        self.kills = kills
        self.text = folder / "texts" / "own.txt"
        self.largest = {"home": 0, "database": 0}
        self.counts = {"runs": 0, "kills": 0, "texts": 0, "trained": 0, "moves": 0, "deleted": 0, "reduced": 0}
        self.symbols = iter("αβγδεζηθικλμνξοπρστυφχψωабвгдежзийклмнопрстуфхцчшщъыьэюя")

    def measure(self) -> None:
        """Check the bounds; called after every run."""
        database = sum(size(path) for path in (self.home / "prefect").glob("prefect.db*"))
        for name, now, most in (("home", size(self.home), HOME), ("database", database, DATABASE)):
            self.largest[name] = max(self.largest[name], now)
            assert now <= most, f"the {name} has {now:,} bytes, more than {most:,}"

    def run(self, flow: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """Run a flow in this process."""
        self.counts["runs"] += 1
        result = flow(*arguments, **more)
        self.measure()
        return result

    def kill(self, what: str, arguments: dict[str, Any], seconds: float) -> None:
        """Run a flow in a process that is killed with SIGKILL at a random time of its work."""
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps([what, arguments])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.stdin.write("\n")
        child.stdin.flush()
        time.sleep(self.random.uniform(0, seconds))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        self.counts["kills"] += 1
        self.measure()

    def day(self) -> None:
        """All flows of one day."""
        from bardflow.flows.clean_up import clean_up
        from bardflow.flows.evaluate_gpt import evaluate_gpt
        from bardflow.flows.refresh_corpora import refresh_corpora
        from bardflow.flows.train_gpt import train_gpt
        from bardflow.tasks.recipes import Overrides

        if self.random.random() < self.kills:
            self.kill("clean", POLICY, 0.6)
        before = set(Store(self.home).handles())
        self.run(clean_up, **POLICY)
        self.counts["deleted"] += len(before - set(Store(self.home).handles()))
        if self.random.random() < CHANGED:
            self.change()
        self.run(refresh_corpora)
        fields = SMALL | ({"seed": self.random.randrange(1000)} if self.random.random() < TUNED else {})
        if self.random.random() < self.kills:
            self.kill("train", fields, 2.5)
        outcome = self.run(train_gpt, "own", "tiny", Overrides.model_validate(fields))
        self.counts["trained"] += outcome.trained
        self.counts["moves"] += outcome.champion_moved
        self.run(evaluate_gpt)

    def change(self) -> None:
        """Change the text; at times with a symbol that no model before can spell."""
        verses = own_text().splitlines()
        self.random.shuffle(verses)
        verses[0] += next(self.symbols, "") * (self.random.random() < NEW_SYMBOL)
        self.text.write_text("\n".join(verses[: self.random.randint(150, 260)]) + "\n")
        self.counts["texts"] += 1

    def a_day_passes(self) -> None:
        """Move all stored times back by a day."""
        copies = Copies(self.home)
        for path in [*self.home.glob("refs/**/[0-9]*.json"), *self.home.glob("objects/*/*/origin.json")]:
            content = json.loads(path.read_bytes())
            content["at"] = (datetime.fromisoformat(content["at"]) - timedelta(days=1)).isoformat(timespec="seconds")
            draft = path.with_name("aged")
            draft.write_bytes(canonical_json(content))
            draft.replace(path)
            copies.write(path, canonical_json(content))
        for path in (self.home / "prefect" / "results").glob("*"):
            status = path.stat()
            os.utime(path, (status.st_atime - 86_400, status.st_mtime - 86_400))
        with closing(sqlite3.connect(self.home / "prefect" / "prefect.db", timeout=120)) as database, database:
            for table, column in (("flow_run", "end_time"), ("events", "occurred"), ("event_resources", "occurred")):
                earlier = f"strftime('%Y-%m-%d %H:%M:%f', {column}, '-1 day') || '000'"
                database.execute(f"update {table} set {column} = {earlier} where {column} is not null")

    def check(self) -> None:
        """Check every champion of the history, and every artifact."""
        store, refs = Store(self.home), Refs(self.home)
        whole: set[Handle] = set()
        for name in refs.names():
            for entry in refs.history(name) if name.endswith("/champion") else refs.history(name)[-1:]:
                assert store.damage(entry.handle) is None, f"{name} {entry.number}: {store.damage(entry.handle)}"
                ancestors = lineage(store, entry.handle)
                assert ancestors[0].handle.kind == "source", name
                if entry == refs.head(name):
                    whole |= {ancestor.handle for ancestor in ancestors}
        for handle in store.handles():
            harm = store.damage(handle)
            assert harm is None or (store.is_record(handle) and handle not in whole), f"{handle}: {harm}"
        self.counts["reduced"] = sum(store.is_record(handle) for handle in store.handles())

    def history(self) -> tuple[int, float]:
        """Return the number of flow runs in Prefect's database, and the age of the oldest in days."""
        question = "select count(*), julianday('now') - julianday(min(end_time)) from flow_run"
        with closing(sqlite3.connect(self.home / "prefect" / "prefect.db", timeout=120)) as database:
            [(count, age)] = database.execute(question)
        return count, age

    def line(self, day: int) -> str:
        """Return the figures in one line."""
        database = sum(size(path) for path in (self.home / "prefect").glob("prefect.db*"))
        now = f"home {size(self.home) / 1e6:.1f} MB, database {database / 1e6:.1f} MB"
        counts = {"flow runs kept": self.history()[0]} | self.counts
        return f"day {day}: {now}; " + ", ".join(f"{name} {count}" for name, count in counts.items())


def play(folder: Path, days: int, seed: int, history_days: int, kills: float) -> dict[str, Any]:
    """Play the days, and return the figures."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from bardflow.commands import up

    year = Year(folder, seed, kills)
    began = time.monotonic()
    with up.running_flows(), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        for day in range(1, days + 1):
            year.day()
            year.a_day_passes()
            if day % 30 == 0 or day == days:
                year.check()
                print(year.line(day), f"({time.monotonic() - began:,.0f} s)", flush=True)
        # The vacuum runs every few seconds here. Of the runs, none is older than the history allows.
        latest = time.monotonic() + 600
        while year.history()[1] > history_days + 0.1:
            assert time.monotonic() < latest, f"a flow run of {year.history()[1]:.1f} days is still in the database"
            time.sleep(0.5)
    champions = len(Refs(year.home).history("own/champion"))
    return {
        "days": days, "seed": seed, "seconds": round(time.monotonic() - began), **year.counts, "champions": champions,
        "largest_home": year.largest["home"], "largest_database": year.largest["database"],
        "flow_runs_kept": year.history()[0],
    }  # fmt: skip


def main() -> None:
    """Read the arguments, make the project, and play."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--history-days", type=int, default=30)
    parser.add_argument("--kills", type=float, default=0.1, help="share of the clean-ups and trainings that are killed")
    parser.add_argument("--folder", type=Path, help="where the project is made; it must not exist [a temporary folder]")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(f"year-{os.getpid()}").resolve()
    make_project(folder)
    os.environ |= {
        "BARDFLOW_PROJECT": str(folder),
        "BARDFLOW_HOME": str(folder / "home"),
        "PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS": "3",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(arguments.history_days * 86_400),
        "PREFECT_LOGGING_TO_API_ENABLED": "true",
        "PREFECT_API_SSL_CERT_FILE": one_certificate(folder),
    }
    os.environ |= prefect_environment()
    try:
        figures = play(folder, arguments.days, arguments.seed, arguments.history_days, arguments.kills)
        print(json.dumps(figures))
    finally:
        if arguments.folder is None:
            delete(folder)


if __name__ == "__main__":
    main()
