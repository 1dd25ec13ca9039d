"""The text of a corpus from its files: decoded, cleaned, cut into documents, and split."""

import json
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from bardflow.sources.cleaning import Cleaned, clean, counted
from bardflow.sources.encoding import decoded
from bardflow.sources.epub import chapters
from bardflow.sources.heading import Heading, SlowHeading
from bardflow.sources.markup import html_text, markdown_text
from bardflow.sources.rows import RowCounts, row_texts
from bardflow.sources.spec import CorpusError, CorpusSpec, DatasetSource, SplitSpec
from bardflow.sources.tally import Tally, lines
from bardflow.sources.unpack import raw_texts

PIECE_CHARACTERS = 65_536
STRETCH_SEED = 1337  # of the places of the stretches that are kept of a long validation set

Part = Literal["train", "validation"]
PARTS: tuple[Part, Part] = ("train", "validation")


class Piece(NamedTuple):
    """A piece of text within one document (numbered from 0)."""

    document: int
    text: str


class Units(Protocol):
    """Yields the cleaned text of each file, chapter or row of some files as blocks of text; adds to the counts."""

    def __call__(
        self, spec: CorpusSpec, folder: Path, files: Sequence[Path], tallies: Sequence[Tally], rows: RowCounts
    ) -> Iterator[Iterator[str]]:
        """Yield them in order."""


class Reading:
    """The cleaned text of a corpus as pieces; each iteration reads the files again.

    After a full iteration, `cleaned` has the counts of each cleaning step, and `rows` those of the rows in files.
    """

    def __init__(self, spec: CorpusSpec, folder: Path, units: Units) -> None:
        self._spec = spec
        self._folder = folder
        self._units = units
        self._cleaned: tuple[Cleaned, ...] | None = None
        self._rows = RowCounts()

    @property
    def cleaned(self) -> tuple[Cleaned, ...]:
        """The counts of each cleaning step. Raises RuntimeError before the first full iteration."""
        if self._cleaned is None:
            raise RuntimeError("what cleaning did is known only after all pieces have been read")
        return self._cleaned

    @property
    def rows(self) -> RowCounts | None:
        """The counts of rows in files; None without `[rows]`. Raises RuntimeError before the first full iteration."""
        return self._rows if self.cleaned is not None and self._spec.rows is not None else None

    def __iter__(self) -> Iterator[Piece]:
        """Yield the pieces in order.

        Raises CorpusError for bytes that are not in the corpus's encoding, for a text without visible characters, and
        for a heading that matches no line.
        """
        tallies, rows = [Tally() for _ in self._spec.cleaning], RowCounts()
        files = raw_files(self._spec, self._folder)
        units = self._units(self._spec, self._folder, files, tallies, rows)
        yield from _pieces(_documents(self._spec, self._folder, units, tallies))
        self._cleaned, self._rows = counted(self._spec.cleaning, tallies), rows


def cleaned_units(
    spec: CorpusSpec, folder: Path, files: Sequence[Path], tallies: Sequence[Tally], rows: RowCounts
) -> Iterator[Iterator[str]]:
    """Read, decode and clean files of a corpus in this process (see `Units`)."""
    for path in files:
        for text in _texts(spec, path, path.relative_to(folder).as_posix(), rows):
            yield clean(text, spec.cleaning, tallies) if spec.cleaning else text


def read(spec: CorpusSpec, folder: Path, units: Units = cleaned_units) -> Reading:
    """The text of a corpus whose files, from `sources.fetch.fetch`, are in `folder`.

    `units` reads and cleans the files. The joined pieces are the cleaned text. A piece has at most 65,536 characters.
    Within a document it ends, if possible, between a line end and a visible character, where usual tokenizers do not
    join tokens.
    """
    return Reading(spec, folder, units)


def extent(pieces: Iterable[Piece]) -> tuple[int, int]:
    """The numbers of characters and documents."""
    characters, documents = 0, 0
    for piece in pieces:
        characters += len(piece.text)
        documents = piece.document + 1
    return characters, documents


class Kept(NamedTuple):
    """The part of a long validation set that is kept: the number of characters, of how many, in how many stretches."""

    characters: int
    of: int
    stretches: int


