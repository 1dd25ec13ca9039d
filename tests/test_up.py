"""`bard up` serves a project, and whatever stops it, no run is lost. A small project of its own, a real server."""

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from bardflow.commands.prefect_api import api, deploy
from bardflow.commands.processes import (
    SUPERVISOR,
    Child,
    UpError,
    bound_logs,
    environment_of,
    holding,
    require_free,
    wait_until,
)
from bardflow.commands.project import ProjectError, create_project
from bardflow.commands.up import server, up
from bardflow.home import HomeError, held, prefect_environment, project_folder, server_url
from tests.conftest import CHECKOUT, give_database

FLOWS = """
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
def wait(recipe: Literal["small", "tiny"] = "small") -> str:
    note("begin")
    (HOME / "waiting").touch()
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
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


# So long is waited on a machine that is busy with other things; a limit only for a test that would wait for ever.
PATIENCE_SECONDS = 600


# `bard up`, as patient as the test: of its own it says after 20 s that the scheduler has planned no run.
UP = f"""
import sys
from bardflow.commands import prefect_api, up
prefect_api.PLAN_SECONDS = up.START_SECONDS = {PATIENCE_SECONDS}
up.up(int(sys.argv[1]))
"""


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    latest = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < latest, f"{what}: not within {PATIENCE_SECONDS} s"
        time.sleep(0.1)
    return found


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

    def last_look(self) -> datetime | None:
        """When the server last answered a worker that looked for due runs."""
        (queue,) = self.ask("/work_pools/bardflow/queues/filter", {})
        return datetime.fromisoformat(queue["last_polled"]) if queue["last_polled"] else None

    def tick_runs(self, state: str) -> list[dict[str, Any]]:
        question = {"flows": {"name": {"any_": ["tick"]}}, "flow_runs": {"state": {"type": {"any_": [state]}}}}
        return list(self.ask("/flow_runs/filter", question))

    def processes(self) -> list[psutil.Process]:
        """Every process that a `bard up` of this project has started, directly or not, and that still lives."""
        return [p for p in psutil.process_iter() if environment_of(p).get(SUPERVISOR, "").startswith(str(self.home))]

    def kill(self) -> None:
        """The machine loses power: nothing gets a chance to clean up."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        for process in self.processes():
            if process.is_running():
                process.kill()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, prefect_database: Path) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("project"))
    give_database(project.home, prefect_database)
    yield project
    if project.process is not None:
        project.kill()


@pytest.fixture
def served(project: Project) -> Project:
    project.start()
    return project


@pytest.fixture
def inside(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """This process is one of the project's own commands."""
    monkeypatch.setenv("BARDFLOW_PROJECT", str(project.folder))
    monkeypatch.setenv("BARDFLOW_HOME", str(project.home))
    return project


def test_a_taken_port_is_an_error_that_names_the_process_and_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UpError, match=rf"Port {port} .*process {os.getpid()}.*--port 4201"):
            require_free("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 0, "No such port: 0"),
        ("127.0.0.1", 70000, "No such port: 70000"),
        ("192.0.2.1", 4200, "Cannot listen"),
    ],
)
def test_an_address_that_cannot_be_served_is_refused(host: str, port: int, message: str) -> None:
    with pytest.raises(UpError, match=message):
        require_free(host, port)


def test_a_folder_without_prefect_yaml_is_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARDFLOW_PROJECT", str(tmp_path))
    with pytest.raises(HomeError, match=r"no prefect\.yaml.*bard init"):
        project_folder()


def test_the_nearest_project_around_the_working_directory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BARDFLOW_PROJECT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert project_folder() == CHECKOUT, "no project is around it, so that of the program"
    (tmp_path / "prefect.yaml").write_text("name: another\n")
    assert project_folder() == CHECKOUT, "another program's is none of ours"
    create_project(tmp_path / "mine")
    (tmp_path / "mine" / "deep" / "down").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "mine" / "deep" / "down")
    assert project_folder() == tmp_path / "mine"


