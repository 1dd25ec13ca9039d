"""Random bits computed on a graphics card, as a function of what they are for: no state, no draw on the host."""

import functools

import numpy as np
import torch
from torch import Tensor

# SplitMix64 (Steele, Lea & Flood 2014, figure 16; the constants of variant 13): what a state grows by, and the mixing.
GAMMA = 0x9E3779B97F4A7C15
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
LAST_SHIFT = 31


class Bits:
    """A stream of 16-bit numbers for each (seed, step, place), on the device of `step`, a scalar int64 tensor.

    The step is read on the device, so a recorded CUDA graph draws other bits for another step.
    """

    def __init__(self, seed: int, step: Tensor, place: str) -> None:
        self._state = mixed(step * _signed(GAMMA) + _key(seed, place))
        self._drawn = 0

    def next(self, rows: int, each: int) -> Tensor:
        """The stream's next `each` numbers for each of so many rows: int16 (rows, each), all values equally likely.

        A row begins with a draw of its own, so it does not matter which rows are drawn together.
        """
        draws = -(-each // 4)
        first = self._drawn
        self._drawn += rows * draws
        counter = torch.arange(first, self._drawn, device=self._state.device)
        bits = mixed(counter.mul_(_signed(GAMMA)).add_(self._state))
        return bits.view(torch.int16).view(rows, 4 * draws)[:, :each]


def mixed(z: Tensor) -> Tensor:
    """SplitMix64's output for each state, int64 in place: every bit depends on all bits of the state."""
    for shift, factor in MIX:
        z.bitwise_xor_(_shifted(z, shift)).mul_(_signed(factor))
    return z.bitwise_xor_(_shifted(z, LAST_SHIFT))


def _shifted(z: Tensor, by: int) -> Tensor:
    """A logical shift to the right; torch's keeps the sign."""
    return (z >> by).bitwise_and_((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    """The int64 with the same 64 bits."""
    return number - (1 << 64) if number >= 1 << 63 else number


@functools.cache
def _key(seed: int, place: str) -> int:
    return _signed(int(np.random.SeedSequence([seed, *place.encode()]).generate_state(1, np.uint64)[0]))
