"""Parts of a command, such as a server and a worker: each is started again when it ends, after growing pauses."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Self

from bardflow.commands.processes import Child, UpError, end_of, kill_session

READY_SECONDS = 120  # a server on a new home was healthy after 8-22 s on 2 busy cores
STARTS = 5  # starts in a row that fail before the command gives up
LONGEST_PAUSE_SECONDS = 60
CALM_SECONDS = 300  # after running for so long, a part starts again with the shortest pause
LOOK_SECONDS = 0.5


class Part:
    """A child process that is started again when it ends; the first pause is 1 s, and each further one twice as long.

    `begin` starts the child, and `ready` returns whether it does its work. Without `needs` being ready, it is not
    started again. A part that has never been ready and ends by itself, not by a signal, is given up at once, any other
    after five starts in a row that failed. Not counted is an end while the part that it needs was away. One that is
    `spare` was once ready and is never given up.
    """

    def __init__(
        self,
        begin: Callable[[], Child],
        ready: Callable[[], bool],
        *,
        needs: Self | None = None,
        spare: bool = False,
    ) -> None:
        self.ready, self._begin, self._needs, self._spare = ready, begin, needs, spare
        self.since, self._begun = datetime.now(UTC), time.monotonic()  # when it was last started
        self.child = begin()
        self.is_ready = False
        self._due: float | None = None  # when to start again
        self._ended = 0  # ends in a row, without a calm time between them
        self._failed = 0  # starts in a row after which the part was never ready
        self._was_ready = False

    def look(self) -> None:
        """Start the part again if it has ended and its pause is over.

        Raises:
            UpError: it could not be started several times in a row; the message has the end of its log.
        """
        now = time.monotonic()
        if self._due is not None:
            if now >= self._due and (self._needs is None or self._needs.is_ready):
                self._start(now)
            return
        status = self.child.process.poll()
        if status is not None:
            self._end(now, f"ended by itself (exit status {status})", killed=status < 0)
        elif not self.is_ready:
            self.is_ready = self.ready()
            self._was_ready = self._was_ready or self.is_ready
            if self.is_ready and self._ended:
                tell(f"{self.child.name}: up again")
            elif not self.is_ready and now - self._begun > READY_SECONDS:
                kill_session(self.child)
                self._end(now, f"was not ready after {READY_SECONDS} s")

    def _start(self, now: float) -> None:
        self._due, self.since, self._begun = None, datetime.now(UTC), now
        try:
            self.child = self._begin()
        except (OSError, UpError) as error:
            self._end(now, f"did not start ({error})")

    def _end(self, now: float, how: str, *, killed: bool = False) -> None:
        cut_off = self._needs is not None and not (self._needs.is_ready and self._needs._begun < self._begun)
        self._failed = 0 if self.is_ready else self._failed + (not cut_off)
        if not self._was_ready and not killed and not cut_off:
            raise UpError(f"The {self.child.name} {how}. {end_of(self.child.log)}")
        if self._failed >= STARTS and not (self._spare and self._was_ready):
            raise UpError(f"The {self.child.name} {how}; {STARTS} starts in a row failed. {end_of(self.child.log)}")
        self._ended = 1 if self.is_ready and now - self._begun > CALM_SECONDS else self._ended + 1
        self.is_ready = False
        pause = min(2 ** (self._ended - 1), LONGEST_PAUSE_SECONDS)
        self._due = now + pause
        tell(f"{self.child.name}: {how}; starting it again in {pause} s. Its log: {self.child.log}")


def wait_for(awaited: Part, parts: list[Part]) -> None:
    """Wait until a part is ready, while all parts are looked after.

    Raises:
        UpError: a part could not be started.
    """
    while not awaited.is_ready:
        for part in parts:
            part.look()
        time.sleep(0.2)


@contextmanager
def kept_up(part: Part) -> Iterator[None]:
    """Look after the part in a thread. If it has to be given up, this is told, and the work goes on without it."""
    over = threading.Event()

    def look() -> None:
        try:
            while not over.wait(LOOK_SECONDS):
                part.look()
        except UpError as error:
            tell(str(error))

    thread = threading.Thread(target=look, name=f"{part.child.name} keeper", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def tell(line: str) -> None:
    """Print a line on standard error, because standard output may be read by a program."""
    print(line, file=sys.stderr, flush=True)
