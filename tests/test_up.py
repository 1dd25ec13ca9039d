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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from bardflow.commands.parts import Part
from bardflow.commands.parts import wait_for as wait_for_part
from bardflow.commands.prefect_api import POOL, api, deploy, make_pool
from bardflow.commands.processes import (
    FLOW_RUN,
    SUPERVISOR,
    Child,
    UpError,
    bound_logs,
    environment_of,
    holding,
    require_free,
    supervising,
)
from bardflow.commands.project import ProjectError, create_project
from bardflow.commands.runs import MemoryWatch, look_after, why
from bardflow.commands.up import server, up
from bardflow.home import HomeError, held, prefect_environment, project_folder, server_url
from tests.conftest import CHECKOUT, give_database

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
    with socket.create_server(("127.0.0.1", 0)) as probe:
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
        (self.home / "gate").unlink(missing_ok=True)
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


# A command with a child, which has a child of its own as a worker has.
COMMAND = """
import ctypes, sys, time
from bardflow.commands.processes import start, supervising
from bardflow.home import project_folder
with supervising():
    start(project_folder(), "child", [], {}, module="parent")
    print("started", flush=True)
    if sys.argv[1] == "hung":
        # Taking a mutex twice hangs, and no signal handler of Python runs meanwhile.
        mutex, library = ctypes.create_string_buffer(256), ctypes.PyDLL(None)
        library.pthread_mutex_init(mutex, None), library.pthread_mutex_lock(mutex), library.pthread_mutex_lock(mutex)
    time.sleep(3600)
"""


@pytest.mark.parametrize(
    "how", ["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL", pytest.param("hung", marks=pytest.mark.faults)]
)
def test_however_a_command_ends_it_leaves_no_process_that_it_started(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BARDFLOW_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "parent.py").write_text(
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(3600)'])\n"
    )
    number = signal.SIGTERM if how == "hung" else signal.Signals[how]
    command = [sys.executable, "-c", COMMAND, how]
    # Under nohup or in the background of a shell, the tests ignore signals, and so would the command.
    with subprocess.Popen(
        command,
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: number != signal.SIGKILL and signal.signal(number, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"started\n"
        started = wait_for(lambda: found if len(found := left_by(tmp_path)) == 2 else None, "both children run")
        process.send_signal(number)
        expected = {"SIGINT": -signal.SIGINT, "SIGKILL": -signal.SIGKILL, "hung": -signal.SIGKILL}
        assert process.wait(PATIENCE_SECONDS) == expected.get(how, 128 + number)
    wait_for(lambda: not any(one.is_running() for one in started), "both children end")
    with supervising():
        pass
    assert list((tmp_path / "supervisors").iterdir()) == []


def test_a_signal_that_is_ignored_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARDFLOW_HOME", str(tmp_path))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with supervising():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_part_that_never_worked_is_named_with_its_own_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bardflow.commands.parts.READY_SECONDS", 0)
    parts = []
    for name, code in (("server", "input()"), ("reports", "raise SystemExit(3)")):
        log = tmp_path / f"{name}.log"
        log.write_text(f"what the {name} said\n")
        command = [sys.executable, "-c", code]
        child = Child(name, subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True), log)
        parts.append(Part(lambda child=child: child, lambda: False, spare=True))
    try:
        with pytest.raises(UpError, match=r"(?s)The server was not ready after 0 s\..*what the server said"):
            wait_for_part(parts[0], parts)
        parts[1].child.process.wait()
        with pytest.raises(
            UpError, match=r"(?s)The reports ended by itself \(exit status 3\)\..*what the reports said"
        ):
            wait_for_part(parts[1], parts[1:])
    finally:
        for part in parts:
            part.child.process.kill()
            part.child.process.communicate()


@pytest.mark.faults
def test_a_part_that_ends_is_started_again_after_growing_pauses_and_given_up_if_it_cannot_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bardflow.commands.parts.LONGEST_PAUSE_SECONDS", 2)
    log, works = tmp_path / "part.log", tmp_path / "works"
    log.write_text("no such colour\n")

    def begin() -> Child:
        code = "import pathlib, sys, time; time.sleep(3600) if pathlib.Path(sys.argv[1]).exists() else sys.exit(7)"
        return Child("part", subprocess.Popen([sys.executable, "-c", code, str(works)]), log)

    works.touch()
    part = Part(begin, works.exists)

    def is_ready() -> bool:
        part.look()
        return part.is_ready

    for pause in (1, 2, 2):
        wait_for(is_ready, "the part is ready")
        part.child.process.kill()
        wait_for(lambda: not is_ready(), "its end is seen")
        assert f"part: ended by itself (exit status -9); starting it again in {pause} s" in capsys.readouterr().err
    works.unlink()
    with pytest.raises(UpError, match=r"(?s)exit status 7\); 5 starts in a row failed.*no such colour"):
        wait_for(is_ready, "it is given up")


