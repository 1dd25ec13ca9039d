"""Typed replacements for autograd calls of torch; the backward pass loads fewer modules."""

from typing import Any

import torch
from torch import Tensor


def applied(function: Any, *inputs: Any) -> Tensor:
    """Call `function.apply`, which has no types in torch."""
    output: Tensor = function.apply(*inputs)
    return output


def backward_from(output: Tensor, gradient: Tensor) -> None:
    """Compute `output.backward(gradient)`, from a scalar whose gradient with respect to `output` is `gradient`.

    If torch is given a gradient, it loads sympy to compare shapes, which takes 35 MB and a third of a second.
    """
    with torch.enable_grad():  # gradients are off if a backward pass calls this
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
