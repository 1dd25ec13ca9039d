"""What tests of input that is made to do harm share."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bardflow.errors import BardError

SECONDS = 10


@contextmanager
def refused(said: str = ".") -> Iterator[None]:
    """What is done within raises an error for users, and takes less than 10 seconds of the processor."""

    def late(*_: object) -> None:
        raise AssertionError(f"this takes more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with pytest.raises(BardError, match=said) as caught:
            yield
        assert 10 < len(str(caught.value)) < 3_000, "an error is read by people"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
