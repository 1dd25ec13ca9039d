"""Rows: JSON Lines, CSV and Parquet files, and datasets, with the text in one column, also a nested one."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bardflow.sources.adding import look
from bardflow.sources.documents import read
from bardflow.sources.rows import cell, detect_rows, proposed_column, row_texts
from bardflow.sources.spec import CorpusError, CorpusSpec, DatasetSource, DocumentsSpec, RowsSpec
from bardflow.sources.unpack import raw_texts
from tests.test_adding import RUSSIAN, added, text_of

TEXTS = [
    "The first row.\nIt has two lines.",
    'Ein zweiter, mit „Anführung“ und "quotes"',
    "third;\twith | all, marks\n",
]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(rows: list[dict[str, Any]], delimiter: str = ",", end: str = "\r\n", encoding: str = "utf-8") -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode(encoding)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue())


ROWS = [{"number": str(n), "lyrics": text} for n, text in enumerate(TEXTS)]
NESTED = [{"id": n, "message": {"role": "user", "content": text}} for n, text in enumerate(TEXTS)]
CHATS = [{"messages": [{"role": "user", "content": text}, {"role": "bot", "content": "!"}]} for text in TEXTS]
FILES: dict[str, tuple[bytes, str, str]] = {
    "lyrics.jsonl": (jsonl(ROWS), "jsonl", "lyrics"),
    "lyrics.jsonl.gz": (gzip.compress(jsonl(ROWS)), "jsonl", "lyrics"),
    "no-end.jsonl": (jsonl(ROWS).removesuffix(b"\n"), "jsonl", "lyrics"),
    "mark.jsonl": (b"\xef\xbb\xbf" + jsonl(ROWS), "jsonl", "lyrics"),
    "blank-lines.jsonl": (jsonl(ROWS).replace(b"\n", b"\r\n\r\n"), "jsonl", "lyrics"),
    "nested.txt": (jsonl(NESTED), "jsonl", "message.content"),
    "dotted.json": (jsonl([{"a.b": text} for text in TEXTS]), "jsonl", "a.b"),
    "text.jsonl": (jsonl([{"text": text, "html": text * 9} for text in TEXTS]), "jsonl", "text"),
    "escaped.jsonl": (jsonl([{"x": text, "y": None} for text in TEXTS]), "jsonl", "x"),
    "table.csv": (table(ROWS), "csv", "lyrics"),
    "unix.csv": (table(ROWS, end="\n"), "csv", "lyrics"),
    "semicolon.csv": (table(ROWS, ";"), "csv", "lyrics"),
    "bar.csv": (table(ROWS, "|"), "csv", "lyrics"),
    "tabs.tsv": (table(ROWS, "\t"), "csv", "lyrics"),
    "mark.csv": (b"\xef\xbb\xbf" + table(ROWS), "csv", "lyrics"),
    "wide.csv": (table(ROWS, encoding="utf-16"), "csv", "lyrics"),
    "west.csv": (table(ROWS * 20, encoding="windows-1252"), "csv", "lyrics"),
    "flat.parquet": (parquet(ROWS), "parquet", "lyrics"),
    "nested.parquet": (parquet(NESTED), "parquet", "message.content"),
}


@pytest.mark.parametrize("name", FILES)
def test_rows_are_recognised_by_content_and_read_as_documents(name: str, tmp_path: Path) -> None:
    data, form, column = FILES[name]
    (tmp_path / name).write_bytes(data)
    found = added(tmp_path, source=tmp_path / name)
    assert found.spec.rows is not None and (found.spec.rows.format, found.spec.rows.column) == (form, column)
    assert column in found.columns and found.spec.documents.cut == "row"
    times = found.survey.documents // len(TEXTS)
    assert found.survey.documents == times * len(TEXTS)
    expected = "".join(text if text.endswith("\n") else text + "\n" for text in TEXTS) * times
    assert text_of(found, tmp_path) == expected


def test_the_messages_of_a_conversation_are_one_row(tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_bytes(jsonl(CHATS))
    found = added(tmp_path)
    assert found.survey.documents == len(TEXTS) and found.columns == ("messages.role", "messages.content")
    assert text_of(found, tmp_path).startswith(TEXTS[0] + "\n!\n")


def test_another_column_or_plain_text_can_be_asked_for(tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_bytes(jsonl(NESTED))
    assert text_of(added(tmp_path, column="message.role"), tmp_path) == "user\n" * len(TEXTS)
    with pytest.raises(
        CorpusError, match=r"no text in the column 'body' in any of its 3 rows; columns with text: mess"
    ):
        added(tmp_path, column="body")
    with pytest.raises(CorpusError, match="cannot be read as csv"):
        added(tmp_path, form="csv")
    with pytest.raises(CorpusError, match="the formats are text, jsonl, csv, parquet"):
        added(tmp_path, form="xml")
    for cut in ("row", "whole"):
        found = added(tmp_path, documents=DocumentsSpec.model_validate({"cut": cut}))
        assert found.spec.rows is not None and found.spec.documents.cut == cut
    with pytest.raises(ValueError, match="needs files of plain text"):
        added(tmp_path, documents=DocumentsSpec(cut="file"))
    spec = added(tmp_path).spec.model_copy(update={"rows": None, "documents": DocumentsSpec()})
    plain = look(spec, project=tmp_path, downloads=tmp_path, mirror=None)
    assert text_of(plain, tmp_path).encode() == jsonl(NESTED)
    (tmp_path / "plain.txt").write_text(RUSSIAN)
    with pytest.raises(CorpusError, match=r"plain\.txt has no rows, so it has no column 'body'"):
        added(tmp_path, source=tmp_path / "plain.txt", column="body")


@pytest.mark.parametrize(
    "text",
    [
        "Tyger Tyger, burning bright,\nIn the forests, of the night;\nWhat immortal, hand or eye,\n",
        "name, value\nfirst, second\nthird, fourth\n",
        "Hamlet: To be\nOphelia: Good my lord\n" * 9,
        "1,2,3\n4,5,6\n7,8,9\n",
        "[1, 2, 3]\n[4, 5, 6]\n",
        '"A quotation that never ends.\nand goes on, and on\n' * 50,
        "{not json}\n" * 5,
        "12\n13\n14\n",
        RUSSIAN,
    ],
)
def test_a_text_is_not_taken_for_rows(text: str, tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_text(text)
    [file] = raw_texts(tmp_path / "it.txt", "it.txt")
    assert detect_rows(file, "utf-8") is None


@pytest.mark.parametrize(
    ("data", "form", "said"),
    [
        (jsonl(ROWS) + b"{broken\n", "jsonl", "it.txt, line 4 is not JSON"),
        (jsonl(ROWS) + b"[1]\n", "jsonl", "line 4 is a JSON list, not an object"),
        (b"[" * 100_000 + b"\n", "jsonl", "line 1 is not JSON"),
        (jsonl([{"lyrics": 7}]), "jsonl", "line 1: the column 'lyrics' has a value of type int"),
        (jsonl([{"lyrics": "a\0"}]), "jsonl", "line 1: the column 'lyrics' has a NUL character"),
        (b'{"lyrics": "\\ud83d"}\n', "jsonl", "half of a surrogate pair"),
        (jsonl([{"other": "a"}] * 2), "jsonl", r"no text in the column 'lyrics' in any of its 2 rows.*: other\."),
        (table(ROWS) + b"1\r\n", "csv", "line 7: a row with 1 cells, but the first line names 2 columns"),
        (table(ROWS) + b'1,"open\r\n', "csv", "line 7 is not CSV: unexpected end of data"),
        (b"a,a\n1,2\n", "csv", "two columns of one name"),
        (parquet(ROWS)[:-9], "parquet", "is damaged"),
        (b"plain\n", "parquet", "is damaged"),
        (gzip.compress(parquet(ROWS)), "parquet", "within an archive"),
        (parquet(ROWS), None, 'Parquet file, not text.*format = "parquet"'),
    ],
)
def test_rows_that_are_not_as_their_corpus_says_are_an_error(data: bytes, form: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_bytes(data)
    rows = form and RowsSpec(format=form, column="lyrics")
    spec = CorpusSpec(name="it", title="It", source={"path": "it.txt"}, rows=rows)
    with pytest.raises(CorpusError, match=said):
        look(spec, project=tmp_path, downloads=tmp_path, mirror=None)


def test_a_mistake_in_rows_is_not_answered_by_reading_them_as_plain_text(tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_bytes(jsonl(ROWS) + b"{broken\n")
    with pytest.raises(CorpusError, match=r"it\.txt, line 4 is not JSON"):
        added(tmp_path)
    (tmp_path / "it.txt").write_bytes(parquet(ROWS)[:-9])
    with pytest.raises(CorpusError, match="is damaged"):
        added(tmp_path)
    with pytest.raises(CorpusError, match="A dataset has rows of its own"):
        source = DatasetSource(dataset="json", data_files="it.txt")
        added(tmp_path, CorpusSpec(name="it", title="It", source=source), form="csv")


def test_a_row_without_a_value_is_left_out_and_one_without_text_is_no_document(tmp_path: Path) -> None:
    rows = [{"lyrics": "one"}, {"lyrics": None}, {}, {"lyrics": ""}, {"lyrics": "two"}]
    (tmp_path / "it.txt").write_bytes(jsonl(rows))
    found = added(tmp_path)
    assert text_of(found, tmp_path) == "one\n\ntwo\n" and found.survey.documents == 2


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_the_column_of_a_dataset_is_proposed_too(form: str, tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(jsonl(NESTED) if form == "json" else parquet(NESTED))
    source = DatasetSource(dataset=form, data_files="rows")
    found = added(tmp_path, CorpusSpec(name="it", title="It", source=source, documents={"cut": "row"}))
    assert isinstance(found.spec.source, DatasetSource) and found.spec.source.column == "message.content"
    assert found.survey.documents == len(TEXTS) and text_of(found, tmp_path).startswith(TEXTS[0])


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@settings(max_examples=40)
@given(
    texts=st.lists(words, min_size=2, max_size=8).filter(any),
    form=st.sampled_from(["jsonl", "csv", "parquet"]),
    delimiter=st.sampled_from(",;\t|"),
)
def test_every_text_comes_back_from_every_format(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], form: Any, delimiter: str
) -> None:
    rows = [{"number": str(n), "words": text} for n, text in enumerate(texts)]
    data = {"jsonl": jsonl, "parquet": parquet}.get(form, lambda rows: table(rows, delimiter))(rows)
    path = tmp_path_factory.mktemp("rows") / "it"
    path.write_bytes(data)
    [file] = raw_texts(path, "it")
    spec = RowsSpec(format=form, column="words", delimiter=delimiter if form == "csv" else None)
    assert list(row_texts(file, spec, "utf-8")) == texts


def test_a_cell_is_found_by_its_path() -> None:
    row = {"a": {"b": [{"c": "one"}, {"c": None}, {"d": 1}, {"c": "two"}]}, "a.b": "direct", "n": None}
    assert [cell(row, column, "row 0") for column in ("a.b.c", "a.b", "n", "x.y")] == ["one\ntwo", "direct", None, None]
    assert proposed_column([{"n": 1}, {"n": None}]) is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rows": {"format": "xml"}}, "'jsonl', 'csv' or 'parquet'"),
        ({"rows": {"format": "csv", "delimiter": ",,"}}, "delimiter"),
        ({"rows": {"format": "jsonl", "delimiter": ","}}, 'belongs to format = "csv"'),
        ({"rows": {"format": "csv"}, "documents": {"cut": "file"}}, "needs files of plain text"),
        ({"rows": {"format": "csv"}, "source": {"synthetic": 9}}, "url or path"),
        ({"documents": {"cut": "row"}}, "needs rows"),
    ],
)
def test_a_wrong_table_of_rows_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CorpusSpec.model_validate({"name": "it", "title": "It", "source": {"path": "it.txt"}} | fields)


def test_a_corpus_of_rows_is_read_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(jsonl([{"text": "x" * 200_000}, {"text": "y"}]))
    spec = CorpusSpec(name="it", title="It", source={"path": "it"}, rows={"format": "jsonl"}, documents={"cut": "row"})
    pieces = list(read(spec, tmp_path))
    assert [piece.document for piece in pieces] == [0, 0, 0, 0, 1] and max(len(p.text) for p in pieces) == 65_536