class Split:
    """Pieces labelled with their set; each iteration reads them again.

    After a full iteration, `kept` says what was kept of a validation set that is longer than the spec allows.
    """

    def __init__(self, pieces: Iterable[Piece], spec: SplitSpec, characters: int, documents: int) -> None:
        self._pieces, self._spec, self._characters, self._documents = pieces, spec, characters, documents
        self.kept: Kept | None = None

    def __iter__(self) -> Iterator[tuple[Part, Piece]]:
        """Yield the labelled pieces in order.

        Raises CorpusError if a set would be empty, or if the pieces do not sum to the totals.
        """
        trained, held_out, kept = 0, 0, 0
        most = self._spec.validation_characters
        starts: list[int] | None = None
        for part, piece in _labelled(self._pieces, self._spec, self._characters, self._documents):
            if part == "train":
                trained += len(piece.text)
                yield part, piece
                continue
            if starts is None:
                starts = stretch_starts(self._characters - trained, most)
            # The last stretch that begins at or before this piece, if any.
            before = bisect_right(starts, held_out) - 1
            if not starts or (before >= 0 and held_out - starts[before] < most // len(starts)):
                kept += len(piece.text)
                yield part, piece
            held_out += len(piece.text)
        self.kept = Kept(kept, held_out, len(starts)) if starts else None


def split(pieces: Iterable[Piece], spec: SplitSpec, characters: int, documents: int) -> Split:
    """Label each piece with its set; a piece across the border is cut in two.

    `characters` and `documents` are the totals. The training set is the first int((1 - validation) * total) characters
    or documents, as in published splits. If the rest is longer than `spec.validation_characters`, whole pieces of it
    are kept: those that begin in one of the stretches of `stretch_starts`.
    """
    return Split(pieces, spec, characters, documents)


def stretch_starts(characters: int, most: int) -> list[int]:
    """Return where the stretches that are kept of a text begin, each of `most` / count characters; none if all is kept.

    The text is divided into equal parts, and a stretch is drawn in each of them, with a fixed seed.
    """
    if characters <= most:
        return []
    count = max(1, most // PIECE_CHARACTERS)
    gap, length = characters // count, most // count
    draw = random.Random(STRETCH_SEED)
    return [number * gap + int(draw.random() * (gap - length + 1)) for number in range(count)]


def _labelled(
    pieces: Iterable[Piece], spec: SplitSpec, characters: int, documents: int
) -> Iterator[tuple[Part, Piece]]:
    """Label each piece with its set."""
    by_document = spec.by == "document"
    total = documents if by_document else characters
    # As decimals: in binary, (1 - 0.9) * 10 is less than 1, and the training set would be empty.
    border = int((1 - Decimal(str(spec.validation))) * total)
    if not 0 < border < total:
        unit = "document" if by_document else "character"
        part = "training" if border <= 0 else "validation"
        raise CorpusError(
            f"A split by {spec.by} with validation = {spec.validation} leaves the {part} set of "
            f"{total:,} {unit}{'' if total == 1 else 's'} empty. Use more text, another validation share"
            + (', or by = "position".' if by_document else ".")
        )
    passed = 0
    last = -1
    for document, text in pieces:
        last = max(last, document)
        room = (border - document) * len(text) if by_document else border - passed
        passed += len(text)
        if room >= len(text):
            yield "train", Piece(document, text)
        elif room <= 0:
            yield "validation", Piece(document, text)
        else:
            yield "train", Piece(document, text[:room])
            yield "validation", Piece(document, text[room:])
    if passed != characters or last + 1 != documents:
        raise CorpusError(
            f"The text has {passed:,} characters in {last + 1:,} documents, and the split was made for "
            f"{characters:,} in {documents:,}: its files have changed since they were counted. Count them again."
        )


def _documents(
    spec: CorpusSpec, folder: Path, units: Iterable[Iterator[str]], tallies: Sequence[Tally]
) -> Iterator[Piece]:
    """Pieces of cleaned text of any size, with the numbers of their documents."""
    heading = None if spec.documents.heading is None else Heading(spec.documents.heading)
    document = 0
    begun = False  # whether the current document has a visible character
    headings = 0
    for blocks in units:
        unit = blocks if heading is None else lines(blocks)
        fresh = spec.documents.cut in ("file", "row") or heading is not None
        # Blank text at the start of a file or row is held back until visible text follows: alone it is no document.
        waiting: list[str] = []
        for text in unit:
            visible = not (text == "" or text.isspace())
            opens = heading is not None and _opens(spec, heading, text)
            headings += opens
            if visible and begun and (fresh or opens):
                document += 1
            if visible:
                begun, fresh = True, False
            elif fresh:
                waiting.append(text)
                continue
            for blank in waiting:
                yield Piece(document, blank)
            waiting.clear()
            yield Piece(document, text)
        for blank in waiting:
            yield Piece(document, blank)
    if not begun:
        removed = sum(tally.characters_removed - tally.characters_added for tally in tallies)
        raise CorpusError(
            f"The corpus {spec.name!r} has no text: "
            + (
                f"cleaning ({', '.join(spec.cleaning)}) removed all {removed:,} characters"
                if removed
                else _emptiness(folder)
            )
            + ". Look at its source and its cleaning steps."
        )
    if heading is not None and not headings:
        raise CorpusError(
            f"The corpus {spec.name!r}: the heading {spec.documents.heading!r} matches no line of the cleaned text. "
            'Correct documents.heading, or use cut = "whole".'
        )


def _opens(spec: CorpusSpec, heading: Heading, line: str) -> bool:
    try:
        return heading.is_in(line)
    except SlowHeading as error:
        raise CorpusError(
            f"The corpus {spec.name!r}: the heading {spec.documents.heading!r} takes too long to match, here the line "
            f"{line[:60]!r} of {len(line):,} characters. Avoid repeats within repeats, such as (a+)+, and two repeats "
            "that can match the same text; begin with ^ and the word that headings begin with."
        ) from error


def _texts(spec: CorpusSpec, path: Path, name: str, counts: RowCounts) -> Iterator[Iterator[str]]:
    """The text of each file, chapter or row; a row without a value is left out, the others get a line end."""
    if isinstance(spec.source, DatasetSource):
        yield from (iter([_ended(text)]) for text in _stored_rows(path))
        return
    if spec.format == "epub":
        yield from (iter([chapter]) for chapter in chapters(path, name))
        return
    for file in raw_texts(path, name):
        if spec.format == "html":
            yield iter([html_text(decoded(file, spec.encoding), file.name)])
        elif spec.format == "markdown":
            yield iter([markdown_text(decoded(file, spec.encoding), file.name)])
        elif spec.rows is None:
            yield decoded(file, spec.encoding)
        else:
            for row in row_texts(file, spec.rows, spec.encoding):
                counts.rows += 1
                if row is None:
                    counts.without_value += 1
                else:
                    yield iter([_ended(row)])


def raw_files(spec: CorpusSpec, folder: Path) -> list[Path]:
    """The fetched files in the order in which they are read."""
    files = sorted(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.relative_to(folder).parts
    )
    if not files:
        raise CorpusError(f"The corpus {spec.name!r} has no files in {folder}; fetch it first.")
    return files


def _emptiness(folder: Path) -> str:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in paths)
    return (
        f"{paths[0].name if len(paths) == 1 else f'{len(paths):,} files'}, {size:,} bytes, nothing but blanks"
        if size
        else "0 bytes"
    )


def _stored_rows(path: Path) -> Iterator[str]:
    """Yield the rows that `fetch` stored as JSON strings."""
    with path.open(encoding="utf-8", newline="\n") as file:
        yield from map(json.loads, file)


def _ended(text: str) -> str:
    """The text with a line end, which separates rows."""
    return text if text.endswith("\n") else text + "\n"


def _pieces(documents: Iterable[Piece]) -> Iterator[Piece]:
    """The text in pieces of at most PIECE_CHARACTERS, cut at places that depend only on the text."""
    current = 0
    held: list[str] = []
    size = 0
    for document, text in documents:
        if document != current:
            yield from (Piece(current, piece) for piece in _cut("".join(held), keep=0))
            current, held, size = document, [], 0
        held.append(text)
        size += len(text)
        if size > 2 * PIECE_CHARACTERS:
            *whole, rest = _cut("".join(held), keep=PIECE_CHARACTERS + 1)
            yield from (Piece(current, piece) for piece in whole)
            held, size = [rest], len(rest)
    yield from (Piece(current, piece) for piece in _cut("".join(held), keep=0))


class _Border(NamedTuple):
    """A kind of place to cut: before or after a mark between two suitable characters."""

    mark: str
    after: int
    suits: Callable[[str, str], bool]


# Best first. All usual pre-tokenizers split at a line end between two visible characters. They may join a line end with
# blanks next to it, and they join a space with the next word.
_BORDERS = (
    _Border("\n", 1, lambda before, behind: not before.isspace() and not behind.isspace()),
    _Border("\n", 1, lambda before, behind: not behind.isspace()),
    _Border("\n", 1, lambda before, behind: True),
    _Border(" ", 0, lambda before, behind: not before.isspace() and not behind.isspace()),
)


def _cut(text: str, *, keep: int) -> Iterator[str]:
    """Cut `text` into pieces; the last one has at most max(keep, PIECE_CHARACTERS) characters."""
    start = 0
    while len(text) - start > max(keep, PIECE_CHARACTERS):
        end = _cut_after(text, start)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _cut_after(text: str, start: int) -> int:
    """The best place to cut within the length of a piece after `start`."""
    for border in _BORDERS:
        end = min(start + PIECE_CHARACTERS + 1, len(text) - 1)  # there is a character behind the mark
        while (at := text.rfind(border.mark, start + 1, end)) > start:
            cut = at + border.after
            if cut <= start + PIECE_CHARACTERS and border.suits(text[at - 1], text[at + 1]):
                return cut
            end = at
    return start + PIECE_CHARACTERS
