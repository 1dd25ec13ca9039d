"""Kill processes of bardflow at random, and check that every training ends as an undisturbed one does.

    python -m tests.faults.kills --kills 60 --seed 1

Trainings run by `bard train` and, as flow runs, by `bard up`. Killed (SIGKILL) are `bard train`, its server and its
guard, and the flow's process, the worker, the server, the reports site, the guard and `bard up` itself, also twice in a
row and while a training resumes. Checked are: the digest of the model, that no finished leg is trained twice, that
every stored artifact is whole, and that no process, port, lock, draft or unfinished flow run is left.
"""

import argparse
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from bardflow.commands.prefect_api import api
from bardflow.commands.processes import FLOW_RUN, SUPERVISOR, environment_of
from bardflow.home import held
from bardflow.storage.refs import Refs
from bardflow.storage.store import Store
from tests.conftest import make_project
from tests.project_up import free_port, wait_for

LEGS = 10
FIELDS = {"steps": 10 * LEGS, "leg_steps": 10, "width": 16, "context": 16, "batch": 4}
FIELDS |= {"samples": 1, "sample_characters": 20}
MOST_SECONDS = 8.0  # between two kills
PATIENCE_SECONDS = 600
BARD = [sys.executable, "-m", "bardflow"]
# `bard up` with short pauses before a crashed run is run again.
UP = """
import sys
from bardflow.commands import parts, prefect_api, runs, up
runs.PAUSES_SECONDS = (1, 2, 3)
prefect_api.PLAN_SECONDS = parts.READY_SECONDS = 600
up.up(int(sys.argv[1]))
"""
DEPLOYMENT = """
name: bardflow
deployments:
  - name: default
    entrypoint: bardflow.flows.train_gpt:train_gpt
    work_pool: {name: bardflow, job_variables: {env: {PREFECT_PLUGINS_ENABLED: "false"}}}
    concurrency_limit: {limit: 1, collision_strategy: ENQUEUE}
"""


