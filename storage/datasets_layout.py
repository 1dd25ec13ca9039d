"""Arrow files in the layout of `datasets.load_from_disk`, written as a stream and read without copying."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

R = TypeVar("R")

# A limit for short rows, which need more memory than their data: a NumPy array of one token takes 112 bytes.
BATCH_ROWS = 2**16

FEATURES = {
    pa.string(): {"dtype": "string", "_type": "Value"},
    pa.int32(): {"dtype": "int32", "_type": "Value"},
    pa.list_(pa.uint16()): {"feature": {"dtype": "uint16", "_type": "Value"}, "_type": "List"},
    pa.list_(pa.uint32()): {"feature": {"dtype": "uint32", "_type": "Value"}, "_type": "List"},
}


def write_dataset(
    folder: Path,
    schema: pa.Schema,
    splits: tuple[str, ...],
    batches: Iterable[tuple[str, pa.RecordBatch]],
    *,
    shard_bytes: int,
    finished: Mapping[str, int] | None = None,
    on_finished: Callable[[str, int], None] = lambda split, count: None,
) -> None:
    """Write a stream of record batches with their splits; a batch that would exceed `shard_bytes` starts a new shard.

    Only one batch is in memory at a time. A split without batches gets one empty batch, so that readers know the types.
    `on_finished` is called with a split and the number of its finished shards before a batch starts another one.
    `finished` has these numbers from an earlier call that was killed; `batches` then go on with the ones after them.
    """
    finished = finished or {}
    writers = {split: _SplitWriter(folder / split, schema, shard_bytes, finished.get(split, 0)) for split in splits}
    for split, batch in batches:
        writer = writers[split]
        if writer.is_full(batch):
            writer.end_shard()
            on_finished(split, len(writer.parts))
        writer.write(batch)
    for split, writer in writers.items():
        if not writer.parts:
            writer.write(pa.RecordBatch.from_pylist([], schema=schema))
        writer.close(split)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))


def read_batches(folder: Path, split: str) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of a split in order, memory-mapped."""
    state = json.loads((folder / split / "state.json").read_text())
    for data_file in state["_data_files"]:
        with pa.memory_map(str(folder / split / data_file["filename"])) as source:
            yield from pa.ipc.open_stream(source)


def array_of(values: Sequence[int] | npt.NDArray[Any], dtype: npt.DTypeLike) -> pa.Array:
    """Return an Arrow array of integers of a NumPy type.

    Not `pa.array`, which imports pandas where it is installed: 40 MB and half a second.
    """
    numbers = np.ascontiguousarray(values, dtype)
    return pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [None, pa.py_buffer(numbers)])


def gather(rows: Iterable[tuple[str, R]], size: Callable[[R], int], most: int) -> Iterator[tuple[str, list[R]]]:
    """Group neighbouring rows of one split into batches.

    The sizes in a group sum to at most `most`, unless a single row is larger. A group has at most 65,536 rows.
    """
    held: list[R] = []
    current, held_size = "", 0
    for split, row in rows:
        if held and (split != current or held_size + size(row) > most or len(held) == BATCH_ROWS):
            yield current, held
            held, held_size = [], 0
        current = split
        held.append(row)
        held_size += size(row)
    if held:
        yield current, held


def part_path(folder: Path, number: int) -> Path:
    """The path of a shard of a split while the split is written."""
    return folder / f"part-{number}"


class _SplitWriter:
    """Writes the shards of one split, one after another."""

    def __init__(self, folder: Path, schema: pa.Schema, shard_bytes: int, finished: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.schema, self.shard_bytes = folder, schema, shard_bytes
        self.parts = [part_path(folder, number) for number in range(finished)]
        self.written = 0
        self.file: Any = None
        self.writer: Any = None

    def is_full(self, batch: pa.RecordBatch) -> bool:
        """Whether the open shard has no room for the batch."""
        return self.writer is not None and self.written + batch.nbytes > self.shard_bytes

    def write(self, batch: pa.RecordBatch) -> None:
        if self.writer is None:
            self._begin_shard()
        self.writer.write_batch(batch)
        self.written += batch.nbytes

    def end_shard(self) -> None:
        """Close the open shard, if there is one."""
        if self.writer is not None:
            self.writer.close()
            self.file.close()
            self.writer = None

    def close(self, split: str) -> None:
        self.end_shard()
        count = len(self.parts)
        fingerprint = hashlib.sha256()
        names = [f"data-{i:05}-of-{count:05}.arrow" for i in range(count)]
        for part, name in zip(self.parts, names, strict=True):
            with part.open("rb") as file:
                fingerprint.update(hashlib.file_digest(file, "sha256").digest())
            part.rename(self.folder / name)
        # By default, `datasets` draws a random fingerprint, so equal data would have different bytes.
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": fingerprint.hexdigest()[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        features = {field.name: FEATURES[field.type] for field in self.schema}
        info = {
            "citation": "",
            "description": "",
            "features": features,
            "homepage": "",
            "license": "",
        }
        (self.folder / "state.json").write_text(json.dumps(state, indent=2))
        (self.folder / "dataset_info.json").write_text(json.dumps(info, indent=2))

    def _begin_shard(self) -> None:
        path = part_path(self.folder, len(self.parts))
        self.parts.append(path)
        self.file = pa.OSFile(str(path), "wb")
        self.writer = pa.ipc.new_stream(self.file, self.schema)
        self.written = 0
