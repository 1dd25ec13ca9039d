"""A run of a flow: each task's result comes from the cache or is computed, and each artifact is checked."""

import importlib.metadata
import logging
import platform
import subprocess
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, Self, TypeVar

from prefect import Task
from prefect.context import TaskRunContext
from prefect.settings import get_current_settings
from prefect.utilities.callables import get_call_parameters
from pydantic import BaseModel

from bardflow.home import home, project_folder, remote_address
from bardflow.storage.disk import write_whole
from bardflow.storage.handles import Handle, text_of
from bardflow.storage.manifests import Origin
from bardflow.storage.refs import Refs
from bardflow.storage.remote import Remote, remote_of
from bardflow.storage.store import Store
from bardflow.storage.verifying import bring_up_to_date
from bardflow.tasks.caching import CacheByInputs
from bardflow.tasks.locks import making, using_store
from bardflow.tasks.saying import LOGGER, say

P = ParamSpec("P")
R = TypeVar("R")
H = TypeVar("H", bound=Handle)

PACKAGES = (
    "bardflow",
    "torch",
    "numpy",
    "tokenizers",
    "sentencepiece",
    "datasets",
    "pyarrow",
    "safetensors",
    "prefect",
)


def store() -> Store:
    """Return the store in this project's home, with its remote."""
    return Store(home(), remote())


def refs() -> Refs:
    """Return the names in this project's home, with its remote."""
    return Refs(home(), remote())


def remote() -> Remote | None:
    """Return the remote of this project's home, or None without BARDFLOW_REMOTE."""
    return remote_of(home(), *remote_address())


class TaskCall(NamedTuple):
    """One call of a task: its name, its artifact, whether it ran, and why a cached result had to be made again."""

    task: str
    handle: Handle
    ran: bool
    rebuilt: str | None


