"""The survey of a text: sizes, repetitions, unseen characters, and suggestions."""

import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from queue import Queue
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from bardflow.code_points import Hashes, Points, code_points, powers, running_sums
from bardflow.sources.cleaning import wrap_width
from bardflow.sources.documents import PARTS, Part, Piece
from bardflow.sources.marks import has_aozora_sign

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
# So many characters are looked at together.
_STRETCH_CHARACTERS = 131_072
# The most pieces that wait for the thread that surveys.
_WAITING_PIECES = 32

Counts = npt.NDArray[np.int64]


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
        self.counted = {part: (np.empty(0, np.uint64), np.empty(0, np.int64)) for part in PARTS}
        self._new: dict[Part, list[Hashes]] = {part: [] for part in PARTS}
        self._below = 1 << 64

    def add(self, part: Part, lines: Hashes) -> None:
        """Add the hashes of lines."""
        self._new[part].append(self._sampled(lines))
        if sum(map(len, self._new[part])) > _REMEMBERED_LINES:
            self.count()

    def count(self) -> None:
        """Count what was added."""
        for part, (keys, counts) in self.counted.items():
            new = np.concatenate([np.empty(0, np.uint64), *self._new[part]])
            both = np.concatenate([keys, new])
            weights = np.concatenate([counts, np.ones(len(new), np.int64)])
            order = np.argsort(both, kind="stable")
            both = both[order]
            first = np.flatnonzero(np.concatenate([[True], both[1:] != both[:-1]])) if len(both) else order
            self.counted[part] = both[first], np.add.reduceat(weights[order], first) if len(both) else counts
            self._new[part].clear()
        while sum(len(keys) for keys, _ in self.counted.values()) > _REMEMBERED_LINES:
            self._below //= 2
            for part, (keys, counts) in self.counted.items():
                kept = int(np.searchsorted(keys, np.uint64(self._below)))
                self.counted[part] = keys[:kept], counts[:kept]

    def _sampled(self, lines: Hashes) -> Hashes:
        return lines if self._below == 1 << 64 else lines[lines < np.uint64(self._below)]

    def duplicates(self) -> float:
        """The share of lines that are equal to an earlier one."""
        (train, trained), (validation, held_out) = (self.counted[part] for part in PARTS)
        total = int(trained.sum() + held_out.sum())
        different = len(train) + len(validation) - int(np.count_nonzero(self._in_both()))
        return 0.0 if not total else 1 - different / total

    def overlap(self) -> float:
        """The share of the validation set's lines that are also in the training set."""
        _, held_out = self.counted["validation"]
        total = int(held_out.sum())
        return 0.0 if not total else int(held_out[self._in_both()].sum()) / total

    def _in_both(self) -> npt.NDArray[np.bool_]:
        """Say for each different line of the validation set whether it is in the training set. Both are sorted."""
        (train, _), (validation, _) = (self.counted[part] for part in PARTS)
        if not len(train):
            return np.zeros(len(validation), bool)
        found: npt.NDArray[np.bool_] = train[np.searchsorted(train[:-1], validation)] == validation
        return found


class _Lines:
    """Puts lines together from pieces of text, and counts them."""

    def __init__(self) -> None:
        self.counts = _LineCounts()
        self.ends = 0
        self.telling = 0
        self.longest = 0
        self.sample: list[str] = []
        self._part: Part = "train"
        # The start of the unfinished line, and its number of characters: a very long line must not fill the memory.
        self._begun = np.empty(0, np.uint32)
        self._begun_characters = 0

    def add(self, part: Part, points: Points) -> None:
        """Add the code points of a piece of text."""
        if part != self._part:
            self.close()
            self._part = part
        ends = np.flatnonzero(points == ord("\n"))
        if len(ends) and self._begun_characters:
            self._begin(points[: ends[0]])
            self._end()
            points, ends = points[ends[0] + 1 :], ends[1:] - ends[0] - 1
        if len(ends):
            self._count(points, ends)
            points = points[ends[-1] + 1 :]
        self._begin(points)

    def close(self) -> None:
        """Count the unfinished line at the end of a set."""
        if self._begun_characters:
            self._end()
            self.ends -= 1
        self.counts.count()

    def _begin(self, points: Points) -> None:
        self._begun = np.concatenate([self._begun, points[: _COMPARED_CHARACTERS - len(self._begun)]])
        self._begun_characters += len(points)

    def _end(self) -> None:
        self.longest = max(self.longest, self._begun_characters)
        self._count(self._begun, np.array([len(self._begun)]))
        self._begun, self._begun_characters = self._begun[:0], 0

    def _count(self, points: Points, ends: npt.NDArray[np.intp]) -> None:
        """Count the lines that end at these places of a text."""
        starts = np.concatenate([[0], ends[:-1] + 1])
        lengths = ends - starts
        self.ends += len(ends)
        self.longest = max(self.longest, int(lengths.max()))
        if len(points) and (returns := points == ord("\r")).any():
            # The place after the last other character, at or before each place.
            others = np.maximum.accumulate(np.where(returns, 0, np.arange(1, len(points) + 1)))
            lengths = np.clip(others[np.maximum(ends - 1, 0)] - starts, 0, lengths)
        lengths = np.minimum(lengths, _COMPARED_CHARACTERS)
        for start, length in zip(starts, lengths[: _SAMPLE_LINES - len(self.sample)], strict=False):
            self.sample.append(points[start : start + length].tobytes().decode("utf-32-le"))
        telling = lengths >= _TELLING_LINE
        self.telling += int(np.count_nonzero(telling))
        self.counts.add(self._part, _hashes(points, starts[telling], lengths[telling]))


