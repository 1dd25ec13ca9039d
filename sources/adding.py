"""Add a corpus: fetch and survey a text for a new corpus file."""

import tempfile
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from bardflow.sources.cleaning import Cleaned
from bardflow.sources.documents import Reading, extent, raw_files, read, split
from bardflow.sources.download import Progress
from bardflow.sources.duplicates import Duplicates, NothingLeft, treated
from bardflow.sources.encoding import Detected, detect_file
from bardflow.sources.epub import is_epub
from bardflow.sources.fetch import Fetched, dataset_rows, fetch
from bardflow.sources.formats import SAMPLE_ROWS, detect_format, different_formats, is_parquet
from bardflow.sources.proposals import proposed_heading, proposed_language, proposed_title
from bardflow.sources.rows import RowCounts, proposed_column
from bardflow.sources.spec import (
    CorpusError,
    CorpusSpec,
    DatasetSource,
    DocumentsSpec,
    OnDuplicates,
    PathSource,
    UrlSource,
)
from bardflow.sources.survey import Survey, survey
from bardflow.sources.tally import lines
from bardflow.sources.unpack import RawText, raw_texts

# The fields of a spec that can be proposed from the text, and the characters shown of it before and after cleaning.
PROPOSED = ("encoding", "rows", "cleaning", "documents", "title", "language", "duplicates")
SHOWN_CHARACTERS = 200
# A text with longer lines has no headings; looking for them would hold a line in memory.
_LONGEST_LINE = 1 << 20


class Added(NamedTuple):
    """A new corpus: its spec (with the sha256 if pinned), its files and its survey.

    `detected` is the encoding, if it was detected. `columns` are all columns with text, if there are rows. `rows` are
    the counts of rows in files, and `cleaned` those of each cleaning step. `duplicates` are counted if there are
    several documents. `before` and `after` are the start of the text without and with cleaning.
    """

    spec: CorpusSpec
    fetched: Fetched
    survey: Survey
    detected: Detected | None
    columns: tuple[str, ...]
    rows: RowCounts | None
    cleaned: tuple[Cleaned, ...]
    duplicates: Duplicates | None
    before: str
    after: str


def source_at(address: str, project: Path) -> UrlSource | PathSource | DatasetSource:
    """The source of an address: `http(s)://…`, `dataset:NAME` for a Hugging Face dataset, else a path or a glob.

    A path inside the project folder becomes relative, so that it is valid on another machine.
    """
    if address.startswith(("http://", "https://")):
        return UrlSource(url=address)
    if address.startswith("dataset:"):
        return DatasetSource(dataset=address.removeprefix("dataset:"))
    path = Path(address).expanduser().absolute()
    return PathSource(path=str(path.relative_to(project) if path.is_relative_to(project) else path))


