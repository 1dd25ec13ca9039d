"""Locks: a corpus has one training run at a time, a result is made once, garbage collection waits for active runs."""

import fcntl
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from bardflow.home import home
from bardflow.tasks.saying import say


@contextmanager
def training_lock(corpus: str) -> Iterator[None]:
    """Hold the lock for training on a corpus; this waits until no other run trains on it."""
    with _locked(f"corpora/{corpus}", fcntl.LOCK_EX, f"another run is training on {corpus}: waiting for it to end"):
        yield


@contextmanager
def search_lock(corpus: str) -> Iterator[None]:
    """Hold the lock for searches on a corpus; this waits until no other search on it runs."""
    with _locked(f"searches/{corpus}", fcntl.LOCK_EX, f"another search on {corpus} runs: waiting for it to end"):
        yield


@contextmanager
def using_store() -> Iterator[None]:
    """Share the store lock with other runs, so that no artifact is deleted; waits for garbage collection to end."""
    with _locked("store", fcntl.LOCK_SH, "waiting for garbage collection to end"):
        yield


@contextmanager
def collecting_garbage() -> Iterator[None]:
    """Hold the store lock alone: waits until no run is active, and makes new runs wait."""
    waiting = "waiting for active runs to end, because their artifacts have no name yet"
    with _locked("store", fcntl.LOCK_EX, waiting):
        yield


@contextmanager
def making(result: str) -> Iterator[None]:
    """Hold the lock for making a result, given by its cache key; waits while another process or thread makes it.

    All results share one file: each has the lock of one byte, at an offset computed from its key. The kernel releases
    it when the process ends in any way. These locks belong to the process, so its threads exclude each other here.
    """
    path = home() / "locks" / "results.lock"
    offset = int.from_bytes(hashlib.sha256(result.encode()).digest()[:7], "big")
    with _opened(path) as file, _thread_lock(f"{path}@{offset}"):
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except (BlockingIOError, PermissionError):  # POSIX allows EAGAIN and EACCES
            say("another run is making the same result: waiting for it")
            fcntl.lockf(file, fcntl.LOCK_EX, 1, offset)
        try:
            yield
        finally:
            fcntl.lockf(file, fcntl.LOCK_UN, 1, offset)


# Files of `making` that are open in this process, and locks of its threads, each with the number of users.
_OPEN: dict[Path, tuple[IO[bytes], int]] = {}
_THREADS: dict[str, tuple[threading.Lock, int]] = {}
_GUARD = threading.Lock()


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file once for all threads: if one of two open files is closed, the kernel drops the locks of both."""
    with _GUARD:
        if path not in _OPEN:
            path.parent.mkdir(parents=True, exist_ok=True)
            _OPEN[path] = path.open("ab"), 0
        file, users = _OPEN[path]
        _OPEN[path] = file, users + 1
    try:
        yield file
    finally:
        with _GUARD:
            file, users = _OPEN.pop(path)
            if users > 1:
                _OPEN[path] = file, users - 1
            else:
                file.close()


@contextmanager
def _thread_lock(name: str) -> Iterator[None]:
    """Hold a lock among the threads of this process; log that it waits."""
    with _GUARD:
        lock, users = _THREADS.get(name, (threading.Lock(), 0))
        _THREADS[name] = lock, users + 1
    try:
        if not lock.acquire(blocking=False):
            say("another training of this run is making the same result: waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    finally:
        with _GUARD:
            lock, users = _THREADS.pop(name)
            if users > 1:
                _THREADS[name] = lock, users - 1


@contextmanager
def _locked(name: str, how: int, waiting: str) -> Iterator[None]:
    """Hold a lock file in the home, exclusively (LOCK_EX) or shared (LOCK_SH); log `waiting` if it has to wait.

    The kernel releases the lock when the process ends in any way. The library filelock is not used: its shared lock
    needs hard links or a folder of mode 0700, which some file systems lack.
    """
    path = home() / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            say(waiting)
            fcntl.flock(file, how)
        yield
