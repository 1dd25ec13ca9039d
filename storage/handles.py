"""Handles: an artifact's digest, with the artifact's kind as class."""

import re
import sys
from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Handle(BaseModel):
    """The value that tasks pass to each other: the sha256 of an artifact's manifest.

    Equal bytes have equal handles. Class names are part of a file format: Prefect's results contain them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: Digest

    @property
    def kind(self) -> str:
        """The class name as a folder name: `TokenShards` lives under `token-shards`."""
        return kind_of(type(self))

    @property
    def short(self) -> str:
        """The first eight characters of the digest."""
        return self.digest[:8]

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.short}"


class Source(Handle):
    """A corpus's files as they were downloaded."""


class Corpus(Handle):
    """The cleaned text of a corpus in Arrow files, cut into documents and split into two sets."""


class Vocabulary(Handle):
    """A `tokenizer.json`, with a readable list of its tokens."""


class TokenShards(Handle):
    """A corpus as token ids of one vocabulary, in the layout of `datasets.load_from_disk`."""


class Checkpoint(Handle):
    """A training state: weights, optimizer state, step."""


class Model(Handle):
    """A folder that `transformers` opens: config, weights, tokenizer, card."""


class Baselines(Handle):
    """Scores of compressors and an n-gram model on the same validation set."""


class Evaluation(Handle):
    """A model's scores over a whole validation set, and its samples."""


class Report(Handle):
    """The report of a run or an experiment, and its values."""


def kind_of(handle_class: type[Handle]) -> str:
    """`TokenShards` → `token-shards`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", handle_class.__name__).lower()


def text_of(handle: Handle) -> str:
    """A handle as text: `token-shards/<digest>`."""
    return f"{handle.kind}/{handle.digest}"


KINDS: dict[str, type[Handle]] = {
    kind_of(c): c for c in (Source, Corpus, Vocabulary, TokenShards, Checkpoint, Model, Baselines, Evaluation, Report)
}

# Prefect's results contain class names with modules. Results of version 0.1 have this module name and stay valid.
sys.modules.setdefault("storage.handles", sys.modules[__name__])