def look(
    spec: CorpusSpec,
    *,
    project: Path,
    downloads: Path,
    mirror: str | None,
    pin: bool = False,
    propose: Collection[str] = (),
    form: str | None = None,
    column: str | None = None,
    documents: DocumentsSpec | None = None,
    duplicates: OnDuplicates | None = None,
    progress: Progress | None = None,
) -> Added:
    """Fetch the corpus into a temporary folder and survey it; with `pin`, also set the sha256 of a URL or path.

    `propose` names fields of the spec that are set from the text: `encoding` is detected, `rows` (and `format`) get the
    format of the files (`form`: only this one) and the column of the text (or `column`), `cleaning` becomes the steps
    that change the text, `documents` one for each row, for each file if there are several, or for each chapter. `title`
    and `language` are those of a Project Gutenberg header; a language is also known by its script. `documents` and
    `duplicates` replace those of the spec, which may need the rows and the documents that are proposed. With several
    documents, `duplicates` becomes `drop` if there are some, and else `keep`.

    Raises:
        CorpusError, FetchError: it cannot be fetched, is not text, is several files and cannot be pinned, has
            files of different formats, or is not of the format `form` or without the `column`.
        pydantic.ValidationError: `documents` do not suit the source or its rows, or `duplicates` the documents.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, detected = Path(name), None
        columns: tuple[str, ...] = ()
        if isinstance(spec.source, DatasetSource) and form is not None:
            raise CorpusError(f"A dataset has rows of its own, so --format {form} does not apply. Leave it out.")
        if isinstance(spec.source, DatasetSource) and "rows" in propose:
            spec, columns = _with_column(spec, spec.source, project, column)
        fetched = fetch(spec, folder, downloads=downloads, mirror=mirror, progress=progress, project=project)
        if not isinstance(spec.source, DatasetSource):
            paths = raw_files(spec, folder)
            if "rows" in propose and (form == "epub" or (form is None and _are_epubs(paths))):
                spec = spec.model_copy(update={"format": "epub"})
            texts = [] if spec.format == "epub" else [text for path in paths for text in raw_texts(path, path.name)]
            if texts and "encoding" in propose and not is_parquet(texts[0]) and (detected := _encoding_of(texts)):
                spec = spec.model_copy(update={"encoding": detected.encoding})
            if texts and "rows" in propose:
                found_format, rows = detect_format(texts, spec.encoding, form=form, column=column)
                spec = spec.model_copy(update={"format": found_format, "rows": rows and rows.spec})
                columns = rows.columns if rows else ()
            if column is not None and spec.rows is None:
                raise CorpusError(f"{paths[0].name} has no rows, so it has no column {column!r}. Give --format.")
            if "documents" in propose and (spec.rows is not None or spec.format == "epub" or len(texts) > 1):
                cut = DocumentsSpec(cut="file" if spec.rows is None else "row")
                spec = spec.model_copy(update={"documents": cut})
        if documents is not None:
            spec = CorpusSpec.model_validate(spec.model_copy(update={"documents": documents}).model_dump())
        start = _start(read(spec, folder))
        before = after = start[:SHOWN_CHARACTERS]
        reading, found = _surveyed(spec, folder)
        if "cleaning" in propose and found.cleaning:
            spec = spec.model_copy(update={"cleaning": found.cleaning})
            reading, found = _surveyed(spec, folder)
            after = _start(read(spec, folder))[:SHOWN_CHARACTERS]
        cleaned, row_counts = reading.cleaned, reading.rows
        if "documents" in propose and spec.documents.cut == "whole" and found.longest_line <= _LONGEST_LINE:
            heading = proposed_heading(lines(piece.text for piece in reading))
            if heading is not None:
                spec = spec.model_copy(update={"documents": DocumentsSpec(cut="heading", heading=heading)})
                found = found.model_copy(update={"documents": extent(read(spec, folder))[1]})
        if duplicates is not None:
            spec = CorpusSpec.model_validate(spec.model_copy(update={"duplicates": duplicates}).model_dump())
        counts = None
        if duplicates is None and "duplicates" in propose and found.documents > 1:
            spec, found, counts = _with_duplicates(spec, folder)
        elif spec.duplicates is not None:
            found, counts = _without_duplicates(spec, folder)
        if "title" in propose and (title := proposed_title(start)):
            spec = spec.model_copy(update={"title": title})
        if "language" in propose and (language := proposed_language(start)):
            spec = spec.model_copy(update={"language": language})
    if pin and isinstance(spec.source, UrlSource | PathSource):
        if len(fetched.files) > 1:
            raise CorpusError(
                f"{fetched.address} is {len(fetched.files)} files, and only one file can be pinned by its sha256; "
                "leave --pin out: what came is recorded in the store all the same"
            )
        pinned = spec.source.model_copy(update={"sha256": fetched.files[0].sha256})
        spec = spec.model_copy(update={"source": pinned})
    return Added(spec, fetched, found, detected, columns, row_counts, cleaned, counts, before, after)


def _with_column(
    spec: CorpusSpec, source: DatasetSource, project: Path, column: str | None
) -> tuple[CorpusSpec, tuple[str, ...]]:
    """The spec with the column of the dataset's text, and all columns with text."""
    best, columns = proposed_column(islice(dataset_rows(source, project), SAMPLE_ROWS)) or (source.column, ())
    return spec.model_copy(update={"source": source.model_copy(update={"column": column or best})}), columns


def _are_epubs(paths: Sequence[Path]) -> bool:
    """Whether these files are EPUB books. Raises CorpusError if only some are."""
    books = [path for path in paths if is_epub(path)]
    if books and len(books) < len(paths):
        other = next(path for path in paths if path not in books)
        raise CorpusError(different_formats(books[0].name, "epub", other.name, "another"))
    return bool(books)


def _encoding_of(texts: list[RawText]) -> Detected | None:
    """The encoding of the first file that has other characters than ASCII, else of the first file."""
    first = None
    for text in texts:
        found = detect_file(text)
        if found is not None and not found.line.isascii():
            return found
        first = first or found
    return first


def _surveyed(spec: CorpusSpec, folder: Path) -> tuple[Reading, Survey]:
    reading = read(spec, folder)
    characters, documents = extent(reading)
    return reading, survey(split(reading, spec.split, characters, documents))


def _with_duplicates(spec: CorpusSpec, folder: Path) -> tuple[CorpusSpec, Survey, Duplicates]:
    """The spec that drops duplicates, or keeps them if there are none or they are the whole training set."""
    dropping = spec.model_copy(update={"duplicates": "drop"})
    keeping = spec.model_copy(update={"duplicates": "keep"})
    try:
        found, counts = _without_duplicates(dropping, folder)
    except NothingLeft:
        return keeping, *_without_duplicates(keeping, folder)
    return dropping if counts.total else keeping, found, counts


def _without_duplicates(spec: CorpusSpec, folder: Path) -> tuple[Survey, Duplicates]:
    """The survey of the text as a run has it, without duplicates if the spec drops them, and their counts."""
    reading = read(spec, folder)
    characters, documents = extent(reading)
    labelled, counts = treated(lambda: split(reading, spec.split, characters, documents), spec.duplicates)
    assert counts is not None
    return survey(labelled), counts


def _start(reading: Reading) -> str:
    """The first piece of a text."""
    return next(iter(reading)).text
