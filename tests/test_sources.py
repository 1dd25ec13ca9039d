"""Laws of the way from a source to labelled pieces of text: paths, datasets, decoding."""

import bz2
import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bardflow.sources.corpora import load_corpus
from bardflow.sources.documents import Reading, read, split
from bardflow.sources.fetch import ChecksumError, Fetched, FetchError, fetch
from bardflow.sources.spec import (
    CorpusError,
    CorpusSpec,
    DatasetSource,
    DocumentsSpec,
    PathSource,
    Source,
    SyntheticSource,
)
from bardflow.sources.survey import Survey, survey
from bardflow.sources.synthetic import generate

PROJECT = Path(__file__).parent.parent


def corpus(
    source: Source, cut: str = "whole", heading: str | None = None, cleaning: tuple[str, ...] = ()
) -> CorpusSpec:
    documents = DocumentsSpec.model_validate({"cut": cut, "heading": heading})
    return CorpusSpec(name="it", title="It", source=source, documents=documents, cleaning=cleaning)


def bring(spec: CorpusSpec, tmp_path: Path) -> tuple[Fetched, Path]:
    into = tmp_path / "into"
    return fetch(spec, into, downloads=tmp_path / "downloads", mirror=None, project=tmp_path), into


def reading(tmp_path: Path, files: dict[str, bytes], *, cut: str = "whole", **spec: object) -> Reading:
    folder = tmp_path / "files"
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return read(corpus(PathSource(path="files"), cut, **spec), folder)


