"""The index page: corpora, champions over time, models, experiments and schedules."""

from typing import Annotated

from pydantic import AwareDatetime, Field

from bardflow.pages.parts import Count, PageModel
from bardflow.pages.run import Bits
from bardflow.pages.template import fill


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
    from bardflow.pages.champions_chart import champions_chart  # matplotlib takes 0.6 s to import

    drawn = {
        board.corpus: (
            champions_chart(board.title, board.reigns, name=f"reigns-{i}-wide", width=840),
            champions_chart(board.title, board.reigns, name=f"reigns-{i}-narrow", width=350),
        )
        for i, board in enumerate(page.boards)
        if sum(reign.bits_per_character is not None for reign in board.reigns) > 1
    }
    return fill("index.html", page=page, drawn=drawn)
