"""Exact and near duplicates among the documents of a corpus, in each set and across the split."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from hashlib import blake2b
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict
from rensa import RMinHash, RMinHashLSH

from bardflow.sources.documents import Part, Piece
from bardflow.sources.spec import CorpusError, OnDuplicates

# Documents are compared by their 5-grams, and near duplicates share at least 0.8 of them (Jaccard similarity): the
# values of Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better", section 4.2 and appendix A.
SHINGLE_TOKENS = 5
THRESHOLD = 0.8
# The similarity is estimated from 128 hashes with a standard error of 0.035. In 16 bands of 8, a pair with similarity
# 0.8 is compared with probability 0.95, one with 0.9 with 0.9999: 1 - (1 - s^8)^16.
PERMUTATIONS = 128
BANDS = 16
SEED = 1
EXAMPLE_CHARACTERS = 80

# Characters of scripts that write no spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, and Han.
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_PUNCTUATION = r"!-/:-@\[-`{-~\u00a1-\u00bf\u2000-\u206f\u3000-\u303f\uff00-\uff0f\uff1a-\uff20"
# A token is a word, or one character of a script without spaces. A longer run of letters is cut.
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\s{_PUNCTUATION}{_UNSPACED}]{{1,100}}")


class NothingLeft(CorpusError):
    """Every document of the training set repeats one of the validation set."""


class Counted(BaseModel):
    """Numbers of documents that are an exact or a near duplicate of another one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exact: int = 0
    near: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.exact + self.near


class Example(BaseModel):
    """The first characters of two documents, of which the second is a duplicate of the first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["exact", "near"]
    where: Literal["training", "validation", "across"]
    first: str
    second: str


class Duplicates(BaseModel):
    """The duplicates among `documents` documents, the number of their characters, and whether they were left out.

    `training` and `validation` count the documents of a set that repeat an earlier one of the same set. `across` counts
    the documents of the training set that repeat one of the validation set. A document counts once. If the split cuts
    a document in two, its parts count as two documents.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    documents: int
    characters: int
    training: Counted
    validation: Counted
    across: Counted
    example: Example | None
    dropped: bool = False

    @property
    def total(self) -> int:
        """The number of documents that are duplicates."""
        return self.training.total + self.validation.total + self.across.total

    @property
    def exact(self) -> int:
        """The number of documents with the same text as another one."""
        return self.training.exact + self.validation.exact + self.across.exact


# A document within a set: the split may cut a document in two.
Unit = tuple[Part, int]


_Where = Literal["training", "validation", "across"]
_Kind = tuple[_Where, Literal["exact", "near"]]


class Found(NamedTuple):
    """The counts of duplicates, the documents to leave out so that none remains, and whether there are several."""

    counts: Duplicates
    repeated: frozenset[Unit]
    several: bool


class _Document(NamedTuple):
    unit: Unit
    characters: int
    start: str
    text_hash: bytes
    sketch: RMinHash | None


class _Sketching:
    """The hash of a document's text and the MinHash of its 5-grams, from pieces of its text.

    Neither depends on where the pieces end. Blanks at the ends of the text do not count for the hash; case, blanks and
    punctuation do not count for the 5-grams. A document with fewer than five tokens has one n-gram: all its tokens.
    """

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._hash = blake2b(digest_size=16)
        self._sketch = RMinHash(PERMUTATIONS, SEED)
        self._shingles = 0
        self._characters = 0
        self._start = ""
        self._blanks = ""  # at the end of the text so far
        self._last = ""  # its last tokens

    def add(self, text: str) -> None:
        self._characters += len(text)
        more = self._blanks + text if self._start else text.lstrip()
        visible = more.rstrip()
        self._blanks = more[len(visible) :]
        self._start = (self._start + visible[:EXAMPLE_CHARACTERS])[:EXAMPLE_CHARACTERS]
        self._hash.update(visible.encode())
        text = self._last + text.casefold()
        found = list(_TOKEN.finditer(text))
        tokens = [token[0] for token in found]
        self._shingle(tokens[:-1])  # the last word may go on in the next piece
        ended = not found or found[-1].end() < len(text)
        self._last = " ".join(tokens[-SHINGLE_TOKENS:]) + " " * ended

    def close(self) -> _Document:
        tokens = _TOKEN.findall(self._last)
        self._shingle(tokens)
        if not self._shingles:
            self._shingle(tokens, size=len(tokens))
        sketch = self._sketch if self._shingles else None
        return _Document(self._unit, self._characters, self._start, self._hash.digest(), sketch)

    def _shingle(self, tokens: list[str], size: int = SHINGLE_TOKENS) -> None:
        # The sketch is of a set, so an n-gram that was read before changes nothing.
        shingles = [" ".join(tokens[at : at + size]) for at in range(len(tokens) - size + 1)] if size else []
        self._shingles += len(shingles)
        self._sketch.update(shingles)


