"""A handle names one kept object by its digest; its class is the object's kind."""

import re
import sys
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Handle(BaseModel):
    """What travels between tasks instead of bytes: the sha256 of an object's manifest, and nothing else.

    Equal bytes are equal handles. Class names are a file format: Prefect's results and every `origin.json` spell them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Digest

    @property
    def kind(self) -> str:
        """The class name as a folder name: `TokenShards` lives under `token-shards`."""
        return kind_of(type(self))

    @property
    def short(self) -> str:
        """The first eight characters of the digest, for people."""
        return self.digest[:8]

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.short}"


class Source(Handle):
    """A corpus's raw files, byte for byte as they came."""


class Corpus(Handle):
    """Cleaned documents, cut and split, as Arrow."""


class Vocabulary(Handle):
    """A `tokenizer.json`, and the same as a list for eyes."""


class TokenShards(Handle):
    """A corpus as token ids under one vocabulary, in the layout `datasets.load_from_disk` opens."""


class Checkpoint(Handle):
    """A training state between two legs: weights, optimizer, step."""


class Model(Handle):
    """A folder that `transformers` opens: config, weights, tokenizer, card."""


class Baselines(Handle):
    """What compressors and an n-gram model need for the same validation text."""


class Evaluation(Handle):
    """A model's scores over a whole validation set, and its samples."""


class Report(Handle):
    """The page about one run, and the figures on it."""


def kind_of(handle_class: type[Handle]) -> str:
    """`TokenShards` → `token-shards`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", handle_class.__name__).lower()


KINDS: dict[str, type[Handle]] = {
    kind_of(c): c for c in (Source, Corpus, Vocabulary, TokenShards, Checkpoint, Model, Baselines, Evaluation, Report)
}

# Prefect's results name a class with its module. Those of version 0.1 name this one so, and stay cached results.
sys.modules.setdefault("storage.handles", sys.modules[__name__])
