"""Loss against size: a power law through measured points, and where more no longer pays."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Past the knee, twice the cost brings less than this share fewer bits.
WORTH = 0.01


class Fit(NamedTuple):
    """floor + amplitude / n^exponent: Kaplan et al.'s (2020) form with Hoffmann et al.'s (2022) irreducible term."""

    floor: float
    amplitude: float
    exponent: float

    def at(self, size: float) -> float:
        """The loss that it foresees."""
        return float(self.floor + self.amplitude * size**-self.exponent)


def fit(sizes: Sequence[float], losses: Sequence[float]) -> Fit | None:
    """The power law nearest to the points in squares; None where there are fewer than four, or they do not fall.

    For a given floor the rest is a straight line in logarithms, so only the floor is searched, on a grid.
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
    """The size and the cost from which on the fit promises less than WORTH for twice the cost; None within 1,000 times.

    Costs go on as a power of the size, as over the last four points.
    """
    power, offset = np.polyfit(np.log(sizes[-4:]), np.log(costs[-4:]), 1)
    size = sizes[-1]
    while size < 1000 * sizes[-1]:
        if 1 - fitted.at(size * 2 ** (1 / power)) / fitted.at(size) < WORTH:
            return float(size), float(np.exp(offset) * size**power)
        size *= 1.02
    return None


def knee(costs: Sequence[float], losses: Sequence[float]) -> int:
    """The cheapest point after which no point brings WORTH fewer bits for each doubling of the cost.

    So it must hold for all later points, not only the next: a single unlucky rung ends nothing.
    """
    order = sorted(range(len(costs)), key=lambda i: costs[i])
    for place, i in enumerate(order):
        worth = [
            (1 - losses[j] / losses[i]) >= WORTH * max(np.log2(costs[j] / costs[i]), 1e-9) for j in order[place + 1 :]
        ]
        if not any(worth):
            return i
    raise ValueError("there are no points; give at least one")
