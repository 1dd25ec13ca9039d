"""Random bits as a function of (seed, step, place), computed on a GPU without a stored state."""

import functools

import numpy as np
import torch
from torch import Tensor

from bardflow.model.machine import compiled

# The constants of SplitMix64 (Steele, Lea & Flood 2014, figure 16; variant 13): the increment of the state, and mixing.
GAMMA = 0x9E3779B97F4A7C15
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
LAST_SHIFT = 31


class Bits:
    """A stream of random 16-bit numbers for (seed, step, place), on the device of `step`, a scalar int64 tensor.

    The device reads the step, so a recorded CUDA graph draws different bits in each step.
    """

    def __init__(self, seed: int, step: Tensor, place: str) -> None:
        self._state = mixed(step * _signed(GAMMA) + _key(seed, place))

    def next(self, rows: int, each: int) -> Tensor:
        """Draw the next numbers: int16 (rows, each), all values equally likely.

        Each row begins with a new 64-bit draw, so rows get the same numbers in one call or in several.
        """
        return drawn(self._moved(rows, each), rows, each)

    def mask(self, dropped: int | Tensor, rows: int, each: int, dtype: torch.dtype, *, fused: bool = False) -> Tensor:
        """Draw a mask (rows, each): 0 with probability `dropped` / 65,536, else a constant that makes the mean 1.

        `fused` uses `torch.compile`, with the same result.
        """
        state = self._moved(rows, each)
        mask_RE: Tensor
        if fused:
            mask_RE = compiled(_fused_mask)(state, dropped, rows, each, dtype)
        else:
            mask_RE = mask_of(drawn(state, rows, each), dropped, dtype)
        return mask_RE

    def skip(self, rows: int, each: int) -> None:
        """Continue as if the numbers of these rows had been drawn."""
        self._moved(rows, each)

    def _moved(self, rows: int, each: int) -> Tensor:
        """Return the current state, and advance the stream by these rows."""
        state = self._state
        self._state = state + _signed(rows * draws_of(each) * GAMMA % 2**64)
        return state


def draws_of(each: int) -> int:
    """The number of 64-bit draws for a row of `each` numbers."""
    return -(-each // 4)


def drawn(state: Tensor, rows: int, each: int) -> Tensor:
    """The numbers that follow a state: int16 (rows, each), four from each draw."""
    counter = torch.arange(rows * draws_of(each), device=state.device)
    bits = mixed(counter.mul_(_signed(GAMMA)).add_(state))
    return bits.view(torch.int16).view(rows, -1)[:, :each]


def drawn_one_by_one(state: Tensor, rows: int, each: int) -> Tensor:
    """The same as `drawn` for `torch.compile`: one draw per number needs four times the arithmetic, but no buffer."""
    number = torch.arange(each, device=state.device)
    row_R1 = torch.arange(rows, device=state.device).unsqueeze(1)
    bits = mixed((row_R1 * draws_of(each) + (number >> 2)) * _signed(GAMMA) + state)
    return ((bits >> 16 * (number & 3)) & 0xFFFF ^ 0x8000) - 0x8000


def mask_of(numbers: Tensor, dropped: int | Tensor, dtype: torch.dtype) -> Tensor:
    """0 for the lowest `dropped` of the 65,536 signed values, 65,536 / (65,536 - dropped) for the others."""
    return (numbers >= dropped - 2**15).to(dtype).mul_(2**16 / (2**16 - dropped))


def _fused_mask(state: Tensor, dropped: int | Tensor, rows: int, each: int, dtype: torch.dtype) -> Tensor:
    return mask_of(drawn_one_by_one(state, rows, each), dropped, dtype)


def mixed(z: Tensor) -> Tensor:
    """Compute SplitMix64's output for each state, int64 in place; every bit depends on all bits of the state."""
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
