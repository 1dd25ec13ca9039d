"""Token shards: a corpus as arrays of token ids on disk, sliced without copying."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from bardflow.storage.datasets_layout import gather, read_batches, write_dataset
from bardflow.storage.documents import SPLITS

# The approximate size of a record batch: 2 MB of uint16 in memory.
BATCH_TOKENS = 2**20

TokenIds = npt.NDArray[np.uint16 | np.uint32]


class ShardSpec(BaseModel):
    """The layout of tokens on disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard_tokens: int = Field(default=2**26, ge=1, description="a new shard file begins after about this many tokens")


def write_shards(
    folder: Path, rows: Iterable[tuple[str, int, TokenIds]], spec: ShardSpec, *, dtype: np.dtype[Any]
) -> dict[str, int]:
    """Write a stream of rows (split, document number, ids) and return the number of tokens in each split.

    A row is a part of one document; a document ends where the number changes. A part longer than a batch or a shard is
    split into several rows.

    Raises:
        TypeError: the type of the ids is wider than `dtype`.
    """
    id_type = pa.from_numpy_dtype(dtype)
    schema = pa.schema([("input_ids", pa.list_(id_type)), ("document", pa.int32())])
    tokens = dict.fromkeys(SPLITS, 0)
    most = min(BATCH_TOKENS, spec.shard_tokens)

    def tagged() -> Iterator[tuple[str, tuple[int, TokenIds]]]:
        for split, document, ids in rows:
            tokens[split] += len(ids)
            # This keeps a batch no larger than a shard, and its int32 offsets do not overflow.
            for start in range(0, max(len(ids), 1), most):
                yield split, (document, ids[start : start + most])

    def batches() -> Iterator[tuple[str, pa.RecordBatch]]:
        for split, held in gather(tagged(), lambda row: len(row[1]), most):
            documents, ids = zip(*held, strict=True)
            offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int32)
            flat = np.concatenate(ids, dtype=dtype, casting="safe")
            lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, id_type))
            yield split, pa.record_batch([lists, pa.array(documents, pa.int32())], schema=schema)

    write_dataset(folder, schema, SPLITS, batches(), shard_bytes=spec.shard_tokens * dtype.itemsize)
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