class Run:
    """The tasks of one run in order; each result comes from Prefect's cache, or the task runs.

    Use it as a context manager. It holds the store lock, so that garbage collection does not delete the artifacts of
    the run, which have no name before the run ends. A remote that cannot be written is an error at the beginning, not
    after hours; one that cannot be reached is a warning.
    """

    def __init__(self) -> None:
        self.calls: list[TaskCall] = []
        # What was logged meanwhile, for a receipt.
        self.lines: list[str] = []
        self.warned = False
        self._listener = _Listener(self)
        self._lock: AbstractContextManager[None] | None = None

    def __enter__(self) -> Self:
        there = remote()
        if there is not None:
            with there.tolerated("looking at the remote"):
                there.writable()
        self._lock = using_store()
        self._lock.__enter__()
        LOGGER.addHandler(self._listener)
        bring_up_to_date(home())
        return self

    def __exit__(self, *raised: Any) -> None:
        assert self._lock is not None
        LOGGER.removeHandler(self._listener)
        self._lock.__exit__(*raised)
        self._lock = None

    def __call__(self, task: Task[P, H], *args: P.args, **kwargs: P.kwargs) -> H:
        """Call a task and return its handle. If a cached artifact is missing or damaged, run the task again.

        Raises:
            RuntimeError: called outside of `with Run() as run`; garbage collection could delete the artifacts.
        """
        if self._lock is None:
            raise RuntimeError("tasks are called while the store lock is held: `with Run() as run`")
        with one_at_a_time(task, *args, **kwargs):
            handle, ran = self.result(task, *args, **kwargs)
            rebuilt = None
            if not ran and store().damage(handle):
                store().mend(handle)
                if rebuilt := store().damage(handle):
                    store().discard_damaged(handle)
                if rebuilt and store().damage(handle) is None:
                    say(f"{handle} was {rebuilt}: it comes from the remote")
                    rebuilt = None
                elif rebuilt:
                    say(f"{handle} is {rebuilt}: making it again")
                    handle, ran = self.result(task.with_options(refresh_cache=True), *args, **kwargs)
                else:
                    say(f"{handle} was damaged: its manifest and origin are restored from their copies")
            store().copy(handle)  # a killed run may have left it without
        self.calls.append(TaskCall(task.name, handle, ran, rebuilt))
        say(f"{task.name:<19} {'done' if ran else 'cached':<7} {handle}")
        return handle

    def result(self, task: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> tuple[R, bool]:
        """Call a task; return its result and whether it ran. If its cached result is damaged, run the task again.

        Raises:
            RuntimeError: as `__call__`.
        """
        if self._lock is None:
            raise RuntimeError("tasks are called while the store lock is held: `with Run() as run`")
        key = None if remote() is None else key_of(task, *args, **kwargs)
        if key is not None:
            receive_result(key)
        state: Any = task(*args, **kwargs, return_state=True)
        value: R = state.result()
        ran = state.name != "Cached"
        if not ran and result_is_damaged(state):
            say(f"the cached result of {task.name} is damaged: running the task again")
            state = task.with_options(refresh_cache=True)(*args, **kwargs, return_state=True)
            value, ran = state.result(), True
        copy_result(state)
        if ran and key is not None:
            send_result(state)
        return value, ran

    @property
    def changed(self) -> bool:
        """Whether a task ran that is cached, an artifact was made again, or there was a warning."""
        return self.warned or any(call.rebuilt or (call.ran and call.task != "fetch_source") for call in self.calls)

    def handles(self) -> dict[str, list[Handle]]:
        """Return the artifacts of the run by the task that gave them."""
        found: dict[str, list[Handle]] = {}
        for call in self.calls:
            found.setdefault(call.task, []).append(call.handle)
        return found

    def ran(self, *tasks: str) -> bool:
        """Return whether any of the named tasks ran."""
        return any(call.ran for call in self.calls if call.task in tasks)


class _Listener(logging.Handler):
    """Notes what is logged while a run is under way."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def emit(self, record: logging.LogRecord) -> None:
        self.run.lines.append(record.getMessage())
        self.run.warned |= record.levelno > logging.INFO


def one_at_a_time(task: Task[P, H], *args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[None]:
    """Return a lock on the result of this call, so that of two processes one makes it and one takes it."""
    key = key_of(task, *args, **kwargs)
    return nullcontext() if key is None else making(key)


def key_of(task: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> str | None:
    """Return the cache key of a call, which is also the name of the result's file; None if it is not cached."""
    policy = task.cache_policy
    if not isinstance(policy, CacheByInputs):
        return None
    return policy.key_of(task, get_call_parameters(task.fn, args, kwargs))


def receive_result(key: str) -> None:
    """Write a result that only the remote has to where Prefect looks for it, with its copy."""
    path = get_current_settings().results.local_storage_path / key
    there = remote()
    if there is None or path.is_file() or not path.is_relative_to(home()):
        return
    if (content := there.result(key)) is not None:
        store().copies.write(path, content)
        write_whole(path, content, store().drafts)


def send_result(state: Any) -> None:
    """Send the result of a task that ran to the remote."""
    there, path = remote(), result_file(state)
    if there is not None and path is not None:
        there.send_result(path.name, path.read_bytes())


def result_file(state: Any) -> Path | None:
    """Return the file in the home that has a task's result; None if the result is not stored there."""
    metadata = getattr(state.data, "metadata", state.data)
    key = getattr(metadata, "storage_key", None)
    # The key in the file is the path at the time, and the home may have been moved since.
    path = None if key is None else get_current_settings().results.local_storage_path / Path(key).name
    return path if path is not None and path.is_relative_to(home()) and path.is_file() else None


def result_is_damaged(state: Any) -> bool:
    """Return whether the file of a cached result differs from its copy."""
    path = result_file(state)
    return path is not None and store().copies.differs(path, path.read_bytes())


def copy_result(state: Any) -> None:
    """Copy the file of a task's result, so that damage to it can be found."""
    if (path := result_file(state)) is not None:
        store().copies.write(path, path.read_bytes())


def origin(*packages: str, **measured: Any) -> Origin:
    """Return the origin of the current task's artifact, with the same inputs as the task's cache key.

    `packages` are further packages, the versions of which the artifact's bytes depend on.
    """
    context = TaskRunContext.get()
    if context is None:
        raise RuntimeError("an origin belongs to a task run; call the task in a flow")
    policy = context.task.cache_policy
    ignored = policy.ignored if isinstance(policy, CacheByInputs) else ()
    handles: dict[str, str] = {}
    others: dict[str, Any] = {}
    for name, value in context.parameters.items():
        if name in ignored:
            continue
        match value:
            case Handle():
                handles[name] = text_of(value)
            case [Handle(), *_]:
                handles |= {f"{name}.{i}": text_of(handle) for i, handle in enumerate(value)}
            case BaseModel():
                others[name] = value.model_dump(mode="json")
            case _:
                others[name] = value
    return Origin(
        task=f"{context.task.name}@{context.task.version}",
        inputs=handles,
        spec=others,
        run=str(context.task_run.flow_run_id) if context.task_run.flow_run_id else None,
        commit=commit(),
        packages=versions() | {name: importlib.metadata.version(name) for name in packages},
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        measured=measured,
    )


@cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that an artifact's bytes depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


@cache
def commit() -> str | None:
    """Return the project's git commit, with `+` if files differ from it; None outside a git checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            cwd=project_folder(), capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
