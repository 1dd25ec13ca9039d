"""Operations of `modern` and `lfm2` in bf16 on a CPU, with as few passes over memory as torch's kernels allow.

`tests/test_gpt.py` compares outputs and gradients with those of the same model in f32, which does not use this module.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bardflow.model.networks.attention import beside_ones, exponentials, weighted, weighted_backward
from bardflow.model.networks.autograd import applied


def inverse_norms(x: Tensor, epsilon: float) -> Tensor:
    """Approximately 1 / sqrt(sum of squares + C epsilon) over the last axis, which is kept with size 1."""
    C = x.shape[-1]
    # sqrt(C epsilon) is added to the norm, not C epsilon to its square: equal at zero, and no effect in bf16 elsewhere.
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norms.add_((C * epsilon) ** 0.5).reciprocal_()


class RotaryEmbedding:
    """Rotary positions: rotate each pair (x_i, x_{i + D/2}) by its position's angle, clockwise as in `nanochat`.

    On a CPU, a matrix product swaps the halves. It is exact (its factors are 0, 1 and -1) and, at D 32, three times
    faster than operations on strided halves.
    """

    def __init__(self, cosine_TD: Tensor, sine_TD: Tensor) -> None:
        self.cosine_TD, self.sine_TD = cosine_TD, sine_TD
        if cosine_TD.device.type != "cpu":
            return
        one = torch.eye(cosine_TD.shape[-1] // 2, dtype=cosine_TD.dtype, device=cosine_TD.device)
        zero = torch.zeros_like(one)
        self.swap_DD = torch.cat((torch.cat((zero, -one), 1), torch.cat((one, zero), 1)))

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate x (..., T, D)."""
        if x.device.type != "cpu":
            first, second = x.chunk(2, dim=-1)
            cosine, sine = (table.chunk(2, dim=-1)[0] for table in (self.cosine_TD, self.sine_TD))
            return torch.cat((first * cosine + second * sine, second * cosine - first * sine), dim=-1)
        return torch.addcmul(x * self.cosine_TD, x @ self.swap_DD, self.sine_TD)

    def rotate_back(self, x: Tensor) -> Tensor:
        """Rotate x (..., T, D) in the other direction, as the gradient needs."""
        return torch.addcmul(x * self.cosine_TD, x @ self.swap_DD, self.sine_TD, value=-1)


