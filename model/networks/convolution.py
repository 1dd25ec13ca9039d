"""Short convolutions: each channel becomes a weighted sum of its last few values.

Shapes in names: B batch, T time, C channels, K the number of values in a sum.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bardflow.model.networks.autograd import applied


class ShortConvolution(nn.Module):
    """A causal depthwise convolution. Its weights, (C, 1, K) as in torch's Conv1d, are zeros at first."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, kernel))

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Convolve x (B, T, C) over time; values before the first token are zeros."""
        if x_BTC.device.type == "cpu":
            return applied(_Convolved, x_BTC, self.weight)
        now_C, *earlier_C = by_distance(self.weight, x_BTC.dtype)
        y_BTC = x_BTC * now_C
        for distance, weight_C in enumerate(earlier_C, start=1):
            y_BTC = torch.addcmul(y_BTC, F.pad(x_BTC, (0, 0, distance, 0))[:, : x_BTC.shape[1]], weight_C)
        return y_BTC


def by_distance(weight_C1K: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return the weights (C) of the token itself, of the one before it, and so on."""
    return list(weight_C1K[:, 0].t().to(dtype).flip(0))


class _Convolved(torch.autograd.Function):
    """The same on a CPU, in place, because each operation is a pass over memory. Sums over tokens are in f32."""

    @staticmethod
    def forward(ctx: Any, x_BTC: Tensor, weight_C1K: Tensor) -> Tensor:
        ctx.save_for_backward(x_BTC, weight_C1K)
        now_C, *earlier_C = by_distance(weight_C1K, x_BTC.dtype)
        y_BTC = x_BTC * now_C
        for distance, weight_C in enumerate(earlier_C, start=1):
            y_BTC[:, distance:].addcmul_(x_BTC[:, :-distance], weight_C)
        return y_BTC

    @staticmethod
    def backward(ctx: Any, g_BTC: Tensor) -> tuple[Tensor, Tensor]:
        x_BTC, weight_C1K = ctx.saved_tensors
        now_C, *earlier_C = by_distance(weight_C1K, x_BTC.dtype)
        dx_BTC = g_BTC * now_C
        dweight_C1K = torch.empty_like(weight_C1K)
        dweight_C1K[:, 0, -1] = (g_BTC * x_BTC).sum((0, 1), dtype=torch.float32)
        for distance, weight_C in enumerate(earlier_C, start=1):
            dx_BTC[:, :-distance].addcmul_(g_BTC[:, distance:], weight_C)
            along_BTC = g_BTC[:, distance:] * x_BTC[:, :-distance]
            dweight_C1K[:, 0, -1 - distance] = along_BTC.sum((0, 1), dtype=torch.float32)
        return dx_BTC, dweight_C1K
