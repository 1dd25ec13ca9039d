"""The index page: corpora, champions over time, models, experiments and schedules."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import AwareDatetime, Field

from bardflow.pages.parts import Count, PageModel
from bardflow.pages.run import Bits
from bardflow.pages.template import fill

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Standing(PageModel):
    """A model of a corpus; `link` is its report's path, `current` means that it was scored on the current text."""

    recipe: str
    changed: tuple[str, ...]
    model: str
    bits_per_character: Bits
    sliding_bits_per_character: Bits | None
    nats_per_token: Bits
    vocabulary: str
    parameters: Count
    train_seconds: Annotated[float, Field(ge=0)]
    when: AwareDatetime
    verdict: str
    link: str
    current: bool
    champion: bool


class Reign(PageModel):
    """A change of the champion: by which run or person, when and why."""

    number: Count
    when: AwareDatetime
    by: str
    why: str
    model: str
    recipe: str
    bits_per_character: Bits | None
    link: str | None


class Board(PageModel):
    """A corpus with its champions and its models, best first; `problems` are errors of its artifacts."""

    corpus: str
    title: str
    language: str | None = None
    licence: str | None = None
    characters: Count | None = None
    news: str
    reigns: tuple[Reign, ...] = ()
    standings: tuple[Standing, ...] = ()
    problems: tuple[str, ...] = ()


class ExperimentLink(PageModel):
    """An experiment's last report."""

    name: str
    title: str
    answer: tuple[str, ...]
    when: AwareDatetime
    link: str


class Scheduled(PageModel):
    """A deployment and its schedules."""

    deployment: str
    description: str
    when: tuple[str, ...]


class IndexPage(PageModel):
    """The values of the index page; `problems` are errors of experiments and schedules."""

    created: AwareDatetime
    boards: tuple[Board, ...]
    experiments: tuple[ExperimentLink, ...]
    schedule: tuple[Scheduled, ...]
    problems: tuple[str, ...] = ()


def render(page: IndexPage) -> str:
    """One self-contained HTML document with links to files in the home."""
    drawn = {
        board.corpus: (
            _reigns_chart(board, name=f"reigns-{i}-wide", width=840),
            _reigns_chart(board, name=f"reigns-{i}-narrow", width=350),
        )
        for i, board in enumerate(page.boards)
        if sum(reign.bits_per_character is not None for reign in board.reigns) > 1
    }
    return fill("index.html", page=page, drawn=drawn)


def _reigns_chart(board: Board, *, name: str, width: float) -> str:
    from bardflow.pages.drawing import inline_svg  # matplotlib takes 0.6 s to import

    return inline_svg(
        partial(_drawn, board, width),
        name=name,
        title=f"Champions of {board.title} over time",
        description=f"Bits per character of {len(board.reigns)} champions, from the first to the one of today.",
    )


def _drawn(board: Board, width: float) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter

    from bardflow.pages.drawing import GRID, PAPER, VALIDATION, plain_axes

    figure = Figure(figsize=(width / 72, (90 + 0.2 * width) / 72), layout="constrained")
    axes = figure.add_subplot()
    # The x axis is the order, not the time: three champions within an hour would overlap.
    scored = [(i, r.bits_per_character) for i, r in enumerate(board.reigns) if r.bits_per_character is not None]
    places, bits = [i for i, _ in scored], [b for _, b in scored]
    axes.step(places, bits, where="post", color=VALIDATION, linewidth=1.6)
    axes.scatter(places, bits, s=40, color=PAPER, edgecolor=VALIDATION, linewidth=2, zorder=5)
    axes.xaxis.set_major_locator(FixedLocator(places[:: -(-len(places) // max(2, int(width // 170)))]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{board.reigns[int(place)].when:%d %b %H:%M}"))
    axes.set_ylabel("bits per character", labelpad=8)
    axes.margins(x=0.05, y=0.2)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    plain_axes(axes)
    return figure
