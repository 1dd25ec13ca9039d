"""What cleaning steps share: the count of what a step removes and adds, and lines."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
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

    def add(self, other: "Tally") -> None:
        """Add the counts of the same step on other text."""
        self.lines_removed += other.lines_removed
        self.characters_removed += other.characters_removed
        self.characters_added += other.characters_added


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


def lines(texts: Iterable[str]) -> Iterator[str]:
    r"""The lines of a text that comes in blocks; only "\n" ends a line."""
    pending: list[str] = []
    for text in texts:
        *whole, rest = text.split("\n")
        for line in whole:
            pending.append(line)
            yield "".join(pending) + "\n"
            pending.clear()
        if rest:
            pending.append(rest)
    if pending:
        yield "".join(pending)


def whole_lines(texts: Iterable[str]) -> Iterator[str]:
    r"""The text in blocks that end in "\n", but for the last one."""
    pending: list[str] = []
    for text in texts:
        end = text.rfind("\n") + 1
        if end:
            yield "".join([*pending, text[:end]])
            pending.clear()
        if end < len(text):
            pending.append(text[end:])
    if pending:
        yield "".join(pending)