def test_a_new_project_has_all_that_it_needs_and_overwrites_nothing(tmp_path: Path) -> None:
    made = create_project(tmp_path / "mine")
    assert set(made) == {path.name for path in (tmp_path / "mine").iterdir()}
    for name in ("prefect.yaml", "corpora/tiny-shakespeare.toml", "recipes/small.toml"):
        assert (tmp_path / "mine" / name).read_bytes() == (CHECKOUT / name).read_bytes()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "prefect.yaml").write_text("name: another\n")
    with pytest.raises(ProjectError, match=r"has prefect\.yaml already"):
        create_project(tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["prefect.yaml"]


def test_where_nothing_is_up_there_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARDFLOW_HOME", str(tmp_path))
    assert server_url() is None


def test_a_killed_holder_frees_its_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert not held(lock)
    code = "import pathlib, sys, bardflow.commands.processes as p\nwith p.holding(pathlib.Path(sys.argv[1])): input()"
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE) as holder:
        wait_for(lambda: held(lock), "the lock is held")
        with pytest.raises(BlockingIOError), holding(lock):
            pass
        holder.kill()
        wait_for(lambda: not held(lock), "the lock is free, though nobody has waited for the killed process yet")
        with holding(lock):
            assert held(lock)


def test_what_was_not_ready_in_time_is_named_with_its_own_log(tmp_path: Path) -> None:
    children = []
    for name in ("server", "reports", "worker"):
        log = tmp_path / f"{name}.log"
        log.write_text(f"what the {name} said\n")
        children.append(Child(name, subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE), log))
    try:
        with pytest.raises(UpError, match=r"(?s)Not ready after 0 s: the reports\..*what the reports said"):
            wait_until(lambda: False, children[1], children, 0)
    finally:
        for child in children:
            child.process.communicate(b"\n")
    with pytest.raises(UpError, match=r"(?s)The server ended by itself.*what the server said"):
        wait_until(lambda: False, children[1], children, 60)


def test_a_log_that_grew_too_long_is_cut_while_its_process_writes_on(tmp_path: Path) -> None:
    code = "import sys\nfor line in sys.stdin:\n    print(line.strip() * 100, flush=True)"
    log = tmp_path / "talker.log"
    with log.open("ab") as output:
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=output, text=True)
    child = Child("talker", process, log)
    assert process.stdin is not None
    for number in range(5):
        process.stdin.write(f"line {number}\n")
        process.stdin.flush()
        wait_for(lambda number=number: f"line {number}" in log.read_text(), "the line is there")
        bound_logs([child], most=1000)
        assert log.stat().st_size <= 1000
    process.communicate()
    assert log.read_text() == "line 4" * 100 + "\n", "nothing before it, no hole either"
    assert log.with_suffix(".previous.log").read_text() == "".join(f"line {n}" * 100 + "\n" for n in (2, 3))


def test_deployments_and_their_next_starts_are_said(served: Project) -> None:
    lines = {line.split()[0]: line for line in served.text().splitlines() if "/" in line and line.startswith("  ")}
    assert "next" in lines["tick/often"]
    assert "no schedule" in lines["wait/default"]
    assert f"http://127.0.0.1:{served.port}" in served.text()
    assert "wait/default" in served.prefect("deployment", "ls").stdout


def test_the_reports_are_served_beside_the_ui(served: Project) -> None:
    [address] = re.findall(r"Reports: +(http://127\.0\.0\.1:\d+)$", served.text(), re.MULTILINE)
    page = httpx.get(address, timeout=PATIENCE_SECONDS, trust_env=False).raise_for_status().text
    assert "<h1>Reports</h1>" in page and "tick/often: interval 5 s UTC" in page
    assert "draft.toml is not valid TOML" in page, "one bad corpus file stops nothing"
    stranger = httpx.get(address, headers={"Host": "example.org"}, timeout=PATIENCE_SECONDS, trust_env=False)
    assert stranger.status_code == 400


def test_the_ui_calls_the_port_it_is_served_from(served: Project) -> None:
    address = f"http://127.0.0.1:{served.port}/ui-settings"
    settings = httpx.get(address, timeout=PATIENCE_SECONDS, trust_env=False).json()
    assert settings["api_url"] == served.url


def test_a_scheduled_run_appears_and_completes(served: Project) -> None:
    runs = wait_for(lambda: served.tick_runs("COMPLETED"), "a scheduled run completes")
    assert runs[0]["auto_scheduled"]
    assert f"Reports:        {(served.home / 'site.txt').read_text()}\n" in served.text()
    # Deploying again follows the file: from here on nothing is scheduled, which saves the machine a run every 5 s.
    (served.folder / "prefect.yaml").write_text(DEPLOYMENTS.replace("active: true", "active: false"))
    assert served.prefect("--no-prompt", "deploy", "--all").returncode == 0
    wait_for(lambda: not served.tick_runs("SCHEDULED"), "what was due has had its turn, and nothing follows")


