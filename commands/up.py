"""`bard up`: start and supervise a server, a worker and all deployments until Ctrl-C."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx

from bardflow.commands.parts import LOOK_SECONDS as PART_SECONDS
from bardflow.commands.parts import Part, kept_up, tell, wait_for
from bardflow.commands.prefect_api import (
    PLAN_SECONDS,
    POOL,
    WORKER,
    Deployment,
    FlowRun,
    api,
    declared,
    deploy,
    make_automation,
    make_pool,
    planned_starts,
    read_runs,
    reschedule,
    runs_under_way,
    worker_seen,
)
from bardflow.commands.processes import (
    FLOW_RUN,
    PORT_SECONDS,
    PROJECT_PORT,
    Child,
    UpError,
    bound_logs,
    environment_of,
    kill_all,
    me,
    only_one,
    reachable,
    require_free,
    require_password,
    start,
    stop,
    supervised_by,
    supervising,
)
from bardflow.commands.runs import LOOK_SECONDS, MemoryWatch, look_after
from bardflow.home import HISTORY_DAYS, REPORTS_SITE, healthy, home, project_folder, server_url

# The reports site takes the first free port of this many after the server's port.
REPORTS_PORTS = 20

T = TypeVar("T")


def up(port: int = PROJECT_PORT, host: str = "127.0.0.1") -> None:
    """Serve the project until Ctrl-C or SIGTERM: a Prefect server with its UI, all deployments, and a worker.

    A part that ends is started again, and a flow run whose process was killed is run again (`runs.look_after`). When
    `bard up` stops, it sets active runs back to Scheduled. The next one resumes them, and their finished tasks come
    from the cache. The same holds for runs of a killed `bard up`.

    Raises:
        UpError: others can reach the host and no password is set, `bard up` already runs in this project, the port is
            in use, or a part could not be started.
    """
    require_password(host)
    project = project_folder()
    url = f"http://{reachable(host)}:{port}/api"
    with only_one(url), supervising():
        require_free(host, port, PORT_SECONDS)
        parts: list[Part] = []
        try:
            bring_up(project, host, port, url, parts)
            keep_up(url, parts)
        except (KeyboardInterrupt, SystemExit):
            print("\nStopping …", flush=True)
        finally:
            shut_down(url, parts)


@contextmanager
def server() -> Iterator[str]:
    """Yield the API address of a server for one command: that of a running `bard up`, else of a temporary server.

    Raises:
        UpError: the temporary server did not start.
    """
    with starting_server() as ready:
        yield ready()


@contextmanager
def starting_server() -> Iterator[Callable[[], str]]:
    """Start the server of `server()`, and yield a function that waits until it is ready and returns its API address.

    Prefect starts its own temporary server only if no address is set. But pyproject.toml sets one, and an empty
    PREFECT_API_URL breaks Prefect's event client (3.8.8: "Service 'EventsWorker' failed"). Set the address in the
    environment, with `prefect_environment()`, before `import prefect`.

    The function raises UpError if the temporary server did not start.
    """
    running = server_url()
    if running is not None:
        yield lambda: running
        return
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    options = ["--no-scheduler", "--no-late-runs"]
    with supervising(), ExitStack() as stack:
        part = Part(
            lambda: start_server(project_folder(), "127.0.0.1", port, "temporary-server", options),
            lambda: healthy(url),
        )
        stack.callback(lambda: stop(part.child))

        def ready() -> str:
            wait_for(part, [part])
            stack.enter_context(kept_up(part))
            return url

        yield ready


@contextmanager
def running_flows(prepare: Callable[[], Any] = lambda: None) -> Iterator[Any]:
    """Let this process run flows on `server()`, and wait at the end until their last log lines and states are there.

    While the server starts, which takes seconds, `prepare` imports what the flows need, which takes seconds too, and
    checks the input. Its result is yielded.
    """
    with starting_server() as ready:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogHandler
        from prefect.settings import PREFECT_API_URL, temporary_settings

        prepared = prepare()
        with temporary_settings({PREFECT_API_URL: ready()}):
            try:
                yield prepared
            finally:
                APILogHandler().flush()
                EventsWorker.drain_all(timeout=5)


def bring_up(project: Path, host: str, port: int, url: str, parts: list[Part]) -> None:
    """Start all parts in order and print the status. Each is added to `parts`, so a failure stops all of them."""
    print(f"Starting Prefect's server on {url.removesuffix('/api')} …", flush=True)
    server = Part(lambda: start_server(project, host, port, "server", []), lambda: healthy(url))
    parts.append(server)
    own = reports_port(host, port)
    where = f"http://{reachable(host)}:{own}"
    reports = Part(lambda: start_reports(project, host, own), lambda: answers(where), spare=True)
    parts.append(reports)
    print("Deploying prefect.yaml …", flush=True)
    deployments = while_up(server, parts, lambda: set_up(project, url))
    worker = while_up(
        server,
        parts,
        lambda: Part(
            lambda: start_worker(project, url, where), lambda: worker_answers(url, worker.since), needs=server
        ),
    )
    parts.append(worker)
    wait_for(worker, parts)
    planned = while_up(server, parts, lambda: next_starts(url, deployments))
    wait_for(reports, parts)
    print(status(url, where, deployments, planned, declared(project)), flush=True)


def while_up(server: Part, parts: list[Part], work: Callable[[], T]) -> T:
    """Do some work with the server, once more if the server ended meanwhile, and return its result.

    Raises:
        UpError: the work failed, and the server had not ended; or a part could not be started.
    """
    while True:
        wait_for(server, parts)
        child = server.child
        try:
            return work()
        except UpError:
            try:
                child.process.wait(2)  # it may be about to end
            except subprocess.TimeoutExpired:
                pass
            else:
                server.look()
                continue
            raise


def set_up(project: Path, url: str) -> list[Deployment]:
    """Set interrupted runs back to Scheduled, create the work pool, and deploy prefect.yaml."""
    with api(url) as client:
        resumed = reschedule(client, runs_under_way(client))
        if resumed:
            print(f"Interrupted runs, started again: {names(resumed)}", flush=True)
        make_pool(client)
        make_automation(client)
        return deploy(client, project)


def next_starts(url: str, deployments: list[Deployment]) -> dict[str, datetime]:
    """Return each deployment's next planned start by id."""
    with api(url) as client:
        return planned_starts(client, deployments)


