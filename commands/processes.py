"""Processes that `bard` starts: logs, starting again, stopping, cleaning up after killed commands, locks and ports."""

import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple, TextIO

import psutil

from bardflow.errors import BardError
from bardflow.home import held, home, password, prefect_environment, project_folder, up_lock

# The port in `[tool.prefect] api.url` of pyproject.toml, so that a typed `prefect …` reaches the server.
PROJECT_PORT = 4200
# Environment variable of every process started here, and of its flow runs: the path of the supervisor's lock.
SUPERVISOR = "BARDFLOW_SUPERVISOR"
FLOW_RUN = "PREFECT__FLOW_RUN_ID"  # Prefect sets it in the process of each flow run
# The signals that end a command with everything that it started.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_SECONDS = 5  # from SIGTERM to SIGKILL for one child (a server waits for open browsers)
KILL_SECONDS = 15
PORT_SECONDS = 10  # how long a port is waited for on which no process is seen to listen
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOG_LINES = 20
LOG_BYTES = 10_000_000


class UpError(BardError):
    """The server, the worker or a deployment did not start, or ended unexpectedly."""


class Child(NamedTuple):
    """A child process and its log file."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


def start(
    project: Path, name: str, arguments: list[str], settings: dict[str, str], *, module: str = "prefect"
) -> Child:
    """Start `python -m <module> <arguments>` in the project folder, in a new session that Ctrl-C does not reach."""
    log = home() / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".previous.log"))
    with log.open("ab") as output:  # appending goes on at the new end after `bound_logs`
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=project,
            # BARDFLOW_HOME may be relative, and the child's working directory may differ from ours.
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
    """Stop a child with SIGTERM, and after 5 s with SIGKILL to its session."""
    if child.process.poll() is None:
        child.process.terminate()
        try:
            child.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            kill_session(child)


def kill_session(child: Child) -> None:
    """Send SIGKILL to the child and the processes of its session."""
    with suppress(ProcessLookupError):
        os.killpg(child.process.pid, signal.SIGKILL)
    child.process.wait()


def bound_logs(children: list[Child], most: int = LOG_BYTES) -> None:
    """Move the content of each log above `most` bytes to its `.previous.log`, while its child goes on writing.

    What is written between copying and truncating is lost, as with logrotate's `copytruncate`.
    """
    for child in children:
        if child.log.stat().st_size > most:
            shutil.copyfile(child.log, child.log.with_suffix(".previous.log"))
            os.truncate(child.log, 0)


def end_of(log: Path) -> str:
    """Return the last lines of a log, for an error message."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    return f"The end of {log}:\n" + "\n".join(f"    {line}" for line in lines or ["(empty)"])


# Supervisors


def me() -> Path:
    """Return the lock file of this process as a supervisor; its path marks all processes that it starts."""
    return home() / "supervisors" / f"{os.uname().nodename}-{os.getpid()}.lock"


def environment_of(process: psutil.Process) -> dict[str, str]:
    """Return the environment a process was started with; empty if it is gone or belongs to another user."""
    try:
        return process.environ()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return {}


def supervised_by(lock: Path) -> Iterator[psutil.Process]:
    """Return all processes that the supervisor with this lock started, directly or indirectly."""
    return (process for process in psutil.process_iter() if environment_of(process).get(SUPERVISOR) == str(lock))


def stop_leftovers() -> list[psutil.Process]:
    """Kill the processes of this home whose supervisor was killed, and return them; delete the lock files of these."""
    marks = {environment_of(process).get(SUPERVISOR) for process in psutil.process_iter()}
    locks = [Path(mark) for mark in marks if mark is not None and Path(mark).parent == me().parent]
    killed = kill_all(lambda: (process for lock in locks if not held(lock) for process in supervised_by(lock)))
    for lock in me().parent.glob(f"{os.uname().nodename}-*.lock"):
        if not held(lock):
            with suppress(BlockingIOError), holding(lock):
                lock.unlink()
    return killed


