"""Processes, their locks, ports and logs; parts that are started again; flow runs that crashed."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from bardflow.commands.parts import Part
from bardflow.commands.parts import wait_for as wait_for_part
from bardflow.commands.prefect_api import POOL, api, make_pool
from bardflow.commands.processes import Child, UpError, bound_logs, holding, require_free, supervising
from bardflow.commands.project import ProjectError, create_project
from bardflow.commands.runs import MemoryWatch, look_after, why
from bardflow.home import HomeError, held, project_folder, server_url
from tests.conftest import CHECKOUT
from tests.project_up import PATIENCE_SECONDS, left_by, wait_for
from tests.site import Site, refusing, serving


def test_a_taken_port_is_an_error_that_names_the_process_and_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UpError, match=rf"Port {port} .*process {os.getpid()}.*--port 4201"):
            require_free("127.0.0.1", port)


def test_a_port_on_which_nobody_listens_any_more_is_waited_for() -> None:
    with socket.socket() as leaving:
        leaving.bind(("127.0.0.1", 0))
        port = leaving.getsockname()[1]
        with pytest.raises(UpError, match=f"Port {port} on 127.0.0.1 is taken. Stop what uses it"):
            require_free("127.0.0.1", port)
        closing = threading.Timer(0.5, leaving.close)
        closing.start()
        require_free("127.0.0.1", port, PATIENCE_SECONDS)
        closing.join()


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
    "how",
    ["SIGTERM", *(pytest.param(how, marks=pytest.mark.faults) for how in ("SIGINT", "SIGHUP", "SIGKILL", "hung"))],
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


def test_a_part_whose_server_ended_before_it_worked_is_started_again(tmp_path: Path) -> None:
    def begin(name: str, code: str) -> Child:
        log = tmp_path / f"{name}.log"
        log.touch()
        return Child(name, subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE), log)

    working = tmp_path / "working"
    server = Part(lambda: begin("server", "input()"), lambda: True)
    # It ends by itself, as a worker that does not reach the server, until the test lets it work.
    code = f"import os; os.path.exists({str(working)!r}) or input() or exit(1); input()"
    worker = Part(lambda: begin("worker", code), working.exists, needs=server)
    parts = [server, worker]
    wait_for_part(server, parts)
    server.child.process.kill()
    server.child.process.communicate()
    worker.child.process.communicate(b"\n")
    server.look()
    worker.look()
    working.touch()
    wait_for_part(worker, parts)
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


def test_a_request_that_a_busy_server_refuses_is_sent_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bardflow.commands.prefect_api.BUSY_PAUSES_SECONDS", (0, 0))
    site.answers = [refusing(503), refusing(503), serving(b"[1]")]
    with api(site.url) as client:
        assert client.get("/health").json() == [1] and len(site.asked) == 3
        site.answers = [refusing(503)]
        assert client.get("/health").status_code == 503 and len(site.asked) == 6
