"""Execution: how a step is computed, which changes memory and speed, and the result only by rounding."""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field


class Execution(BaseModel):
    """How a step is computed, to use less memory or time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: int = Field(default=1, ge=1, description="processes that each compute a part of a step's windows")
    sharded: bool = Field(
        default=False, description="each worker keeps a part of the blocks' weights, gradients and optimizer state"
    )
    micro_batch: int = Field(ge=1, description="windows of a step that are computed at once; gradients are added up")
    recompute: bool = Field(
        default=False, description="keep only each block's input and compute the rest again in the backward pass"
    )
    loss_tokens: int = Field(default=4096, ge=1, description="tokens whose logits exist at once")
    optimizer_state: Literal["f32", "bf16"] = Field(default="f32", description="of moments and momentum at rest")
    compiled: bool = Field(
        default=False,
        description="fuse what is not a product by torch.compile: seconds of compiling, then a faster step",
    )
    recorded: bool = Field(default=True, description="on CUDA, record a step once as a CUDA graph and replay it")


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function with `torch.compile`, once for each shape of its inputs, which include a block's weights."""
    return torch.compile(function, fullgraph=True, dynamic=False)
