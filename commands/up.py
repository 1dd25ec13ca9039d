"""`bard up`: start and supervise a server, a worker and all deployments until Ctrl-C."""

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import httpx

from bardflow.commands.prefect_api import (
    FLOW_RUN,
    PLAN_SECONDS,
    POOL,
    WORKER,
    Deployment,
    FlowRun,
    api,
    declared,
    deploy,
    make_pool,
    planned_starts,
    read_runs,
    reschedule,
    runs_under_way,
    worker_seen,
)
from bardflow.commands.processes import (
    PROJECT_PORT,
    Child,
    UpError,
    bound_logs,
    environment_of,
    kill,
    me,
    only_one,
    reachable,
    require_alive,
    require_free,
    start,
    stop,
    supervised_by,
    supervising,
    wait_until,
)
from bardflow.home import HISTORY_DAYS, REPORTS_SITE, healthy, home, project_folder, server_url

# The reports site takes the first free port of this many after the server's port.
REPORTS_PORTS = 20
START_SECONDS = 120  # a server on a new home was healthy after 8-22 s on 2 busy cores


def up(port: int = PROJECT_PORT, host: str = "127.0.0.1") -> None:
    """Serve the project until Ctrl-C or SIGTERM: a Prefect server with its UI, all deployments, and a worker.

    When it stops, it sets active runs back to Scheduled. The next `bard up` resumes them, and their finished tasks come
    from the cache. The same holds for runs of a killed `bard up`.

    Raises:
        UpError: `bard up` already runs in this project, the port is in use, or a part did not start or ended.
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
                bound_logs(children)
                time.sleep(0.5)
        except KeyboardInterrupt:
            print("\nStopping …", flush=True)
        finally:
            shut_down(url, children)


@contextmanager
def server() -> Iterator[str]:
    """Yield the API address of a server for one command: that of a running `bard up`, else of a temporary server.

    Prefect starts its own temporary server only if no address is set. But pyproject.toml sets one, and an empty
    PREFECT_API_URL breaks Prefect's event client (3.8.8: "Service 'EventsWorker' failed"). Set the address in the
    environment, with `prefect_environment()`, before `import prefect`.

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
            wait_until(lambda: healthy(url), child, [child], START_SECONDS)
            yield url
        finally:
            stop(child)


@contextmanager
def running_flows() -> Iterator[None]:
    """Let this process run flows on `server()`, and wait at the end until their last log lines and states are there."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with server() as url, temporary_settings({PREFECT_API_URL: url}):
        try:
            yield
        finally:
            APILogHandler().flush()
            EventsWorker.drain_all(timeout=5)


def bring_up(project: Path, host: str, port: int, url: str, children: list[Child]) -> None:
    """Start all parts in order and print the status. Each is added to `children`, so a failure stops all of them."""
    print(f"Starting Prefect's server on {url.removesuffix('/api')} …", flush=True)
    server = start_server(project, host, port, "server", [])
    children.append(server)
    reports, where = start_reports(project, host, port)
    children.append(reports)
    wait_until(lambda: healthy(url), server, children, START_SECONDS)

    with api(url) as client:
        resumed = reschedule(client, runs_under_way(client))
        if resumed:
            print(f"Interrupted runs, started again: {names(resumed)}", flush=True)
        make_pool(client)
        print("Deploying prefect.yaml …", flush=True)
        deployments = deploy(client, project)

        since = datetime.now(UTC)
        worker = start_worker(project, url, where)
        children.append(worker)
        wait_until(lambda: worker_seen(client, since), worker, children, START_SECONDS)
        planned = planned_starts(client, deployments)
        wait_until(lambda: answers(where), reports, children, START_SECONDS)
    print(status(url, where, deployments, planned, declared(project)), flush=True)
    if host not in ("127.0.0.1", "localhost", "::1"):
        print(f"Note: on {host} anyone who reaches this machine can start runs; the server asks for no password.")


def shut_down(url: str, children: list[Child]) -> None:
    """Stop the worker, set active runs back to Scheduled, stop the server, and kill all remaining processes."""
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
                # A flow's process has its own session and may outlive its worker.
                kill(process for process in supervised_by(me()) if FLOW_RUN in environment_of(process))
                cut_off = {run.id for run in [*before, *runs_under_way(client)]}
                again = reschedule(client, read_runs(client, cut_off))
                if again:
                    print(f"Interrupted runs, to resume at the next `bard up`: {names(again)}", flush=True)
    finally:
        for child in servers:
            stop(child)
        kill(supervised_by(me()))
    print("Stopped.", flush=True)


def start_server(project: Path, host: str, port: int, name: str, options: list[str]) -> Child:
    """Start a Prefect server that logs to `<home>/logs/<name>.log`."""
    url = f"http://{reachable(host)}:{port}/api"
    # With `--port` alone, or with the address in pyproject.toml, the UI would call port 4200.
    address = {"PREFECT_API_URL": url, "PREFECT_SERVER_API_HOST": host, "PREFECT_SERVER_API_PORT": str(port)}
    settings = address | history_settings()
    arguments = ["--no-prompt", "server", "start", *options]
    return start(project, name, arguments, settings, module="bardflow.commands.prefect_server")


def history_settings() -> dict[str, str]:
    """Return the settings with which Prefect's server deletes old runs and events, without those that the user set.

    Prefect deletes events after 7 days, and by default no runs.
    """
    vacuum = "PREFECT_SERVER_SERVICES_DB_VACUUM"
    settings = {f"{vacuum}_ENABLED": "events,flow_runs", f"{vacuum}_RETENTION_PERIOD": str(HISTORY_DAYS * 86_400)}
    return {name: value for name, value in settings.items() if name not in os.environ}


def start_worker(project: Path, url: str, reports: str) -> Child:
    """Start the worker of the work pool; its runs link to the reports site."""
    # The worker asks for new runs every 3 s; Prefect's default is 10 s.
    settings = {"PREFECT_API_URL": url, "PREFECT_WORKER_QUERY_SECONDS": "3", REPORTS_SITE: reports}
    return start(project, "worker", ["--no-prompt", "worker", "start", "--pool", POOL, "--name", WORKER], settings)


def start_reports(project: Path, host: str, port: int) -> tuple[Child, str]:
    """Start the reports site on the first free port after the server's, and return it with its address."""
    for own in range(port + 1, port + REPORTS_PORTS):
        try:
            require_free(host, own)
        except UpError:
            continue
        options = ["report", "--serve", "--host", host, "--port", str(own)]
        return start(project, "reports", options, {}, module="bardflow.commands.cli"), f"http://{reachable(host)}:{own}"
    raise UpError(
        f"No port from {port + 1} to {port + REPORTS_PORTS - 1} is free for the reports; give another --port."
    )


def answers(url: str) -> bool:
    """Return whether a site answers, with any status."""
    try:
        httpx.get(url, timeout=30, trust_env=False)
    except httpx.TransportError:
        return False
    return True


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into KeyboardInterrupt, and ignore later ones while stopping."""

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
    """Ignore signals while stopping. After a kill, the next `bard up` cleans up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


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
