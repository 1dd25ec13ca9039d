"""What a run says while it works: lines for the terminal and Prefect's log, and a bar where something takes long."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

LOGGER = logging.getLogger("bardflow")
LOGGER.setLevel(logging.INFO)  # Prefect leaves a logger of another name at WARNING
SECONDS_BETWEEN_LINES = 15.0


def say(message: str) -> None:
    """A line of the run's story."""
    LOGGER.info(message)


def watched(items: Iterable[T], *, total: int, doing: str, unit: str, note: Callable[[T], str]) -> Iterator[T]:
    """Hand out the items under a progress bar; where there is no terminal, with a line every 15 seconds instead.

    `note` says the last item in a few words; it is called at most once a second.
    """
    noted = said = time.monotonic()
    done = 0
    with tqdm(
        total=total, desc=doing, unit=unit, disable=not sys.stderr.isatty(), leave=False, dynamic_ncols=True
    ) as bar:
        for item in items:
            yield item
            done += 1
            bar.update()
            now = time.monotonic()
            if not bar.disable and now - noted > 1:
                bar.set_postfix_str(note(item), refresh=False)
                noted = now
            elif bar.disable and now - said > SECONDS_BETWEEN_LINES:
                say(f"{doing}: {done:,} of {total:,} {unit}s, {note(item)}")
                said = now


class DownloadBar:
    """A progress bar in bytes that a download calls with (bytes so far, bytes in all or None)."""

    def __init__(self, doing: str) -> None:
        self.bar = tqdm(desc=doing, unit="B", unit_scale=True, disable=not sys.stderr.isatty(), leave=False, delay=0.5)

    def __call__(self, done: int, total: int | None) -> None:
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        """Take the bar off the screen."""
        self.bar.close()
