"""Texts in the rows of JSON, JSON Lines, CSV and Parquet files."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bardflow.files import parse_json
from bardflow.sources.encoding import decoded
from bardflow.sources.json_list import ALIKE, LONGEST_ROW, listed_objects
from bardflow.sources.spec import CorpusError, RowsSpec
from bardflow.sources.tally import lines
from bardflow.sources.unpack import FREE_BYTES, MOST_RATIO, RawText

# Rows of a Parquet file that are in memory at once. Small files can unpack to rows of megabytes: with 1,024 rows at
# once, a file of 4 kB took 2.7 GiB.
_BATCH_ROWS = 32
_READ_BYTES = 1 << 20
# In detection: a text with a quotation mark that never closes is one cell to its end.
_SAMPLE_CELL_CHARACTERS = 1 << 20


@dataclass
class RowCounts:
    """The number of rows that were read, and of those without a value, which are left out."""

    rows: int = 0
    without_value: int = 0


def row_texts(file: RawText, spec: RowsSpec, encoding: str) -> Iterator[str | None]:
    """The text of each row of a file; None for a row without a value, or with nothing but blanks.

    Raises CorpusError for a file of another format, a column that does not exist, and a value that is not text.
    """
    rows, found = 0, False
    first: Mapping[str, Any] = {}
    for place, row in read_rows(file, spec, encoding, spec.column):
        first = first or row
        text = cell(row, spec.column, f"{file.name}, {place}")
        if text is not None and not text.strip():
            text = None  # CSV has no other way to write that there is no value
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


def read_rows(
    file: RawText, spec: RowsSpec, encoding: str, column: str | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row with its place in the file, for messages; without `column`, for detection."""
    match spec.format:
        case "json":
            objects = listed_objects(decoded(file, encoding), file.name)
            yield from ((f"item {number:,}", row) for number, row in enumerate(objects, 1))
        case "jsonl":
            yield from _json_rows(file, encoding)
        case "csv":
            yield from _csv_rows(file, spec, encoding, column)
        case "parquet":
            yield from _parquet_rows(file)


def _json_rows(file: RawText, encoding: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(_lines(file, encoding), 1):
        line = line.removeprefix("\ufeff") if number == 1 else line
        if not line or line.isspace():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise CorpusError(f"{file.name}, line {number:,} is not JSON: {error}. Correct it, or {ALIKE}.") from error
        if not isinstance(row, dict):
            raise CorpusError(
                f"{file.name}, line {number:,} is a JSON {type(row).__name__}, not an object with columns. "
                "Leave [rows] out to read the file as plain text."
            )
        yield f"line {number:,}", row


def _lines(file: RawText, encoding: str) -> Iterator[str]:
    """The lines of a file whose rows are lines, each of bounded length."""

    def bounded() -> Iterator[str]:
        open_line = 0  # characters since the last line end
        for text in decoded(file, encoding):
            end = text.rfind("\n")
            open_line = open_line + len(text) if end < 0 else len(text) - end - 1
            if open_line > LONGEST_ROW:
                raise CorpusError(
                    f"{file.name} has a line of more than {LONGEST_ROW:,} characters, which is too long for a row. "
                    "Divide it, or set another rows.format."
                )
            yield text

    return lines(bounded())


def _csv_rows(
    file: RawText, spec: RowsSpec, encoding: str, column: str | None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    csv.field_size_limit(_SAMPLE_CELL_CHARACTERS if column is None else LONGEST_ROW)
    reader = csv.reader(_lines(file, encoding), delimiter=spec.delimiter or ",", strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = [cells[0].removeprefix("\ufeff"), *cells[1:]]
                if len(set(header)) < len(header):
                    raise CorpusError(f"{file.name} has two columns of one name in its first line: {header}.")
                if column is not None and column not in header:
                    raise CorpusError(
                        f"{file.name} has no column {column!r}; its first line names: {', '.join(header)[:200]}. "
                        f"Set rows.column or rows.delimiter, or {ALIKE}."
                    )
                continue
            if len(cells) != len(header):
                raise CorpusError(
                    f"{file.name}, line {reader.line_num:,}: a row with {len(cells)} cells, but the first line names "
                    f"{len(header)} columns. Correct the row, or rows.delimiter."
                )
            yield f"line {reader.line_num:,}", dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise CorpusError(
            f"{file.name}, line {reader.line_num:,} is not CSV: {error}. Correct it, or {ALIKE}."
        ) from error


def _parquet_rows(file: RawText) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow as pa  # takes 0.1 s to import
    import pyarrow.parquet as pq

    with file.open() as stream:
        if not stream.seekable():
            raise CorpusError(f"{file.name} is a Parquet file within an archive; unpack the archive.")
        try:
            number, packed = 0, stream.seek(0, io.SEEK_END)
            # By default, whole row groups are read ahead: 2.2 GB of a file of 2.2 GB.
            table = pq.ParquetFile(stream, pre_buffer=False, buffer_size=_READ_BYTES)
            unpacked = sum(table.metadata.row_group(n).total_byte_size for n in range(table.num_row_groups))
            if unpacked > max(FREE_BYTES, MOST_RATIO * packed):
                raise CorpusError(
                    f"{file.name} unpacks to {unpacked:,} bytes, more than {MOST_RATIO} times its {packed:,}, unlike "
                    "text; if it is text, write it without compression."
                )
            for batch in table.iter_batches(_BATCH_ROWS):
                for row in batch.to_pylist():
                    yield f"row {number:,}", row
                    number += 1
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # an error of the disk; those of the format have no number
            raise CorpusError(
                f"{file.name} is not a Parquet file, or is damaged: {error}. Replace it, or {ALIKE}."
            ) from error


def _values(value: Any, path: list[str]) -> Iterator[Any]:
    """The values at a path of fields, through all lists on the way."""
    ahead = [(value, path)]
    while ahead:
        value, path = ahead.pop()
        if isinstance(value, list):
            ahead.extend((item, path) for item in reversed(value))
        elif not path:
            yield value
        elif isinstance(value, Mapping):
            ahead.append((value.get(path[0]), path[1:]))


def _flat(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each text in a row with the name of its column."""
    ahead: list[tuple[Any, str]] = [(row, "")]
    while ahead:
        value, name = ahead.pop()
        if isinstance(value, Mapping):
            inner = [(field, f"{name}.{key}" if name else str(key)) for key, field in value.items()]
            ahead.extend(reversed(inner))
        elif isinstance(value, list):
            ahead.extend((item, name) for item in reversed(value))
        elif isinstance(value, str):
            yield name, value


def _columns_with_text(rows: list[Mapping[str, Any]]) -> str:
    found = proposed_column(rows)
    return f"columns with text: {', '.join(found[1])}" if found else "no column has text"
