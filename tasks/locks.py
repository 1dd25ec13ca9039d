"""Locks: a corpus has one training run at a time, a result is made once, garbage collection waits for active runs."""

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

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
    """Hold the lock for making a result, given by its cache key; waits while another process makes it.

    All results share one file: each has the lock of one byte, at an offset computed from its key. The kernel releases
    it when the process ends in any way.
    """
    path = home() / "locks" / "results.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    offset = int.from_bytes(hashlib.sha256(result.encode()).digest()[:7], "big")
    with path.open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except (BlockingIOError, PermissionError):  # POSIX allows EAGAIN and EACCES
            say("another run is making the same result: waiting for it")
            fcntl.lockf(file, fcntl.LOCK_EX, 1, offset)
        yield


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
