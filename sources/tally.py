"""What cleaning steps share: the count of what a step removes and adds, and lines that can be put back."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass
class Tally:
    """The running count of one step."""

    lines_removed: int = 0
    characters_removed: int = 0
    characters_added: int = 0

    def drop(self, *lines: str) -> None:
        self.lines_removed += len(lines)
        self.characters_removed += sum(map(len, lines))


class Lines(Iterator[str]):
    """An iterator of lines with `put_back`."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._ahead: deque[str] = deque()

    def __next__(self) -> str:
        return self._ahead.popleft() if self._ahead else next(self._lines)

    def put_back(self, lines: Sequence[str]) -> None:
        self._ahead.extendleft(reversed(lines))

    def drop_blank(self, tally: Tally) -> None:
        """Drop the blank lines that follow."""
        for line in self:
            if line.strip():
                self.put_back([line])
                return
            tally.drop(line)
