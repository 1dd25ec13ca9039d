"""What a network gives: its computation, its counts for a plan, and its form in `transformers`.

A new network is one file beside this one, `<name>.py`, whose NETWORK is a subclass of `GPT`, and one line: its name in
`GPTSpec.architecture`. Shapes in names: B batch, T time, C channels (width), V vocabulary.
"""

import importlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from bardflow.model.networks.cache import KeyValueCache
from bardflow.model.networks.dropout import Dropout
from bardflow.model.networks.spec import GPTSpec


class Parameters(BaseModel):
    """Counts of parameters: tables indexed by vocabulary or position (a tied table counts once), and all the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding: int
    body: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.body


class Kept(NamedTuple):
    """What a block keeps of each token for the backward pass, measured (benchmarks/memory_plan.py).

    Numbers of a width by the functions for bf16 on a CPU and by torch's own; unused memory between tensors on a CPU in
    bf16, as a share of what comes and goes; and whether dropout keeps a mask of heads x context for each token.
    """

    on_cpu: float
    elsewhere: float
    holes: float
    attention_mask: bool


class GPT(nn.Module, ABC):
    """A network for a spec and a vocabulary's size, with freshly drawn weights.

    `blocks` holds the layers, whose matrices Muon updates and whose linear layers compute in bf16; `tokens` and `head`
    are the tables at both ends.
    """

    MODEL_TYPE: ClassVar[str]
    KEPT: ClassVar[Kept]

    tokens: nn.Embedding
    blocks: nn.ModuleList
    head: nn.Linear

    @abstractmethod
    def __init__(self, spec: GPTSpec, vocabulary_size: int) -> None:
        super().__init__()
        self.context, self.heads = spec.context, spec.heads
        self.activation, self.dropout = spec.activation, spec.dropout

    @staticmethod
    @abstractmethod
    def check(spec: GPTSpec) -> None:
        """Refuse what the network does not have.

        Raises:
            ValueError: a field is not legal for it; the message says what is.
        """

    @staticmethod
    @abstractmethod
    def count(spec: GPTSpec, vocabulary_size: int) -> Parameters:
        """Its parameters, without building it."""

    @staticmethod
    @abstractmethod
    def looked_up(spec: GPTSpec, vocabulary_size: int) -> int:
        """How many of them are only looked up, in no matrix product."""

    @staticmethod
    @abstractmethod
    def fields_of(config: dict[str, Any]) -> dict[str, Any]:
        """The fields of its spec behind a `config.json` of MODEL_TYPE.

        Raises:
            KeyError: it lacks one.
        """

    @abstractmethod
    def hidden(
        self, ids_BT: Tensor, dropout: Dropout | None = None, *, recompute: bool = False, fused: bool = False
    ) -> Tensor:
        """What the head reads, (B, T, C), in the type of the blocks' weights.

        `dropout` is training's; `recompute` keeps only the blocks' inputs for the backward pass; `fused` computes the
        blocks by `torch.compile`.
        """

    @abstractmethod
    def extend(self, ids_BT: Tensor, cache: KeyValueCache) -> Tensor:
        """Logits (B, V) for the token after ids (B, T), which follow what each row of the cache has read.

        Without dropout, in f32, and the same as `forward` gives for the last of all the row's tokens.

        Raises:
            CacheFull: they do not fit the context.
        """

    @abstractmethod
    def to_transformers(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """`config.json` and the weights of the same model in `transformers`."""

    @abstractmethod
    def load_transformers(self, weights: dict[str, Tensor]) -> None:
        """Take weights named as `to_transformers` names them, into a model of the same shape.

        Raises:
            model.networks.WrongWeights: they are not those of this model; nothing was copied.
        """

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits (B, T, V) for the token after each of ids (B, T), T at most the context."""
        logits_BTV: Tensor = self.head(self.hidden(ids_BT))
        return logits_BTV


def network(architecture: str) -> type[GPT]:
    """The network of that name."""
    found: type[GPT] = importlib.import_module(f"bardflow.model.networks.{architecture}").NETWORK
    return found
