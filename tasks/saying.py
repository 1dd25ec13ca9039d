"""Log lines of a run for the terminal and Prefect, and progress bars."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Self, TypeVar

from tqdm import tqdm

T = TypeVar("T")

LOGGER = logging.getLogger("bardflow")
LOGGER.setLevel(logging.INFO)  # Prefect leaves other loggers at WARNING
SECONDS_BETWEEN_LINES = 15.0


def say(message: str) -> None:
    """Log a line to the terminal and to Prefect."""
    LOGGER.info(message)


class Progress:
    """A progress bar; without a terminal, a log line every 15 seconds instead.

    `total` is None if it is unknown. Nothing is shown for work that ends within half a second.
    """

    def __init__(self, doing: str, unit: str, total: int | None = None) -> None:
        self.doing, self.unit, self.done = doing, unit, 0
        self.bar = tqdm(
            total=total, desc=doing, unit=unit if unit == "B" else f" {unit}s", unit_scale=True, delay=0.5, leave=False,
            dynamic_ncols=True, disable=not sys.stderr.isatty(),
        )  # fmt: skip
        self.total = total
        self.noted = self.said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: Any) -> None:
        self.bar.close()

    def __call__(self, done: int, total: int | None = None) -> None:
        """Set the number of finished units, and the total once it is known."""
        if total is not None:
            self.total = self.bar.total = total
        self.advance(done - self.done)

    def advance(self, count: int = 1, note: Callable[[], str] | None = None) -> None:
        """Add finished units; `note` returns a few words and is called at most once a second."""
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        if not self.bar.disable and note is not None and now - self.noted > 1:
            self.bar.set_postfix_str(note(), refresh=False)
            self.noted = now
        elif self.bar.disable and now - self.said > SECONDS_BETWEEN_LINES:
            of = f" of {self.total:,}" if self.total is not None else ""
            units = "bytes" if self.unit == "B" else f"{self.unit}s"
            say(f"{self.doing}: {self.done:,}{of} {units}{f', {note()}' if note is not None else ''}")
            self.said = now


def watched(
    items: Iterable[T],
    *,
    doing: str,
    unit: str,
    total: int | None = None,
    size: Callable[[T], int] = lambda _: 1,
    note: Callable[[T], str] | None = None,
) -> Iterator[T]:
    """Yield the items with a progress bar; `size` returns an item's number of units, `note` a few words about it."""
    with Progress(doing, unit, total) as progress:
        for item in items:
            yield item
            progress.advance(size(item), None if note is None else partial(note, item))
