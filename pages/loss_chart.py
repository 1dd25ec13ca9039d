"""The loss curve as an inline SVG."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import partial
from operator import mul
from statistics import fmean
from typing import NamedTuple, Self

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, ScalarFormatter

from bardflow.pages.drawing import GRID, PAPER, TEXT, TRAIN, VALIDATION, inline_svg

# About one point for each pixel of a narrow chart. 5,000 points would take 200 KB.
MOST_POINTS = 400


class Series(NamedTuple):
    """One line of the chart: training steps and losses in nats per token."""

    steps: Sequence[float]
    nats: Sequence[float]

    @classmethod
    def of(cls, points: Iterable[tuple[int, float | None]]) -> Self:
        """The points with a loss."""
        known = [(step, nats) for step, nats in points if nats is not None]
        return cls([step for step, _ in known], [nats for _, nats in known])


class Times(NamedTuple):
    """Training time in seconds at training steps, both in ascending order."""

    steps: Sequence[float]
    seconds: Sequence[float]


def thinned(series: Series) -> tuple[Series, int]:
    """The series averaged in blocks to at most `MOST_POINTS` points, and the size of a block."""
    block = max(1, math.ceil(len(series.steps) / MOST_POINTS))
    starts = range(0, len(series.steps), block)
    steps, nats = ([fmean(line[start : start + block]) for start in starts] for line in series)
    return Series(steps, nats), block


def loss_chart(
    train: Series, validation: Series, times: Times, best_step: int, bits_per_nat: float, *, name: str, width: float
) -> str:
    """Draw both losses against step (below) and time (above), in nats (left) and bits per character (right).

    `width` is in CSS pixels, `bits_per_nat` converts nats per token to bits per character, and `name` is the prefix of
    all ids. Text is about 12 px high at any width.
    """
    return inline_svg(
        partial(_drawn, train, validation, times, best_step, bits_per_nat, width),
        name=name,
        title="Loss against training step and time",
        description=_description(train, validation, best_step),
    )


def _drawn(
    train: Series, validation: Series, times: Times, best_step: int, bits_per_nat: float, width: float
) -> Figure:
    # 72 units in an inch, one for each CSS pixel.
    height = 120 + 0.3 * width
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_subplot()
    ticks = max(3, int(width // 110))

    axes.plot(*train, color=TRAIN, linewidth=1.2)
    few = len(validation.steps) <= 40
    axes.plot(*validation, color=VALIDATION, linewidth=1.8, marker="o" if few else "", markersize=3)
    if best_step in validation.steps:
        best = validation.nats[list(validation.steps).index(best_step)]
        axes.axvline(best_step, color=VALIDATION, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.scatter([best_step], [best], s=70, color=PAPER, edgecolor=VALIDATION, linewidth=2, zorder=5)

    last = max([1.0, *train.steps, *validation.steps])
    axes.set_xlim(0, last)
    axes.margins(y=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("training step", labelpad=8)
    axes.set_ylabel("nats per token", labelpad=8)
    axes.grid(axis="y", color=GRID, linewidth=0.8)

    bits = axes.secondary_yaxis("right", functions=(partial(mul, bits_per_nat), partial(mul, 1 / bits_per_nat)))
    bits.yaxis.set_major_locator(MaxNLocator(6))
    bits.set_ylabel("bits per character", labelpad=8)

    clock = axes.secondary_xaxis("top")
    marks, labels, unit = _time_ticks(times, ticks)
    clock.set_xticks(marks, labels)
    clock.set_xlabel(f"training time ({unit})", labelpad=9)

    for edge in (axes, bits, clock):
        # More padding for the time axis: its last label would touch the first label of the right axis.
        edge.tick_params(length=0, colors=TEXT, pad=10 if edge is clock else 5)
        edge.xaxis.label.set_color(TEXT)
        edge.yaxis.label.set_color(TEXT)
        for spine in edge.spines.values():
            spine.set_visible(False)
    axes.spines["bottom"].set_visible(True)
    axes.spines["bottom"].set_color(GRID)
    # matplotlib's own layout draws everything once more to measure it, which takes two fifths of the time.
    low, high = axes.get_ylim()
    figure.subplots_adjust(
        left=_room(low, high) / width,
        right=1 - _room(low * bits_per_nat, high * bits_per_nat) / width,
        bottom=42 / height,
        top=1 - 50 / height,
    )
    return figure


def _room(low: float, high: float) -> float:
    """The pixels that the labels beside an axis with these limits need: an axis label and numbers of 12 px."""
    formatter = ScalarFormatter()
    formatter.create_dummy_axis()
    assert formatter.axis is not None
    formatter.axis.set_view_interval(low, high)
    numbers = formatter.format_ticks(list(MaxNLocator(6).tick_values(low, high)))
    return 28 + 7.7 * max(map(len, numbers))


def _time_ticks(times: Times, most: int) -> tuple[list[float], list[str], str]:
    """Return the steps at round times, the labels of these times, and their unit; steps are interpolated linearly."""
    total = max(times.seconds, default=0.0)
    length, unit = (1.0, "s") if total < 180 else (60.0, "min") if total < 10_800 else (3600.0, "h")
    places: list[float] = []
    labels: list[str] = []
    if total == 0:
        return places, labels, unit
    for time in MaxNLocator(most).tick_values(0, total / length):
        if not 0 <= time <= total / length:
            continue
        place = _step_at(time * length, times)
        # If the first steps are slow, their labels would overlap.
        if not places or place - places[-1] >= 0.5 * times.steps[-1] / most:
            places.append(place)
            labels.append(f"{time:g}")
    return places, labels, unit


def _step_at(seconds: float, times: Times) -> float:
    """The step after this many seconds, interpolated linearly."""
    clock, steps = [0.0, *times.seconds], [0.0, *times.steps]
    after = bisect_left(clock, seconds)
    if after == 0:
        return 0.0
    share = (seconds - clock[after - 1]) / (clock[after] - clock[after - 1])
    return steps[after - 1] + share * (steps[after] - steps[after - 1])


def _description(train: Series, validation: Series, best_step: int) -> str:
    parts = [
        f"{label} loss from {series.nats[0]:.2f} to {series.nats[-1]:.2f} nats per token, step {series.steps[-1]:,.0f}"
        for label, series in (("training", train), ("validation", validation))
        if series.steps
    ]
    if best_step in validation.steps:
        parts.append(f"lowest validation loss at step {best_step:,}")
    return "; ".join(parts).capitalize() + "."
