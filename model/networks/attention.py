"""Causal attention for both architectures, with a version for bf16 on a CPU that needs less memory.

Shapes: B batch, T time, H heads, D channels of a head, N = B * H.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bardflow.model.networks.autograd import applied

# Queries whose weights are in memory at once. At T 256, the two pieces together have three quarters of T x T weights.
QUERIES = 128
# Columns of ones appended to the values; each gives the sums of the weights. Two are used, and eight keep rows aligned.
BESIDE = 8


def in_bf16_on_cpu(x: Tensor) -> bool:
    """Whether x is bf16 on a CPU, where torch's fused attention is slow and this module's own is used.

    Fused, forward and backward on 8 windows of 256 with 6 heads of 64 took 12.7 ms (2 cores with AMX, torch 2.13).
    """
    return x.device.type == "cpu" and bool(x.dtype == torch.bfloat16)


def attend(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, mask_BHTT: Tensor | None) -> Tensor:
    """Causal attention: the mean of the values up to each position, weighted by softmax(q k / sqrt(D)): (B, T, H * D).

    `mask_BHTT` is dropout's mask, which multiplies the weights.
    """
    B, H, T, D = q_BHTD.shape
    attended_BHTD: Tensor
    if in_bf16_on_cpu(q_BHTD):
        attended_BHTD = applied(_Attention, q_BHTD, k_BHTD, v_BHTD, mask_BHTT)
    elif mask_BHTT is not None:
        scores_BHTT = q_BHTD @ k_BHTD.transpose(2, 3) * D**-0.5
        weights_BHTT = scores_BHTT.add(future(T, scores_BHTT)).softmax(-1)
        attended_BHTD = (weights_BHTT * mask_BHTT) @ v_BHTD
    else:
        attended_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, is_causal=True)
    return attended_BHTD.transpose(1, 2).reshape(B, T, H * D)


def future(T: int, like: Tensor) -> Tensor:
    """The causal mask (T, T): minus infinity above the diagonal, zero elsewhere."""
    return torch.full((T, T), -torch.inf, dtype=like.dtype, device=like.device).triu(1)


def shares(scores_NQT: Tensor) -> Tensor:
    """Causal softmax over the keys, for the last Q of T positions as queries."""
    Q, T = scores_NQT.shape[1:]
    scores_NQT[:, :, T - Q :] += future(Q, scores_NQT)
    return scores_NQT.softmax(-1)


def exponentials(scores_NQT: Tensor) -> Tensor:
    """Causal softmax in place, without the division by the sum; the scores must be small."""
    Q, T = scores_NQT.shape[1:]
    scores_NQT.exp_()
    scores_NQT[:, :, T - Q :].tril_()
    return scores_NQT


def pieces(T: int) -> Iterator[slice]:
    """Yield slices of the queries, the last ones first: they have the longest rows of weights."""
    for first in reversed(range(0, T, QUERIES)):
        yield slice(first, min(first + QUERIES, T))


def beside_ones(v_BHTD: Tensor) -> Tensor:
    """Append columns of ones, so that one product sums both weighted values and weights: (N, T, D + BESIDE)."""
    B, H, T, D = v_BHTD.shape
    return F.pad(v_BHTD, (0, BESIDE), value=1.0).view(B * H, T, D + BESIDE)


def weighted(
    q_NTD: Tensor,
    k_NTD: Tensor,
    v_NTE: Tensor,
    weigh: Callable[[Tensor], Tensor],
    mask_NTT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return weighted means of the values (N, T, D), and 1 / the sums of the weights (N, T, 1).

    With a mask, which multiplies the weights, `weigh` must give weights that sum to one.
    """
    sums_NTE = torch.empty_like(v_NTE)
    for rows in pieces(q_NTD.shape[1]):
        weights_NQT = weigh(torch.bmm(q_NTD[:, rows], k_NTD[:, : rows.stop].transpose(1, 2)))
        if mask_NTT is not None:
            weights_NQT *= mask_NTT[:, rows, : rows.stop]
        sums_NTE[:, rows] = torch.bmm(weights_NQT, v_NTE[:, : rows.stop])
    D = q_NTD.shape[2]
    if mask_NTT is not None:
        return sums_NTE[..., :D], torch.ones_like(sums_NTE[..., :1])
    inverse_NT1 = sums_NTE[..., D : D + 1].reciprocal()
    return sums_NTE[..., :D] * inverse_NT1, inverse_NT1


