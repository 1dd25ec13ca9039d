"""Scoring a long text with blocks in bf16, with a bound on the difference from f32."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bardflow.model.machine import Device
from bardflow.model.networks import GPT, working_copy
from bardflow.model.scoring.held_out import Charges, Progress, charges_both_ways
from bardflow.model.training import Tokens

# Contexts of text in one piece of the sample, which is computed in both precisions. Pieces are the units of the
# standard error, because the differences of neighbouring tokens may be related.
PIECE_CONTEXTS = 8
# The fewest pieces from which a standard error is computed, and the largest share of the text that is sampled: computed
# in f32, a larger sample would take a third of the time of the whole text in f32, or more.
FEWEST_PIECES, LARGEST_SHARE = 32, 1 / 8
# With so many standard errors, a normal mean is within the bound with a probability of 95 %.
STANDARD_ERRORS = 1.96


class InBf16(NamedTuple):
    """The losses of tokens in disjoint and in overlapping windows, and a bound on the error of their means, in nats.

    `sampled` is the number of tokens that were computed in f32, too.
    """

    disjoint: Charges
    sliding: Charges
    error: float
    sampled: int


class Rounded:
    """A model with the blocks of `copy`, which may compute in bf16, and the head of `gpt` in f32."""

    def __init__(self, gpt: GPT, copy: GPT) -> None:
        self.copy = copy
        self.context, self.tokens, self.head = gpt.context, gpt.tokens, gpt.head

    def hidden(self, ids_BT: Tensor) -> Tensor:
        return self.copy.hidden(ids_BT).float()

    def eval(self) -> nn.Module:
        return self.copy.eval()


def charges_in_bf16(
    gpt: GPT,
    tokens: Tokens,
    *,
    before: Tokens,
    device: Device,
    error: float,
    seed: int = 0,
    progress: Progress | None = None,
) -> InBf16 | None:
    """Compute `charges_both_ways` with blocks in bf16, so that both means differ from those in f32 by at most `error`.

    Pieces from all over the text, drawn with `seed`, are computed in both precisions. Their mean difference is added to
    all losses (the difference estimator of survey sampling: Cochran, Sampling Techniques, 1977, section 7.2). What is
    left is the error of that mean, 1.96 standard errors: the sample grows until this is at most `error` nats per token.

    Returns:
        None if a sample of an eighth of the text is too small for that. Then the text is to be scored in f32.

    Raises:
        TooFewTokens: as `charges_both_ways`.
    """
    rounded = Rounded(gpt, working_copy(gpt, torch.bfloat16))
    length = PIECE_CONTEXTS * gpt.context
    order = np.random.default_rng(seed).permutation(len(tokens) // length)
    largest = int(len(order) * LARGEST_SHARE)
    differences: list[list[float]] = []
    for number in order[:largest]:
        start = int(number) * length
        piece, preceding = tokens[start : start + length], tokens[:start] if start else before
        exact, quick = (charges_both_ways(model, piece, before=preceding, device=device) for model in (gpt, rounded))
        differences.append([float(np.mean(e - q, dtype=np.float64)) for e, q in zip(exact, quick, strict=True)])
        if len(differences) >= FEWEST_PIECES and _error(differences, len(order)) <= error:
            break
    else:
        return None
    disjoint, sliding = charges_both_ways(rounded, tokens, before=before, device=device, progress=progress)
    for charged, correction in zip((disjoint, sliding), np.mean(differences, axis=0), strict=True):
        charged += np.float32(correction)
    return InBf16(disjoint, sliding, _error(differences, len(order)), len(differences) * length)


def _error(differences: list[list[float]], pieces: int) -> float:
    """Return 1.96 standard errors of the larger of two means, drawn without replacement from so many pieces."""
    found: npt.NDArray[np.float64] = np.asarray(differences)
    unseen = 1 - len(found) / pieces
    return STANDARD_ERRORS * float(found.std(axis=0, ddof=1).max()) * math.sqrt(unseen / len(found))
