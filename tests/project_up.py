"""A small project that `bard up` serves, which tests start, stop and kill."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from random import SystemRandom
from typing import Any

import psutil
import pytest

from bardflow.commands.prefect_api import api
from bardflow.commands.processes import FLOW_RUN, SUPERVISOR, environment_of

FLOWS = """
import ctypes
import os
import time
from pathlib import Path
from typing import Literal

from prefect import flow, task

HOME = Path(os.environ["BARDFLOW_HOME"])


@task
def note(text: str) -> str:
    with (HOME / "notes.txt").open("a") as notes:
        notes.write(text + "\\n")
    return text


@flow
def tick() -> str:
    (HOME / "site.txt").write_text(os.environ["BARDFLOW_REPORTS"])
    return note("tick")


@flow
def wait(recipe: Literal["small", "tiny"] = "small", deaf: bool = False) -> str:
    note("begin")
    (HOME / "waiting").touch()
    if deaf:  # taking a mutex twice hangs, and no signal handler of Python runs meanwhile
        mutex, library = ctypes.create_string_buffer(256), ctypes.PyDLL(None)
        library.pthread_mutex_init(mutex, None), library.pthread_mutex_lock(mutex), library.pthread_mutex_lock(mutex)
    while not (HOME / "gate").exists():
        time.sleep(0.1)
    return note("end")
"""

DEPLOYMENTS = """
deployments:
  - name: often
    entrypoint: scratch_flows:tick
    work_pool: {name: bardflow}
    schedules:
      - {slug: often, interval: 5, timezone: UTC, active: true}
  - name: default
    entrypoint: scratch_flows:wait
    work_pool: {name: bardflow}
    concurrency_limit: {limit: 1, collision_strategy: ENQUEUE}
"""


def free_port() -> int:
    """A free port that no outgoing connection takes meanwhile: theirs begin at 32768 on Linux, at 49152 on macOS."""
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", SystemRandom().randrange(10_000, 32_000))) as probe:
            return int(probe.getsockname()[1])


# So long is waited on a machine that is busy with other things; a limit only for a test that would wait for ever.
PATIENCE_SECONDS = 600


# `bard up`, as patient as the test: of its own it says after 20 s that the scheduler has planned no run.
UP = f"""
import sys
from bardflow.commands import parts, prefect_api, runs, up
prefect_api.PLAN_SECONDS = parts.READY_SECONDS = {PATIENCE_SECONDS}
runs.PAUSES_SECONDS = (1, 1, 1)
up.up(int(sys.argv[1]))
"""


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    latest = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < latest, f"{what}: not within {PATIENCE_SECONDS} s"
        time.sleep(0.1)
    return found


def left_by(home: Path) -> list[psutil.Process]:
    """Every process that a command of this home has started, directly or not, and that still lives."""
    return [p for p in psutil.process_iter() if environment_of(p).get(SUPERVISOR, "").startswith(str(home))]


class Project:
    """A project folder in which `bard up` is started and stopped, as a user does in a terminal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "data"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.process: subprocess.Popen[bytes] | None = None
        self.said = folder / "said.txt"
        (folder / "scratch_flows.py").write_text(FLOWS)
        (folder / "prefect.yaml").write_text(DEPLOYMENTS)
        (folder / "corpora").mkdir()
        (folder / "corpora" / "draft.toml").write_text('title = "half')
        (folder / "pyproject.toml").write_text(
            f'[tool.prefect]\napi = {{ url = "{self.url}" }}\n[tool.prefect.plugins]\nenabled = true\n'
        )

    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "BARDFLOW"))}
        return {**clean, "BARDFLOW_PROJECT": str(self.folder), "BARDFLOW_HOME": str(self.home)}

    def start(self) -> subprocess.Popen[bytes]:
        """`bard up` on this project's port, when it has said that it is up."""
        if self.process is None or self.process.poll() is not None:
            with self.said.open("wb") as said:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", UP, str(self.port)],
                    env=self.environment(),
                    cwd=self.folder.parent,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                )
            wait_for(lambda: "is up:" in self.text() or self.ended(), "bard up")
            assert not self.ended(), self.text()
        return self.process

    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def text(self) -> str:
        return self.said.read_text()

    def prefect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command as a user types it in the project's folder."""
        return subprocess.run(
            [Path(sys.executable).with_name("prefect"), *arguments],
            cwd=self.folder,
            env={**self.environment(), "HOME": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )

    def ask(self, path: str, question: dict[str, Any]) -> Any:
        with api(self.url) as client:
            return client.post(path, json=question).raise_for_status().json()

    def run(self, run_id: str) -> dict[str, Any]:
        (run,) = self.ask("/flow_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
        return dict(run)

    def begin(self, *arguments: str) -> str:
        """A run of the flow `wait` that is under way; returns its id."""
        for file in ("gate", "waiting"):
            (self.home / file).unlink(missing_ok=True)
        created = self.prefect("deployment", "run", "wait", *arguments)
        assert created.returncode == 0, created.stdout
        self.wait_for_begin()
        return created.stdout.split("UUID: ")[1].split()[0]

    def wait_for_begin(self) -> None:
        wait_for((self.home / "waiting").exists, "the run is under way")
        (self.home / "waiting").unlink()

    def flow_processes(self, run_id: str) -> list[psutil.Process]:
        return [p for p in self.processes() if environment_of(p).get(FLOW_RUN) == run_id]

    def last_look(self) -> datetime | None:
        """When the server last answered a worker that looked for due runs."""
        (queue,) = self.ask("/work_pools/bardflow/queues/filter", {})
        return datetime.fromisoformat(queue["last_polled"]) if queue["last_polled"] else None

    def tick_runs(self, state: str) -> list[dict[str, Any]]:
        question = {"flows": {"name": {"any_": ["tick"]}}, "flow_runs": {"state": {"type": {"any_": [state]}}}}
        return list(self.ask("/flow_runs/filter", question))

    def processes(self) -> list[psutil.Process]:
        return left_by(self.home)

    def kill(self) -> None:
        """The machine loses power: nothing gets a chance to clean up."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        for process in self.processes():
            if process.is_running():
                process.kill()


@pytest.fixture(scope="module")
def up_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The project, for all tests of a file."""
    project = Project(tmp_path_factory.mktemp("project"))
    yield project
    if project.process is not None:
        project.kill()


@pytest.fixture
def served(up_project: Project) -> Project:
    """The project while `bard up` serves it."""
    up_project.start()
    return up_project


@pytest.fixture
def inside(up_project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """This process is one of the project's own commands."""
    monkeypatch.setenv("BARDFLOW_PROJECT", str(up_project.folder))
    monkeypatch.setenv("BARDFLOW_HOME", str(up_project.home))
    return up_project
