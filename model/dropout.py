"""Dropout whose masks depend on (seed, step, place, window) alone: not on how a step is cut into micro-batches."""

import math

import numpy as np
import torch
from torch import Tensor


class Dropout:
    """The masks of one step. Each place in the model has a stream of its own, from which windows draw in order.

    On a CPU the bits come from numpy's SFC64, four elements a draw: torch's generator needs one draw an element on one
    core. A share is so rounded to 65,536ths, and what is kept is scaled accordingly. Elsewhere the device draws.
    """

    def __init__(self, share: float, *, seed: int, step: int) -> None:
        self.share, self.seed, self.step = share, seed, step
        self._streams: dict[str, np.random.Generator | torch.Generator] = {}

    def mask(self, place: str, x_B: Tensor) -> Tensor:
        """Zeros where x is dropped and 1 / (1 - share) elsewhere, in x's shape and type, for the next windows."""
        if x_B.device.type != "cpu":
            drawn = torch.rand(x_B.shape, generator=self._device_stream(place, x_B.device), device=x_B.device)
            return (drawn >= self.share).to(x_B.dtype).mul_(1 / (1 - self.share))
        dropped = min(2**16 - 1, max(1, round(self.share * 2**16)))
        each = math.prod(x_B.shape[1:])
        draws = -(-each // 4)  # whole draws a window, so that a stream does not know which windows come together
        bits = self._stream(place).integers(0, 2**64, (x_B.shape[0], draws), np.uint64).view(np.uint16)
        kept = torch.from_numpy(bits[:, :each] >= dropped).view(x_B.shape)
        return kept.to(x_B.dtype).mul_(2**16 / (2**16 - dropped))

    def _seeds(self, place: str) -> list[int]:
        return [self.seed, self.step, *place.encode()]

    def _stream(self, place: str) -> np.random.Generator:
        if place not in self._streams:
            self._streams[place] = np.random.Generator(np.random.SFC64(self._seeds(place)))
        stream = self._streams[place]
        assert isinstance(stream, np.random.Generator)
        return stream

    def _device_stream(self, place: str, device: torch.device) -> torch.Generator:
        if place not in self._streams:
            drawn = np.random.SeedSequence(self._seeds(place)).generate_state(1, np.uint64)
            self._streams[place] = torch.Generator(device).manual_seed(int(drawn[0] >> np.uint64(1)))
        stream = self._streams[place]
        assert isinstance(stream, torch.Generator)
        return stream