def weighted_backward(
    g_NTD: Tensor,
    mean_NTD: Tensor,
    inverse_NT1: Tensor,
    q_NTD: Tensor,
    k_NTD: Tensor,
    v_NTE: Tensor,
    weigh: Callable[[Tensor], Tensor],
    mask_NTT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of q and k (2, N, T, D), and of v (N, T, D). The weights (T x T) are computed again.

    With weights w, scores s and means m: ds = w / sum(w) * (g v - g m) (Dao et al. 2022, equation 4). One product
    includes the subtraction and the division: [g / sum, -g m / sum] times [v, 1]. Rounding the second term to bf16
    would cause an error in every element of a row, so another column has the rounding error. A mask multiplies only
    g v, so with a mask the subtraction is a separate operation after the product.
    """
    N, T, D = q_NTD.shape
    minus_NT1 = (g_NTD * mean_NTD).sum(-1, keepdim=True, dtype=torch.float32).neg_() * inverse_NT1
    g_NTE = torch.zeros_like(v_NTE)
    torch.mul(g_NTD, inverse_NT1, out=g_NTE[..., :D])
    if mask_NTT is None:
        g_NTE[..., D : D + 1] = minus_NT1
        g_NTE[..., D + 1 : D + 2] = minus_NT1 - g_NTE[..., D : D + 1]
    dqk_2NTD = q_NTD.new_empty(2, N, T, D)
    dq_NTD, dk_NTD = dqk_2NTD
    dv_NTD = torch.empty_like(q_NTD)
    for rows in pieces(T):
        past = slice(0, rows.stop)
        weights_NQT = weigh(torch.bmm(q_NTD[:, rows], k_NTD[:, past].transpose(1, 2)))
        ds_NQT = torch.bmm(g_NTE[:, rows], v_NTE[:, past].transpose(1, 2))
        if mask_NTT is not None:
            ds_NQT.mul_(mask_NTT[:, rows, past]).add_(minus_NT1[:, rows])
        ds_NQT.mul_(weights_NQT)
        dq_NTD[:, rows] = torch.bmm(ds_NQT, k_NTD[:, past])
        dk_NPD = torch.bmm(ds_NQT.transpose(1, 2), q_NTD[:, rows])
        if mask_NTT is not None:
            weights_NQT *= mask_NTT[:, rows, past]
        dv_NPD = torch.bmm(weights_NQT.transpose(1, 2), g_NTE[:, rows, :D])
        if rows.stop == T:
            dk_NTD.copy_(dk_NPD)
            dv_NTD.copy_(dv_NPD)
        else:
            dk_NTD[:, past] += dk_NPD
            dv_NTD[:, past] += dv_NPD
    return dqk_2NTD, dv_NTD


class _Attention(torch.autograd.Function):
    """softmax(q k / sqrt(D)) v in bf16 on a CPU, in memory linear in T except for a mask."""

    @staticmethod
    def forward(ctx: Any, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, mask_BHTT: Tensor | None) -> Tensor:
        B, H, T, D = q_BHTD.shape
        q_NTD = (q_BHTD * D**-0.5).reshape(B * H, T, D)
        k_NTD, v_NTE = k_BHTD.reshape(B * H, T, D), beside_ones(v_BHTD)
        ctx.mask_NTT = None if mask_BHTT is None else mask_BHTT.view(B * H, T, T)
        mean_NTD, inverse_NT1 = weighted(q_NTD, k_NTD, v_NTE, shares, ctx.mask_NTT)
        ctx.save_for_backward(mean_NTD, inverse_NT1, q_NTD, k_NTD, v_NTE)
        return mean_NTD.view(B, H, T, D)

    @staticmethod
    def backward(ctx: Any, g_BHTD: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        B, H, T, D = g_BHTD.shape
        mean_NTD, inverse_NT1, q_NTD, k_NTD, v_NTE = ctx.saved_tensors
        g_NTD = g_BHTD.reshape(B * H, T, D)
        dqk_2NTD, dv_NTD = weighted_backward(g_NTD, mean_NTD, inverse_NT1, q_NTD, k_NTD, v_NTE, shares, ctx.mask_NTT)
        dq_BHTD, dk_BHTD = dqk_2NTD.view(2, B, H, T, D)
        return dq_BHTD.mul_(D**-0.5), dk_BHTD, dv_NTD.view(B, H, T, D), None