class _RMSNorm(torch.autograd.Function):
    """x / rms(x). It saves its output, which the next product saves too, so this takes no extra memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        scale = inverse_norms(x, epsilon).mul_(x.shape[-1] ** 0.5)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        along = (g * y).sum(-1, keepdim=True).div_(-y.shape[-1])
        return torch.addcmul(g, y, along).mul_(scale), None


class _Relu2Linear(torch.autograd.Function):
    """relu(a) squared, times w transposed. `a` is overwritten: it is the result of a product, with no other use."""

    @staticmethod
    def forward(ctx: Any, a_NF: Tensor, w_CF: Tensor) -> Tensor:
        # A negative bf16 is also negative as int16, and the int16 kernel is three times faster (3.1 M elements: 100
        # instead of 327 us).
        a_NF.view(torch.int16).clamp_min_(0)
        ctx.save_for_backward(a_NF, w_CF)
        return a_NF.square() @ w_CF.t()

    @staticmethod
    def backward(ctx: Any, g_NC: Tensor) -> tuple[Tensor, Tensor]:
        a_NF, w_CF = ctx.saved_tensors
        dw_FC = a_NF.square().t() @ g_NC
        da_NF = torch.addmm(g_NC.new_zeros(()), g_NC, w_CF, beta=0, alpha=2).mul_(a_NF)
        return da_NF, dw_FC.t()


class _GatedLinear(torch.autograd.Function):
    """silu(gate) * a, times w transposed, from the joint product of gate and a, which alone is saved."""

    @staticmethod
    def forward(ctx: Any, joint_NG: Tensor, w_CF: Tensor) -> Tensor:
        ctx.save_for_backward(joint_NG, w_CF)
        gate_NF, a_NF = joint_NG.chunk(2, dim=-1)
        return F.silu(gate_NF).mul_(a_NF) @ w_CF.t()

    @staticmethod
    def backward(ctx: Any, g_NC: Tensor) -> tuple[Tensor, Tensor]:
        joint_NG, w_CF = ctx.saved_tensors
        gate_NF, a_NF = joint_NG.chunk(2, dim=-1)
        open_NF, d_NF = F.silu(gate_NF), g_NC @ w_CF
        djoint_NG = torch.empty_like(joint_NG)
        dgate_NF, da_NF = djoint_NG.chunk(2, dim=-1)
        torch.mul(d_NF, open_NF, out=da_NF)
        dw_FC = open_NF.mul_(a_NF).t() @ g_NC
        torch.ops.aten.silu_backward(d_NF.mul_(a_NF), gate_NF, grad_input=dgate_NF)
        return djoint_NG, dw_FC.t()


class _RotaryAttention(torch.autograd.Function):
    """Causal attention of normalised and rotated queries and keys, from a joint projection.

    After the norm, |q k| / sqrt(D) is at most sqrt(D). So exp needs no subtraction of the maximum, and the product with
    the values also gives the sums of the weights.
    """

    @staticmethod
    def forward(ctx: Any, qkv_BTE: Tensor, rotary: RotaryEmbedding, heads: int, epsilon: float) -> Tensor:
        B, T, C = qkv_BTE.shape[0], qkv_BTE.shape[1], qkv_BTE.shape[2] // 3
        H, D = heads, C // heads
        qkv_3BHTD = qkv_BTE.view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)
        qk_2BHTD = qkv_3BHTD[:2].contiguous()
        scale_2BHT1 = inverse_norms(qk_2BHTD, epsilon)
        # Keys get norm sqrt(D), and queries 1 instead of sqrt(D), which includes the scores' factor 1 / sqrt(D).
        scale_2BHT1[1] *= D**0.5
        turned_2BHTD = rotary.rotate(qk_2BHTD).mul_(scale_2BHT1)
        q_NTD, k_NTD = turned_2BHTD.view(2, B * H, T, D)
        v_NTE = beside_ones(qkv_3BHTD[2])
        mean_NTD, inverse_NT1 = weighted(q_NTD, k_NTD, v_NTE, exponentials)
        ctx.save_for_backward(mean_NTD, inverse_NT1, q_NTD, k_NTD, v_NTE, turned_2BHTD, scale_2BHT1)
        ctx.rotary = rotary
        return mean_NTD.view(B, H, T, D).transpose(1, 2).reshape(B, T, C)

    @staticmethod
    def backward(ctx: Any, g_BTC: Tensor) -> tuple[Tensor, None, None, None]:
        mean_NTD, inverse_NT1, q_NTD, k_NTD, v_NTE, turned_2BHTD, scale_2BHT1 = ctx.saved_tensors
        _, B, H, T, D = turned_2BHTD.shape
        g_NTD = g_BTC.view(B, T, H, D).transpose(1, 2).reshape(B * H, T, D)
        dqk_2NTD, dv_NTD = weighted_backward(g_NTD, mean_NTD, inverse_NT1, q_NTD, k_NTD, v_NTE, exponentials)
        d_2BHTD = dqk_2NTD.view_as(turned_2BHTD)
        along_2BHT1 = (d_2BHTD * turned_2BHTD).sum(-1, keepdim=True).neg_()
        along_2BHT1[1] /= D
        back_2BHTD = ctx.rotary.rotate_back(d_2BHTD.addcmul_(turned_2BHTD, along_2BHT1).mul_(scale_2BHT1))
        grad_BTE = g_BTC.new_empty(B, T, 3 * H * D)
        grad_3BHTD = grad_BTE.view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)
        grad_3BHTD[:2] = back_2BHTD
        grad_3BHTD[2] = dv_NTD.view(B, H, T, D)
        return grad_BTE, None, None, None


def rms_norm(x: Tensor, epsilon: float) -> Tensor:
    """x / rms(x) over the last axis."""
    return applied(_RMSNorm, x, epsilon)


def relu2_linear(a_NF: Tensor, w_CF: Tensor) -> Tensor:
    """relu(a) squared, times w transposed: (N, C). Overwrites a."""
    return applied(_Relu2Linear, a_NF, w_CF)


def gated_linear(joint_NG: Tensor, w_CF: Tensor) -> Tensor:
    """silu(first half of the channels) * second half, times w transposed: (N, C)."""
    return applied(_GatedLinear, joint_NG, w_CF)


def rotary_attention(qkv_BTE: Tensor, rotary: RotaryEmbedding, heads: int, epsilon: float) -> Tensor:
    """Causal attention (B, T, C) of rotated and normalised queries and keys, from a joint projection (B, T, 3 C)."""
    return applied(_RotaryAttention, qkv_BTE, rotary, heads, epsilon)
