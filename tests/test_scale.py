"""docs/scale.md has the tables that benchmarks/scale.py computes, and what it says of the code is so."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bardflow.model.planning import cloud
from bardflow.storage.documents import SCHEMA, write_documents
from bardflow.storage.handles import Source
from bardflow.storage.manifests import MANIFEST, Origin
from bardflow.storage.shards import ShardSpec, read_shards, write_shards
from bardflow.storage.store import Store
from tests.conftest import CHECKOUT


def load() -> Any:
    spec = importlib.util.spec_from_file_location("scale", CHECKOUT / "benchmarks" / "scale.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


scale = load()
GIVEN = scale.read_inputs()


def test_the_page_has_the_tables_of_the_script() -> None:
    page = scale.PAGE.read_text(encoding="utf-8")
    assert scale.with_tables(page, GIVEN) == page, "run `python benchmarks/scale.py --write`, and read the page again"
    other = {**GIVEN, "put": GIVEN["put"]._replace(value=1.0)}
    assert scale.storage_table(other) != scale.storage_table(GIVEN) and scale.storage_table(GIVEN) in page
    with pytest.raises(ValueError, match="no place for the table 'inputs'"):
        scale.with_tables("nothing", GIVEN)


def test_the_sentences_have_the_numbers_of_the_tables() -> None:
    page = re.sub(r"<!-- table.*?<!-- end -->", "", scale.PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    said = " ".join(page.split())
    few, many = scale.runs(GIVEN)
    store = scale.stored(GIVEN)
    home = GIVEN["text_bytes"].value + sum(part[1] for part in store)
    h100 = cloud.cards({})["H100 80GB"]
    cells = {line.split(" | ")[0]: line for line in scale.training_table(GIVEN).splitlines()}
    month = [line.split(" | ")[5] for line in scale.storage_table(GIVEN).splitlines()[2:]]
    lowest = scale.limits(GIVEN)[0]
    database = scale.prefect_table(GIVEN).splitlines()[-1].split(" | ")[5]
    for expected in (
        f"{scale.size(home)} of disk",
        f"f32 are {scale.size(16 * 6738415616)}",
        f"needs {scale.least_memory(GIVEN) / 1e9:.0f} GB",
        f"{month[0]} and {month[1]} a month",
        f"({lowest.text / 1e9:.0f} GB of text)",
        f"a training of {many.legs} legs fills Prefect's database with about {database}",
        f"{many.tokens / few.tokens:.0f} times as many",
        f"{GIVEN['manifest_bytes_per_file'].value:.0f} bytes for each file",
    ):
        assert expected in said, expected
    for price in re.findall(r"\$[\d,]+(?= on H100s for| for the whole)", said):
        assert price in cells["| H100 80GB"]
    assert h100.memory_mib * 2**20 < scale.least_memory(GIVEN), "7 B fits on no card"


def test_the_limits_are_in_the_order_in_which_they_are_met() -> None:
    found = scale.limits(GIVEN)
    assert [one.text for one in found] == sorted(one.text for one in found)
    # Twice the documents for the same text: what counts documents is met at half of it, what counts bytes as before.
    half = {**GIVEN, "bytes_per_document": GIVEN["bytes_per_document"]._replace(value=2000)}
    before = {one.what: one.text for one in found}
    after = {one.what: one.text for one in scale.limits(half)}
    assert after["document numbers are int32"] == before["document numbers are int32"] / 2
    assert after["tokenizing on 2 cores takes more than a day"] == before["tokenizing on 2 cores takes more than a day"]


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (80.86e9, "80.9 GB"), (999.6e9, "1 TB"), (5e15, "5 PB")],
)
def test_bytes_are_written_with_three_digits(number: float, words: str) -> None:
    assert scale.size(number) == words


def test_a_document_number_above_int32_is_refused_and_not_wrapped(tmp_path: Path) -> None:
    assert SCHEMA.field("document").type == pa.int32()
    write_documents(tmp_path / "last", [("train", scale.INT32 - 1, "a")])
    with pytest.raises(OverflowError, match="out of bounds for int32"):
        write_documents(tmp_path / "over", [("train", scale.INT32, "a")])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_each_shard_file_of_a_training_is_a_map_of_its_own(tmp_path: Path) -> None:
    import numpy as np

    rows = (("train", 0, np.arange(64, dtype=np.uint16)) for _ in range(30))
    write_shards(tmp_path, rows, ShardSpec(shard_tokens=64), dtype=np.dtype(np.uint16))
    files = len(list(tmp_path.glob("train/*.arrow")))
    tokens = read_shards(tmp_path, "train")
    maps = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line}
    assert len(tokens) == 30 * 64 and files == len(maps) >= 15


def test_a_manifest_grows_as_the_page_says(tmp_path: Path) -> None:
    origin = Origin(task="a", inputs={}, spec={}, run=None, commit=None, packages={}, at="", measured={})
    store = Store(tmp_path)
    with store.draft() as draft:
        for number in range(50):
            (draft.folder / f"part-{number:08}.parquet").write_bytes(number.to_bytes(64, "big"))
        handle = store.keep(draft, Source, {}, origin)
    written = (store.place(handle) / MANIFEST).stat().st_size
    assert written == GIVEN["manifest_bytes"].value + 50 * GIVEN["manifest_bytes_per_file"].value
    assert len(json.loads((store.place(handle) / MANIFEST).read_text())["files"]) == 50
