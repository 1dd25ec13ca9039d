"""A stored corpus: rows of text with the numbers of their documents, in a train and a validation split."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from bardflow.storage.datasets_layout import array_of, gather, read_batches, write_dataset

SPLITS: tuple[Literal["train"], Literal["validation"]] = ("train", "validation")
SCHEMA = pa.schema([("document", pa.int32()), ("text", pa.string())])
SHARD_BYTES = 256 * 2**20
# The approximate size of a record batch.
BATCH_CHARACTERS = 2**20


class DocumentsFacts(BaseModel):
    """The sha256 of each split's text (UTF-8, rows joined)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_sha256: str
    validation_sha256: str


def write_documents(folder: Path, rows: Iterable[tuple[str, int, str]]) -> DocumentsFacts:
    """Write a stream of rows (split, document number, text)."""
    digests = {str(split): hashlib.sha256() for split in SPLITS}

    def tagged() -> Iterator[tuple[str, tuple[int, bytes, int]]]:
        for split, document, text in rows:
            encoded = text.encode()
            digests[split].update(encoded)
            yield split, (document, encoded, len(text))

    def batches() -> Iterator[tuple[str, pa.RecordBatch]]:
        for split, held in gather(tagged(), lambda row: row[2], BATCH_CHARACTERS):
            documents, texts, _ = zip(*held, strict=True)
            offsets = pa.py_buffer(np.cumsum([0, *map(len, texts)], dtype=np.int32))
            strings = pa.StringArray.from_buffers(len(texts), offsets, pa.py_buffer(b"".join(texts)))
            yield split, pa.record_batch([array_of(documents, np.int32), strings], schema=SCHEMA)

    write_dataset(folder, SCHEMA, SPLITS, batches(), shard_bytes=SHARD_BYTES)
    return DocumentsFacts(**{f"{split}_sha256": digest.hexdigest() for split, digest in digests.items()})


def read_documents(folder: Path, split: str) -> Iterator[tuple[int, str]]:
    """Yield rows (document number, text) in order; the joined texts are the split's whole text."""
    for batch in read_batches(folder, split):
        yield from zip(batch["document"].to_pylist(), batch["text"].to_pylist(), strict=True)


def read_text(folder: Path, split: str) -> Iterator[str]:
    """Yield the split's text in pieces."""
    for _, text in read_documents(folder, split):
        yield text


def read_end(folder: Path, split: str, characters: int) -> Iterable[str]:
    """Return the last pieces of the split, at least `characters` characters; only these are kept in memory."""
    tail: deque[str] = deque()
    held = 0
    for piece in read_text(folder, split):
        tail.append(piece)
        held += len(piece)
        while held - len(tail[0]) >= characters:
            held -= len(tail.popleft())
    return tail
