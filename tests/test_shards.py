import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import DatasetDict, Features, List, Value, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bardflow.storage.datasets_layout import BATCH_ROWS
from bardflow.storage.disk import file_names
from bardflow.storage.documents import DocumentsFacts, read_documents, read_text, write_documents
from bardflow.storage.shards import (
    Finished,
    ShardSpec,
    TokenArray,
    TokenIds,
    finished_shards,
    read_shards,
    write_shards,
)

U16, U32 = np.dtype(np.uint16), np.dtype(np.uint32)
both = pytest.mark.parametrize("dtype", [U16, U32], ids=str)

Row = tuple[str, int, TokenIds]


def rows(dtype: np.dtype[Any] = U16) -> list[Row]:
    """Two documents in several stretches to train on, with empty ones among them, and one to validate on."""
    top = np.iinfo(dtype).max
    spans = [
        ("train", 0, [1, 2, 3]),
        ("train", 0, []),
        ("train", 0, [4]),
        ("train", 1, [top, 0, top]),
        ("train", 2, []),
    ]
    return [(split, n, np.array(ids, dtype)) for split, n, ids in [*spans, ("validation", 2, [7, 8])]]


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in file_names(folder)}


def whole(tokens: TokenArray) -> list[int]:
    return list(tokens[:].tolist())


@both
def test_what_was_written_is_read_again(tmp_path: Path, dtype: np.dtype[Any]) -> None:
    top = np.iinfo(dtype).max
    assert write_shards(tmp_path, rows(dtype), ShardSpec(), dtype=dtype) == {"train": 7, "validation": 2}
    train, validation = (read_shards(tmp_path, split) for split in ("train", "validation"))
    assert whole(train) == [1, 2, 3, 4, top, 0, top]
    assert whole(validation) == [7, 8]
    assert train[:].dtype == validation[1:1].dtype == dtype


@both
@pytest.mark.parametrize("shard_tokens", [2, 2**26])
def test_plain_datasets_opens_token_shards(tmp_path: Path, dtype: np.dtype[Any], shard_tokens: int) -> None:
    write_shards(tmp_path, rows(dtype), ShardSpec(shard_tokens=shard_tokens), dtype=dtype)
    opened = load_from_disk(str(tmp_path))
    assert isinstance(opened, DatasetDict)
    assert list(opened) == ["train", "validation"]
    for split, data in opened.items():
        assert data.features == Features({"input_ids": List(Value(str(dtype))), "document": Value("int32")})
        assert str(data.split) == split
        assert [token for ids in data["input_ids"] for token in ids] == whole(read_shards(tmp_path, str(split)))
    assert set(opened["train"]["document"]) == {0, 1, 2}
    assert opened["validation"][0] == {"input_ids": [7, 8], "document": 2}


@both
def test_an_empty_split_is_opened_by_datasets_and_by_us(tmp_path: Path, dtype: np.dtype[Any]) -> None:
    only = [row for row in rows(dtype) if row[0] == "train"]
    assert write_shards(tmp_path, only, ShardSpec(), dtype=dtype)["validation"] == 0
    validation = read_shards(tmp_path, "validation")
    assert len(validation) == 0
    assert (validation[:].dtype, validation[:].size, validation[-3:5].size) == (dtype, 0, 0)
    opened = load_from_disk(str(tmp_path))
    assert opened["validation"].num_rows == 0
    assert opened["validation"].features == opened["train"].features


def test_document_borders_are_kept(tmp_path: Path) -> None:
    documents = [np.arange(start, start + length, dtype=U16) for start, length in ((0, 10), (10, 0), (10, 1), (11, 25))]
    stretches = [("train", n, part) for n, ids in enumerate(documents) for part in np.array_split(ids, 3)]
    write_shards(tmp_path, stretches, ShardSpec(shard_tokens=4), dtype=U16)
    data = load_from_disk(str(tmp_path))["train"]
    pairs = zip(data["document"], data["input_ids"], strict=True)
    read = {n: [t for _, ids in group for t in ids] for n, group in groupby(pairs, key=lambda pair: pair[0])}
    assert read == {n: ids.tolist() for n, ids in enumerate(documents)}


