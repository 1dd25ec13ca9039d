"""Tokenizing spread over the processes of a cluster, with the same ids in the same order as in one process."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import Tokenizer

from bardflow.engine.cluster import Cluster
from bardflow.model.vocabulary import (
    NotLossless,
    NotText,
    TokenIds,
    UnknownCharacter,
    VocabularyError,
    encode,
)

# The characters of a task, of which 2 for each process are on their way.
TASK_CHARACTERS = 2**22


def encode_on(cluster: Cluster, tokenizer: Tokenizer, pieces: Iterable[str]) -> Iterator[TokenIds]:
    """Yield an array of token ids for each piece of text, as `model.vocabulary.encode` does, computed on the cluster.

    If a process or its node dies, Ray computes its tasks again elsewhere.

    Raises:
        VocabularyError: as `encode`; the ids of the pieces before are yielded.
    """
    import ray

    work: Any = ray.remote(num_cpus=cluster.cpus, max_retries=10)(encode_pieces)
    shared = ray.put(tokenizer.to_str())
    running: deque[tuple[int, list[str], Any]] = deque()

    def first() -> Iterator[TokenIds]:
        number, texts, ids = running.popleft()
        # A task that refuses a text is done again here, so that all before it, and the error, are as in one process.
        yield from ray.get(ids) or _here(tokenizer, texts, number)

    for number, texts in tasks(pieces):
        running.append((number, texts, work.remote(shared, texts, cluster.cpus)))
        if len(running) > 2 * cluster.processes:
            yield from first()
    while running:
        yield from first()


def tasks(pieces: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield lists of pieces with about TASK_CHARACTERS, each with the number of its first piece."""
    texts: list[str] = []
    number, size = 0, 0
    for piece in pieces:
        texts.append(piece)
        size += len(piece) + 64  # an empty piece takes memory too
        if size >= TASK_CHARACTERS:
            yield number, texts
            number, texts, size = number + len(texts), [], 0
    if texts:
        yield number, texts


def encode_pieces(tokenizer: str, texts: list[str], threads: int) -> list[TokenIds] | None:
    """Encode pieces in a process of the cluster; None if the tokenizer refuses one of them."""
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # read when the library encodes for the first time
    try:
        return list(encode(Tokenizer.from_str(tokenizer), texts))
    except VocabularyError:
        return None


def _here(tokenizer: Tokenizer, texts: list[str], number: int) -> Iterator[TokenIds]:
    """Encode pieces in this process; an error names the piece by its number in the whole text."""
    try:
        yield from encode(tokenizer, texts)
    except NotLossless as error:
        raise NotLossless(error.text, error.came_back, error.offset, number + error.piece, error.why) from error
    except UnknownCharacter as error:
        raise UnknownCharacter(error.character, error.offset, number + error.piece) from error
    except NotText as error:
        raise NotText(error.half, error.offset, number + error.piece) from error
