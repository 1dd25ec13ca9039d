"""The embedding lookup and the cross entropy of the head, which need little memory.

Both tables are V x C. Both gradients are added in place to the existing one, so there is never a second gradient of
that size. The logits of all tokens are never in memory together.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bardflow.model.machine import compiled
from bardflow.model.networks.autograd import applied

# Targets with this value are not charged: they do not count in the loss. It is the default of torch's cross entropy.
NOT_CHARGED = -100


def rows_of(table_VC: Tensor, ids_BT: Tensor) -> Tensor:
    """Look up the rows (B, T, C) of `table_VC` with these ids.

    If `table_VC.grad` exists already, the backward pass adds the gradient of only these rows to it.
    """
    return applied(_Rows, table_VC, ids_BT)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_VC: Tensor, ids_BT: Tensor) -> Tensor:
        ctx.table_VC = table_VC
        ctx.save_for_backward(ids_BT)
        return F.embedding(ids_BT, table_VC)

    @staticmethod
    def backward(ctx: Any, g_BTC: Tensor) -> tuple[Tensor | None, None]:
        (ids_BT,) = ctx.saved_tensors
        if ctx.table_VC.grad is None:
            return torch.ops.aten.embedding_dense_backward(g_BTC, ids_BT, len(ctx.table_VC), -1, False), None
        if g_BTC.device.type != "cpu":
            # All rows: the number of different ids is only on the device, and reading it would wait for the device.
            ctx.table_VC.grad += torch.ops.aten.embedding_dense_backward(g_BTC, ids_BT, len(ctx.table_VC), -1, False)
            return None, None
        rows_U, places_BT = ids_BT.unique(return_inverse=True)
        dense_UC = torch.ops.aten.embedding_dense_backward(g_BTC, places_BT, len(rows_U), -1, False)
        ctx.table_VC.grad.index_add_(0, rows_U, dense_UC)
        return None, None


@torch.no_grad()
def head_loss(
    hidden_BTC: Tensor,
    head_VC: Tensor,
    targets_BT: Tensor,
    *,
    charged: int | Tensor,
    tokens: int,
    scale: float = 1.0,
    enlarged: float = 1.0,
    fused: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the cross entropy of the head, a scalar, and its gradient with respect to `hidden_BTC`.

    Both gradients are multiplied by `enlarged`, because f16 rounds numbers below 6e-8 to zero.

    The loss is the sum of -log softmax(scale * hidden head)[target] over charged targets, in f32, divided by `charged`.
    The gradient with respect to the head is added to `head_VC.grad`. Logits and their gradients are computed for
    `tokens` tokens at a time, so a batch needs memory for tokens x V numbers and not B x T x V (Wijmans et al. 2024
    never have even a whole row in memory). `charged` is a number, or a scalar tensor on a GPU, which is not read back;
    there, `fused` uses `torch.compile`.
    """
    hidden_NC, targets_N = hidden_BTC.flatten(0, 1), targets_BT.flatten()
    weight_VC = (head_VC if scale == 1 else head_VC * scale).to(hidden_NC.dtype)
    if head_VC.grad is None:
        head_VC.grad = torch.zeros_like(head_VC)
    piece: Callable[..., tuple[Tensor, Tensor]] = _piece
    if isinstance(charged, Tensor):
        piece = compiled(_piece_on_gpu) if fused else _piece_on_gpu
    if isinstance(charged, Tensor) and (missing := -len(weight_VC) % ALIGNED):
        weight_VC = F.pad(weight_VC, (0, 0, 0, missing))
    total = torch.zeros((), device=hidden_NC.device)
    dhidden_NC = torch.empty_like(hidden_NC)
    for first in range(0, len(hidden_NC), tokens):
        part = slice(first, first + tokens)
        nats, dlogits_nV = piece(hidden_NC[part], weight_VC, targets_N[part], charged / enlarged, len(head_VC))
        total += nats
        torch.mm(dlogits_nV, weight_VC, out=dhidden_NC[part])
        head_VC.grad.add_((dlogits_nV.t() @ hidden_NC[part])[: len(head_VC)], alpha=scale)
        del dlogits_nV  # before the next piece allocates its own
    return total / charged, dhidden_NC.view_as(hidden_BTC)


# On a GPU, products are slow if rows do not begin at multiples of 16 bytes, so 65 columns are padded to 72.
ALIGNED = 8


def _piece(
    hidden_nC: Tensor, weight_VC: Tensor, targets_n: Tensor, charged: int | Tensor, vocabulary_size: int
) -> tuple[Tensor, Tensor]:
    """Return the summed loss of a piece, and the gradient of (sum / `charged`) with respect to its logits."""
    logs_nV = F.log_softmax((hidden_nC @ weight_VC.t()).float(), -1)
    nats = F.nll_loss(logs_nV, targets_n, reduction="sum", ignore_index=NOT_CHARGED)
    asked_n1 = (targets_n != NOT_CHARGED).unsqueeze(1)
    logs_nV.exp_().mul_(asked_n1 / charged)
    right_n1 = targets_n.unsqueeze(1).clamp_min(0)
    logs_nV.scatter_add_(1, right_n1, asked_n1.to(logs_nV.dtype).div_(-charged))
    return nats, logs_nV.to(hidden_nC.dtype)


def _piece_on_gpu(
    hidden_nC: Tensor, weight_WC: Tensor, targets_n: Tensor, charged: int | Tensor, vocabulary_size: int
) -> tuple[Tensor, Tensor]:
    """The same as `_piece` in fewer passes over memory; columns of logits from `vocabulary_size` on are padding."""
    logits_nW = hidden_nC @ weight_WC.t()
    logits_nW[:, vocabulary_size:] = -torch.inf
    shares_nW = logits_nW.float().softmax(-1)
    asked_n1 = (targets_n != NOT_CHARGED).unsqueeze(1)
    right_n1 = targets_n.unsqueeze(1).clamp_min(0)
    share_n1 = shares_nW.gather(1, right_n1)
    # A probability that is zero in f32 gets the loss of the smallest normal number, 87 nats.
    nats = (share_n1.clamp_min(torch.finfo(torch.float32).tiny).log() * asked_n1).sum().neg()
    weight_n1 = asked_n1 / charged
    dlogits_nW = shares_nW.mul_(weight_n1).to(logits_nW.dtype)
    dlogits_nW.scatter_(1, right_n1, ((share_n1 - 1) * weight_n1).to(dlogits_nW.dtype))
    return nats, dlogits_nW
