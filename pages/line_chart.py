"""Line charts as inline SVGs."""

import unicodedata
from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from bardflow.pages.drawing import BAD, BAR, GOOD, GRID, PAPER, TEXT, TRAIN, VALIDATION, inline_svg, plain_axes
from bardflow.pages.parts import Chart, Line

INKS = (VALIDATION, BAD, GOOD, TRAIN, TEXT, BAR)


def line_chart(chart: Chart, *, name: str, width: float) -> str:
    """The chart as an SVG, `width` CSS pixels wide; `name` is the prefix of all ids."""
    points = "; ".join(f"{line.name}: {len(line.x)} points" for line in chart.lines)
    return inline_svg(
        partial(_drawn, chart, width),
        name=name,
        title=chart.title,
        description=f"{chart.y_label} against {chart.x_label}. {points}.",
    )


def _drawn(chart: Chart, width: float) -> Figure:
    figure = Figure(figsize=(width / 72, (140 + 0.3 * width) / 72), dpi=72, layout="constrained")
    axes = figure.add_subplot()
    for line, ink in zip(chart.lines, _inks(len(chart.lines)), strict=True):
        axes.plot(
            line.x,
            line.y,
            color=ink,
            linewidth=0 if line.style == "points" else 1.6,
            linestyle=(0, (4, 3)) if line.style == "line" else "-",
            marker="" if line.style == "line" else "o",
            markersize=5,
            label=line.name,
        )
    axes.margins(x=0.08, y=0.14)
    if chart.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(_log_ticks(*axes.get_xlim(), most=round(width / 75))))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    if chart.marked is not None:
        axes.axvline(chart.marked[0], color=TEXT, linewidth=0.8, linestyle=(0, (3, 3)))
        axes.annotate(
            chart.marked[1], (chart.marked[0], 1), xycoords=("data", "axes fraction"), xytext=(5, -12),
            textcoords="offset points", color=TEXT,
        )  # fmt: skip
    axes.set_xlabel(chart.x_label, labelpad=8)
    axes.set_ylabel(chart.y_label, labelpad=8)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    plain_axes(axes)
    # No legend if the points are labelled with the names of the lines.
    names = all(line.labels == (line.name,) for line in chart.lines)
    if len(chart.lines) > 1 and not names:
        axes.legend(
            frameon=False,
            labelcolor=TEXT,
            facecolor=PAPER,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=2 if width > 500 else 1,
            borderaxespad=0,
        )
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the labels are placed in the final layout
    _label_points(axes, chart.lines, all_of_them=names)
    return figure


def _log_ticks(low: float, high: float, *, most: int) -> list[float]:
    """Return at most `most` round numbers between two limits."""
    ticks: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), range(1, 10)):
        denser = [float(x) for x in LogLocator(subs=[*digits]).tick_values(low, high) if low <= x <= high]
        if len(denser) > most:
            break
        ticks = denser
    return ticks


def _label_points(axes: Axes, lines: Sequence[Line], *, all_of_them: bool) -> None:
    """Place each point's label where it overlaps nothing, and leave out labels without room.

    With `all_of_them`, no label is left out: it may be further away, with a line to the point.
    """
    sides = [(6, 5, "left"), (6, -14, "left"), (-6, -14, "right"), (-6, 5, "right")]
    if all_of_them:
        rows = (18, -27, *range(31, 150, 13))
        sides += [(right, above, side) for above in rows for right, side in ((6, "left"), (-6, "right"))]
    frame = axes.get_window_extent()
    points = [
        (label, x, y, *axes.transData.transform((x, y)))
        for line in lines
        if line.style != "line"
        for label, x, y in zip(line.labels or [""] * len(line.x), line.x, line.y, strict=True)
    ]
    boxes = [(across - 3, up - 3, across + 3, up + 3) for *_, across, up in points]
    for label, x, y, across, up in points:
        long = sum(12 if unicodedata.east_asian_width(character) in "WF" else 7 for character in label)
        free = []
        for right, above, side in sides:
            left = across + right - (long if side == "right" else 0)
            box = (left, up + above - 2, left + long, up + above + 11)
            inside = frame.x0 <= left and left + long <= frame.x1 + 3 and frame.y0 <= box[1]
            if inside and not any(_overlap(box, other) for other in boxes):
                free.append((box, right, above, side))
        if label and (free or all_of_them):
            boxes += [box for box, *_ in free[:1]]
            right, above, side = free[0][1:] if free else sides[0]
            thread = {"arrowstyle": "-", "color": TEXT, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3}
            far = thread if above not in (5, -14) else None
            axes.annotate(
                label, (x, y), xytext=(right, above), textcoords="offset points", ha=side, color=TEXT, arrowprops=far
            )


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _inks(count: int) -> Sequence[str]:
    return [INKS[i % len(INKS)] for i in range(count)]


def _tick(value: float, _place: int | None) -> str:
    """Format a number, such as `1.2M`, `30k` or `0.5`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