def test_a_set_size_gives_several_shards_none_of_them_larger(tmp_path: Path) -> None:
    tokens = np.arange(10_000, dtype=U16)
    stretches = [("train", 0, tokens[:7_000]), *(("train", 1, tokens[i : i + 10]) for i in range(7_000, 10_000, 10))]
    write_shards(tmp_path, stretches, ShardSpec(shard_tokens=1_000), dtype=U16)
    names = sorted(path.name for path in (tmp_path / "train").glob("*.arrow"))
    assert names == [f"data-{i:05}-of-{len(names):05}.arrow" for i in range(len(names))]
    assert len(names) == 10
    for name in names:
        with pa.memory_map(str(tmp_path / "train" / name)) as source:
            table = pa.ipc.open_stream(source).read_all()
        assert 0 < sum(len(ids) for ids in table["input_ids"]) <= 1_000
    assert whole(read_shards(tmp_path, "train")) == tokens.tolist()
    assert {path.suffix for path in (tmp_path / "train").iterdir()} == {".arrow", ".json"}


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=40),
    trained=st.floats(0, 1),
    shard_tokens=st.integers(1, 120),
    stops=st.lists(st.floats(0, 1), max_size=3),
)
@settings(max_examples=60)
def test_shards_that_a_kill_interrupted_are_finished_with_the_same_bytes(
    lengths: list[int], trained: float, shard_tokens: int, stops: list[float]
) -> None:
    ids = np.arange(sum(lengths), dtype=U16)
    parts = np.split(ids, np.cumsum(lengths)[:-1])
    border = round(trained * len(parts))
    every = [("train" if n < border else "validation", n // 3, part) for n, part in enumerate(parts)]
    spec = ShardSpec(shard_tokens=shard_tokens)

    def rest(finished: Finished) -> list[Row]:
        of = {split: [row for row in every if row[0] == split] for split in ("train", "validation")}
        return [row for split, rows in of.items() for row in rows[finished.rows[split] :]]

    def until(rows: list[Row], stop: float) -> Iterator[Row]:
        yield from rows[: int(stop * len(rows))]
        raise KeyboardInterrupt

    with TemporaryDirectory() as folder:
        plain, killed = Path(folder) / "plain", Path(folder) / "killed"
        tokens = write_shards(plain, every, spec, dtype=U16)
        killed.mkdir()
        for stop in stops:
            finished = finished_shards(killed)
            with pytest.raises(KeyboardInterrupt):
                write_shards(killed, until(rest(finished), stop), spec, dtype=U16, finished=finished)
        finished = finished_shards(killed)
        assert len(rest(finished)) == len(every) - sum(finished.rows.values())
        assert write_shards(killed, rest(finished), spec, dtype=U16, finished=finished) == tokens
        assert content(killed) == content(plain)


def test_only_the_last_shard_is_written_again(tmp_path: Path) -> None:
    every = [("train", n, np.full(10, n, U16)) for n in range(100)]

    def interrupted() -> Iterator[Row]:
        yield from every[:95]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, interrupted(), ShardSpec(shard_tokens=200), dtype=U16)
    finished = finished_shards(tmp_path)
    assert (finished.rows["train"], finished.tokens["train"], finished.shards["train"]) == (60, 600, 3)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["part-0", "part-1", "part-2"]


def test_equal_content_gives_equal_bytes_of_every_file(tmp_path: Path) -> None:
    script = """if True:
        import sys
        from pathlib import Path
        import numpy as np
        from bardflow.storage.documents import write_documents
        from bardflow.storage.shards import ShardSpec, write_shards
        into = Path(sys.argv[1])
        ids = np.random.default_rng(1).integers(0, 65, 5_003).astype(np.uint16)
        parts = [("train", n // 7, part) for n, part in enumerate(np.array_split(ids, 97))]
        parts.append(("validation", 14, ids[:1]))
        write_shards(into / "shards", parts, ShardSpec(shard_tokens=999), dtype=ids.dtype)
        write_documents(into / "corpus", [("train", 0, "合久必分"), ("validation", 1, "分久必合")])
    """
    for seed in ("1", "2"):
        subprocess.run([sys.executable, "-c", script, tmp_path / seed], env={"PYTHONHASHSEED": seed}, check=True)
    assert len(content(tmp_path / "1")) > 15
    assert content(tmp_path / "1") == content(tmp_path / "2")


def test_ids_that_might_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Cannot cast"):
        write_shards(tmp_path / "narrow", [("train", 0, np.array([65_536], U32))], ShardSpec(), dtype=U16)
    write_shards(tmp_path / "wide", [("train", 0, np.array([65_535], U16))], ShardSpec(), dtype=U32)
    assert whole(read_shards(tmp_path / "wide", "train")) == [65_535]


def test_a_shard_size_below_one_token_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        ShardSpec(shard_tokens=0)


def address(ids: TokenIds) -> int:
    return int(ids.__array_interface__["data"][0])


def test_reading_copies_nothing(tmp_path: Path) -> None:
    tokens = np.arange(2**21, dtype=np.uint32).astype(U16)
    write_shards(tmp_path, [("train", 0, tokens)], ShardSpec(shard_tokens=2**20), dtype=U16)
    allocated = pa.total_allocated_bytes()
    train = read_shards(tmp_path, "train")
    assert len(train.chunks) == 2
    part = train[5:1_000_000]
    assert pa.total_allocated_bytes() == allocated
    assert not part.flags.owndata
    assert not part.flags.writeable
    assert np.shares_memory(part, train.chunks[0])
    assert address(part) == address(train.chunks[0]) + 5 * 2


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_tokens_are_pages_of_the_file_and_memory_does_not_grow(tmp_path: Path) -> None:
    write_shards(tmp_path, [("train", 0, np.ones(20_000_000, U16))], ShardSpec(shard_tokens=8_000_000), dtype=U16)

    def anonymous_kilobytes() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))

    before = anonymous_kilobytes()
    train = read_shards(tmp_path, "train")
    assert sum(int(chunk.sum(dtype=np.int64)) for chunk in train.chunks) == 20_000_000
    assert anonymous_kilobytes() - before < 4_000  # of 40 MB
    mapped = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(".arrow") and str(tmp_path) in line
    ]
    for chunk in train.chunks:
        assert any(start <= address(chunk) and address(chunk) + chunk.nbytes <= stop for start, stop in mapped)


