"""Cross entropy of a head's logits without ever holding the logits of all tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention import applied
from model.batches import NOT_CHARGED


def head_loss(hidden_NC: Tensor, head_VC: Tensor, targets_N: Tensor, *, charged: int, tokens: int) -> Tensor:
    """-log softmax(hidden head)[target], summed over the targets that are charged and divided by `charged`: f32, ().

    Logits exist for `tokens` tokens at a time; gradients are computed with them, in the forward pass, so that a batch
    needs tokens x V and not N x V (Wijmans et al. 2024 go further and never hold a whole row).
    """
    return applied(_HeadLoss, hidden_NC, head_VC, targets_N, charged, tokens)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NC: Tensor, head_VC: Tensor, targets_N: Tensor, charged: int, tokens: int) -> Tensor:
        weight_VC = head_VC.to(hidden_NC.dtype)
        total = torch.zeros((), device=hidden_NC.device)
        dhidden_NC, dhead_VC = torch.empty_like(hidden_NC), torch.zeros_like(head_VC)
        for first in range(0, len(hidden_NC), tokens):
            part = slice(first, first + tokens)
            logits_nV = (hidden_NC[part] @ weight_VC.t()).float()
            logs_nV = F.log_softmax(logits_nV, -1)
            total += F.nll_loss(logs_nV, targets_N[part], reduction="sum", ignore_index=NOT_CHARGED)
            asked_n1 = (targets_N[part] != NOT_CHARGED).unsqueeze(1)
            dlogits_nV = logs_nV.exp_().mul_(asked_n1 / charged)
            right_n1 = targets_N[part].unsqueeze(1).clamp_min(0)
            dlogits_nV.scatter_add_(1, right_n1, asked_n1.to(dlogits_nV.dtype).div_(-charged))
            dlogits_nV = dlogits_nV.to(hidden_NC.dtype)
            torch.mm(dlogits_nV, weight_VC, out=dhidden_NC[part])
            dhead_VC += dlogits_nV.t() @ hidden_NC[part]
        ctx.save_for_backward(dhidden_NC, dhead_VC)
        return total / charged

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        dhidden_NC, dhead_VC = ctx.saved_tensors
        return dhidden_NC.mul_(g), dhead_VC.mul_(g), None, None, None
