"""How well a model predicts a text: every token charged, in nats."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from model.batches import Tokens, TooFewTokens
from model.device import Device
from model.gpt import GPT

# Logits in one forward pass: 134 MB in f32, which is 8,025 tokens at a vocabulary of 4,181.
PASS_LOGITS = 2**25
# Tokens in one forward pass: with a small vocabulary it is the MLP's activations that would grow (2.2 GiB for tiny
# Shakespeare's validation part at width 192 in one go).
PASS_TOKENS = 2**14


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
def score(gpt: GPT, tokens: Tokens, *, before: int, device: Device) -> Score:
    """Charge every token, in disjoint windows of the model's context, as published losses do.

    `before` is the token that precedes the text (the last of the training part): it is the context of the first token,
    so that this one is charged too. The last window is short; sums are in f64.

    Raises:
        TooFewTokens: the text is empty.
    """
    if not len(tokens):
        raise TooFewTokens("the text to score has no tokens; give the validation part at least one")
    gpt.eval()
    context, vocabulary_size = gpt.context, gpt.tokens.weight.shape[0]
    total = 0.0
    rows = max(1, min(PASS_LOGITS // vocabulary_size, PASS_TOKENS) // context)
    for start in range(0, len(tokens), rows * context):
        target = tokens[start : start + rows * context].astype(np.int64)
        previous = np.array([before]) if start == 0 else tokens[start - 1 : start]
        source = np.concatenate([previous.astype(np.int64), target[:-1]])
        whole = len(target) // context * context
        for first, last, shape in ((0, whole, (-1, context)), (whole, len(target), (1, -1))):
            if first == last:
                continue
            inputs_BT = torch.from_numpy(source[first:last]).view(shape).to(device.name)
            targets_BT = torch.from_numpy(target[first:last]).view(shape).to(device.name)
            logits_BTV = gpt(inputs_BT)
            nats = F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="none")
            total += float(nats.sum(dtype=torch.float64) if device.name != "mps" else nats.cpu().double().sum())
    return Score(total, len(tokens))
