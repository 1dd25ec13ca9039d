"""Texts in the rows of JSON Lines, CSV and Parquet files, and detection of such files for a new corpus."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from bardflow.sources.encoding import decoded, lines
from bardflow.sources.spec import CorpusError, RowsSpec
from bardflow.sources.unpack import RawText

_PARQUET = b"PAR1"
_DELIMITERS = ",;\t|"
FORMATS = ("text", "jsonl", "csv", "parquet")
SAMPLE_ROWS = 50
_BATCH_ROWS = 1_024
# The longest cell of a CSV file, in characters. Python's own limit is 131,072.
_CELL_CHARACTERS = 1 << 28
# In detection: a text with a quotation mark that never closes is one cell to its end.
_SAMPLE_CELL_CHARACTERS = 1 << 20
# A column's name: words of at most 64 characters in all, not a number, no quotation marks.
_COLUMN_NAME = re.compile(r"(?![\d.+-]+$)\w([\w ./#%()_-]{0,62}[\w)])?")


class DetectedRows(NamedTuple):
    """How files can be read as rows, and all columns with text, such as `message.content`."""

    spec: RowsSpec
    columns: tuple[str, ...]


def row_texts(file: RawText, spec: RowsSpec, encoding: str) -> Iterator[str | None]:
    """The text of each row of a file; None for a row without a value.

    Raises CorpusError for a file of another format, a column that does not exist, and a value that is not text.
    """
    rows, found = 0, False
    first: Mapping[str, Any] = {}
    for place, row in _rows(file, spec, encoding):
        first = first or row
        text = cell(row, spec.column, f"{file.name}, {place}")
        rows, found = rows + 1, found or text is not None
        yield text
    if rows and not found:
        raise CorpusError(
            f"{file.name} has no text in the column {spec.column!r} in any of its {rows:,} rows; "
            f"{_columns_with_text([first])}. Set rows.column."
        )


def cell(row: Mapping[str, Any], column: str, place: str) -> str | None:
    """The text in a column of a row, or None if there is no value.

    `message.content` is the field `content` of the field `message`. If there is a list on the way, such as the messages
    of a conversation, the texts of its items are joined by line ends.

    Raises CorpusError, with the place, if the value is not text.
    """
    texts = []
    for value in _values(row, [column] if column in row else column.split(".")):
        if value is None:
            continue
        if not isinstance(value, str):
            raise CorpusError(
                f"{place}: the column {column!r} has a value of type {type(value).__name__}, not text; "
                f"{_columns_with_text([row])}. Set the column."
            )
        if "\0" in value:
            raise CorpusError(f"{place}: the column {column!r} has a NUL character, which no text holds.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise CorpusError(
                f"{place}: the column {column!r} has half of a surrogate pair, which is no character."
            ) from error
        texts.append(value)
    return "\n".join(texts) if texts else None


def is_parquet(file: RawText) -> bool:
    """Whether the file is a Parquet file, by its first bytes."""
    with file.open() as stream:
        return bytes(stream.read(len(_PARQUET))) == _PARQUET


def detect_rows(
    file: RawText, encoding: str, *, form: str | None = None, column: str | None = None
) -> DetectedRows | None:
    """The format of a file with rows and the column of its text; None if it is not one.

    A text is JSON Lines if its first lines are JSON objects. It is CSV if its first line consists of names, and the
    rows that follow have as many cells. The column is `column`, if given, else `text`, else the one with most
    characters. With `form`, the file has this format.

    Raises CorpusError if it does not, and for a damaged file of JSON Lines or Parquet.
    """
    for spec in _candidates(file):
        if form not in (None, spec.format):
            continue
        sample: list[Mapping[str, Any]] = []
        try:
            sample.extend(row for _, row in islice(_rows(file, spec, encoding, _SAMPLE_CELL_CHARACTERS), SAMPLE_ROWS))
        except CorpusError:
            # Text in which the first line is a JSON object is JSON Lines with a mistake.
            if spec.format == "parquet" or (spec.format == "jsonl" and sample):
                raise
            continue
        if spec.format == "csv" and not _is_table(sample):
            continue
        if sample and (found := proposed_column(sample)):
            best, columns = found
            return DetectedRows(spec.model_copy(update={"column": column or best}), columns)
    if form is not None:
        raise CorpusError(
            f"{file.name} cannot be read as {form}, or has no column with text; the formats are {', '.join(FORMATS)}."
        )
    return None


def proposed_column(rows: Iterable[Mapping[str, Any]]) -> tuple[str, tuple[str, ...]] | None:
    """The likely column of the text, and all columns with text; None if there are none."""
    characters: Counter[str] = Counter()
    for row in rows:
        for name, text in _flat(row):
            characters[name] += len(text)
    if not characters:
        return None
    best = "text" if characters["text"] else max(characters, key=lambda name: characters[name])
    return best, tuple(name for name in characters if characters[name] or name == best)


def _candidates(file: RawText) -> Iterator[RowsSpec]:
    if is_parquet(file):
        yield RowsSpec(format="parquet")
        return
    yield RowsSpec(format="jsonl")
    yield from (RowsSpec(format="csv", delimiter=None if mark == "," else mark) for mark in _DELIMITERS)


def _rows(
    file: RawText, spec: RowsSpec, encoding: str, longest_cell: int = _CELL_CHARACTERS
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row with its place in the file, for messages."""
    match spec.format:
        case "jsonl":
            yield from _json_rows(file, encoding)
        case "csv":
            yield from _csv_rows(file, spec, encoding, longest_cell)
        case "parquet":
            yield from _parquet_rows(file)


