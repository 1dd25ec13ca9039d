"""The survey of a text: sizes, repetitions, unseen characters, and suggestions."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import blake2b

from pydantic import BaseModel, ConfigDict

from bardflow.sources.cleaning import wrap_width
from bardflow.sources.documents import Part, Piece
from bardflow.sources.marks import AOZORA_SIGN

_LONG_LINE = 10_000
_SMALL_TEXT = 100_000
_SMALL_VALIDATION = 5_000
_CHAR_VOCABULARY = 256
# Lines of at least this many characters seldom repeat by chance.
_TELLING_LINE = 20
# The largest number of different lines in memory (about 100 bytes each).
_REMEMBERED_LINES = 500_000
# Lines are compared by this many characters at their start.
_COMPARED_CHARACTERS = 65_536
_SAMPLE_LINES = 5_000


class Suggestion(BaseModel):
    """The suggested vocabulary for a text, with the reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: str
    reason: str


class Survey(BaseModel):
    """Counts over a text, its training set and its validation set.

    `unseen_*` count characters that occur only in the validation set. Three values use only lines of 20 characters or
    more, because shorter ones, such as a speaker's name, often repeat: `duplicate_lines` is the number of lines that
    are equal to an earlier line, `duplicate_share` is their share, and `overlap` is the share of the validation set's
    lines that are also in the training set. For more than 500,000 different lines, these three are estimated from a
    sample. `longest_line` is in characters, without the line end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    characters: int
    bytes_utf8: int
    documents: int
    lines: int
    distinct: int
    train_characters: int
    validation_characters: int
    train_bytes: int
    validation_bytes: int
    unseen_distinct: int
    unseen_occurrences: int
    duplicate_lines: int
    duplicate_share: float
    longest_line: int
    overlap: float
    warnings: tuple[str, ...]
    cleaning: tuple[str, ...]
    suggestion: Suggestion


class _LineCounts:
    """The number of occurrences of each line in each set, by a 64-bit hash; above a limit, only for a sample.

    The sample depends on the hash, so all occurrences of a line are in it or none.
    """

    def __init__(self) -> None:
        self.counts: dict[Part, Counter[int]] = {"train": Counter(), "validation": Counter()}
        self._below = 1 << 64

    def add(self, part: Part, line: str) -> None:
        digest = blake2b(line[:_COMPARED_CHARACTERS].encode(), digest_size=8).digest()
        key = int.from_bytes(digest)
        if key < self._below:
            self.counts[part][key] += 1
            if sum(map(len, self.counts.values())) > _REMEMBERED_LINES:
                self._below //= 2
                for counter in self.counts.values():
                    for kept in [other for other in counter if other >= self._below]:
                        del counter[kept]

    def duplicates(self) -> float:
        """The share of lines that are equal to an earlier one."""
        train, validation = self.counts["train"], self.counts["validation"]
        total = train.total() + validation.total()
        return 0.0 if not total else 1 - len(train.keys() | validation.keys()) / total

    def overlap(self) -> float:
        """The share of the validation set's lines that are also in the training set."""
        train, validation = self.counts["train"], self.counts["validation"]
        total = validation.total()
        return 0.0 if not total else sum(count for key, count in validation.items() if key in train) / total


class _Lines:
    """Puts lines together from pieces of text, and counts them."""

    def __init__(self) -> None:
        self.counts = _LineCounts()
        self.ends = 0
        self.telling = 0
        self.longest = 0
        self.sample: list[str] = []
        self._part: Part = "train"
        self._begun = ""
        self._begun_characters = 0

    def add(self, part: Part, text: str) -> None:
        if part != self._part:
            self.close()
            self._part = part
        *whole, rest = text.split("\n")
        self.ends += len(whole)
        for line in whole:
            self._extend(line)
            self._end()
        self._extend(rest)

    def close(self) -> None:
        """Count the unfinished line at the end of a set."""
        if self._begun_characters:
            self._end()

    def _extend(self, text: str) -> None:
        # A very long line must not fill the memory.
        self._begun += text[: _COMPARED_CHARACTERS - len(self._begun)]
        self._begun_characters += len(text)

    def _end(self) -> None:
        line, characters = self._begun.rstrip("\r"), self._begun_characters
        self._begun, self._begun_characters = "", 0
        self.longest = max(self.longest, characters)
        if len(self.sample) < _SAMPLE_LINES:
            self.sample.append(line)
        if len(line) >= _TELLING_LINE:
            self.telling += 1
            self.counts.add(self._part, line)


