"""Dropout whose masks depend on (seed, step, place, window) alone: not on how a step is cut into micro-batches."""

import math

import numpy as np
import torch
from torch import Tensor

from bardflow.model.networks.bits import Bits


class Dropout:
    """The masks of one step. Each place in the model has a stream of its own, from which windows draw in order.

    A step that is a number draws on the CPU, from numpy's SFC64, four elements a draw: torch's generator needs one draw
    an element on one core. A step that is a tensor draws on its device (`bits.py`). Either way a share is rounded to
    65,536ths, and what is kept is scaled accordingly. `fused` draws by `torch.compile`.
    """

    def __init__(self, share: float, *, seed: int, step: int | Tensor, fused: bool = False) -> None:
        self.seed, self.step, self.fused = seed, step, fused
        self.dropped = min(2**16 - 1, max(1, round(share * 2**16)))
        self._streams: dict[str, np.random.Generator | Bits] = {}

    def mask(self, place: str, x_B: Tensor) -> Tensor:
        """Zeros where x is dropped and 1 / (1 - share) elsewhere, in x's shape and type, for the next windows."""
        rows, each = x_B.shape[0], math.prod(x_B.shape[1:])
        stream = self._stream(place)
        if isinstance(stream, Bits):
            return stream.mask(self.dropped, rows, each, x_B.dtype, fused=self.fused).view(x_B.shape)
        draws = -(-each // 4)  # whole draws a window, so that a stream does not know which windows come together
        bits = stream.integers(0, 2**64, (rows, draws), np.uint64).view(np.uint16)
        kept = torch.from_numpy(bits[:, :each] >= self.dropped).view(x_B.shape)
        return kept.to(x_B.dtype).mul_(2**16 / (2**16 - self.dropped))

    def _stream(self, place: str) -> np.random.Generator | Bits:
        if place not in self._streams:
            self._streams[place] = (
                Bits(self.seed, self.step, place)
                if isinstance(self.step, Tensor)
                else np.random.Generator(np.random.SFC64([self.seed, self.step, *place.encode()]))
            )
        return self._streams[place]
