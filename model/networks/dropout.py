"""Dropout with masks that depend only on (seed, step, place, window), not on the micro-batches of a step."""

import math

import numpy as np
import torch
from torch import Tensor

from bardflow.model.networks.bits import Bits, draws_of


class Dropout:
    """The masks of one step. Each place in the model has its own random stream, from which windows draw in order.

    If `step` is a number, the CPU draws from NumPy's SFC64, four elements per draw; torch's generator needs one draw
    per element, on one core. If it is a tensor, its device draws (`bits.py`). In both cases `share` is rounded to a
    multiple of 1 / 65,536 from 1 up, and the scale fits the rounded share, which may be a tensor on the device of
    `step`. `fused` draws with `torch.compile`. `first` is the row of the batch at which the windows begin: they get the
    masks that they have where one process draws for all.
    """

    def __init__(
        self, share: float | Tensor, *, seed: int, step: int | Tensor, fused: bool = False, first: int = 0
    ) -> None:
        self.seed, self.step, self.fused, self.first = seed, step, fused, first
        self.dropped: int | Tensor
        if isinstance(share, Tensor):
            self.dropped = (share * 2**16).round().clamp(1, 2**16 - 1).to(torch.int32)
        else:
            self.dropped = min(2**16 - 1, max(1, round(share * 2**16)))
        self._streams: dict[str, np.random.Generator | Bits] = {}

    def mask(self, place: str, x_B: Tensor) -> Tensor:
        """Draw a mask for the next windows, in the shape and type of x: 0 or 1 / (1 - share)."""
        rows, each = x_B.shape[0], math.prod(x_B.shape[1:])
        stream = self._stream(place, each)
        if isinstance(stream, Bits):
            return stream.mask(self.dropped, rows, each, x_B.dtype, fused=self.fused).view(x_B.shape)
        assert isinstance(self.dropped, int)
        # Whole draws for each window, so masks do not depend on the micro-batch.
        bits = stream.integers(0, 2**64, (rows, draws_of(each)), np.uint64).view(np.uint16)
        kept = torch.from_numpy(bits[:, :each] >= self.dropped).view(x_B.shape)
        # Integers with the scale's bits: in bf16 on a CPU, less than half the time of its own type and multiplication.
        scale = torch.tensor(2**16 / (2**16 - self.dropped), dtype=x_B.dtype)
        as_integer = torch.int16 if x_B.element_size() == 2 else torch.int32
        return kept.to(as_integer).mul_(scale.view(as_integer)).view(x_B.dtype)

    def _stream(self, place: str, each: int) -> np.random.Generator | Bits:
        """Return the stream of a place, after the draws of the rows before `first`."""
        if place not in self._streams:
            if isinstance(self.step, Tensor):
                bits = Bits(self.seed, self.step, place)
                bits.skip(self.first, each)
                self._streams[place] = bits
            else:
                stream = np.random.Generator(np.random.SFC64([self.seed, self.step, *place.encode()]))
                # SFC64 cannot jump, so the draws of other workers' rows are made and dropped, one row at a time.
                for _ in range(self.first):
                    stream.integers(0, 2**64, draws_of(each), np.uint64)
                self._streams[place] = stream
        return self._streams[place]