def keep_up(url: str, parts: list[Part]) -> None:
    """Start parts again that end, and look after flow runs, until a signal ends it.

    Raises:
        UpError: a part could not be started several times in a row.
    """
    memory = MemoryWatch()
    due = 0.0
    while True:
        for part in parts:
            part.look()
        bound_logs([part.child for part in parts])
        if parts[0].is_ready and time.monotonic() >= due:
            # Without an answer of the server, which may just have ended, the runs are looked after the next time.
            with api(url) as client, suppress(UpError, httpx.HTTPError):
                for line in look_after(client, memory):
                    tell(line)
            due = time.monotonic() + LOOK_SECONDS
        time.sleep(PART_SECONDS)


def shut_down(url: str, parts: list[Part]) -> None:
    """Kill the worker and its flow runs, set these back to Scheduled, stop the server, and kill what remains.

    The worker is not asked to stop, because it would wait up to 30 s for its flow runs.
    """
    servers = [part.child for part in parts if part.child.name == "server"]
    answering = healthy(url) and any(child.process.poll() is None for child in servers)
    try:
        if answering:
            with api(url) as client:
                before = runs_under_way(client)
                kill_all(lambda: (p for p in supervised_by(me()) if p.pid not in [one.process.pid for one in servers]))
                cut_off = {run.id for run in [*before, *runs_under_way(client)]}
                again = reschedule(client, read_runs(client, cut_off))
                if again:
                    print(f"Interrupted runs, to resume at the next `bard up`: {names(again)}", flush=True)
    finally:
        for child in servers:
            stop(child)
        kill_all(lambda: supervised_by(me()))
    print("Stopped.", flush=True)


