"""One training of a corpus at a time on this machine, however it was started."""

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from bard.home import home
from tasks.saying import say


@contextmanager
def turn(corpus: str) -> Iterator[None]:
    """Wait for the corpus's lock and hold it. The kernel frees it when its holder dies, however it dies."""
    folder = home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{corpus}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another run is training on {corpus}: waiting for it to end")
        lock.acquire(poll_interval=0.5)
    try:
        yield
    finally:
        lock.release()
