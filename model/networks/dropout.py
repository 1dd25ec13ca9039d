"""Dropout with masks that depend only on (seed, step, place, window), not on the micro-batches of a step."""

import math

import numpy as np
import torch
from torch import Tensor

from bardflow.model.networks.bits import Bits


class Dropout:
    """The masks of one step. Each place in the model has its own random stream, from which windows draw in order.

    If `step` is a number, the CPU draws from NumPy's SFC64, four elements per draw; torch's generator needs one draw
    per element, on one core. If it is a tensor, its device draws (`bits.py`). In both cases `share` is rounded to a
    multiple of 1 / 65,536, and the scale fits the rounded share. `fused` draws with `torch.compile`.
    """

    def __init__(self, share: float, *, seed: int, step: int | Tensor, fused: bool = False) -> None:
        self.seed, self.step, self.fused = seed, step, fused
        self.dropped = min(2**16 - 1, max(1, round(share * 2**16)))
        self._streams: dict[str, np.random.Generator | Bits] = {}

    def mask(self, place: str, x_B: Tensor) -> Tensor:
        """Draw a mask for the next windows, in the shape and type of x: 0 or 1 / (1 - share)."""
        rows, each = x_B.shape[0], math.prod(x_B.shape[1:])
        stream = self._stream(place)
        if isinstance(stream, Bits):
            return stream.mask(self.dropped, rows, each, x_B.dtype, fused=self.fused).view(x_B.shape)
        draws = -(-each // 4)  # whole draws for each window, so masks do not depend on the micro-batch
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
