"""Rows: JSON, JSON Lines, CSV and Parquet files, and datasets, with the text in one column, also a nested one."""

import csv
import gzip
import io
import json
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bardflow.sources.adding import look
from bardflow.sources.corpora import load_corpus
from bardflow.sources.documents import read
from bardflow.sources.formats import detect_rows
from bardflow.sources.json_list import listed_objects
from bardflow.sources.rows import RowCounts, cell, proposed_column, row_texts
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


def parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, **options)
    return bytes(sink.getvalue())


def json_list(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows, ensure_ascii=False).encode()


def chat(rows: list[dict[str, Any]], **form: Any) -> bytes:
    """An export of a chat: an object with a list of objects among other fields."""
    return json.dumps({"id": 7, "tags": ["a", "b"], "messages": rows, "by": {"name": "Ann"}}, **form).encode()


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
    "list.json": (json_list(ROWS), "json", "lyrics"),
    "list.json.gz": (gzip.compress(json_list(ROWS)), "json", "lyrics"),
    "pretty.txt": (json.dumps(NESTED, indent=4).encode("utf-16"), "json", "message.content"),
    "mark.json": (b"\xef\xbb\xbf\r\n" + json_list(ROWS) + b"\r\n", "json", "lyrics"),
    "chat.json": (chat(ROWS, indent=1), "json", "lyrics"),
    "chat-on-one-line.json": (chat(ROWS), "json", "lyrics"),
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
    with pytest.raises(CorpusError, match="the formats are text, html, markdown, epub, json, jsonl"):
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
        "[A bracket opens, and a stage direction follows.]\n",
        '{\n  "title": "An object without rows",\n  "tags": ["a", "b"]\n}\n',
        "[]",
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
        (json_list(ROWS)[:-1], "json", "it.txt, line 1 is not JSON as expected: expecting ','"),
        (json_list(ROWS)[:-2], "json", "line 1 is not JSON as expected"),
        (json.dumps(ROWS, indent=0).encode() + b"\n[]", "json", "line 15 .* more text after its end"),
        (json.dumps(ROWS, indent=0).replace('"2"', "two").encode(), "json", "line 11 .*Expecting value"),
        (json.dumps([*ROWS, 7]).encode(), "json", "item 4 of the list is a JSON int, not an object"),
        (b'{"a": [{"lyrics": "x"}, []]}', "json", "item 2 of the list 'a' is a JSON list"),
        (b'{"a": [{"lyrics": "x"}], "b": [{"lyrics": "x"}]}', "json", "two lists of objects, 'a' and 'b'"),
        (b'{"a": [1, 2], "b": {"c": [{"lyrics": "x"}]}}', "json", "a JSON object without a list of objects"),
        (b'[{"lyrics": "x"} {"lyrics": "y"}]', "json", "expecting ','"),
        (b'{"a" [{"lyrics": "x"}]}', "json", "expecting ':'"),
        (b'"lyrics"', "json", "begins with no list and no object"),
        (b'[{"lyrics": "\\ud83d"}]', "json", "item 1: the column 'lyrics' has half of a surrogate pair"),
        (b'[{"lyrics": ' + b"[" * 200_000 + b"]" * 200_000 + b"}]", "json", "nested too deeply"),
        (json_list(ROWS), "jsonl", "line 1 is a JSON list"),
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
    (tmp_path / "it.txt").write_bytes(json_list(ROWS)[:-1])
    with pytest.raises(CorpusError, match=r"it\.txt, line 1 is not JSON"):
        added(tmp_path)
    (tmp_path / "it.txt").write_bytes(parquet(ROWS)[:-9])
    with pytest.raises(CorpusError, match="is damaged"):
        added(tmp_path)
    with pytest.raises(CorpusError, match="A dataset has rows of its own"):
        source = DatasetSource(dataset="json", data_files="it.txt")
        added(tmp_path, CorpusSpec(name="it", title="It", source=source), form="csv")


def test_a_row_without_a_value_or_with_blanks_alone_is_left_out(tmp_path: Path) -> None:
    rows = [{"lyrics": "one"}, {"lyrics": None}, {}, {"lyrics": ""}, {"lyrics": " \t"}, {"lyrics": "two"}]
    (tmp_path / "it.txt").write_bytes(jsonl(rows))
    found = added(tmp_path)
    assert text_of(found, tmp_path) == "one\ntwo\n" and found.survey.documents == 2
    assert found.rows == RowCounts(rows=6, without_value=4)
    reading = read(found.spec, tmp_path / "none")
    with pytest.raises(RuntimeError, match="after all pieces"):
        _ = reading.rows


