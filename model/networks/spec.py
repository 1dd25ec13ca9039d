"""The shape of a GPT, with its legal values and defaults."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class GPTSpec(BaseModel):
    """The shape of a GPT, without the size of its vocabulary."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Literal["classic", "modern"] = Field(
        default="modern",
        description="classic: learned positions, LayerNorm; modern: rotary positions, RMSNorm, query-key norm",
    )
    layers: int = Field(default=4, ge=1, le=200, description="transformer blocks")
    heads: int = Field(default=4, ge=1, le=256, description="attention heads in a block")
    width: int = Field(default=128, ge=8, le=16_384, description="channels of the residual stream")
    context: int = Field(default=64, ge=2, le=65_536, description="tokens the model sees at once")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="share of activations dropped in training")
    activation: Literal["gelu", "relu", "relu2"] = Field(
        default="relu2", description="of the MLP; relu2 is relu squared"
    )
    biases: bool = Field(default=False, description="linear layers and LayerNorms have biases (classic only)")
    tied: bool = Field(default=False, description="the head is the embedding table transposed (classic only)")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}; give a multiple")
        from bardflow.model.networks.network import network  # imported here because it needs this class

        network(self.architecture).check(self)
        return self
