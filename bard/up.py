"""Start server, deployments and worker with one command, watch over them, and stop them all with Ctrl-C."""

import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TextIO

import httpx
import psutil
import yaml
from pydantic import BaseModel, ConfigDict

from bard.errors import BardError
from bard.home import healthy, held, home, prefect_environment, project_folder, server_url, up_lock

POOL = "bardflow"
WORKER = "bardflow"
# The port that `[tool.prefect] api.url` in pyproject.toml names, so that a typed `prefect …` reaches the server.
PROJECT_PORT = 4200
UNDER_WAY = ("PENDING", "RUNNING", "CANCELLING")
# Set in every process started here and inherited by the flows' processes: the lock that its supervisor holds.
SUPERVISOR = "BARDFLOW_SUPERVISOR"
FLOW_RUN = "PREFECT__FLOW_RUN_ID"  # Prefect sets it in the process of each flow run
START_SECONDS = 120  # a server on a new home was healthy after 8-22 s on 2 busy cores
STOP_SECONDS = 15
PLAN_SECONDS = 20  # the scheduler looks at changed deployments every 5 s
LOG_LINES = 20


class UpError(BardError):
    """The server, the worker or a deployment could not be started, or ended by itself."""


class Child(NamedTuple):
    """A process of ours and the file that its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


class FlowRun(BaseModel):
    """What is read here of a flow run in Prefect's REST API."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    state_type: str
    run_count: int
    auto_scheduled: bool
    expected_start_time: datetime