class Project:
    """A project with a corpus of its own, and the legs that were said to be done in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = make_project(folder)
        self.home = self.folder / "home"
        (self.folder / "prefect.yaml").write_text(DEPLOYMENT)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "BARDFLOW"))}
        self.environment = clean | {"BARDFLOW_PROJECT": str(self.folder), "BARDFLOW_HOME": str(self.home)}
        self.environment |= {"OMP_NUM_THREADS": "1"}
        self.legs: Counter[str] = Counter()

    def processes(self) -> list[psutil.Process]:
        """All processes that a command of this home has started, directly or not, and its guards."""
        marks = ((process, environment_of(process).get(SUPERVISOR, "")) for process in psutil.process_iter())
        return [process for process, mark in marks if mark.startswith(str(self.home)) or self._guards(process)]

    def _guards(self, process: psutil.Process) -> bool:
        try:
            words = process.cmdline()
        except psutil.Error:
            return False
        return "bardflow.commands.guard" in words and any(word.startswith(str(self.home)) for word in words)

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, env=self.environment, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def train(self, seed: int, corpus: str = "own") -> subprocess.Popen[str]:
        fields = [word for name, value in {**FIELDS, "seed": seed}.items() for word in ("--set", f"{name}={value}")]
        return self.start([*BARD, "train", corpus, "--recipe", "tiny", "--json", *fields])

    def checkpoints(self) -> int:
        return len(list((self.home / "objects" / "checkpoint").glob("*")))

    def note_legs(self, said: str) -> None:
        """Count how often each leg was done; one that is done once comes from the cache afterwards."""
        self.legs.update(re.findall(r"^train_leg +done +(\S+ \S+|\S+)", said, re.MULTILINE))

    def require_nothing_left(self) -> dict[str, int]:
        """Check that the store is whole and that nothing is left, after garbage collection; return counts."""
        drafts = len(list((self.home / "drafts").glob("*")))
        collected = subprocess.run([*BARD, "gc"], env=self.environment, cwd=self.folder, capture_output=True, text=True)
        assert collected.returncode == 0, collected.stderr
        store = Store(self.home)
        damaged = {str(handle): damage for handle in store.handles() if (damage := store.damage(handle))}
        assert not damaged, damaged
        assert not list((self.home / "drafts").glob("*"))
        wait_for(lambda: not self.processes(), "no process is left")
        locks = [lock for lock in self.home.rglob("*.lock") if held(lock)]
        assert not locks, locks
        assert not list((self.home / "supervisors").glob("*")), "no supervisor's lock file is left"
        twice = {leg: count for leg, count in self.legs.items() if count > 1}
        assert not twice, f"trained twice: {twice}"
        return {"legs": len(self.legs), "drafts before garbage collection": drafts}


def word_of(process: psutil.Process) -> str:
    """What a process is: flow, worker, server, reports or guard."""
    if FLOW_RUN in environment_of(process):
        return "flow"
    words = process.cmdline()
    known = {"worker": "worker", "server": "server", "--serve": "reports", "bardflow.commands.guard": "guard"}
    return next((name for word, name in known.items() if word in words), "other")


def kill_random(project: Project, chance: random.Random, own: subprocess.Popen[str], name: str) -> str:
    """Kill the command or one of its processes, drawn by kind and then by process; return the kind."""
    kinds: dict[str, list[psutil.Process]] = {}
    for process in project.processes():
        kinds.setdefault(word_of(process), []).append(process)
    if own.poll() is None:
        kinds[name] = [psutil.Process(own.pid)]
    if not kinds:
        return "nothing"
    kind = chance.choice(sorted(kinds))
    try:
        chance.choice(kinds[kind]).kill()
    except psutil.NoSuchProcess:
        return "nothing"
    return kind


def trained_by_command(project: Project, seed: int, kills: int, chance: random.Random) -> tuple[str, Counter[str]]:
    """Train with `bard train`, killed `kills` times and started again; return the model and what was killed."""
    killed: Counter[str] = Counter()
    while True:
        process, before = project.train(seed), project.checkpoints()
        if killed.total() < kills and chance.random() < 0.7:  # else it is killed while it starts or resumes
            wait_for(lambda p=process, n=before: project.checkpoints() > n or p.poll() is not None, "a checkpoint")
        while killed.total() < kills:
            try:
                process.wait(chance.choice([0.5, 1.0]) * chance.uniform(0, MOST_SECONDS))
                break
            except subprocess.TimeoutExpired:
                if (kind := kill_random(project, chance, process, "bard train")) != "nothing":
                    killed[kind] += 1
        out, said = process.communicate(timeout=PATIENCE_SECONDS)
        project.note_legs(said)
        if process.returncode == 0:
            return json.loads(out)["model"], killed
        assert process.returncode == -signal.SIGKILL, said


@contextmanager
def brought_up(project: Project, port: int) -> Iterator["Up"]:
    """A `bard up` of the project, stopped at the end with SIGTERM."""
    up = Up(project, port)
    try:
        yield up
    finally:
        up.stop()


class Up:
    """A `bard up` that is started again whenever it was killed."""

    def __init__(self, project: Project, port: int) -> None:
        self.project, self.port = project, port
        self.said = project.folder / "said.txt"
        self.begin()

    def begin(self) -> None:
        with self.said.open("a") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-c", UP, str(self.port)],
                env=self.project.environment, cwd=self.project.folder, stdout=said, stderr=said, text=True,
            )  # fmt: skip

    def keep(self) -> None:
        """Start it again if it was killed; anything else than a kill is an error."""
        status = self.process.poll()
        if status is not None:
            assert status == -signal.SIGKILL, self.said.read_text()[-3000:]
            self.begin()

    def ask(self, method: str, path: str, question: dict[str, Any]) -> Any:
        """Ask the server, again and again while it is away."""

        def answer() -> Any:
            self.keep()
            try:
                with api(f"http://127.0.0.1:{self.port}/api") as client:
                    response = client.request(method, path, json=question or None)
                    return [response.json() if response.content else None] if response.is_success else None
            except httpx.HTTPError:  # the server was just killed
                return None

        return wait_for(answer, path)[0]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            begun = time.monotonic()
            assert self.process.wait(PATIENCE_SECONDS) == 0, self.said.read_text()[-3000:]
            print(f"`bard up` ended {time.monotonic() - begun:.1f} s after SIGTERM", flush=True)


def trained_by_up(up: Up, seed: int, kills: int, chance: random.Random) -> tuple[str, Counter[str]]:
    """Train by a flow run, while processes are killed at random; return the model and what was killed."""
    killed: Counter[str] = Counter()
    deployment = up.ask("GET", "/deployments/name/train-gpt/default", {})
    parameters = {"corpus": "own", "recipe": "tiny", "overrides": {**FIELDS, "seed": seed}}
    run = up.ask("POST", f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
    due = time.monotonic() + chance.uniform(0, MOST_SECONDS)
    while (state := up.ask("GET", f"/flow_runs/{run['id']}", {})["state"])["type"] != "COMPLETED":
        assert state["type"] not in ("FAILED", "CANCELLED"), state
        if killed.total() < kills and time.monotonic() > due:
            kind = kill_random(up.project, chance, up.process, "bard up")
            if kind == "flow" and killed["flow"] == 3:
                continue  # a fourth crash is the last one
            killed[kind] += kind != "nothing"
            due = time.monotonic() + chance.choice([0.1, 1]) * chance.uniform(0, MOST_SECONDS)
        up.keep()
        time.sleep(0.2)
    logs = up.ask("POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "limit": 200})
    up.project.note_legs("\n".join(log["message"] for log in logs))
    head = Refs(up.project.home).head("own/tiny")
    assert head is not None
    return str(head.notes["model"]), +killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--commands", type=int, help="how many of the kills are of `bard train`; by default a third")
    parser.add_argument("--folder", type=Path, help="where the projects are made; by default a temporary folder")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    chance = random.Random(given.seed)
    print(f"seed {given.seed}, in {folder}", flush=True)
    begun = time.monotonic()
    plain, commands, flows = (Project(folder / name) for name in ("plain", "commands", "flows"))
    total: Counter[str] = Counter()
    port = free_port()

    def check(seed: int, by: str, model: str, killed: Counter[str]) -> None:
        expected, none = trained_by_command(plain, seed, 0, chance)
        assert not none and model == expected, f"{by}, training {seed}: {model} is not {expected}"
        total.update(killed)
        print(f"{time.monotonic() - begun:6.0f} s  {by}, training {seed}: {dict(killed)}, {model[:12]}", flush=True)

    seed = 0
    while total.total() < (given.kills // 3 if given.commands is None else given.commands):
        seed += 1
        check(seed, "bard train", *trained_by_command(commands, seed, chance.randint(2, 5), chance))
    with brought_up(flows, port) as up:
        while total.total() < given.kills:
            seed += 1
            check(seed, "bard up", *trained_by_up(up, seed, chance.randint(3, 8), chance))
    left = {project.folder.name: project.require_nothing_left() for project in (plain, commands, flows)}
    with socket.create_server(("127.0.0.1", port)):
        pass  # the port is free
    print(f"{total.total()} kills in {time.monotonic() - begun:.0f} s, all digests equal: {dict(total)}; {left}")


if __name__ == "__main__":
    main()