class _Signs:
    """Signs that a cleaning step is needed."""

    def __init__(self) -> None:
        self.html = False
        self.bom = False
        self.carriage_returns = False
        self.gutenberg = False
        self.aozora = False
        self.decomposed = False

    def look(self, text: str, *, first: bool) -> None:
        if first:
            head = text.lstrip("\ufeff \r\n\t")[:200].lower()
            self.html = head.startswith(("<!doctype html", "<html"))
        self.bom = self.bom or text.startswith("\ufeff")
        self.carriage_returns = self.carriage_returns or "\r" in text
        self.gutenberg = self.gutenberg or "Project Gutenberg" in text or "PROJECT GUTENBERG" in text
        self.aozora = self.aozora or AOZORA_SIGN.search(text) is not None
        self.decomposed = self.decomposed or not unicodedata.is_normalized("NFC", text)


def survey(parts: Iterable[tuple[Part, Piece]]) -> Survey:
    """Survey the labelled pieces of `sources.documents.split`, in constant memory.

    Raises ValueError if there is no piece.
    """
    characters: dict[Part, int] = {"train": 0, "validation": 0}
    encoded: dict[Part, int] = {"train": 0, "validation": 0}
    seen: set[str] = set()  # in the training set
    held_out: Counter[str] = Counter()
    replaced = 0
    lines, signs = _Lines(), _Signs()
    documents = 0
    for part, (document, text) in parts:
        signs.look(text, first=not documents)
        documents = document + 1
        characters[part] += len(text)
        encoded[part] += len(text) if text.isascii() else len(text.encode())
        replaced += text.count("\ufffd")
        if part == "train":
            seen.update(text)
        else:
            held_out.update(text)
        lines.add(part, text)
        ends_open = not text.endswith("\n")
    if not documents:
        raise ValueError("there is no text to survey")
    lines.close()
    unseen = {character: count for character, count in held_out.items() if character not in seen}
    distinct = len(seen | held_out.keys())
    duplicate_share = lines.counts.duplicates()
    counted = Survey(
        characters=sum(characters.values()),
        bytes_utf8=sum(encoded.values()),
        documents=documents,
        lines=lines.ends + ends_open,
        distinct=distinct,
        train_characters=characters["train"],
        validation_characters=characters["validation"],
        train_bytes=encoded["train"],
        validation_bytes=encoded["validation"],
        unseen_distinct=len(unseen),
        unseen_occurrences=sum(unseen.values()),
        duplicate_lines=round(duplicate_share * lines.telling),
        duplicate_share=duplicate_share,
        longest_line=lines.longest,
        overlap=lines.counts.overlap(),
        warnings=(),
        cleaning=tuple(_cleaning(signs, wrapped=wrap_width(lines.sample) is not None)),
        suggestion=_suggestion(distinct),
    )
    return counted.model_copy(update={"warnings": tuple(_warnings(counted, signs, replaced))})


def _cleaning(signs: _Signs, *, wrapped: bool) -> Iterator[str]:
    """The cleaning steps that would change this text, in order."""
    for step, found in (
        ("strip-bom", signs.bom),
        ("crlf", signs.carriage_returns),
        ("gutenberg", signs.gutenberg),
        ("aozora", signs.aozora),
        ("unwrap", wrapped),
        ("nfc", signs.decomposed),
    ):
        if found:
            yield step


def _suggestion(distinct: int) -> Suggestion:
    if distinct < _CHAR_VOCABULARY:
        return Suggestion(
            vocabulary="char", reason=f"{distinct} distinct characters are few enough to be one token each"
        )
    return Suggestion(
        vocabulary="bpe",
        reason=f"{distinct:,} distinct characters: most are rare, and frequent sequences are better tokens",
    )


def _warnings(counted: Survey, signs: _Signs, replaced: int) -> Iterator[str]:
    if signs.html:
        yield "The text begins like an HTML page: is this the address of the text itself?"
    if replaced:
        yield f"{replaced:,} times the replacement character (U+FFFD): an earlier conversion has lost what stood there."
    if counted.characters < _SMALL_TEXT:
        yield f"Only {counted.characters:,} characters: a model will memorise them instead of learning from them."
    if counted.validation_characters < _SMALL_VALIDATION:
        yield f"The validation set has only {counted.validation_characters:,} characters: its scores will be imprecise."
    if counted.unseen_distinct:
        share = counted.unseen_occurrences / counted.validation_characters
        yield (
            f"{counted.unseen_distinct:,} characters ({counted.unseen_occurrences:,} occurrences, {share:.2%} of the "
            "validation part) never occur in the training part; the vocabulary has to spell them in bytes."
        )
    if counted.duplicate_share > 0.3:
        yield f"{counted.duplicate_share:.0%} of the lines of {_TELLING_LINE} characters or more repeat an earlier one."
    if counted.overlap > 0.05:
        yield (
            f"{counted.overlap:.0%} of the validation set's lines of {_TELLING_LINE} characters or more are also in "
            "the training set: the score will be too good."
        )
    if counted.longest_line > _LONG_LINE:
        yield f"The longest line has {counted.longest_line:,} characters: has the text lost its line ends?"