class Deployment(BaseModel):
    """What is read here of a deployment in Prefect's REST API; `title` is `<flow>/<deployment>`."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    entrypoint: str
    title: str
    scheduled: bool


def up(port: int = PROJECT_PORT, host: str = "127.0.0.1") -> None:
    """Serve the project until Ctrl-C or SIGTERM: a Prefect server with its UI, all of prefect.yaml, and a worker.

    Runs that are under way when it stops are put back to Scheduled; the next `bard up` takes them up, and their
    finished tasks are answered from the cache. Runs that a killed `bard up` left behind are treated alike.

    Raises:
        UpError: `bard up` already runs in this project, the port is taken, or a part did not start or ended by itself.
    """
    project = project_folder()
    url = f"http://{reachable(host)}:{port}/api"
    with only_one(url), supervising(), stopped_by_signals():
        require_free(host, port)
        children: list[Child] = []
        try:
            bring_up(project, host, port, url, children)
            while True:
                for child in children:
                    require_alive(child)
                time.sleep(0.5)
        except KeyboardInterrupt:
            print("\nStopping …", flush=True)
        finally:
            shut_down(url, children)


@contextmanager
def server() -> Iterator[str]:
    """The API address of a server for one command: that of `bard up` where it runs, else a temporary one.

    Prefect's own temporary server is of no use here: it starts only where no address is set, pyproject.toml sets one,
    and an empty PREFECT_API_URL breaks the client that sends events (3.8.8: "Service 'EventsWorker' failed").
    Put the address into the environment, with `prefect_environment()`, before `import prefect`.

    Raises:
        UpError: the temporary server did not start.
    """
    running = server_url()
    if running is not None:
        yield running
        return
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    options = ["--no-scheduler", "--no-late-runs"]
    with supervising():
        child = start_server(project_folder(), "127.0.0.1", port, "temporary-server", options)
        try:
            wait_until(lambda: healthy(url), [child], START_SECONDS, "The temporary server")
            yield url
        finally:
            stop(child)


def bring_up(project: Path, host: str, port: int, url: str, children: list[Child]) -> None:
    """Start the parts in order and print what runs; `children` grows with each, so that a failure stops them all."""
    print(f"Starting Prefect's server on {url.removesuffix('/api')} …", flush=True)
    server = start_server(project, host, port, "server", [])
    children.append(server)
    wait_until(lambda: healthy(url), children, START_SECONDS, "The server")

    with api(url) as client:
        resumed = reschedule(client, runs_under_way(client))
        if resumed:
            print(f"Cut off by a kill and started again: {names(resumed)}", flush=True)
        make_pool(client)
        print("Deploying prefect.yaml …", flush=True)
        deployments = deploy(client, project)

        since = datetime.now(UTC)
        children.append(start_worker(project, url))
        wait_until(lambda: worker_seen(client, since), children, START_SECONDS, "The worker")
        planned = planned_starts(client, deployments)
    print(status(url, deployments, planned, declared(project)), flush=True)
    if host not in ("127.0.0.1", "localhost", "::1"):
        print(f"Note: on {host} anyone who reaches this machine can start runs; the server asks for no password.")


def shut_down(url: str, children: list[Child]) -> None:
    """Stop the worker, put runs under way back to Scheduled, stop the server, and leave no process behind."""
    ignore_signals()
    servers = [child for child in children if child.name == "server"]
    answering = healthy(url) and any(child.process.poll() is None for child in servers)
    try:
        if answering:
            with api(url) as client:
                before = runs_under_way(client)
                for child in children:
                    if child not in servers:
                        stop(child)
                # A flow's process has a session of its own and may outlive its worker.
                kill(process for process in supervised_by(me()) if FLOW_RUN in environment_of(process))
                cut_off = {run.id for run in [*before, *runs_under_way(client)]}
                again = reschedule(client, read_runs(client, cut_off))
                if again:
                    print(f"Under way, to go on at the next `bard up`: {names(again)}", flush=True)
    finally:
        for child in servers:
            stop(child)
        kill(supervised_by(me()))
    print("Stopped.", flush=True)


# Processes


def start_server(project: Path, host: str, port: int, name: str, options: list[str]) -> Child:
    """Start a Prefect server that logs to `<home>/logs/<name>.log`."""
    url = f"http://{reachable(host)}:{port}/api"
    # With `--port` alone, or with the address in pyproject.toml, the UI would call port 4200.
    address = {"PREFECT_API_URL": url, "PREFECT_SERVER_API_HOST": host, "PREFECT_SERVER_API_PORT": str(port)}
    return start(project, name, ["--no-prompt", "server", "start", *options], address)


def start_worker(project: Path, url: str) -> Child:
    """Start the worker that runs what is due in the pool."""
    # Prefect looks for work every 10 s by default; on one machine 3 s costs nothing that is felt.
    settings = {"PREFECT_API_URL": url, "PREFECT_WORKER_QUERY_SECONDS": "3"}
    return start(project, "worker", ["--no-prompt", "worker", "start", "--pool", POOL, "--name", WORKER], settings)


def start(project: Path, name: str, arguments: list[str], settings: dict[str, str]) -> Child:
    """Start `prefect <arguments>` in the project's folder, in a session of its own so that Ctrl-C does not reach it."""
    log = home() / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".previous.log"))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=project,
            # The home may have been named relative to another folder than the project's, where the process runs.
            env={
                **os.environ,
                **prefect_environment(),
                "BARDFLOW_HOME": str(home()),
                **settings,
                SUPERVISOR: str(me()),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Child(name, process, log)


def stop(child: Child) -> None:
    """End a child: SIGTERM, then after 15 s SIGKILL to its session (a server waits for connected browsers)."""
    if child.process.poll() is None:
        child.process.terminate()
        try:
            child.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()


def require_alive(child: Child) -> None:
    """Raise UpError with the end of its log if the child has ended."""
    exit_status = child.process.poll()
    if exit_status is not None:
        raise UpError(f"The {child.name} ended by itself (exit status {exit_status}). {end_of(child.log)}")


def end_of(log: Path) -> str:
    """The last lines of a log, for a message."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    return f"The end of {log}:\n" + "\n".join(f"    {line}" for line in lines or ["(empty)"])


def wait_until(condition: Callable[[], bool], children: list[Child], seconds: float, what: str) -> None:
    """Wait for the condition while every child lives; raise UpError if one ends or the time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        for child in children:
            require_alive(child)
        if time.monotonic() > deadline:
            raise UpError(f"{what} was not ready after {seconds:.0f} s. {end_of(children[-1].log)}")
        time.sleep(0.2)


def me() -> Path:
    """The lock that this process holds while it supervises others; its path is the mark on all that it starts."""
    return home() / "supervisors" / f"{os.uname().nodename}-{os.getpid()}.lock"


def environment_of(process: psutil.Process) -> dict[str, str]:
    """The environment a process was started with; empty for a process that is gone or another user's."""
    try:
        return process.environ()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return {}


def supervised_by(lock: Path) -> Iterator[psutil.Process]:
    """Every process started, directly or not, by the supervisor that holds or held the lock."""
    return (process for process in psutil.process_iter() if environment_of(process).get(SUPERVISOR) == str(lock))


def stop_leftovers() -> list[psutil.Process]:
    """Kill the processes of this home whose supervisor was killed, and return them."""
    marks = {environment_of(process).get(SUPERVISOR) for process in psutil.process_iter()}
    locks = [Path(mark) for mark in marks if mark is not None and Path(mark).parent == me().parent]
    return kill(process for lock in locks if not held(lock) for process in supervised_by(lock))


def kill(processes: Iterator[psutil.Process]) -> list[psutil.Process]:
    """SIGKILL each process and wait until it is gone. What they were doing is resumed from what is on disk."""
    found = list(processes)
    for process in found:
        if process.is_running():
            process.kill()
    psutil.wait_procs(found, timeout=STOP_SECONDS)
    return found


# One at a time, on a free port, until a signal


@contextmanager
def holding(lock: Path) -> Iterator[TextIO]:
    """Hold a lock that the kernel frees however this process ends, and hand over its open file.

    Raises:
        BlockingIOError: another process holds it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a", encoding="utf-8") as file:
        deadline = time.monotonic() + 1  # `held` takes the lock for an instant to see whether it is free
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield file


@contextmanager
def supervising() -> Iterator[None]:
    """Start and end processes of this home: those of supervisors that were killed are killed first."""
    with holding(me()):
        stopped = stop_leftovers()
        if stopped:
            # On standard error: standard output may be read by a program.
            print(f"Stopped processes left by a command that was killed: {len(stopped)}", file=sys.stderr, flush=True)
        try:
            yield
        finally:
            me().unlink()


@contextmanager
def only_one(url: str) -> Iterator[None]:
    """Be the one `bard up` of this project, and tell other commands its server's address.

    Raises:
        UpError: another process is.
    """
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(holding(up_lock()))
        except BlockingIOError:
            ui = up_lock().read_text(encoding="utf-8").removesuffix("/api")
            raise UpError(
                f"`bard up` already runs in {project_folder()}: {ui}. "
                "To start it anew, stop that one first with Ctrl-C in its terminal."
            ) from None
        lock.truncate(0)
        lock.write(url)
        lock.flush()
        yield


def require_free(host: str, port: int) -> None:
    """Raise UpError unless a server can listen there."""
    if not 0 < port < 65536:
        raise UpError(f"No such port: {port}. Choose one from 1 to 65535, such as `bard up --port {PROJECT_PORT}`.")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise UpError(f"No such host on this machine: {host!r} ({error}). Use --host 127.0.0.1 or 0.0.0.0.") from error
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise UpError(f"Cannot listen on {host}, port {port}: {error.strerror}.") from error
        owner = listener(port)
        raise UpError(
            f"Port {port} on {host} is taken{f' by {owner}' if owner else ''}. "
            f"Stop what uses it, or choose another port: `bard up --port {PROJECT_PORT + 1}`."
        ) from error


def listener(port: int) -> str | None:
    """The process that listens on the port, as `name (process 123)`; None where the system does not tell."""
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listens and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return None  # macOS tells only the superuser
    return None


def reachable(host: str) -> str:
    """The host as it stands in an address: a server on every interface is reached by loopback."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into KeyboardInterrupt; later ones are ignored while things stop."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        ignore_signals()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Let nothing interrupt the stopping; what a kill interrupts, the next `bard up` mends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


# Prefect's REST API


def api(url: str) -> httpx.Client:
    """A client of the server; Prefect's own would take 1.5 s and 60 MB to import, for a handful of requests."""
    return httpx.Client(base_url=url, timeout=60, trust_env=False)


def ask(client: httpx.Client, path: str, question: dict[str, Any]) -> Any:
    """POST a question and return the answer.

    Raises:
        UpError: the server refused it or did not answer.
    """
    try:
        response = client.post(path, json=question)
        response.raise_for_status()
    except httpx.HTTPStatusError as error:
        raise UpError(f"The server refused {path}: {error.response.status_code} {error.response.text}") from error
    except httpx.HTTPError as error:
        raise UpError(f"The server did not answer {path}: {error!r}. Its log is {home() / 'logs'}.") from error
    return response.json() if response.content else None


def runs_under_way(client: httpx.Client) -> list[FlowRun]:
    """The runs of our pool that some process is, or should be, busy with."""
    question = {
        "work_pools": {"name": {"any_": [POOL]}},
        "flow_runs": {"state": {"type": {"any_": UNDER_WAY}}},
        "limit": 200,  # the most that the server gives at once; a machine runs a handful
    }
    return [FlowRun.model_validate(run) for run in ask(client, "/flow_runs/filter", question)]


def read_runs(client: httpx.Client, ids: set[str]) -> list[FlowRun]:
    """Those flow runs as they are now."""
    answers = ask(client, "/flow_runs/filter", {"flow_runs": {"id": {"any_": sorted(ids)}}})
    return [FlowRun.model_validate(run) for run in answers]


def reschedule(client: httpx.Client, runs: list[FlowRun]) -> list[FlowRun]:
    """Set runs whose process is dead back to Scheduled and return them; a run that was to be cancelled is Cancelled.

    A run that has ended by itself meanwhile is left as it is, and so is one that lives, on a worker of the user's own.
    """
    alive = {environment_of(process).get(FLOW_RUN) for process in psutil.process_iter()}
    again = []
    for run in runs:
        if run.id in alive or run.state_type in ("COMPLETED", "FAILED", "CANCELLED", "SCHEDULED", "PAUSED"):
            continue
        for task in ask(client, "/task_runs/filter", unfinished_tasks(run)):
            crashed = {"type": "CRASHED", "message": "The process of the flow run was stopped."}
            ask(client, f"/task_runs/{task['id']}/set_state", {"state": crashed, "force": True})
        if run.state_type == "CANCELLING":
            state: dict[str, Any] = {
                "type": "CANCELLED",
                "message": "Cancelled; its process was stopped with `bard up`.",
            }
        else:
            state = resuming(run)
            again.append(run)
        # Forced, since no rule leads back from Running. The place in the concurrency limit is freed all the same.
        ask(client, f"/flow_runs/{run.id}/set_state", {"state": state, "force": True})
    return again


def unfinished_tasks(run: FlowRun) -> dict[str, Any]:
    """The question for the run's tasks that were never told to have ended."""
    return {
        "flow_runs": {"id": {"any_": [run.id]}},
        "task_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}},
    }


def resuming(run: FlowRun) -> dict[str, Any]:
    """The Scheduled state, due at once, that makes a worker take up the run again."""
    # Deploying deletes automatically scheduled runs that never ran, except those that wait for a place (Prefect 3.8.8).
    name = "AwaitingConcurrencySlot" if run.auto_scheduled and run.run_count == 0 else "Resuming"
    return {
        "type": "SCHEDULED",
        "name": name,
        "message": "`bard up` stopped while the run was under way; it goes on from its last finished task.",
        "state_details": {"scheduled_time": datetime.now(UTC).isoformat()},
    }


def make_pool(client: httpx.Client) -> None:
    """Make the work pool if there is none; one that the user has changed stays as it is."""
    pool = {"name": POOL, "type": "process", "description": "Flow runs as processes on this machine, by `bard up`."}
    response = client.post("/work_pools/", json=pool)
    if response.status_code not in (httpx.codes.CREATED, httpx.codes.CONFLICT):
        raise UpError(f"The server refused the work pool {POOL!r}: {response.status_code} {response.text}")


def deploy(client: httpx.Client, project: Path) -> list[Deployment]:
    """Make the server's deployments those of prefect.yaml, and return all that the server has then.

    Raises:
        UpError: Prefect refused the file, or skipped an entry that it could not read, with the end of what it said.
    """
    child = start(project, "deploy", ["--no-prompt", "deploy", "--all"], {"PREFECT_API_URL": str(client.base_url)})
    exit_status = child.process.wait()
    if exit_status != 0:
        raise UpError(f"Prefect could not deploy {project / 'prefect.yaml'}. {end_of(child.log)}")
    deployments = all_deployments(client)
    if not deployments:
        raise UpError(f"There is no deployment in {project / 'prefect.yaml'}. {end_of(child.log)}")
    missing = declared(project) - {(deployment.entrypoint, deployment.name) for deployment in deployments}
    if missing:
        skipped = ", ".join(f"{name} of {entrypoint}" for entrypoint, name in sorted(missing))
        raise UpError(f"Prefect skipped {skipped} in {project / 'prefect.yaml'}. {end_of(child.log)}")
    return deployments


def all_deployments(client: httpx.Client) -> list[Deployment]:
    """Every deployment on the server, by title."""
    flows = {flow["id"]: flow["name"] for flow in ask(client, "/flows/filter", {})}
    found = [
        Deployment(
            id=answer["id"],
            name=answer["name"],
            entrypoint=answer["entrypoint"],
            title=f"{flows[answer['flow_id']]}/{answer['name']}",
            scheduled=not answer["paused"] and any(schedule["active"] for schedule in answer["schedules"]),
        )
        for answer in ask(client, "/deployments/filter", {})
    ]
    return sorted(found, key=lambda deployment: deployment.title)


def declared(project: Path) -> set[tuple[str, str]]:
    """Entry point and name of each deployment in prefect.yaml."""
    content = yaml.safe_load((project / "prefect.yaml").read_text(encoding="utf-8"))
    return {(entry["entrypoint"], entry["name"]) for entry in content["deployments"]}


def worker_seen(client: httpx.Client, since: datetime) -> bool:
    """Whether our worker has reported to the server since then."""
    workers = ask(client, f"/work_pools/{POOL}/workers/filter", {})
    return any(
        worker["name"] == WORKER and datetime.fromisoformat(worker["last_heartbeat_time"]) >= since
        for worker in workers
    )


def planned_starts(client: httpx.Client, deployments: list[Deployment]) -> dict[str, datetime]:
    """The next planned start by deployment id; waits up to 20 s until each active schedule has one."""
    wanted = [deployment.id for deployment in deployments if deployment.scheduled]
    deadline = time.monotonic() + PLAN_SECONDS
    while True:
        planned = {}
        for deployment_id in wanted:
            question = {
                "deployments": {"id": {"any_": [deployment_id]}},
                "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
                "sort": "EXPECTED_START_TIME_ASC",
                "limit": 1,
            }
            for run in ask(client, "/flow_runs/filter", question):
                planned[deployment_id] = FlowRun.model_validate(run).expected_start_time
        if len(planned) == len(wanted) or time.monotonic() > deadline:
            return planned
        time.sleep(0.5)


# What is said


def status(url: str, deployments: list[Deployment], planned: dict[str, datetime], wanted: set[tuple[str, str]]) -> str:
    """What runs now, when the next runs are due in local time, and what to type."""
    width = max(len(deployment.title) for deployment in deployments)
    lines = ["", f"bardflow is up: {url.removesuffix('/api')}", ""]
    for deployment in deployments:
        due = planned.get(deployment.id)
        if due is not None:
            when = f"next {due.astimezone():%a %d %b %H:%M %Z}"
        elif deployment.scheduled:
            when = f"no run planned after {PLAN_SECONDS} s: see {home() / 'logs' / 'server.log'}"
        else:
            when = "no schedule"
        if (deployment.entrypoint, deployment.name) not in wanted:
            when += "; not in prefect.yaml, remove it with `prefect deployment delete`"
        lines.append(f"  {deployment.title:<{width}}  {when}")
    # Defaults first, since their names can be shortened.
    example = min((deployment.title for deployment in deployments), key=lambda title: not title.endswith("/default"))
    lines += [
        "",
        f"Run one:  {typed_prefect(url)} deployment run {example.removesuffix('/default')} --watch",
        f"Logs:     {home() / 'logs'}",
        "Stop:     Ctrl-C; a run under way goes on from its last finished task at the next `bard up`",
    ]
    return "\n".join(lines)


def typed_prefect(url: str) -> str:
    """How to call this environment's `prefect` so that it reaches this server from the project's folder."""
    ours = Path(sys.executable).with_name("prefect")
    found = shutil.which("prefect")
    command = "prefect" if found and Path(found) == ours else str(ours)
    return command if f":{PROJECT_PORT}/" in url else f"PREFECT_API_URL={url} {command}"


def names(runs: list[FlowRun]) -> str:
    """The runs' names in a row."""
    return ", ".join(run.name for run in runs)