MIXTURES: dict[str, tuple[dict[str, bytes], str]] = {
    "a readme": ({"README.md": b"# Lyrics\n", "a.jsonl": jsonl(ROWS)}, "README.md is plain text, and a.jsonl is jsonl"),
    "a table": ({"a.jsonl": jsonl(ROWS), "b.csv": table(ROWS)}, "a.jsonl is jsonl, and b.csv is csv"),
    "a text": ({"a.csv": table(ROWS), "b.txt": RUSSIAN.encode()}, "a.csv is csv, and b.txt is plain text"),
    "one column": ({"a.csv": table(ROWS), "b.csv": b"name\nAnn\nBob\n"}, "a.csv is csv, and b.csv is plain text"),
    "another delimiter": (
        {"a.csv": table(ROWS), "b.csv": table(ROWS, ";")},
        "a.csv is csv, and b.csv is csv with the delimiter ';'",
    ),
    "a list": ({"a.json": json_list(ROWS), "b.json": jsonl(ROWS)}, "a.json is json, and b.json is jsonl"),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_files_of_different_formats_are_an_error_that_names_them(name: str, tmp_path: Path) -> None:
    files, said = MIXTURES[name]
    (tmp_path / "texts").mkdir()
    for file, data in files.items():
        (tmp_path / "texts" / file).write_bytes(data)
    with pytest.raises(CorpusError, match=said):
        added(tmp_path, source=tmp_path / "texts")
    # A corpus file that was written by hand, in a run: the file that does not fit is named.
    form, wrong = {"a.jsonl": "jsonl", "a.csv": "csv", "a.json": "json"}[next(f for f in files if f[0] == "a")], "b|RE"
    spec = CorpusSpec(name="it", title="It", source={"path": "texts"}, rows={"format": form, "column": "lyrics"})
    with pytest.raises(CorpusError, match=rf"^({wrong})\S*( |,).*all files of a corpus have the format in rows.format"):
        look(spec, project=tmp_path, downloads=tmp_path, mirror=None)


def test_files_of_one_format_belong_together_also_with_blank_and_short_ones(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for file, data in {
        "0.jsonl": b"",
        "1.jsonl": jsonl(CHATS),
        "2.jsonl": jsonl(CHATS[:1]),  # alone, it would be JSON with a list of messages
        "3.jsonl": b"\n",
    }.items():
        (tmp_path / "texts" / file).write_bytes(data)
    found = added(tmp_path, source=tmp_path / "texts")
    assert found.spec.rows is not None and found.spec.rows.format == "jsonl"
    assert found.survey.documents == len(TEXTS) + 1 and found.rows == RowCounts(len(TEXTS) + 1, 0)
    (tmp_path / "texts" / "4.txt").write_text("A note.\n")
    plain = added(tmp_path, source=tmp_path / "texts", form="text")
    assert plain.spec.rows is None and text_of(plain, tmp_path).endswith("A note.\n")


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
    texts=st.lists(words, min_size=2, max_size=8).filter(lambda texts: any(text.strip() for text in texts)),
    form=st.sampled_from(["json", "jsonl", "csv", "parquet"]),
    delimiter=st.sampled_from(",;\t|"),
)
def test_every_text_comes_back_from_every_format(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], form: Any, delimiter: str
) -> None:
    rows = [{"number": str(n), "words": text} for n, text in enumerate(texts)]
    data = {"json": json_list, "jsonl": jsonl, "parquet": parquet}.get(form, lambda rows: table(rows, delimiter))(rows)
    path = tmp_path_factory.mktemp("rows") / "it"
    path.write_bytes(data)
    [file] = raw_texts(path, "it")
    spec = RowsSpec(format=form, column="words", delimiter=delimiter if form == "csv" else None)
    assert list(row_texts(file, spec, "utf-8")) == [text if text.strip() else None for text in texts]


def test_a_cell_is_found_by_its_path() -> None:
    row = {"a": {"b": [{"c": "one"}, {"c": None}, {"d": 1}, {"c": "two"}]}, "a.b": "direct", "n": None}
    assert [cell(row, column, "row 0") for column in ("a.b.c", "a.b", "n", "x.y")] == ["one\ntwo", "direct", None, None]
    assert proposed_column([{"n": 1}, {"n": None}]) is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150)
@given(
    rows=st.lists(st.dictionaries(words, values, min_size=1, max_size=3), min_size=1, max_size=5),
    before=st.dictionaries(words.filter(lambda key: key != "rows"), st.none() | st.integers() | words, max_size=2),
    indent=st.none() | st.integers(0, 2),
    size=st.integers(1, 40),
)
def test_a_list_of_objects_is_the_same_in_blocks_of_any_size_and_within_an_object(
    rows: list[dict[str, Any]], before: dict[str, Any], indent: int | None, size: int
) -> None:
    for whole in (rows, {**before, "rows": rows, "n": -12.5e-3}):
        data = json.dumps(whole, indent=indent, ensure_ascii=bool(size % 2))
        blocks = [data[at : at + size] for at in range(0, len(data), size)]
        assert list(listed_objects(blocks, "it")) == rows