def start_server(project: Path, host: str, port: int, name: str, options: list[str]) -> Child:
    """Start a Prefect server that logs to `<home>/logs/<name>.log`."""
    url = f"http://{reachable(host)}:{port}/api"
    # With `--port` alone, or with the address in pyproject.toml, the UI would call port 4200.
    address = {"PREFECT_API_URL": url, "PREFECT_SERVER_API_HOST": host, "PREFECT_SERVER_API_PORT": str(port)}
    # By default, Prefect lets the pages of any web site use its API through a browser on this machine.
    if "PREFECT_SERVER_CORS_ALLOWED_ORIGINS" not in os.environ:
        own = sorted({f"http://{name}:{port}" for name in ("127.0.0.1", "localhost", reachable(host))})
        address["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(own)
    arguments = ["--no-prompt", "server", "start", *options]
    settings = address | history_settings()
    return start(project, name, arguments, settings, module="bardflow.commands.prefect_server")


def history_settings() -> dict[str, str]:
    """Return the settings with which Prefect's server deletes old runs and events, without those that the user set.

    Prefect deletes events after 7 days, and by default no runs.
    """
    vacuum = "PREFECT_SERVER_SERVICES_DB_VACUUM"
    settings = {f"{vacuum}_ENABLED": "events,flow_runs", f"{vacuum}_RETENTION_PERIOD": str(HISTORY_DAYS * 86_400)}
    return {name: value for name, value in settings.items() if name not in os.environ}


def start_worker(project: Path, url: str, reports: str) -> Child:
    """Start the worker of the work pool; its runs link to the reports site.

    Flow runs of an earlier worker that was killed are ended and set back to Scheduled, because nobody would hear of
    their end or could cancel them.
    """
    kill_all(lambda: (process for process in supervised_by(me()) if FLOW_RUN in environment_of(process)))
    with api(url) as client:
        if again := reschedule(client, runs_under_way(client)):
            tell(f"Interrupted runs, started again: {names(again)}")
    settings = {
        "PREFECT_API_URL": url,
        "PREFECT_WORKER_QUERY_SECONDS": "3",  # how often it asks for new runs; Prefect's default is 10 s
        "PREFECT_WORKER_CANCELLATION_POLL_SECONDS": "3",  # where the server's events are lost; the default is 120 s
        "PREFECT_CLIENT_MAX_RETRIES": "7",  # of a request, over 4 minutes; with the default a minute is too long
        REPORTS_SITE: reports,
    }
    return start(project, "worker", ["--no-prompt", "worker", "start", "--pool", POOL, "--name", WORKER], settings)


def worker_answers(url: str, since: datetime) -> bool:
    """Return whether our worker has sent a heartbeat to the server since then."""
    try:
        with api(url) as client:
            return worker_seen(client, since)
    except UpError:
        return False


def reports_port(host: str, port: int) -> int:
    """Return the first free port after the server's, for the reports site."""
    for own in range(port + 1, port + REPORTS_PORTS):
        try:
            require_free(host, own)
        except UpError:
            continue
        return own
    raise UpError(
        f"No port from {port + 1} to {port + REPORTS_PORTS - 1} is free for the reports; give another --port."
    )


def start_reports(project: Path, host: str, port: int) -> Child:
    """Start the reports site."""
    options = ["report", "--serve", "--host", host, "--port", str(port)]
    return start(project, "reports", options, {}, module="bardflow.commands.cli")


def answers(url: str) -> bool:
    """Return whether a site accepts connections."""
    address = httpx.URL(url)
    try:
        socket.create_connection((address.host, address.port or 80), 2).close()
    except OSError:
        return False
    return True


def status(
    url: str, reports: str, deployments: list[Deployment], planned: dict[str, datetime], wanted: set[tuple[str, str]]
) -> str:
    """Return the status text: deployments with their next runs in local time, and commands to type."""
    width = max(len(deployment.title) for deployment in deployments)
    lines = ["", f"bardflow is up: {url.removesuffix('/api')}", f"Reports:        {reports}", ""]
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
    # Prefer the deployment `train-gpt/default`, because `/default` can be left out.
    titles = [deployment.title for deployment in deployments]
    example = min(titles, key=lambda title: (not title.startswith("train-gpt/"), not title.endswith("/default")))
    lines += [
        "",
        f"Run one:  {typed_prefect(url)} deployment run {example.removesuffix('/default')} --watch",
        f"Logs:     {home() / 'logs'}",
        "Stop:     Ctrl-C; an interrupted run resumes from its last finished task at the next `bard up`",
    ]
    return "\n".join(lines)


def typed_prefect(url: str) -> str:
    """Return the command line that calls this environment's `prefect` with this server."""
    ours = Path(sys.executable).with_name("prefect")
    found = shutil.which("prefect")
    command = "prefect" if found and Path(found) == ours else str(ours)
    return command if f":{PROJECT_PORT}/" in url else f"PREFECT_API_URL={url} {command}"


def names(runs: list[FlowRun]) -> str:
    """Return the names of the runs, separated by commas."""
    return ", ".join(run.name for run in runs)
