"""How well a model predicts a text: every token charged, in nats."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from model.batches import Tokens, TooFewTokens
from model.device import Device
from model.execution import Execution
from model.gpt import GPT

# Tokens in one forward pass, and logits at once: 34 MB in f32.
PASS_TOKENS = 2**12
PASS_LOGITS = 2**23


@dataclass(frozen=True)
class Score:
    """The total charge for a text, in nats, and the tokens it is spread over."""

    nats: float
    tokens: int

    @property
    def nats_per_token(self) -> float:
        """Mean cross entropy: what training curves show. It compares only within one vocabulary."""
        return self.nats / self.tokens

    def bits_per(self, units: int) -> float:
        """Bits for each of `units` (characters or bytes of the raw text): compares across vocabularies."""
        return self.nats / math.log(2) / units


@torch.inference_mode()
def score(gpt: GPT, tokens: Tokens, *, before: int, device: Device, execution: Execution | None = None) -> Score:
    """Charge every token, in disjoint windows of the model's context, as published losses do.

    `before` is the token that precedes the text (the last of the training part): it is the context of the first token,
    so that this one is charged too. The last window is short; sums are in f64. No more windows and logits are computed
    at once than in `execution`, so that scoring after training takes no more memory than training.

    Raises:
        TooFewTokens: the text is empty.
    """
    if not len(tokens):
        raise TooFewTokens("the text to score has no tokens; give the validation part at least one")
    gpt.eval()
    context, vocabulary_size = gpt.context, gpt.tokens.weight.shape[0]
    total = 0.0
    rows, at_once = max(1, PASS_TOKENS // context), max(1, PASS_LOGITS // vocabulary_size)
    if execution is not None:
        rows, at_once = min(rows, execution.micro_batch), min(at_once, execution.loss_tokens)
    for start in range(0, len(tokens), rows * context):
        target = tokens[start : start + rows * context].astype(np.int64)
        previous = np.array([before]) if start == 0 else tokens[start - 1 : start]
        source = np.concatenate([previous.astype(np.int64), target[:-1]])
        whole = len(target) // context * context
        for first, last, shape in ((0, whole, (-1, context)), (whole, len(target), (1, -1))):
            if first == last:
                continue
            inputs_BT = torch.from_numpy(source[first:last]).view(shape).to(device.name)
            targets_N = torch.from_numpy(target[first:last]).to(device.name)
            hidden_NC = gpt.hidden(inputs_BT).flatten(0, 1)
            for hidden_nC, targets_n in zip(
                torch.split(hidden_NC, at_once), torch.split(targets_N, at_once), strict=True
            ):
                nats_n = F.cross_entropy(gpt.head(hidden_nC).float(), targets_n, reduction="none")
                total += float(nats_n.sum(dtype=torch.float64) if device.name != "mps" else nats_n.cpu().double().sum())
    return Score(total, len(tokens))
