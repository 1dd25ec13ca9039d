"""Mixing corpora: their training texts with weights, and their validation texts."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from bardflow.sources.documents import PARTS, Part, Piece, extent, read, split
from bardflow.sources.duplicates import Duplicates, Unit, find_duplicates, require_training_text, treated
from bardflow.sources.fetch import fetch
from bardflow.sources.spec import CorpusError, CorpusSpec, MixtureSpec
from bardflow.sources.survey import Survey, survey

# The pieces of one set of a corpus, which may be read several times.
ReadSet = Callable[[Part], Iterable[Piece]]


class MixedPart(BaseModel):
    """What a corpus gives to a mixture: characters of each set and documents, and its share of the training set.

    `documents` counts repeated documents as often as they stand in the mixture.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str
    weight: float
    train_characters: int
    validation_characters: int
    documents: int
    train_share: float


class Mixed(NamedTuple):
    """A mixture: a function that reads it, what each corpus gives to it, and the duplicates if they are counted."""

    read: Callable[[], Iterator[tuple[Part, Piece]]]
    parts: tuple[MixedPart, ...]
    duplicates: Duplicates | None


def mix(spec: MixtureSpec, texts: list[ReadSet]) -> Mixed:
    """Mix texts, one for each part of the spec: first all training texts with their weights, then the validation texts.

    Documents are numbered on from text to text. Duplicates are found among the documents of all texts before weights
    apply.
    Raises CorpusError if a part gives no training text.
    """
    duplicates = None
    repeated: Collection[Unit] = ()
    if spec.duplicates is not None:
        found = find_duplicates(_numbered_on(texts))
        duplicates = found.counts
        if spec.duplicates == "drop":
            duplicates, repeated = duplicates.model_copy(update={"dropped": True}), found.repeated
    left = _without(texts, repeated)
    lengths = [{part: sum(len(piece.text) for piece in text(part)) for part in PARTS} for text in left]
    weights = [Decimal(str(part.weight)) for part in spec.mixture]
    trained = [int(weight * length["train"]) for weight, length in zip(weights, lengths, strict=True)]
    if repeated:
        require_training_text(sum(trained))
    for part, length, characters in zip(spec.mixture, lengths, trained, strict=True):
        if length["train"] and not characters:
            raise CorpusError(
                f"mixture: weight = {part.weight} of {part.corpus!r} is less than one of its {length['train']:,} "
                "characters to train on. Use a larger weight, or leave this corpus out."
            )

    def pieces(part: Part, number: int) -> Iterator[Piece]:
        if part == "validation":
            return iter(left[number](part))
        return _first_characters(lambda: left[number](part), trained[number])

    def everything() -> Iterator[tuple[Part, Piece]]:
        last = -1
        for part in PARTS:
            for number in range(len(left)):
                for document, text in _numbered(pieces(part, number), after=last):
                    last = document
                    yield part, Piece(document, text)

    parts = tuple(
        MixedPart(
            corpus=part.corpus,
            weight=part.weight,
            train_characters=characters,
            validation_characters=length["validation"],
            documents=sum(extent(_numbered(pieces(part_of, number), after=-1))[1] for part_of in PARTS),
            train_share=characters / sum(trained),
        )
        for number, (part, length, characters) in enumerate(zip(spec.mixture, lengths, trained, strict=True))
    )
    return Mixed(everything, parts, duplicates)


def survey_of_mixture(
    spec: MixtureSpec, parts: list[CorpusSpec], *, project: Path, downloads: Path, mirror: str | None
) -> Survey:
    """Fetch the corpora of a mixture into temporary folders and survey the mixture."""
    with ExitStack() as stack:
        texts = []
        for part in parts:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            fetch(part, folder, downloads=downloads, mirror=mirror, project=project)
            texts.append(_cleaned(part, folder))
        return survey(mix(spec, texts).read())


def _cleaned(spec: CorpusSpec, folder: Path) -> ReadSet:
    """The cleaned text of a corpus whose files are in `folder`."""
    reading = read(spec, folder)
    characters, documents = extent(reading)

    def text(part: Part) -> Iterator[Piece]:
        labelled, _ = treated(lambda: split(reading, spec.split, characters, documents), spec.duplicates)
        return (piece for of, piece in labelled if of == part)

    return text


def _numbered_on(texts: list[ReadSet]) -> Iterator[tuple[Part, Piece]]:
    """The pieces of all texts; a document keeps its number in both sets, after the numbers of the texts before it."""
    first = 0
    for text in texts:
        last = first - 1
        for part in PARTS:
            for document, piece in text(part):
                last = max(last, first + document)
                yield part, Piece(first + document, piece)
        first = last + 1


def _without(texts: list[ReadSet], repeated: Collection[Unit]) -> list[ReadSet]:
    """The texts without these documents, which are numbered as by `_numbered_on`."""
    if not repeated:
        return texts
    firsts, first = [], 0
    for text in texts:
        firsts.append(first)
        first += 1 + max(piece.document for part in PARTS for piece in text(part))

    def left(text: ReadSet, first: int) -> ReadSet:
        return lambda part: (piece for piece in text(part) if (part, first + piece.document) not in repeated)

    return [left(text, first) for text, first in zip(texts, firsts, strict=True)]


def _first_characters(pieces: Callable[[], Iterable[Piece]], characters: int) -> Iterator[Piece]:
    """The pieces again and again, up to this number of characters. A copy's documents have numbers of their own."""
    first = 0
    while characters:
        last = 0
        for document, text in pieces():
            if not characters:
                break
            cut = text[:characters]
            characters -= len(cut)
            last = document
            yield Piece(first + document, cut)
        first += last + 1


def _numbered(pieces: Iterable[Piece], after: int) -> Iterator[Piece]:
    """The pieces with documents numbered on from `after`."""
    number, last = after, None
    for document, text in pieces:
        if document != last:
            number, last = number + 1, document
        yield Piece(number, text)
