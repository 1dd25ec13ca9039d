"""Detection of the format of files for a new corpus, and of the column with the text, if they have rows."""

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from bardflow.sources.markup import is_html
from bardflow.sources.rows import proposed_column, read_rows, row_texts
from bardflow.sources.spec import CorpusError, RowsSpec
from bardflow.sources.unpack import RawText

FORMATS = ("text", "html", "markdown", "epub", "json", "jsonl", "csv", "parquet")
SAMPLE_ROWS = 50
_PARQUET = b"PAR1"
_DELIMITERS = ",;\t|"
_BLANK_BYTES = _HEAD_BYTES = 1 << 16
# A column's name: words of at most 64 characters in all, not a number, no quotation marks.
_COLUMN_NAME = re.compile(r"(?![\d.+-]+$)\w([\w ./#%()_-]{0,62}[\w)])?")


class DetectedRows(NamedTuple):
    """How files can be read as rows, and all columns with text, such as `message.content`."""

    spec: RowsSpec
    columns: tuple[str, ...]


def is_parquet(file: RawText) -> bool:
    """Whether the file is a Parquet file, by its first bytes."""
    with file.open() as stream:
        return bytes(stream.read(len(_PARQUET))) == _PARQUET


def detect_rows(
    file: RawText, encoding: str, *, form: str | None = None, column: str | None = None
) -> DetectedRows | None:
    """The format of a file with rows and the column of its text; None if it is not one.

    A text is JSON Lines if its first lines are JSON objects. It is JSON if it is one list of objects, or an object with
    a list of objects. It is CSV if its first line consists of names, and the rows that follow have as many cells. The
    column is `column`, if given, else `text`, else the one with most characters. With `form`, the file has this format.

    Raises CorpusError if it does not, and for a damaged file of JSON, JSON Lines or Parquet.
    """
    one_line: DetectedRows | None = None
    for spec in _candidates(file):
        if form not in (None, spec.format):
            continue
        sample: list[Mapping[str, Any]] = []
        try:
            sample.extend(row for _, row in islice(read_rows(file, spec, encoding), SAMPLE_ROWS))
        except CorpusError:
            # Text that begins with a JSON object, or a list of them, is JSON with a mistake.
            if spec.format == "parquet" or (spec.format in ("json", "jsonl") and sample and one_line is None):
                raise
            continue
        if spec.format == "csv" and not _is_table(sample):
            continue
        if sample and (found := proposed_column(sample)):
            best, columns = found
            detected = DetectedRows(spec.model_copy(update={"column": column or best}), columns)
            if form is not None or spec.format != "jsonl" or len(sample) > 1:
                return detected
            one_line = detected  # an object on one line is JSON, if it has a list of objects
    if form is not None:
        raise CorpusError(
            f"{file.name} cannot be read as {form}, or has no column with text; the formats are {', '.join(FORMATS)}."
        )
    return one_line


def detect_format(
    files: Sequence[RawText], encoding: str, *, form: str | None = None, column: str | None = None
) -> tuple[str, DetectedRows | None]:
    """The format of files, by the first that is not blank: `text`, `html` or `markdown`, with their rows, if any.

    Markdown is plain text, if `form` does not say otherwise.

    Raises CorpusError, with their names, if the files have different formats.
    """
    if form in ("text", "html", "markdown"):
        return form, None
    filled = [file for file in files if not _is_blank(file)] or list(files[:1])
    first = _format_of(filled[0], encoding, form, column)
    for file in filled[1:]:
        found = _format_of(file, encoding, form, column)
        if _shown(found) != _shown(first) and not (first[1] and _fits(file, first[1].spec, encoding)):
            raise CorpusError(different_formats(filled[0].name, _shown(first), file.name, _shown(found)))
    return first


def different_formats(first: str, its_format: str, other: str, other_format: str) -> str:
    """The message for two files of different formats."""
    return (
        f"The files have different formats: {first} is {its_format}, and {other} is {other_format}. Give only the "
        "files that belong together, for example by the glob 'FOLDER/*.jsonl', or read all of them as plain text with "
        "--format text."
    )


def _format_of(file: RawText, encoding: str, form: str | None, column: str | None) -> tuple[str, DetectedRows | None]:
    with file.open() as stream:
        html = form is None and is_html(stream.read(_HEAD_BYTES))
    return ("html", None) if html else ("text", detect_rows(file, encoding, form=form, column=column))


def _candidates(file: RawText) -> Iterator[RowsSpec]:
    if is_parquet(file):
        yield RowsSpec(format="parquet")
        return
    yield RowsSpec(format="jsonl")
    yield RowsSpec(format="json")
    yield from (RowsSpec(format="csv", delimiter=None if mark == "," else mark) for mark in _DELIMITERS)


def _is_blank(file: RawText) -> bool:
    with file.open() as stream:
        return not stream.read(_BLANK_BYTES).strip()


def _fits(file: RawText, spec: RowsSpec, encoding: str) -> bool:
    """Whether the first rows of a file can be read with this spec."""
    try:
        deque(islice(row_texts(file, spec, encoding), SAMPLE_ROWS), maxlen=0)
    except CorpusError:
        return False
    return True


def _shown(found: tuple[str, DetectedRows | None]) -> str:
    form, rows = found
    if rows is None:
        return "plain text" if form == "text" else form
    return rows.spec.format + (f" with the delimiter {rows.spec.delimiter!r}" if rows.spec.delimiter else "")


def _is_table(rows: list[Mapping[str, Any]]) -> bool:
    if len(rows) < 2 or len(rows[0]) < 2 or not all(_COLUMN_NAME.fullmatch(name) for name in rows[0]):
        return False
    return all(list(row.values()) != list(row) for row in rows)  # a first line that is repeated does not name columns