def tarred(form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return out.getvalue()


def by_document(pieces: Reading) -> list[str]:
    """The documents' texts; the numbers count up by one from 0."""
    texts: list[str] = []
    for document, text in pieces:
        if document == len(texts):
            texts.append("")
        assert document == len(texts) - 1
        assert text
        texts[-1] += text
    return texts


# ---- paths ----


def test_a_path_may_be_a_file_a_folder_or_a_glob_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    for name in ("texts/b.txt", "texts/a/c.txt", "texts/note.md", "texts/.hidden.txt", "texts/.git/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    expected = {
        "texts/b.txt": ["b.txt"],
        "texts": ["a/c.txt", "b.txt", "note.md"],
        "texts/": ["a/c.txt", "b.txt", "note.md"],
        "texts/*.txt": ["b.txt"],
        "texts/**/*.txt": ["a/c.txt", "b.txt"],
        "*/a/?.txt": ["texts/a/c.txt"],
        str(tmp_path / "texts/note.md"): ["note.md"],
    }
    for number, (path, names) in enumerate(expected.items()):
        fetched, into = bring(corpus(PathSource(path=path)), tmp_path / f"{number}" / "..")
        assert [file.name for file in fetched.files] == names, path
        for file in fetched.files:
            data = (into / file.name).read_bytes()
            assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert not fetched.downloaded
        shutil.rmtree(into)


@pytest.mark.parametrize("path", ["missing.txt", "missing/*.txt", "empty", "*.md"])
def test_a_path_that_names_no_file_is_an_error(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match=r"names no file.*project folder"):
        bring(corpus(PathSource(path=path)), tmp_path)


def test_a_pin_on_a_path_is_checked(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_text("text")
    right = hashlib.sha256(b"text").hexdigest()
    fetched, _ = bring(corpus(PathSource(path="a.txt", sha256=right)), tmp_path)
    assert fetched.pinned
    (tmp_path / "into/a.txt").unlink()
    with pytest.raises(ChecksumError, match=right):
        bring(corpus(PathSource(path="a.txt", sha256="0" * 64)), tmp_path)
    assert not list((tmp_path / "into").iterdir())
    with pytest.raises(CorpusError, match=r"pins a single file, and .* names 2"):
        bring(corpus(PathSource(path="*.txt", sha256=right)), tmp_path)


# ---- datasets ----

ROWS = ["The first row.\nIt has two lines.", "", "第二行", "ends with a line end\n", 'quotes " and \\ and \u2028']


@pytest.fixture(params=["json", "parquet", "folder"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> DatasetSource:
    """The same rows as a jsonl file, as a Parquet file and as a dataset's folder."""
    data = tmp_path / "data"
    data.mkdir()
    if request.param == "parquet":
        pq.write_table(pa.table({"text": ROWS, "label": list(range(len(ROWS)))}), data / "rows.parquet")
        return DatasetSource(dataset="parquet", data_files="data/*.parquet")
    lines = [json.dumps({"text": text, "label": n}) for n, text in enumerate(ROWS)]
    (data / "train.jsonl").write_text("\n".join(lines) + "\n")
    return (
        DatasetSource(dataset="./data")
        if request.param == "folder"
        else DatasetSource(dataset="json", data_files="data/train.jsonl")
    )


def test_rows_of_a_dataset_are_documents_and_never_run_together(dataset: DatasetSource, tmp_path: Path) -> None:
    spec = corpus(dataset, "row")
    fetched, into = bring(spec, tmp_path)
    ended = [row if row.endswith("\n") else row + "\n" for row in ROWS]
    # A row without a visible character is no document; its line end stays with the one before.
    assert by_document(read(spec, into)) == [ended[0] + ended[1], *ended[2:]]
    assert by_document(read(corpus(dataset), into)) == ["".join(ended)]
    assert fetched.why == f"streamed {len(ROWS)} rows"
    assert not fetched.pinned


def test_the_same_rows_are_the_same_bytes_and_can_be_limited(dataset: DatasetSource, tmp_path: Path) -> None:
    first, into = bring(corpus(dataset), tmp_path)
    (into / "rows.jsonl").unlink()
    again, _ = bring(corpus(dataset), tmp_path)
    assert first.files == again.files
    (into / "rows.jsonl").unlink()
    bring(corpus(dataset.model_copy(update={"rows": 3})), tmp_path)
    lines = (into / "rows.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert [json.loads(line) for line in lines] == ROWS[:3]


def test_a_wrong_column_is_answered_with_the_columns_there_are(dataset: DatasetSource, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no column 'body'; it has: text, label"):
        bring(corpus(dataset.model_copy(update={"column": "body"})), tmp_path)


def test_a_column_that_is_not_text_is_refused(dataset: DatasetSource, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="value of type int, not text"):
        bring(corpus(dataset.model_copy(update={"column": "label"})), tmp_path)


def test_a_dataset_that_cannot_be_opened_is_named_with_its_cause(dataset: DatasetSource, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="split 'nowhere'"):
        bring(corpus(dataset.model_copy(update={"split": "nowhere"})), tmp_path)


# ---- decoding ----

TEXT = "話說天下大勢，分久必合，合久必分。" * 400 + "\n"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (TEXT.encode("gb18030"), ["byte 2 (0xd5)", 'encoding = "gb18030"']),
        (TEXT.encode("big5"), ["byte 0", 'encoding = "big5"']),
        (("吾輩は猫である。どこで生れたかとんと見当がつかぬ。" * 9).encode("shift_jis"), ["byte 0", "It looks like"]),
        (("吾輩は猫である。名前はまだ無い。" * 9).encode("euc_jp"), ["byte 0", 'encoding = "euc-jp"']),
        (("나의 살던 고향은 꽃피는 산골. " * 9).encode("euc_kr"), ["byte 0", 'encoding = "euc-kr"']),
        (TEXT.encode("utf-16"), ["byte 0", 'encoding = "utf-16"']),
        ("plain words".encode("utf-32"), ["byte 0", 'encoding = "utf-32"']),
        (("Il était une fois. " * 9).encode("cp1252"), ["byte 3 (0xe9)", 'encoding = "windows-1252"']),
        (b"good\n" * 300_000 + "é".encode() + b"\xff", ["byte 1,500,002 (0xff)"]),
        (b"good\xe4\xb8", ["byte 4 (0xe4)"]),
        # Begun at the end of one block and broken in the next.
        (b"x" * ((1 << 18) - 1) + b"\xe4A", ["byte 262,143 (0xe4)"]),
        (b"text with \0 in it", ["byte 10 is NUL", "binary"]),
        (b"x" * 2_000_000 + b"\0", ["byte 2,000,000 is NUL", "binary"]),
        (gzip.compress(gzip.compress(b"text", mtime=0), mtime=0), ["gzip", "bytes 0 to 1", "unpack it once"]),
        (b"%PDF-1.7\n", ["PDF", "bytes 0 to 4", "pdftotext"]),
        (b"PAR1....", ["Parquet", "[rows]"]),
        (bz2.compress(bz2.compress(b"text")), ["bzip2", "bytes 0 to 9", "unpack it once"]),
        (bz2.compress(bz2.compress(b"")), ["bzip2", "unpack it once"]),
        (tarred(tarfile.USTAR_FORMAT), ["tar archive", "bytes 257 to 262", "give the folder"]),
        (tarred(tarfile.GNU_FORMAT), ["tar archive", "bytes 257 to 264", "give the folder"]),
    ],
)
def test_what_is_not_text_in_utf8_is_refused_with_file_byte_and_remedy(
    tmp_path: Path, data: bytes, told: list[str]
) -> None:
    with pytest.raises(CorpusError) as caught:
        list(reading(tmp_path, {"it.txt": data}))
    for part in ("it.txt", *told):
        assert part in str(caught.value)


@pytest.mark.parametrize("text", ["." * 256 + "mustard, and so on\n", "BZh9 is a short name\n", "7z and PK\n"])
def test_a_text_with_the_letters_of_an_archive_is_a_text(tmp_path: Path, text: str) -> None:
    assert "".join(piece.text for piece in reading(tmp_path, {"it.txt": text.encode()})) == text


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0")).filter(str.strip), where=st.integers(0, 8))
def test_every_utf8_text_comes_back_as_it_is_wherever_blocks_end(
    tmp_path_factory: pytest.TempPathFactory, text: str, where: int
) -> None:
    # The padding puts the text across the border of the blocks in which files are read.
    padded = "x" * ((1 << 20) - where) + text
    pieces = reading(tmp_path_factory.mktemp("text"), {"it.txt": padded.encode()})
    assert "".join(piece.text for piece in pieces) == padded


# ---- synthetic ----


@settings(max_examples=30)
@given(short=st.integers(0, 200_000), more=st.integers(0, 200_000), seed=st.integers(0, 3))
def test_a_generated_text_has_the_exact_length_and_begins_with_the_shorter(short: int, more: int, seed: int) -> None:
    text = "".join(generate(short + more, seed))
    assert len(text) == short + more
    assert "".join(generate(short, seed)) == text[:short]


def test_the_generated_text_is_the_same_on_every_machine() -> None:
    digest = hashlib.sha256("".join(generate(1_000_000, 1)).encode()).hexdigest()
    assert digest == "cf91e190c6c2b4a56204b7e386fa63edc576dd304c0cae305449f3d7e01628e3"


def test_another_seed_says_other_things_in_the_same_language() -> None:
    one, two = ("".join(generate(300_000, seed)) for seed in (1, 2))
    assert one[:2000] != two[:2000]
    common = {word for word, count in Counter(one.split()).items() if count > 30}
    assert len(common) > 100
    assert len(common & set(two.split())) > 0.9 * len(common)


def test_any_size_streams() -> None:
    chunks = list(islice(generate(10**15, 1), 3))
    assert all(60_000 < len(chunk) < 80_000 for chunk in chunks)


def test_a_synthetic_corpus_needs_no_network_and_is_pinned_by_nature(tmp_path: Path) -> None:
    spec = corpus(SyntheticSource(synthetic=100_000, seed=3))
    fetched, into = bring(spec, tmp_path)
    assert (fetched.pinned, fetched.downloaded) == (True, False)
    assert by_document(read(spec, into)) == ["".join(generate(100_000, 3))]


# ---- the two real texts ----


@pytest.fixture(scope="module")
def real(mirror: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[CorpusSpec, Path]]:
    if not mirror.startswith("http") and not Path(mirror).is_dir():
        pytest.skip(f"the real texts are not here: no folder {mirror} (set CORPORA_MIRROR to a mirror of the corpora)")

    def brought(name: str) -> tuple[CorpusSpec, Path]:
        spec = load_corpus(name, PROJECT / "corpora")
        assert isinstance(spec, CorpusSpec)
        folder = tmp_path_factory.mktemp(name)
        fetch(spec, folder / "raw", downloads=folder / "downloads", mirror=mirror)
        return spec, folder / "raw"

    return brought


def counts(spec: CorpusSpec, folder: Path) -> Survey:
    pieces = list(read(spec, folder))
    return survey(split(pieces, spec.split, sum(len(piece.text) for piece in pieces), pieces[-1].document + 1))


def test_tiny_shakespeare_is_the_text_of_the_published_losses(real: Callable[[str], tuple[CorpusSpec, Path]]) -> None:
    spec, folder = real("tiny-shakespeare")
    counted = counts(spec, folder)
    assert (counted.characters, counted.distinct, counted.documents) == (1_115_394, 65, 1)
    assert (counted.train_characters, counted.validation_characters) == (1_003_854, 111_540)
    assert counted.unseen_distinct == 0
    assert counted.cleaning == ()
    assert counted.suggestion.vocabulary == "char"
    (file,) = folder.iterdir()
    assert "".join(piece.text for piece in read(spec, folder)).encode() == file.read_bytes()


def test_the_three_kingdoms_before_cleaning_are_as_described(real: Callable[[str], tuple[CorpusSpec, Path]]) -> None:
    spec, folder = real("three-kingdoms")
    counted = counts(spec.model_copy(update={"cleaning": ()}), folder)
    assert (counted.characters, counted.bytes_utf8, counted.distinct) == (622_087, 1_822_605, 4_181)
    assert counted.documents == 120
    assert (counted.unseen_distinct, counted.unseen_occurrences) == (108, 320)
    assert counted.longest_line == 74
    # The survey proposes what the corpus's description names.
    assert counted.cleaning == spec.cleaning


def test_the_three_kingdoms_after_cleaning_are_whole_paragraphs_in_120_chapters(
    real: Callable[[str], tuple[CorpusSpec, Path]],
) -> None:
    spec, folder = real("three-kingdoms")
    pieces = read(spec, folder)
    chapters = by_document(pieces)
    (file,) = folder.iterdir()
    raw = file.read_text(encoding="utf-8")
    assert len(chapters) == 120
    assert all(chapter.lstrip("\n").startswith("第") for chapter in chapters)
    text = "".join(chapters)
    # Only line ends and the footer are gone: not a character of the novel.
    novel = raw[: raw.index("End of Project Gutenberg")]
    assert text.replace("\n", "") == novel.replace("\n", "")
    assert len(text) == len(raw) - sum(count.characters_removed for count in pieces.cleaned)
    gutenberg, unwrap = pieces.cleaned
    assert gutenberg.lines_removed == 7
    assert unwrap.lines_removed == unwrap.characters_removed == 13_886
    # A line left broken off would end without a mark. Beside the headings one paragraph does so, in the source itself.
    open_ended = [line for line in text.splitlines() if line and line[-1] not in "。！？：」』；）　"]
    (lame,) = (line for line in open_ended if not line.startswith("第"))
    assert lame.endswith("四將接著，出馬")
