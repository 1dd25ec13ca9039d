"""The chart of a corpus's champions over time."""

from collections.abc import Sequence
from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from bardflow.pages.drawing import GRID, PAPER, VALIDATION, inline_svg, plain_axes
from bardflow.pages.index import Reign


def champions_chart(corpus: str, reigns: Sequence[Reign], *, name: str, width: float) -> str:
    """Bits per character of the champions as an SVG, `width` CSS pixels wide; `name` is the prefix of all ids."""
    return inline_svg(
        partial(_drawn, reigns, width),
        name=name,
        title=f"Champions of {corpus} over time",
        description=f"Bits per character of {len(reigns)} champions, from the first to the one of today.",
    )


def _drawn(reigns: Sequence[Reign], width: float) -> Figure:
    figure = Figure(figsize=(width / 72, (90 + 0.2 * width) / 72), layout="constrained")
    axes = figure.add_subplot()
    # The x axis is the order, not the time: three champions within an hour would overlap.
    scored = [(i, r.bits_per_character) for i, r in enumerate(reigns) if r.bits_per_character is not None]
    places, bits = [i for i, _ in scored], [b for _, b in scored]
    axes.step(places, bits, where="post", color=VALIDATION, linewidth=1.6)
    axes.scatter(places, bits, s=40, color=PAPER, edgecolor=VALIDATION, linewidth=2, zorder=5)
    axes.xaxis.set_major_locator(FixedLocator(places[:: -(-len(places) // max(2, int(width // 170)))]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{reigns[int(place)].when:%d %b %H:%M}"))
    axes.set_ylabel("bits per character", labelpad=8)
    axes.margins(x=0.05, y=0.2)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    plain_axes(axes)
    return figure
