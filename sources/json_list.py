"""The objects in a JSON file that is one list of objects, read as a stream.

The parser is the one for JSON Lines, Python's `json`, so both formats give the same text. (ijson, which reads streams,
turns half of a surrogate pair into a question mark.)
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from bardflow.sources.spec import CorpusError

# The longest row, in characters: four times the Bible. A row is in memory several times while it is parsed.
LONGEST_ROW = 1 << 24
# What is said of a file with rows that does not have the format of the others.
ALIKE = "leave the file out: all files of a corpus have the format in rows.format"
_BLANKS = re.compile(r"[ \t\r\n]*")
# A word, a number or an escape at the end of a block can go on in the next one; the longest is `-Infinity`.
_LONGEST_WORD = 16
_decode = json.JSONDecoder().raw_decode


def listed_objects(blocks: Iterable[str], name: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON text: of its list, or of the one list of objects in its object, in bounded memory.

    `{"title": "A chat", "messages": [{…}, {…}]}` gives the messages. `name` is the file's name for messages.

    Raises CorpusError for text that is not JSON, has no such list or several, has an item that is not an object, or one
    of more than 16,777,216 characters.
    """
    text = _Text(blocks, name)
    text.take("\ufeff")
    if text.take("["):
        yield from _objects(text, "the list")
    elif text.take("{"):
        yield from _objects_within(text)
    else:
        raise text.error("begins with no list and no object")
    if text.following():
        raise text.error("there is more text after its end")


def _objects_within(text: "_Text") -> Iterator[dict[str, Any]]:
    found: str | None = None
    more = not text.take("}")
    while more:
        key = text.value()
        text.require(":")
        if not text.take("["):
            text.value()
        elif text.following() != "{":
            for _ in text.items():
                pass
        elif found is not None:
            raise CorpusError(
                f"{text.name} has two lists of objects, {found!r} and {key!r}. Write one of them into its own file."
            )
        else:
            found = str(key)
            yield from _objects(text, f"the list {found!r}")
        more = not text.take("}")
        if more:
            text.require(",")
    if found is None:
        raise CorpusError(f"{text.name} is a JSON object without a list of objects. Correct it, or {ALIKE}.")


def _objects(text: "_Text", where: str) -> Iterator[dict[str, Any]]:
    for number, item in enumerate(text.items(), 1):
        if not isinstance(item, dict):
            raise CorpusError(
                f"{text.name}, item {number:,} of {where} is a JSON {type(item).__name__}, not an object with columns. "
                "Leave [rows] out to read the file as plain text."
            )
        yield item


class _Text:
    """A JSON text that comes in blocks, read value by value."""

    def __init__(self, blocks: Iterable[str], name: str) -> None:
        self.name = name
        self._blocks = iter(blocks)
        self._held, self._at, self._line = "", 0, 1

    def following(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            self._pass(_BLANKS.match(self._held, self._at).end())  # type: ignore[union-attr]
            if self._at < len(self._held):
                return self._held[self._at]
            if not self._read_on():
                return ""

    def take(self, mark: str) -> bool:
        """Pass this character, if it is the next one."""
        taken = self.following() == mark
        self._at += taken
        return taken

    def require(self, mark: str) -> None:
        if not self.take(mark):
            raise self.error(f"expecting {mark!r}")

    def items(self) -> Iterator[Any]:
        """The items of a list whose bracket has been passed."""
        more = not self.take("]")
        while more:
            yield self.value()
            more = not self.take("]")
            if more:
                self.require(",")

    def value(self) -> Any:
        self.following()
        while True:
            try:
                value, end = _decode(self._held, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._held) - _LONGEST_WORD
                if not (cut and self._read_on()):
                    raise self.error(error.msg, error.pos) from error
            except RecursionError as error:
                raise self.error("values are nested too deeply") from error
            except ValueError as error:  # a number of more than 4,300 digits
                raise self.error(str(error)) from error
            else:
                # A number at the end of a block can go on in the next one: `12e-` is read as 12.
                if end + 2 < len(self._held) or not self._read_on():
                    self._pass(end)
                    return value

    def error(self, what: str, at: int | None = None) -> CorpusError:
        line = self._line + self._held.count("\n", self._at, self._at if at is None else at)
        return CorpusError(f"{self.name}, line {line:,} is not JSON as expected: {what}. Correct it, or {ALIKE}.")

    def _pass(self, end: int) -> None:
        self._line += self._held.count("\n", self._at, end)
        self._at = end

    def _read_on(self) -> bool:
        """Read as much again as is ahead, so that a value in n blocks is parsed log n times. False at the end."""
        ahead = len(self._held) - self._at
        if ahead > LONGEST_ROW:
            raise CorpusError(
                f"{self.name}, line {self._line:,}: a row of more than {LONGEST_ROW:,} characters, which is too long. "
                "Divide it, or give its text as a plain text file."
            )
        read: list[str] = []
        size = 0
        for block in self._blocks:
            read.append(block)
            size += len(block)
            if size >= ahead:
                break
        if read:
            self._held, self._at = "".join((self._held[self._at :], *read)), 0
        return bool(read)
