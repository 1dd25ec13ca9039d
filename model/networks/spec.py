"""The shape of a GPT, with its legal values and defaults."""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bardflow.identity import AsBefore

# Fields that only some architectures have.
OWN_FIELDS = {
    "key_value_heads": ("llama",),
    "head_width": ("llama",),
    "mlp_width": ("llama", "lfm2"),
    "query_key_norm": ("llama",),
    "rotary_base": ("llama",),
    "norm_epsilon": ("llama",),
}


class GPTSpec(BaseModel):
    """The shape of a GPT, without the size of its vocabulary."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Literal["classic", "modern", "llama", "lfm2"] = Field(
        default="modern",
        description="classic: learned positions, LayerNorm; modern: rotary positions, RMSNorm, query-key norm; "
        "llama: as Llama and Qwen, with a gated MLP; lfm2: as LFM2, with short convolutions and attention in turn",
    )
    layers: int = Field(default=4, ge=1, le=200, description="transformer blocks")
    heads: int = Field(default=4, ge=1, le=256, description="attention heads in a block")
    width: int = Field(default=128, ge=8, le=16_384, description="channels of the residual stream")
    context: int = Field(default=64, ge=2, le=65_536, description="tokens the model sees at once")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="share of activations dropped in training")
    activation: Literal["gelu", "gelu_new", "relu", "relu2", "silu"] = Field(
        default="relu2", description="of the MLP; relu2 is relu squared, gelu_new GPT-2's approximation of gelu"
    )
    biases: bool = Field(
        default=False, description="classic: linear layers and LayerNorms have biases; llama: queries, keys and values"
    )
    tied: bool = Field(default=False, description="the head is the embedding table transposed (classic and llama)")
    key_value_heads: Annotated[int | None, AsBefore(None)] = Field(
        default=None, ge=1, le=256, description="heads of keys and values (llama only); null: as many as heads"
    )
    head_width: Annotated[int | None, AsBefore(None)] = Field(
        default=None, ge=2, le=1024, description="channels of a head (llama only); null: width / heads"
    )
    mlp_width: Annotated[int | None, AsBefore(None)] = Field(
        default=None,
        ge=1,
        le=131_072,
        description="channels within the MLP (llama and lfm2 only); null: 4 x width, lfm2: 8/3 x width",
    )
    query_key_norm: Annotated[bool, AsBefore(False)] = Field(
        default=False, description="RMSNorm of queries and keys (llama only; modern always has one)"
    )
    rotary_base: Annotated[float, AsBefore(10_000.0)] = Field(
        default=10_000.0, gt=1, description="base of the rotary positions' frequencies (llama only)"
    )
    norm_epsilon: Annotated[float | None, AsBefore(None)] = Field(
        default=None, gt=0, lt=1, description="added within the norms (llama only); null: 1e-6"
    )

    @property
    def channels(self) -> int:
        """The channels of an attention head."""
        return self.head_width or self.width // self.heads

    @property
    def inner(self) -> int:
        """The channels within the MLP."""
        if self.mlp_width is None and self.architecture == "lfm2":
            return math.ceil(self.width / 3) * 8
        return self.mlp_width or 4 * self.width

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}; give a multiple")
        from bardflow.model.networks.network import network  # imported here because it needs this class

        network(self.architecture).check(self)
        for name, architectures in OWN_FIELDS.items():
            if self.architecture not in architectures and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} belongs to architecture {' and '.join(architectures)}, but the architecture is "
                    f"{self.architecture}"
                )
        return self
