"""Loss against model size: a power law fitted to measured points, and the knee."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# After the knee, twice the cost lowers the bits by less than this share.
WORTH = 0.01


class Fit(NamedTuple):
    """The power law floor + amplitude / n^exponent: Kaplan et al. (2020), with Hoffmann et al.'s (2022) floor."""

    floor: float
    amplitude: float
    exponent: float

    def at(self, size: float) -> float:
        """Return the predicted loss at a size."""
        return float(self.floor + self.amplitude * size**-self.exponent)


def fit(sizes: Sequence[float], losses: Sequence[float]) -> Fit | None:
    """Fit the power law by least squares; None if there are fewer than four points or the losses do not fall.

    For a given floor the law is a straight line in logarithms, so only the floor is searched, on a grid.
    """
    n, y = np.log(np.asarray(sizes, float)), np.asarray(losses, float)
    if len(n) < 4 or y.min() <= 0 or np.corrcoef(n, y)[0, 1] >= 0:
        return None
    found: list[tuple[float, Fit]] = []
    span = y.max() - y.min()
    for below in np.geomspace(1e-3 * span, max(y.min(), 2e-3 * span), 600):
        floor = max(0.0, float(y.min() - below))
        slope, offset = np.polyfit(n, np.log(y - floor), 1)
        if slope >= 0:
            continue
        candidate = Fit(floor, float(np.exp(offset)), float(-slope))
        error = float(np.square(np.array([candidate.at(size) for size in sizes]) - y).sum())
        found.append((error, candidate))
    return min(found)[1] if found else None


def foreseen_knee(fitted: Fit, sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float] | None:
    """Predict the size and cost at the knee: there, the fit gains less than WORTH for twice the cost.

    None if the knee is not below 1,000 times the last size. The cost is a power of the size, fitted to the last four
    points.
    """
    power, offset = np.polyfit(np.log(sizes[-4:]), np.log(costs[-4:]), 1)
    size = sizes[-1]
    while size < 1000 * sizes[-1]:
        if 1 - fitted.at(size * 2 ** (1 / power)) / fitted.at(size) < WORTH:
            return float(size), float(np.exp(offset) * size**power)
        size *= 1.02
    return None


def knee(costs: Sequence[float], losses: Sequence[float]) -> int:
    """Return the index of the cheapest point after which no point gains WORTH for each doubling of the cost.

    All later points are checked, not only the next: one unlucky model size does not end the ladder.

    Raises:
        ValueError: there are no points.
    """
    order = sorted(range(len(costs)), key=lambda i: costs[i])
    for place, i in enumerate(order):
        worth = [
            (1 - losses[j] / losses[i]) >= WORTH * max(np.log2(costs[j] / costs[i]), 1e-9) for j in order[place + 1 :]
        ]
        if not any(worth):
            return i
    raise ValueError("there are no points; give at least one")
