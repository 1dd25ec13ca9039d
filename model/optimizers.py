"""AdamW from torch for tables and vectors, Muon for matrices, and their state in half the memory."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Newton-Schulz: the quintic's coefficients and the steps (Jordan et al. 2024,
# https://kellerjordan.github.io/posts/muon).
QUINTIC = (3.4445, -4.7750, 2.0315)
QUINTIC_STEPS = 5
# Matrices are orthogonalised in stacks of at most so many elements: 64 MB of products at a time.
STACKED = 2**23


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024): torch.optim.Muon's update, equal shapes stacked into one product.

    torch's takes the matrices one by one; the update is the same up to rounding (`tests/test_training.py`).
    `precision` is of the products.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        precision: torch.dtype,
    ) -> None:
        self.precision = precision
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        if closure is not None:
            raise TypeError("Muon takes no closure: compute the gradients first, then call step()")
        for group in self.param_groups:
            for stack in stacks(p for p in group["params"] if p.grad is not None):
                self._update(stack, group["lr"], group["weight_decay"], group["momentum"])

    def _update(self, stack: list[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        gradients = [p.grad for p in stack if p.grad is not None]
        for p in stack:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in stack]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, buffers, momentum)
        wide = torch.stack([u.t() if u.shape[0] > u.shape[1] else u for u in updates]).to(self.precision)
        torch._foreach_mul_(stack, 1 - lr * weight_decay)
        for p, orthogonal in zip(stack, orthogonalised(wide), strict=True):
            rows, columns = p.shape
            p.add_(orthogonal.t() if rows > columns else orthogonal, alpha=-lr * max(1, rows / columns) ** 0.5)


def stacks(matrices: Iterable[Tensor]) -> list[list[Tensor]]:
    """The matrices in lists of equal shape or its transpose, none with more than STACKED elements in all."""
    by_shape: dict[tuple[int, int], list[list[Tensor]]] = defaultdict(list)
    for matrix in matrices:
        lists = by_shape[min(matrix.shape), max(matrix.shape)]
        if not lists or (len(lists[-1]) + 1) * matrix.numel() > STACKED:
            lists.append([])
        lists[-1].append(matrix)
    return [stack for lists in by_shape.values() for stack in lists]


def orthogonalised(stack_NRC: Tensor) -> Tensor:
    """Each wide matrix with all of its singular values near 1 (0.7 to 1.2), by Newton-Schulz iteration."""
    x: Tensor = stack_NRC / torch.linalg.vector_norm(stack_NRC, dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = QUINTIC
    for _ in range(QUINTIC_STEPS):
        gram = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def widened(optimizer: torch.optim.Optimizer) -> None:
    """Bring state that rests in bf16 to f32, for a step."""
    for state in optimizer.state.values():
        for key, value in state.items():
            if value.dtype == torch.bfloat16:
                state[key] = value.float()


def narrowed(optimizer: torch.optim.Optimizer, bits: np.random.Generator) -> None:
    """Lay an optimizer's f32 state to rest in bf16, rounded up or down at random so that it is right on average.

    Rounded to nearest, a mean squared gradient stands still: at beta2 0.999 its change is a quarter of bf16's step.
    """
    for state in optimizer.state.values():
        for key, value in state.items():
            if value.dtype == torch.float32 and value.dim():
                state[key] = rounded_at_random(value, bits)


def rounded_at_random(x: Tensor, bits: np.random.Generator) -> Tensor:
    """x in bf16: one of its two neighbours, the nearer one more often. x is overwritten."""
    draws = torch.from_numpy(bits.integers(0, 2**64, -(-x.numel() // 4), np.uint64).view(np.int16)[: x.numel()])
    lower = draws.to(x.device).to(torch.int32).bitwise_and_(0xFFFF).view(x.shape)
    raised = x.view(torch.int32).add_(lower).bitwise_and_(-0x10000)
    return raised.view(torch.float32).to(torch.bfloat16)


def owners(optimizers: Iterable[torch.optim.Optimizer]) -> dict[int, Any]:
    """Which optimizer owns a parameter, by the parameter's id."""
    return {id(p): o for o in optimizers for group in o.param_groups for p in group["params"]}