def find_duplicates(parts: Iterable[tuple[Part, Piece]]) -> Found:
    """Find the documents that repeat another one, from the labelled pieces of `sources.documents.split`.

    Documents are compared in order, those of the validation set first. One that is equal or similar to an earlier one
    that was not a duplicate is a duplicate. So no pair of duplicates is left without `repeated`, and a document in both
    sets is repeated in the training set: the validation set, and with it the meaning of scores, does not depend on the
    training set. Memory grows by about 2 kB for each document and not with its length.
    """
    documents = sorted(_sketched(parts), key=lambda document: document.unit[0] == "train")
    index = RMinHashLSH(THRESHOLD, PERMUTATIONS, BANDS)
    same_text: dict[bytes, int] = {}
    repeated: set[Unit] = set()
    counts: dict[_Kind, int] = {}
    examples: dict[_Kind, Example] = {}
    characters = 0
    for number, document in enumerate(documents):
        first = same_text.get(document.text_hash)
        how: Literal["exact", "near"] = "near" if first is None else "exact"
        if first is None and document.sketch is not None:
            first = min(
                (
                    other
                    for other in index.query(document.sketch)
                    if document.sketch.jaccard(documents[other].sketch) >= THRESHOLD
                ),
                default=None,
            )
            if first is None:
                index.insert(number, document.sketch)
        same_text.setdefault(document.text_hash, number if first is None else first)
        if first is None:
            continue
        repeated.add(document.unit)
        characters += document.characters
        one, other = documents[first].unit[0], document.unit[0]
        kind = (_where(one, other), how)
        counts[kind] = counts.get(kind, 0) + 1
        examples.setdefault(kind, Example(where=kind[0], kind=how, first=documents[first].start, second=document.start))

    def counted(where: _Where) -> Counted:
        return Counted(exact=counts.get((where, "exact"), 0), near=counts.get((where, "near"), 0))

    # A near duplicate across the split most needs a look.
    telling = sorted(examples.values(), key=lambda example: (example.where != "across", example.kind != "near"))
    found = Duplicates(
        documents=len(documents),
        characters=characters,
        training=counted("training"),
        validation=counted("validation"),
        across=counted("across"),
        example=telling[0] if telling else None,
    )
    several = len({document.unit[1] for document in documents}) > 1
    return Found(found, frozenset(repeated), several)


def without(parts: Iterable[tuple[Part, Piece]], repeated: Collection[Unit]) -> Iterator[tuple[Part, Piece]]:
    """Leave out these documents, and number the others from 0.

    Raises NothingLeft if nothing is left of the training set.
    """
    number, last, trained = -1, -1, 0
    for part, (document, text) in parts:
        if (part, document) in repeated:
            continue
        if document != last:
            number, last = number + 1, document
        trained += len(text) if part == "train" else 0
        yield part, Piece(number, text)
    require_training_text(trained)


def require_training_text(characters: int) -> None:
    """Raise NothingLeft if no characters are left to train on after dropping duplicates."""
    if not characters:
        raise NothingLeft(
            'All documents of the training set repeat documents of the validation set, so duplicates = "drop" leaves '
            'nothing to train on. Cut other documents, use another validation share, or write duplicates = "keep".'
        )


def treated(
    parts: Callable[[], Iterable[tuple[Part, Piece]]], treatment: OnDuplicates | None
) -> tuple[Iterable[tuple[Part, Piece]], Duplicates | None]:
    """The labelled pieces, without duplicates if these are dropped, and the counts of duplicates if they are counted.

    `parts` is called for each pass over the pieces.
    Raises CorpusError if duplicates are to be dropped from a single document.
    """
    if treatment is None:
        return parts(), None
    found = find_duplicates(parts())
    if treatment == "keep":
        return parts(), found.counts
    if not found.several:
        raise CorpusError(
            "The corpus has one document, and duplicates are documents that repeat another one. Cut the text into "
            'documents (documents.cut = "heading", "file" or "row"), or leave duplicates = "drop" out.'
        )
    return without(parts(), found.repeated), found.counts.model_copy(update={"dropped": True})


def _where(one: Part, other: Part) -> _Where:
    if one != other:
        return "across"
    return "training" if one == "train" else "validation"


def _sketched(parts: Iterable[tuple[Part, Piece]]) -> Iterator[_Document]:
    sketching, current = None, None
    for part, (document, text) in parts:
        if sketching is None or (part, document) != current:
            if sketching is not None:
                yield sketching.close()
            current = (part, document)
            sketching = _Sketching(current)
        sketching.add(text)
    if sketching is not None:
        yield sketching.close()
