"""The batch of each step, a pure function of (seed, step), so that a run's data position is one integer."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bardflow.errors import BardError
from bardflow.model.networks import NOT_CHARGED


class Tokens(Protocol):
    """A sliceable array of token ids."""

    def __len__(self) -> int: ...

    def __getitem__(self, span: slice, /) -> npt.NDArray[np.unsignedinteger]: ...


class TooFewTokens(BardError):
    """A text is too short to train on, or is empty and cannot be scored."""


@dataclass(frozen=True)
class Batch:
    """The inputs and targets of one step, both int64 (B, T); NOT_CHARGED marks targets outside the loss."""

    inputs_BT: Tensor
    targets_BT: Tensor


def with_noise(batch: Batch, share: float, *, vocabulary_size: int, seed: int, step: int) -> Batch:
    """Replace this share of the inputs by uniformly drawn tokens; the targets stay."""
    generator = np.random.Generator(np.random.PCG64([seed, step, *b"input noise"]))
    inputs_BT = batch.inputs_BT.numpy()
    hit = generator.random(inputs_BT.shape) < share
    drawn = generator.integers(0, vocabulary_size, inputs_BT.shape)
    return Batch(torch.from_numpy(np.where(hit, drawn, inputs_BT)), batch.targets_BT)


class Batches:
    """The batches of a run. Each epoch cuts the tokens into windows at a random offset and puts them in random order.

    Offset and order depend only on (seed, epoch). Each token except the first is a target exactly once per epoch. The
    first and last window may be shorter; they are filled with tokens whose targets are not charged.
    """

    def __init__(self, tokens: Tokens, *, context: int, batch: int, seed: int) -> None:
        if len(tokens) <= context:
            raise TooFewTokens(
                f"the training set has {len(tokens):,} tokens, but a window of context {context} needs "
                f"{context + 1:,}; give a smaller context or a longer text"
            )
        self.tokens, self.context, self.batch, self.seed = tokens, context, batch, seed
        self._epoch = self._draw(0, 0)

    def at(self, step: int) -> Batch:
        """Return the batch of a step (0, 1, 2, …)."""
        inputs = np.empty((self.batch, self.context), np.int64)
        targets = np.full((self.batch, self.context), NOT_CHARGED, np.int64)
        for row, (start, first, stop) in enumerate(self._windows(step)):
            window = self.tokens[start : start + self.context + 1]
            inputs[row] = window[:-1]
            targets[row, first - start - 1 : stop - start - 1] = window[first - start : stop - start]
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))

    def _windows(self, step: int) -> Iterator[tuple[int, int, int]]:
        """Yield, for each row of a step, the window's start and the span [first, stop) of tokens that are charged."""
        for position in range(step * self.batch, (step + 1) * self.batch):
            epoch = self._epoch_of(position)
            k = int(epoch.order[position - epoch.begins])
            first = 1 if k == 0 else 1 + epoch.offset + (k - 1) * self.context
            stop = min(1 + epoch.offset + k * self.context, len(self.tokens))
            start = min(max(0, first - 1), len(self.tokens) - 1 - self.context)
            yield start, first, stop

    def _epoch_of(self, position: int) -> "_Epoch":
        """The epoch of a run's window. Drawing the epochs before it takes 15 ns per window."""
        if position < self._epoch.begins:
            self._epoch = self._draw(0, 0)
        while position >= self._epoch.ends:
            self._epoch = self._draw(self._epoch.number + 1, self._epoch.ends)
        return self._epoch

    def _draw(self, number: int, begins: int) -> "_Epoch":
        generator = np.random.Generator(np.random.PCG64([self.seed, number]))
        offset = int(generator.integers(1, self.context + 1))
        others = max(0, math.ceil((len(self.tokens) - 1 - offset) / self.context))
        return _Epoch(number, begins, offset, generator.permutation(1 + others))


@dataclass(frozen=True)
class _Epoch:
    """An epoch: its first window's number in the run, the length of the text's first window, and the windows' order."""

    number: int
    begins: int
    offset: int
    order: npt.NDArray[np.int64]

    @property
    def ends(self) -> int:
        return self.begins + len(self.order)
