"""The shape of a GPT, with its legal values and defaults."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bardflow.identity import AsBefore

LLAMA_ONLY = ("key_value_heads", "head_width", "mlp_width", "query_key_norm", "rotary_base", "norm_epsilon")


class GPTSpec(BaseModel):
    """The shape of a GPT, without the size of its vocabulary."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Literal["classic", "modern", "llama"] = Field(
        default="modern",
        description="classic: learned positions, LayerNorm; modern: rotary positions, RMSNorm, query-key norm; "
        "llama: as Llama and Qwen, with a gated MLP",
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
        default=None, ge=1, le=131_072, description="channels within the MLP (llama only); null: 4 x width"
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
        return self.mlp_width or 4 * self.width

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}; give a multiple")
        from bardflow.model.networks.network import network  # imported here because it needs this class

        network(self.architecture).check(self)
        for name in LLAMA_ONLY if self.architecture != "llama" else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} belongs to architecture llama, but the architecture is {self.architecture}")
        return self
