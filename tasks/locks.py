"""Locks: one training run of a corpus at a time, and no garbage collection while a run is active."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from bardflow.home import home
from bardflow.tasks.saying import say


@contextmanager
def training_lock(corpus: str) -> Iterator[None]:
    """Wait until no other run trains on the corpus, and keep others waiting."""
    with _locked(f"corpora/{corpus}", fcntl.LOCK_EX, f"another run is training on {corpus}: waiting for it to end"):
        yield


@contextmanager
def search_lock(corpus: str) -> Iterator[None]:
    """Wait until no other run searches on the corpus, and keep others waiting."""
    with _locked(f"searches/{corpus}", fcntl.LOCK_EX, f"another search on {corpus} runs: waiting for it to end"):
        yield


@contextmanager
def using_store() -> Iterator[None]:
    """Hold the store lock, shared with other runs, so no garbage is deleted. Waits for garbage collection to end."""
    with _locked("store", fcntl.LOCK_SH, "waiting for garbage collection to end"):
        yield


@contextmanager
def collecting_garbage() -> Iterator[None]:
    """Hold the store lock alone: waits until no run is active; new runs wait until it is released."""
    waiting = "waiting for active runs to end, because their artifacts have no name yet"
    with _locked("store", fcntl.LOCK_EX, waiting):
        yield


@contextmanager
def _locked(name: str, how: int, waiting: str) -> Iterator[None]:
    """Hold a lock file of the home, exclusively (LOCK_EX) or shared (LOCK_SH); log `waiting` if it has to wait.

    The kernel releases it when the process ends in any way. (filelock's shared lock needs hard links or a folder of
    mode 0700, which some file systems lack.)
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
