"""A test of whether one model is better than another on the same text."""

import math
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bardflow.errors import BardError

Charges = npt.NDArray[np.float32]

# Characters in a block. Losses of neighbouring characters are correlated: a hard passage is a few hundred characters
# long, and the characters of a window share context.
BLOCK_CHARACTERS = 1024
# Longer texts have longer blocks, not more: 400 are enough for an interval. Shorter texts have shorter blocks.
MOST_BLOCKS = 400
LEAST_BLOCKS = 20
RESAMPLES = 4000
CONFIDENCE = 0.95


class NotComparable(BardError):
    """The losses of two models are not on the same text."""


class Comparison(NamedTuple):
    """A model's bits per character minus another's (negative if it is better), and the confidence interval."""

    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> Literal["better", "worse", "not distinguishable"]:
        """The verdict on the first model."""
        if self.high < 0:
            return "better"
        return "worse" if self.low > 0 else "not distinguishable"


def compare(own: Charges, theirs: Charges, *, luck: float, seed: int = 0) -> Comparison:
    """Compare two models by their losses on each character of one text, in nats.

    Uses a paired circular block bootstrap (Politis and Romano 1992): both models have the same blocks of neighbouring
    characters, so what is hard for both cancels. The percentile interval is widened for few blocks by Student's t
    (Hesterberg 2015, section 3.3). `luck` is the standard deviation between seeds, in bits per character. It
    widens the interval for both trainings, in squares. With 0, only these two sets of weights are compared.

    Raises:
        NotComparable: the losses differ in length, or there are none.
    """
    if len(own) != len(theirs) or not len(own):
        raise NotComparable(
            f"charges of {len(own):,} and {len(theirs):,} characters were given; compare two models on one text"
        )
    bits = (own.astype(np.float64) - theirs.astype(np.float64)) / math.log(2)
    difference = float(bits.mean())
    drawn = resampled_means(bits, seed) - difference
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    normal = NormalDist().inv_cdf(1 - tail)
    chance = normal * math.sqrt(2) * luck
    return Comparison(
        difference,
        difference - math.hypot(float(low), chance),
        difference + math.hypot(float(high), chance),
    )


def resampled_means(values: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    """Return means of texts resampled in blocks from this text as a ring; their spread is that of the mean."""
    length = len(values)
    size = max(1, min(BLOCK_CHARACTERS, length // LEAST_BLOCKS), math.ceil(length / MOST_BLOCKS))
    blocks = math.ceil(length / size)
    ring = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values[: size - 1]]))])
    sums = ring[size:] - ring[:length]
    places = np.random.Generator(np.random.PCG64(seed)).integers(0, length, (RESAMPLES, blocks))
    means: npt.NDArray[np.float64] = sums[places].mean(axis=1) / size
    if blocks > 1:
        means = values.mean() + (means - values.mean()) * math.sqrt(blocks / (blocks - 1)) * _student(blocks - 1)
    return means


def _student(freedom: int) -> float:
    """Return the ratio of Student's t and normal quantiles at CONFIDENCE (Abramowitz and Stegun 26.7.5)."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    terms = (
        z,
        (z**3 + z) / (4 * freedom),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3),
    )
    return sum(terms) / z
