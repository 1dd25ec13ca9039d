"""Token shards: a corpus as arrays of token ids on disk, sliced without copying."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bardflow.storage.datasets_layout import array_of, gather, part_path, read_batches, write_dataset
from bardflow.storage.disk import fsync, write_whole
from bardflow.storage.documents import SPLITS

# The approximate size of a record batch: 2 MB of uint16 in memory.
BATCH_TOKENS = 2**20
# What is finished, in a folder that is being written.
FINISHED = "finished.json"

TokenIds = npt.NDArray[np.uint16 | np.uint32]


class ShardSpec(BaseModel):
    """The layout of tokens on disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard_tokens: int = Field(default=2**26, ge=1, description="a new shard file begins after about this many tokens")


class Finished(BaseModel):
    """What is finished of a folder that is being written: for each split the rows, the tokens and the shards."""

    model_config = ConfigDict(extra="forbid")

    rows: dict[str, int] = dict.fromkeys(SPLITS, 0)
    tokens: dict[str, int] = dict.fromkeys(SPLITS, 0)
    shards: dict[str, int] = dict.fromkeys(SPLITS, 0)


def finished_shards(folder: Path) -> Finished:
    """Return what a killed `write_shards` finished in a folder, and delete what it did not finish."""
    try:
        finished = Finished.model_validate_json((folder / FINISHED).read_bytes())
    except (FileNotFoundError, ValidationError):
        finished = Finished()
    kept = {part_path(folder / split, n) for split, count in finished.shards.items() for n in range(count)}
    if not all(part.is_file() for part in kept):  # it was killed when all was written
        finished, kept = Finished(), set()
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path not in kept:
            path.unlink()
    return finished


def write_shards(
    folder: Path,
    rows: Iterable[tuple[str, int, TokenIds]],
    spec: ShardSpec,
    *,
    dtype: np.dtype[Any],
    finished: Finished | None = None,
) -> dict[str, int]:
    """Write a stream of rows (split, document number, ids) and return the number of tokens in each split.

    A row is a part of one document; a document ends where the number changes. A part longer than a batch or a shard is
    split into several rows. If the process is killed, `finished_shards` returns what is on disk; give that as
    `finished`, and of each split the rows after it. The files have the same bytes then.

    Raises:
        TypeError: the type of the ids is wider than `dtype`.
    """
    id_type = pa.from_numpy_dtype(dtype)
    schema = pa.schema([("input_ids", pa.list_(id_type)), ("document", pa.int32())])
    finished = Finished() if finished is None else finished.model_copy(deep=True)
    tokens, read = dict(finished.tokens), dict(finished.rows)
    most = min(BATCH_TOKENS, spec.shard_tokens)
    # Of the batch that is written next: the rows and tokens before it, and whether it begins within a row.
    begins: tuple[int, int, bool] | None = None

    def tagged() -> Iterator[tuple[str, tuple[int, TokenIds, tuple[int, int, bool]]]]:
        for split, document, ids in rows:
            # This keeps a batch no larger than a shard, and its int32 offsets do not overflow.
            for start in range(0, max(len(ids), 1), most):
                yield split, (document, ids[start : start + most], (read[split], tokens[split], start > 0))
            read[split] += 1
            tokens[split] += len(ids)

    def batches() -> Iterator[tuple[str, pa.RecordBatch]]:
        nonlocal begins
        for split, held in gather(tagged(), lambda row: len(row[1]), most):
            documents, ids, places = zip(*held, strict=True)
            begins = places[0]
            offsets = array_of(np.cumsum([0, *map(len, ids)]), np.int32)
            flat = array_of(np.concatenate(ids, dtype=dtype, casting="safe"), dtype)
            lists = pa.ListArray.from_arrays(offsets, flat)
            yield split, pa.record_batch([lists, array_of(documents, np.int32)], schema=schema)

    def note(split: str, shards: int) -> None:
        assert begins is not None
        rows_before, tokens_before, within_a_row = begins
        if within_a_row:
            return
        fsync(part_path(folder / split, shards - 1))
        finished.rows[split], finished.tokens[split], finished.shards[split] = rows_before, tokens_before, shards
        write_whole(folder / FINISHED, finished.model_dump_json().encode(), folder)

    shard_bytes = spec.shard_tokens * dtype.itemsize
    shards = dict(finished.shards)
    write_dataset(folder, schema, SPLITS, batches(), shard_bytes=shard_bytes, finished=shards, on_finished=note)
    (folder / FINISHED).unlink(missing_ok=True)
    return tokens


class TokenArray:
    """A split's tokens as one array, with `len(tokens)` and `tokens[start:stop]`.

    The chunks are views of memory-mapped files. Only a slice across chunks copies.
    """

    def __init__(self, chunks: list[TokenIds]) -> None:
        self.none: TokenIds = chunks[0][:0] if chunks else np.empty(0, np.uint16)
        self.chunks = [chunk for chunk in chunks if len(chunk)]
        self.starts = [0, *accumulate(len(chunk) for chunk in self.chunks)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, span: slice) -> TokenIds:
        start, stop, step = span.indices(len(self))
        if step != 1:
            raise ValueError(f"a slice of tokens has no step, but {span} was given")
        if start >= stop:
            return self.none
        first = bisect_right(self.starts, start) - 1
        last = bisect_right(self.starts, stop - 1) - 1
        parts = [self.chunks[i][max(0, start - self.starts[i]) : stop - self.starts[i]] for i in range(first, last + 1)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def read_shards(folder: Path, split: str) -> TokenArray:
    """Open a split's tokens as a memory map."""
    # Not `to_numpy`: it imports pandas if installed, which takes 40 MB and half a second.
    chunks: list[TokenIds] = [np.from_dlpack(batch["input_ids"].values) for batch in read_batches(folder, split)]  # type: ignore[misc]
    return TokenArray(chunks)