def kill(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Send SIGKILL to each process and wait until it is gone."""
    found = list(processes)
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + KILL_SECONDS
    while any(map(lives, found)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def lives(process: psutil.Process) -> bool:
    """Return whether the process runs; a zombie has ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_all(processes: Callable[[], Iterable[psutil.Process]]) -> list[psutil.Process]:
    """Kill the processes, and those that they started meanwhile, until none is found; return them.

    Flow runs are killed after all others, so that no worker reports them as crashed.
    """
    killed: list[psutil.Process] = []
    while found := list(processes()):
        others = [process for process in found if FLOW_RUN not in environment_of(process)]
        killed += kill(others or found)
    return killed


# Locks and ports


@contextmanager
def holding(lock: Path) -> Iterator[TextIO]:
    """Hold a lock file and yield it open. The kernel releases the lock when this process ends in any way.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    deadline = time.monotonic() + 1  # `held` takes the lock for a moment to test it
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
                continue
            # The file may have been deleted before it was locked.
            if lock.exists() and lock.stat().st_ino == os.fstat(file.fileno()).st_ino:
                yield file
                return


@contextmanager
def supervising() -> Iterator[None]:
    """Supervise processes of this home, after killing those whose supervisor was killed.

    A guard ends all of them if this process is killed. In the main thread, SIGTERM and SIGHUP raise SystemExit and
    SIGINT raises KeyboardInterrupt, and the guard ends everything if that takes longer than 13 s.
    """
    with holding(me()):
        try:
            stopped = stop_leftovers()
            if stopped:
                # On standard error: standard output may be read by a program.
                print(f"Stopped processes left by a killed command: {len(stopped)}", file=sys.stderr, flush=True)
            with guarded() as pipe, ended_by_signals(pipe):
                yield
        finally:
            me().unlink()


@contextmanager
def guarded() -> Iterator[int]:
    """Start the guard (`bardflow.commands.guard`) of this process, and yield the pipe that it reads."""
    command = [sys.executable, "-m", "bardflow.commands.guard", str(me()), str(os.getpid())]
    # This process keeps the end that is read, too, so that it can still write after its guard was killed.
    read, write = os.pipe()
    os.set_blocking(write, False)
    guard = subprocess.Popen(
        command, stdin=read, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield write
    finally:
        os.close(write)
        try:
            guard.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
        os.close(read)


@contextmanager
def ended_by_signals(pipe: int) -> Iterator[None]:
    """Let the first of SIGINT, SIGTERM and SIGHUP end this process by an exception, and ignore later ones.

    C code that calls Python may replace the exception by an error of its own; such an error is left out. The number
    of each signal is written to the pipe. A signal that is ignored (`nohup`) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, end)
    woken = signal.set_wakeup_fd(pipe, warn_on_full_buffer=False)
    try:
        yield
    except Exception:
        if not received:
            raise
        raise SystemExit(128 + received[0]) from None
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def only_one(url: str) -> Iterator[None]:
    """Ensure that this is the project's only `bard up`, and store its server's address for other commands.

    Raises:
        UpError: another `bard up` runs.
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


def require_free(host: str, port: int, patience: float = 0) -> None:
    """Raise UpError unless a server can listen on this host and port.

    For `patience` seconds, it waits for a port on which no process is seen to listen: the kernel frees the port of a
    killed server a moment after the process is gone, and an outgoing connection may have it for a while.
    """
    if not 0 < port < 65536:
        raise UpError(f"No such port: {port}. Choose one from 1 to 65535, such as `bard up --port {PROJECT_PORT}`.")
    deadline = time.monotonic() + patience
    while not (bound := can_bind(host, port)) and listener(port) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    if not bound:
        owner = listener(port)
        raise UpError(
            f"Port {port} on {host} is taken{f' by {owner}' if owner else ''}. "
            f"Stop what uses it, or choose another port: `bard up --port {PROJECT_PORT + 1}`."
        )


def can_bind(host: str, port: int) -> bool:
    """Return whether the port is free on this host; raise UpError if the host cannot be used at all."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise UpError(f"No such host on this machine: {host!r} ({error}). Use --host 127.0.0.1 or 0.0.0.0.") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise UpError(f"Cannot listen on {host}, port {port}: {error.strerror}.") from error
    return True


def require_password(host: str) -> None:
    """Raise UpError if others can reach the host and no password is set, or if the password has another form."""
    given = password()
    name, colon, secret = (given or "").partition(":")
    if given is not None and not (name and colon and secret and given.isascii() and given.isprintable()):
        raise UpError("PREFECT_SERVER_API_AUTH_STRING should be NAME:PASSWORD, in ASCII characters.")
    if given is None and host not in LOOPBACK:
        raise UpError(
            f"On {host}, others can reach this machine and start runs, so a password is needed. Set one for the UI, "
            "the API and the sites: export PREFECT_SERVER_API_AUTH_STRING='NAME:PASSWORD'"
        )


def listener(port: int) -> str | None:
    """Return the process that listens on the port, as `name (process 123)`; None if the system does not tell."""
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listens and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return None  # macOS shows other processes' connections only to root
    return None


def reachable(host: str) -> str:
    """Return the host to use in a URL; a server on all interfaces is reached by the loopback address."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
