"""The fields of a recipe's `[training]`."""

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from bardflow.identity import AsBefore
from bardflow.model.machine import Precision


class TrainingSpec(BaseModel):
    """How a GPT is trained. Every field changes the resulting weights, so every field is part of the cache key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=1000, ge=1, description="optimizer steps in all")
    batch: int = Field(default=32, ge=1, description="windows of `context` tokens in a step")
    optimizer: Literal["adamw", "muon"] = Field(
        default="muon", description="muon: Muon on the blocks' matrices, AdamW on the rest; adamw: AdamW on everything"
    )
    learning_rate: float = Field(default=3e-3, gt=0, le=10, description="AdamW's peak learning rate")
    muon_learning_rate: float = Field(default=0.02, gt=0, le=10, description="Muon's peak learning rate (muon only)")
    muon_iterations: Annotated[int, AsBefore(5)] = Field(
        default=5, ge=1, le=10, description="Newton-Schulz iterations of Muon; fewer take less time (muon only)"
    )
    weight_decay: float = Field(default=0.1, ge=0, le=10, description="decoupled decay of matrices and tables")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's decay of the mean gradient")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="AdamW's decay of the mean squared gradient")
    clip: float | None = Field(default=1.0, gt=0, description="largest norm of the whole gradient; null: not clipped")
    logit_scale: float = Field(
        default=1.0,
        gt=0,
        le=10,
        description="factor on the logits in training alone; above 1, the trained model is less over-confident",
    )
    input_noise: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of input tokens that training replaces by random ones, so that none is leant on alone",
    )
    dropout_warmup_steps: Annotated[int, AsBefore(0)] = Field(
        default=0, ge=0, description="steps in which dropout grows from 0 to its share"
    )
    average_decay: Annotated[float, AsBefore(0.0)] = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of a moving average of the weights, which is scored and exported instead of the last ones; "
        "0: none",
    )
    schedule: Literal["cosine", "linear", "constant", "trapezoid"] = Field(
        default="linear",
        description="of the learning rates, from their peak down to `final_learning_rate` times it; trapezoid: "
        "constant, then linear in the last `cooldown`; constant and trapezoid let a longer run continue a shorter one",
    )
    cooldown: Annotated[float, AsBefore(0.2)] = Field(
        default=0.2, gt=0, le=1, description="share of the steps in which the rates fall (trapezoid only)"
    )
    warmup_steps: int = Field(default=20, ge=0, description="steps of linear increase at the start")
    final_learning_rate: float = Field(default=0.05, ge=0, le=1, description="the last step's share of the peak")
    precision: Precision = Field(
        default="auto", description="of matrix products; auto: bf16 where it is faster, else f32"
    )
    leg_steps: int = Field(default=250, ge=1, description="steps between two checkpoints")
    patience: int | None = Field(
        default=2, ge=1, description="stop after so many legs without a better validation loss; null: never"
    )
    validation_tokens: int = Field(
        default=131_072, ge=2, description="tokens of the validation set, from its start, scored after each leg"
    )
    seed: int = Field(
        default=1337, ge=0, lt=2**32, description="of the first weights, the order of the text, and dropout"
    )

    def leg_ends(self) -> list[int]:
        """The step after which each leg ends; the last is `steps`."""
        return [*range(self.leg_steps, self.steps, self.leg_steps), self.steps]

    def for_leg(self, until: int) -> "TrainingSpec":
        """Return the spec of the leg that ends at step `until`, which is part of its cache key.

        While the learning rate is constant, a leg does not depend on the number of steps. So it has the same spec in a
        longer training, which then continues from its checkpoint.
        """
        if self.schedule == "constant" or (self.schedule == "trapezoid" and until <= self.cooldown_start):
            return self.model_copy(update={"schedule": "constant", "steps": until, "cooldown": 0.2})
        return self

    @property
    def cooldown_start(self) -> int:
        """The number of steps before the learning rates fall (trapezoid only)."""
        return self.steps - math.ceil(self.cooldown * self.steps)

    @property
    def continues(self) -> bool:
        """Whether a longer training with this schedule continues a shorter one."""
        return self.schedule in ("constant", "trapezoid")