def test_a_row_nested_deeply_and_many_rows_are_read(tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_bytes(b'[{"a": ' + b"[" * 400 + b'"deep"' + b"]" * 400 + b"}]")
    assert text_of(added(tmp_path), tmp_path) == "deep\n"
    (tmp_path / "it.txt").write_bytes(json_list([{"n": n, "text": f"row {n}"} for n in range(30_000)]))
    found = added(tmp_path)
    assert found.survey.documents == 30_000 and text_of(found, tmp_path).endswith("row 29999\n")


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_a_row_without_end_is_an_error_in_bounded_memory(form: Any, tmp_path: Path) -> None:
    begin = {"json": b'[{"text": "', "jsonl": b'{"text": "', "csv": b"n,text\n1,"}[form]
    with (tmp_path / "it.txt").open("wb") as file:
        file.write(begin)
        for _ in range(40):
            file.write(b"x" * (1 << 20))
    spec = CorpusSpec(name="it", title="It", source={"path": "it.txt"}, rows={"format": form})
    with pytest.raises(CorpusError, match=r"it\.txt.* of more than 16,777,216 characters, which is too long"):
        look(spec, project=tmp_path, downloads=tmp_path, mirror=None)


LOOK = """
import resource, sys
from pathlib import Path
from bardflow.sources.adding import PROPOSED, look, source_at
from bardflow.sources.spec import CorpusError, CorpusSpec
file = Path(sys.argv[1])
spec = CorpusSpec(name="it", title="It", source=source_at(str(file), file.parent))
try:
    look(spec, project=file.parent, downloads=file.parent, mirror=None, propose=PROPOSED)
except CorpusError as error:
    status = Path("/proc/self/status")  # on Linux, getrusage also counts the process that started this one
    peak = status.read_text().split("VmHWM:")[1].split()[0] if status.exists() else 0
    print(int(peak) * 1024 or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, error)
"""
GIGABYTE = gzip.compress(b"a" * (1 << 20), mtime=0) * 1_024
LIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "1 MB that unpacks to 1 GB": (lambda: GIGABYTE, "unpacks to more than 200 times"),
    "a row that unpacks to 1 GB": (lambda: gzip.compress(b'[{"text": "') + GIGABYTE, "unpacks to more than 200 times"),
    "a table that unpacks to 32 MB": (
        lambda: parquet([{"text": f"{n}" + "a" * (1 << 20)} for n in range(32)], compression="zstd"),
        "unpacks to .* bytes, more than 200 times",
    ),
    "columns that change half-way": (
        lambda: b"n,text\n" + b"1,a row\n" * 50_000 + b"1,a,row\n" * 50_000,
        "line 50,002: a row with 3 cells, but the first line names 2",
    ),
    "a broken line of 100,000": (
        lambda: jsonl([{"text": "a row"}]) * 77_776 + b'{"text": "broken\n' + jsonl([{"text": "a"}]) * 22_223,
        "line 77,777 is not JSON",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LIES)
def test_bombs_and_lies_are_errors_in_bounded_memory(name: str, tmp_path: Path) -> None:
    data, said = LIES[name]
    (tmp_path / "it").write_bytes(data())
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(tmp_path / "it")], capture_output=True, text=True, check=True
    )
    peak_bytes, error = done.stdout.split(" ", 1)
    assert re.search(said, error) and int(peak_bytes) < 600_000_000


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rows": {"format": "xml"}}, "'json', 'jsonl', 'csv' or 'parquet'"),
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


def test_an_unknown_field_of_rows_is_named_with_the_legal_ones(tmp_path: Path) -> None:
    (tmp_path / "it.toml").write_text('title = "It"\nsource = { path = "x" }\n[rows]\nformat = "csv"\ncolumns = "a"\n')
    with pytest.raises(CorpusError, match=r"rows\.columns: is not a field.*format, column, delimiter"):
        load_corpus("it", tmp_path)


def test_a_corpus_of_rows_is_read_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(jsonl([{"text": "x" * 200_000}, {"text": "y"}]))
    spec = CorpusSpec(name="it", title="It", source={"path": "it"}, rows={"format": "jsonl"}, documents={"cut": "row"})
    pieces = list(read(spec, tmp_path))
    assert [piece.document for piece in pieces] == [0, 0, 0, 0, 1] and max(len(p.text) for p in pieces) == 65_536


def test_a_row_group_of_a_parquet_file_is_not_read_at_once(tmp_path: Path) -> None:
    rows = [f"{n:06} " * 200 for n in range(20_000)]  # 28 MB
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet", compression="none", use_dictionary=False)
    (file,) = raw_texts(tmp_path / "a.parquet", "a.parquet")
    tracemalloc.start()  # Arrow reads the file by Python's `read`
    read = sum(len(text or "") for text in row_texts(file, RowsSpec(format="parquet"), "utf-8"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read == sum(map(len, rows)) and peak < 10_000_000