@pytest.fixture
def crashed(server_url: str) -> Iterator[tuple[httpx.Client, Callable[[str], dict[str, Any]]]]:
    """A client, and a function that lets a new or given run crash for a reason and returns its id."""
    with api(server_url) as client:
        make_pool(client)

        def post(path: str, question: dict[str, Any]) -> dict[str, Any]:
            return dict(client.post(path, json=question).raise_for_status().json())

        flow = post("/flows/", {"name": "crashing"})
        question = {"name": "default", "flow_id": flow["id"], "work_pool_name": POOL, "entrypoint": "a:b"}
        deployment = post("/deployments/", question)
        run = post(f"/deployments/{deployment['id']}/create_flow_run", {})

        def crash(message: str) -> dict[str, Any]:
            state = {"type": "CRASHED", "message": message}
            post(f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})
            [line] = list(look_after(client, MemoryWatch(Path("/nothing"))))
            after = client.get(f"/flow_runs/{run['id']}").raise_for_status().json()
            return {**after["state"], "line": line}

        yield client, crash


def test_a_crashed_run_is_run_again_three_times_with_pauses_and_then_failed_with_the_reason(crashed: Any) -> None:
    client, crash = crashed
    for time_, pause in enumerate((10, 30, 90), start=1):
        state = crash("Process exited with status code: -11.")
        assert (state["type"], state["name"]) == ("SCHEDULED", "AwaitingRetry")
        due = datetime.fromisoformat(state["state_details"]["scheduled_time"])
        assert due > datetime.now(UTC) - timedelta(seconds=PATIENCE_SECONDS)
        assert f"run again in {pause} s ({time_} of 3 times). Process exited with status code: -11." in state["message"]
    state = crash("Process exited with status code: -11.")
    assert state["type"] == "FAILED"
    assert re.search(r"crashed 4 times and is not run again.*-11.*flow-run retry", state["message"])
    assert "memory" not in state["line"]
    assert not list(look_after(client, MemoryWatch())), "nothing is left to do"


@pytest.mark.parametrize(
    ("message", "told"),
    [("Process exited with status code: -9. Killed.", True), ("Process exited with status code: 1.", False)],
)
def test_out_of_memory_is_told_apart_by_the_kernels_counter_and_a_limit_is_proposed(
    message: str, told: bool, tmp_path: Path
) -> None:
    counters = tmp_path / "vmstat"
    counters.write_text("nr_free_pages 5\noom_kill 3\n")
    memory = MemoryWatch(counters)
    assert why(message, memory) == message
    counters.write_text("nr_free_pages 5\noom_kill 4\n")
    assert ("BARDFLOW_MEMORY_LIMIT" in why(message, memory)) == told
    assert why("Process exited with status code: -9.", MemoryWatch(tmp_path / "none")).endswith("-9.")


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
    run_id = served.begin("--param", "recipe=tiny")
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
    served.wait_for_begin()
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


@pytest.mark.faults
def test_a_killed_part_is_back_and_the_run_under_way_finishes_by_itself(served: Project) -> None:
    run_id = served.begin()
    for part, word in (("worker", "worker"), ("server", "server"), ("reports", "--serve")):
        (process,) = [p for p in served.processes() if word in p.cmdline()]
        process.kill()
        wait_for(lambda part=part: f"{part}: up again" in served.text(), f"the {part} is back")
        assert f"{part}: ended by itself (exit status -9); starting it again in 1 s" in served.text()
        if part == "worker":  # nobody could cancel its run
            served.wait_for_begin()
    for process in served.flow_processes(run_id):
        process.kill()
    served.wait_for_begin()
    assert "It crashed and is run again in 1 s (1 of 3 times)" in served.text()
    (served.home / "gate").touch()
    wait_for(lambda: served.run(run_id)["state_type"] == "COMPLETED", "the run completes")
    assert served.run(run_id)["run_count"] == 3


@pytest.mark.faults
def test_a_run_that_is_cancelled_ends_even_if_it_hears_no_signal(served: Project) -> None:
    run_id = served.begin("--param", "deaf=true")
    processes = served.flow_processes(run_id)
    assert processes
    assert served.prefect("flow-run", "cancel", run_id).returncode == 0
    wait_for(lambda: served.run(run_id)["state_type"] == "CANCELLED", "the run is cancelled")
    wait_for(lambda: not any(process.is_running() for process in processes), "its process has ended")


def test_without_up_a_command_has_a_temporary_server_on_the_same_data(inside: Project) -> None:
    if inside.process is not None and not inside.ended():
        inside.process.send_signal(signal.SIGINT)
        inside.process.wait(PATIENCE_SECONDS)
    with server() as url:
        assert url != inside.url
        assert httpx.get(f"{url}/health", timeout=PATIENCE_SECONDS, trust_env=False).text == "true"
    assert not inside.processes()
    assert prefect_environment()["PREFECT_HOME"] == str(inside.home / "prefect")