def test_a_second_up_is_refused_and_names_the_address_of_the_first(served: Project, inside: Project) -> None:
    with pytest.raises(UpError, match=rf"already runs .*http://127.0.0.1:{served.port}"):
        up(free_port())


def test_other_commands_use_the_server_that_is_up(served: Project, inside: Project) -> None:
    with server() as url:
        assert url == served.url


def test_what_prefect_skips_in_silence_is_an_error(served: Project, inside: Project, tmp_path: Path) -> None:
    (tmp_path / "scratch_flows.py").write_text(FLOWS)
    (tmp_path / "prefect.yaml").write_text(
        "deployments:\n  - {name: other, entrypoint: 'scratch_flows:tick', work_pool: {name: bardflow}, "
        "schedules: [{cron: '0 3 * * *', time_zone: UTC}]}\n"
    )
    with api(served.url) as client, pytest.raises(UpError, match=r"prefect\.yaml"):
        deploy(client, tmp_path)


def test_a_wrong_parameter_is_refused_with_the_legal_values(served: Project) -> None:
    refused = served.prefect("deployment", "run", "-p", "recipe=huge", "wait")
    assert refused.returncode == 1
    assert "'huge' is not one of ['small', 'tiny']" in refused.stdout


def test_a_run_under_way_goes_on_after_a_stop_and_after_a_kill(served: Project) -> None:
    # Runs of a schedule that is faster than they are would wait before this one; the next deployment deletes them.
    (served.folder / "prefect.yaml").write_text(DEPLOYMENTS.replace("interval: 5", "interval: 3600"))
    # A bare flow name, literally as documented.
    created = served.prefect("deployment", "run", "wait", "--param", "recipe=tiny")
    assert created.returncode == 0, created.stdout
    run_id = created.stdout.split("UUID: ")[1].split()[0]
    waiting = served.home / "waiting"
    wait_for(waiting.exists, "the run is under way")
    waiting.unlink()

    other = served.prefect("deployment", "run", "tick/often").stdout.split("UUID: ")[1].split()[0]
    # The first look that is noted may have begun before; the second would take the run, and the third comes after.
    for _ in range(3):
        before = served.last_look()
        wait_for(lambda before=before: served.last_look() != before, "the worker looks for due runs")
    assert served.run(other)["state_type"] == "SCHEDULED", "two deployments never run at once"

    process = served.start()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_SECONDS) == 0, served.text()
    assert not served.processes()
    with sqlite3.connect(f"file:{served.home}/prefect/prefect.db?mode=ro", uri=True) as database:
        question = "select state_type, state_name from flow_run where id = ?"
        states = database.execute(question, (run_id,)).fetchall()
    assert states == [("SCHEDULED", "Resuming")]
    database.close()

    served.start()
    wait_for(waiting.exists, "the run is under way again")
    waiting.unlink()
    served.kill()

    served.start()
    run = served.run(run_id)
    assert f"Interrupted runs, started again: {run['name']}" in served.text()
    (served.home / "gate").touch()
    wait_for(lambda: served.run(run_id)["state_type"] == "COMPLETED", "the run completes")
    wait_for(lambda: served.run(other)["state_type"] == "COMPLETED", "and the other one")
    assert served.run(run_id)["run_count"] == 3
    # The task that had finished before the stop was answered from the cache both times.
    notes = (served.home / "notes.txt").read_text().split()
    assert [line for line in notes if line != "tick"] == ["begin", "end"]


def test_a_part_that_dies_stops_all_and_its_log_is_shown(served: Project) -> None:
    process = served.start()
    (prefect_server,) = [p for p in served.processes() if "server" in p.cmdline()]
    prefect_server.kill()
    assert process.wait(PATIENCE_SECONDS) == 1
    assert "The server ended by itself" in served.text()
    assert not served.processes()


def test_without_up_a_command_has_a_temporary_server_on_the_same_data(inside: Project) -> None:
    if inside.process is not None and not inside.ended():
        inside.process.send_signal(signal.SIGINT)
        inside.process.wait(PATIENCE_SECONDS)
    with server() as url:
        assert url != inside.url
        assert httpx.get(f"{url}/health", timeout=PATIENCE_SECONDS, trust_env=False).text == "true"
    assert not inside.processes()
    assert prefect_environment()["PREFECT_HOME"] == str(inside.home / "prefect")
