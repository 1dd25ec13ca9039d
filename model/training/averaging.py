"""An average of the weights over the last steps, which has a lower loss than the weights themselves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

# The name of a parameter's average in a checkpoint, beside those of its optimizer state.
AVERAGE = "average"


class WeightAverage:
    """An exponential moving average (EMA) of parameters by name, in f32 (Polyak & Juditsky 1992).

    While the learning rate is high, each step moves the weights to and fro, and the average is between. `named` has
    the parameters, and `averages` their averages.
    """

    def __init__(self, named: Mapping[str, Tensor], decay: float) -> None:
        self.named, self.decay = named, decay
        self.averages = {name: parameter.detach().clone() for name, parameter in named.items()}

    @torch.no_grad()
    def update(self, step: int | Tensor) -> None:
        """Move each average towards the weights after a step (0, 1, …); `step` is a tensor on a GPU.

        The share of the weights is 9 / (10 + step), and 1 - decay once that is larger, so that the first steps are soon
        forgotten (as in TensorFlow's ExponentialMovingAverage with num_updates).
        """
        averages, weights = [*self.averages.values()], [*self.named.values()]
        if isinstance(step, Tensor):
            share = (9 / (10 + step)).clamp(min=1 - self.decay)
            torch._foreach_lerp_(averages, weights, [share] * len(averages))
        else:
            torch._foreach_lerp_(averages, weights, max(1 - self.decay, 9 / (10 + step)))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Give the parameters their averages, and at the end their weights again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.named.items():
            weights = parameter.clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(weights)