def _hashes(points: Points, starts: npt.NDArray[np.intp], lengths: npt.NDArray[np.intp]) -> Hashes:
    """Hash stretches of a text; all bits of a hash depend on all characters, as after MurmurHash3's `fmix64`."""
    base, inverse = _powers(1 << len(points).bit_length())
    sums = running_sums(points, base)
    hashes: Hashes = (sums[starts + lengths] - sums[starts]) * inverse[starts]
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        hashes ^= hashes >> np.uint64(33)
        hashes *= np.uint64(multiplier)
    return hashes ^ hashes >> np.uint64(33)


_powers = lru_cache(maxsize=4)(powers)


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
        self.aozora = self.aozora or has_aozora_sign(text)
        self.decomposed = self.decomposed or not unicodedata.is_normalized("NFC", text)


def survey(parts: Iterable[tuple[Part, Piece]]) -> Survey:
    """Survey the labelled pieces of `sources.documents.split`, in constant memory.

    Raises ValueError if there is no piece.
    """
    characters: dict[Part, int] = {"train": 0, "validation": 0}
    encoded: dict[Part, int] = {"train": 0, "validation": 0}
    occurrences = {part: np.zeros(1, np.int64) for part in PARTS}  # by code point
    replaced = 0
    lines, signs = _Lines(), _Signs()
    documents = 0
    for part, document, text in _stretches(parts):
        signs.look(text, first=not documents)
        documents = document + 1
        characters[part] += len(text)
        encoded[part] += len(text) if text.isascii() else len(text.encode())
        replaced += text.count("\ufffd")
        points = code_points(text)
        lines.add(part, points)
        occurrences[part] = _added(occurrences[part], np.bincount(points))
        ends_open = not text.endswith("\n")
    if not documents:
        raise ValueError("there is no text to survey")
    lines.close()
    everywhere = _added(*occurrences.values())
    unseen = everywhere[_added(occurrences["train"], np.zeros_like(everywhere)) == 0]
    distinct = int(np.count_nonzero(everywhere))
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
        unseen_distinct=int(np.count_nonzero(unseen)),
        unseen_occurrences=int(unseen.sum()),
        duplicate_lines=round(duplicate_share * lines.telling),
        duplicate_share=duplicate_share,
        longest_line=lines.longest,
        overlap=lines.counts.overlap(),
        warnings=(),
        cleaning=tuple(_cleaning(signs, wrapped=wrap_width(lines.sample) is not None)),
        suggestion=_suggestion(distinct),
    )
    return counted.model_copy(update={"warnings": tuple(_warnings(counted, signs, replaced))})


class SurveyThread:
    """A thread that surveys labelled pieces while they are passed on to other work.

    NumPy and hashlib release Python's lock, so surveying a text and writing it use two cores.
    """

    def __init__(self) -> None:
        self._waiting: Queue[tuple[Part, Piece] | None] = Queue(_WAITING_PIECES)
        self._pool = ThreadPoolExecutor(1, "survey")

    def __enter__(self) -> Self:
        self._survey = self._pool.submit(self._surveyed)
        return self

    def __exit__(self, *raised: Any) -> None:
        self._waiting.put(None)
        self._pool.shutdown()

    def passing(self, parts: Iterable[tuple[Part, Piece]]) -> Iterator[tuple[Part, Piece]]:
        """Yield the pieces, each of which is surveyed."""
        for part in parts:
            self._waiting.put(part)
            yield part

    def result(self) -> Survey:
        """Return the survey of all pieces that were passed on. Raises as `survey`."""
        self._waiting.put(None)
        return self._survey.result()

    def _surveyed(self) -> Survey:
        parts = iter(self._waiting.get, None)
        try:
            return survey(part for part in parts if part is not None)
        finally:
            for _ in parts:  # after an error, so that `passing` does not wait forever
                pass


def _stretches(parts: Iterable[tuple[Part, Piece]]) -> Iterator[tuple[Part, int, str]]:
    """Join neighbouring pieces of a set to long texts, with the number of the last document."""
    held: list[str] = []
    size, current, last = 0, PARTS[0], 0
    for part, (document, text) in parts:
        if held and (part != current or size >= _STRETCH_CHARACTERS):
            yield current, last, "".join(held)
            held, size = [], 0
        current, last = part, document
        held.append(text)
        size += len(text)
    if held:
        yield current, last, "".join(held)


def _added(a: Counts, b: Counts) -> Counts:
    """Return the sum of two counts by code point, as long as the longer one."""
    total = np.zeros(max(len(a), len(b)), np.int64)
    total[: len(a)] += a
    total[: len(b)] += b
    return total


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