PEAK_OF_WRITING = """if True:
    import resource, sys
    from pathlib import Path
    import numpy as np
    from bardflow.storage.documents import write_documents
    from bardflow.storage.shards import ShardSpec, write_shards
    into, what, pieces = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    if what == "tokens":  # 64 kB each
        made = (("train", n, np.full(32_768, n, np.uint16)) for n in range(pieces))
        write_shards(into, made, ShardSpec(shard_tokens=2**22), dtype=np.dtype(np.uint16))
    else:
        write_documents(into, (("train", n, chr(0x4E00 + n) * 21_845) for n in range(pieces)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1))
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["tokens", "text"])
def test_writing_streams_so_memory_does_not_grow_with_the_corpus(tmp_path: Path, what: str) -> None:
    def peak_kilobytes(pieces: int) -> int:
        command = [sys.executable, "-c", PEAK_OF_WRITING, str(tmp_path / str(pieces)), what, str(pieces)]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    # 16 MB fills what a writer holds; 80 MB more come after it.
    assert peak_kilobytes(1_500) - peak_kilobytes(250) < 8_000


def test_a_million_rows_of_one_token_are_written_in_batches_of_bounded_rows(tmp_path: Path) -> None:
    one = np.ones(1, U16)
    write_shards(tmp_path, (("train", n, one) for n in range(BATCH_ROWS * 2 + 1)), ShardSpec(), dtype=U16)
    assert [len(chunk) for chunk in read_shards(tmp_path, "train").chunks] == [BATCH_ROWS, BATCH_ROWS, 1]


@both
@settings(max_examples=300)
@given(data=st.data())
def test_a_slice_is_the_slice_of_the_concatenation(dtype: np.dtype[Any], data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6), label="lengths")
    flat = np.arange(sum(lengths), dtype=dtype)
    tokens = TokenArray(np.split(flat, np.cumsum(lengths)[:-1]))
    ends = st.none() | st.integers(-len(flat) - 2, len(flat) + 2)
    span = slice(data.draw(ends, label="start"), data.draw(ends, label="stop"))
    assert len(tokens) == len(flat)
    assert tokens[span].tolist() == flat[span].tolist()
    assert tokens[span].dtype == dtype


stretches = st.lists(
    st.tuples(st.sampled_from(["train", "validation"]), st.lists(st.integers(0, 2**16 - 1), max_size=9)), max_size=12
)


@settings(max_examples=60)
@given(written=stretches, shard_tokens=st.integers(1, 12), start=st.integers(0, 30), length=st.integers(0, 30))
def test_any_rows_come_back_whatever_the_shard_size(
    tmp_path_factory: pytest.TempPathFactory,
    written: list[tuple[str, list[int]]],
    shard_tokens: int,
    start: int,
    length: int,
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    made = [(split, n, np.array(ids, U16)) for n, (split, ids) in enumerate(written)]
    counted = write_shards(folder, made, ShardSpec(shard_tokens=shard_tokens), dtype=U16)
    for part in ("train", "validation"):
        flat = [token for split, ids in written for token in ids if split == part]
        tokens = read_shards(folder, part)
        assert counted[part] == len(tokens) == len(flat)
        assert whole(tokens) == flat
        assert tokens[start : start + length].tolist() == flat[start : start + length]


def test_no_chunks_are_no_tokens() -> None:
    assert (len(TokenArray([])), TokenArray([])[:].tolist()) == (0, [])


def test_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="a slice of tokens has no step"):
        TokenArray([np.arange(4, dtype=U16)])[::2]


def corpus() -> Iterator[tuple[str, int, str]]:
    yield "train", 0, "第一回\n宴桃園豪傑三結義\r\n"
    yield "train", 0, ""
    yield "train", 1, "第二回 \u0000 😀"
    yield "validation", 1, "張翼德怒鞭督郵"
    yield "validation", 2, "\ufeff"


def test_documents_come_back_and_the_facts_name_their_text(tmp_path: Path) -> None:
    facts = write_documents(tmp_path, corpus())
    texts = {part: "".join(text for split, _, text in corpus() if split == part) for part in ("train", "validation")}
    digests = {f"{part}_sha256": hashlib.sha256(text.encode()).hexdigest() for part, text in texts.items()}
    assert facts == DocumentsFacts(**digests)
    for part, text in texts.items():
        assert list(read_documents(tmp_path, part)) == [(n, text) for split, n, text in corpus() if split == part]
        assert "".join(read_text(tmp_path, part)) == text


def test_plain_datasets_opens_a_corpus(tmp_path: Path) -> None:
    write_documents(tmp_path, corpus())
    opened = load_from_disk(str(tmp_path))
    assert isinstance(opened, DatasetDict)
    assert list(opened) == ["train", "validation"]
    for split, data in opened.items():
        assert data.features == Features({"document": Value("int32"), "text": Value("string")})
        assert list(zip(data["document"], data["text"], strict=True)) == list(read_documents(tmp_path, str(split)))
        # As plain text sets are used: mapped, and cached under a fingerprint that comes from the content.
        assert len(data._fingerprint) == 16


def test_the_layout_is_the_one_that_datasets_writes(tmp_path: Path) -> None:
    write_shards(tmp_path / "ours", rows(), ShardSpec(), dtype=U16)
    load_from_disk(str(tmp_path / "ours")).save_to_disk(tmp_path / "theirs")
    ours, theirs = content(tmp_path / "ours"), content(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()

    def described(files: dict[str, bytes]) -> dict[str, Any]:
        told = {name: json.loads(file) for name, file in files.items() if not name.endswith(".arrow")}
        return {name: {key: told[name][key] for key in told[name] if key != "_fingerprint"} for name in told}

    assert described(ours) == described(theirs)


def test_a_corpus_without_a_validation_part_is_opened_by_datasets_and_by_us(tmp_path: Path) -> None:
    facts = write_documents(tmp_path, [("train", 0, "all of it")])
    assert facts.validation_sha256 == hashlib.sha256(b"").hexdigest()
    assert list(read_documents(tmp_path, "validation")) == []
    assert load_from_disk(str(tmp_path))["validation"].num_rows == 0


def test_writing_a_corpus_and_its_shards_imports_no_pandas(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
import numpy as np
from bardflow.storage.documents import write_documents
from bardflow.storage.shards import ShardSpec, write_shards
folder = Path({str(tmp_path)!r})
write_documents(folder / "texts", [("train", 0, "text"), ("validation", 1, "text")])
rows = [(split, 0, np.arange(9, dtype=np.uint16)) for split in ("train", "validation")]
write_shards(folder / "shards", rows, ShardSpec(), dtype=np.dtype(np.uint16))
print("pandas" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "False", done.stderr
