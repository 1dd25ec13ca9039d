"""The interface of a network: its computation, its counts for a plan, and its export to `transformers`.

To add a network, write `<name>.py` in this folder with a subclass of `GPT` as NETWORK, and add its name to
`GPTSpec.architecture`. Shapes in names: B batch, T time, C channels (width), V vocabulary.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from bardflow.model.networks.cache import KeyValueCache
from bardflow.model.networks.dropout import Dropout
from bardflow.model.networks.spec import GPTSpec
from bardflow.model.networks.weights import fill


class Parameters(BaseModel):
    """Counts of parameters: in tables indexed by vocabulary or position (a tied table counts once), and all others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding: int
    body: int

    @property
    def total(self) -> int:
        """The number of all parameters."""
        return self.embedding + self.body


class Kept(NamedTuple):
    """What a block saves for the backward pass, as measured by benchmarks/memory_plan.py.

    `on_cpu` and `elsewhere` count saved numbers per token, divided by the width: with the functions for bf16 on a CPU,
    and with torch's own. `fragmentation` is the unused memory between tensors on a CPU in bf16, as a share of temporary
    memory.
    `attention_mask` is whether dropout saves a mask of heads x context for each token.
    """

    on_cpu: float
    elsewhere: float
    fragmentation: float
    attention_mask: bool


class GPT(nn.Module, ABC):
    """A network for a spec and a vocabulary size, with random initial weights.

    Muon updates the matrices in `blocks`, whose linear layers compute in bf16. `tokens` is the embedding table, and
    `head` the output table.
    """

    MODEL_TYPES: ClassVar[tuple[str, ...]]

    tokens: nn.Embedding
    blocks: nn.ModuleList
    head: nn.Linear
    # What a `KeyValueCache` needs to know: the number of blocks with attention, and as in `KeyValueCache.recent`.
    attention_blocks: int
    recent: tuple[tuple[int, int], ...] = ()
    # The type in which blocks compute, if it is not that of their weights, which may be in shards.
    computes_in: torch.dtype | None = None

    @abstractmethod
    def __init__(self, spec: GPTSpec, vocabulary_size: int) -> None:
        super().__init__()
        self.context, self.heads, self.channels = spec.context, spec.heads, spec.channels
        self.activation, self.dropout = spec.activation, spec.dropout
        self.attention_blocks = self.attending(spec)

    def blocks_type(self) -> torch.dtype:
        """Return the type in which the blocks compute."""
        if self.computes_in is not None:
            return self.computes_in
        return next(module.weight.dtype for module in self.blocks.modules() if isinstance(module, nn.Linear))

    @staticmethod
    @abstractmethod
    def check(spec: GPTSpec) -> None:
        """Check that the network supports a spec.

        Raises:
            ValueError: the network does not support a field's value; the message says what it supports.
        """

    @staticmethod
    @abstractmethod
    def count(spec: GPTSpec, vocabulary_size: int) -> Parameters:
        """Count the parameters without building the network."""

    @staticmethod
    def matrices(spec: GPTSpec) -> int:
        """Count the parameters in the matrices of all blocks."""
        return spec.layers * 12 * spec.width**2

    @staticmethod
    def attending(spec: GPTSpec) -> int:
        """Count the blocks with attention."""
        return spec.layers

    @staticmethod
    @abstractmethod
    def kept(spec: GPTSpec) -> Kept:
        """What a block saves for the backward pass."""

    @staticmethod
    @abstractmethod
    def looked_up(spec: GPTSpec, vocabulary_size: int) -> int:
        """Count the parameters that are only looked up and are in no matrix product."""

    @staticmethod
    @abstractmethod
    def fields_of(config: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of the spec from a `config.json` of MODEL_TYPES.

        Raises:
            KeyError: a field is missing.
            ValueError: the model has parts that the network lacks; the message names them.
        """

    @abstractmethod
    def hidden(
        self, ids_BT: Tensor, dropout: Dropout | None = None, *, recompute: bool = False, fused: bool = False
    ) -> Tensor:
        """Return the input of the head (B, T, C), in the type of the blocks' weights.

        `dropout` is used only in training. `recompute` saves only the blocks' inputs for the backward pass. `fused`
        computes the blocks with `torch.compile`.
        """

    @abstractmethod
    def extend(self, ids_BT: Tensor, cache: KeyValueCache) -> Tensor:
        """Add ids (B, T) to the cache and return logits (B, V) for the next token of each row.

        Without dropout and in f32. The logits are those of `forward` for the last token of the whole row.

        Raises:
            CacheFull: the tokens do not fit the context.
        """

    @abstractmethod
    def to_transformers(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return `config.json` and the weights of the same model in `transformers`."""

    @torch.no_grad()
    def load_transformers(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights, named as in `to_transformers`, into this model.

        Raises:
            model.networks.WrongWeights: the weights are not those of a model of this shape; nothing was copied.
        """
        fill(self.to_transformers()[1], weights)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return logits (B, T, V) for the token after each of ids (B, T); T is at most the context."""
        logits_BTV: Tensor = self.head(self.hidden(ids_BT))
        return logits_BTV


def require_usual(config: dict[str, Any], usual: dict[str, Any]) -> None:
    """Check that fields of a `config.json` have the only values that a network supports; missing and null are usual.

    Raises:
        ValueError: one has another value.
    """
    for name, value in usual.items():
        if config.get(name) not in (None, value):
            raise ValueError(f"its config.json has {name} = {config[name]!r}, but only {value!r} is supported")


def network(architecture: str) -> type[GPT]:
    """Return the network class of an architecture."""
    found: type[GPT] = importlib.import_module(f"bardflow.model.networks.{architecture}").NETWORK
    return found
