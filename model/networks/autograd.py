"""torch's autograd where its Python front loads more than a training needs, or leaves a type open."""

from typing import Any

import torch
from torch import Tensor


def applied(function: Any, *inputs: Any) -> Tensor:
    """`function.apply`, which torch leaves untyped."""
    output: Tensor = function.apply(*inputs)
    return output


def backward_from(output: Tensor, gradient: Tensor) -> None:
    """`output.backward(gradient)`, from a scalar whose gradient with respect to `output` is `gradient`.

    Given a gradient, torch compares its shape by symbols and loads sympy for that: 35 MB and a third of a second.
    """
    with torch.enable_grad():  # a backward pass, which may call this, switches it off
        scalar = applied(_Scalar, output, gradient)
    scalar.backward()  # type: ignore[no-untyped-call]


class _Scalar(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return output.new_zeros(())

    @staticmethod
    def backward(ctx: Any, one: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient, None