def _json_rows(file: RawText, encoding: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(lines(decoded(file, encoding)), 1):
        line = line.removeprefix("\ufeff") if number == 1 else line
        if not line or line.isspace():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(
                f"{file.name}, line {number:,} is not JSON: {error}. Correct it, or set another rows.format."
            ) from error
        if not isinstance(row, dict):
            raise CorpusError(
                f"{file.name}, line {number:,} is a JSON {type(row).__name__}, not an object with columns. "
                "Leave [rows] out to read the file as plain text."
            )
        yield f"line {number:,}", row


def _csv_rows(
    file: RawText, spec: RowsSpec, encoding: str, longest_cell: int
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    csv.field_size_limit(longest_cell)
    reader = csv.reader(lines(decoded(file, encoding)), delimiter=spec.delimiter or ",", strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = [cells[0].removeprefix("\ufeff"), *cells[1:]]
                if len(set(header)) < len(header):
                    raise CorpusError(f"{file.name} has two columns of one name in its first line: {header}.")
                continue
            if len(cells) != len(header):
                raise CorpusError(
                    f"{file.name}, line {reader.line_num:,}: a row with {len(cells)} cells, but the first line names "
                    f"{len(header)} columns. Correct the row, or rows.delimiter."
                )
            yield f"line {reader.line_num:,}", dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise CorpusError(
            f"{file.name}, line {reader.line_num:,} is not CSV: {error}. Correct it, or set another rows.format."
        ) from error


def _parquet_rows(file: RawText) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow as pa  # takes 0.1 s to import
    import pyarrow.parquet as pq

    with file.open() as stream:
        if not stream.seekable():
            raise CorpusError(f"{file.name} is a Parquet file within an archive; unpack the archive.")
        try:
            number = 0
            for batch in pq.ParquetFile(stream).iter_batches(_BATCH_ROWS):
                for row in batch.to_pylist():
                    yield f"row {number:,}", row
                    number += 1
        except pa.ArrowException as error:
            raise CorpusError(f"{file.name} is not a Parquet file, or is damaged: {error}.") from error


def _values(value: Any, path: list[str]) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _values(item, path)
    elif path:
        if isinstance(value, Mapping):
            yield from _values(value.get(path[0]), path[1:])
    else:
        yield value


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Each text in a row with the name of its column."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _flat(inner, name)
    elif isinstance(value, str):
        yield name, value


def _columns_with_text(rows: list[Mapping[str, Any]]) -> str:
    found = proposed_column(rows)
    return f"columns with text: {', '.join(found[1])}" if found else "no column has text"


def _is_table(rows: list[Mapping[str, Any]]) -> bool:
    if len(rows) < 2 or len(rows[0]) < 2 or not all(_COLUMN_NAME.fullmatch(name) for name in rows[0]):
        return False
    return all(list(row.values()) != list(row) for row in rows)  # a first line that is repeated does not name columns
