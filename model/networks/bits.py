"""Random bits computed on a graphics card, as a function of what they are for: no state, no draw on the host."""

import functools

import numpy as np
import torch
from torch import Tensor

from bardflow.model.machine import compiled

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

    def next(self, rows: int, each: int) -> Tensor:
        """The stream's next `each` numbers for each of so many rows: int16 (rows, each), all values equally likely.

        A row begins with a draw of its own, so it does not matter which rows are drawn together.
        """
        return drawn(self._moved(rows, each), rows, each)

    def mask(self, dropped: int, rows: int, each: int, dtype: torch.dtype, *, fused: bool = False) -> Tensor:
        """Zeros for `dropped` of 65,536 numbers, and for the others what keeps the mean at one: (rows, each).

        `fused` computes by `torch.compile`, with the same result.
        """
        state = self._moved(rows, each)
        mask_RE: Tensor
        if fused:
            mask_RE = compiled(_fused_mask)(state, dropped, rows, each, dtype)
        else:
            mask_RE = mask_of(drawn(state, rows, each), dropped, dtype)
        return mask_RE

    def _moved(self, rows: int, each: int) -> Tensor:
        """Where the stream stands; then it stands behind these rows."""
        state = self._state
        self._state = state + _signed(rows * draws_of(each) * GAMMA % 2**64)
        return state


def draws_of(each: int) -> int:
    """How many draws of 64 bits a row of so many numbers takes."""
    return -(-each // 4)


def drawn(state: Tensor, rows: int, each: int) -> Tensor:
    """Numbers (rows, each) from a state, four from a draw: int16."""
    counter = torch.arange(rows * draws_of(each), device=state.device)
    bits = mixed(counter.mul_(_signed(GAMMA)).add_(state))
    return bits.view(torch.int16).view(rows, -1)[:, :each]


def drawn_one_by_one(state: Tensor, rows: int, each: int) -> Tensor:
    """The same, each by itself and nothing kept, which takes four times the arithmetic: for `torch.compile` alone."""
    number = torch.arange(each, device=state.device)
    row_R1 = torch.arange(rows, device=state.device).unsqueeze(1)
    bits = mixed((row_R1 * draws_of(each) + (number >> 2)) * _signed(GAMMA) + state)
    return ((bits >> 16 * (number & 3)) & 0xFFFF ^ 0x8000) - 0x8000


def mask_of(numbers: Tensor, dropped: int, dtype: torch.dtype) -> Tensor:
    """Zeros for the lowest `dropped` of the 65,536 signed numbers, 65,536 / (65,536 - dropped) for the others."""
    return (numbers >= dropped - 2**15).to(dtype).mul_(2**16 / (2**16 - dropped))


def _fused_mask(state: Tensor, dropped: int, rows: int, each: int, dtype: torch.dtype) -> Tensor:
    return mask_of(drawn_one_by_one(state, rows, each), dropped, dtype)


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
