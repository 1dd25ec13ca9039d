"""The report of an experiment: a question, the answer, charts and tables."""

from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, Field

from bardflow.pages import wording
from bardflow.pages.parts import PageModel, Part, charts_of, markdown_of, shown
from bardflow.pages.template import fill


class ExperimentPage(PageModel):
    """The values of an experiment's report."""

    experiment: str
    title: str
    question: str
    created: AwareDatetime
    answer: tuple[str, ...]
    parts: tuple[Part, ...]
    settings: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    lineage: tuple[Annotated[str, Field(min_length=1)], ...] = ()


def render(page: ExperimentPage) -> str:
    """One self-contained HTML document."""
    return fill("experiment.html", page=page, charts=charts_of(page.parts), shown=shown)


def markdown(page: ExperimentPage, report: Path, link: str) -> str:
    """The answer and the tables as Markdown for Prefect's UI, with a link to the HTML report."""
    cell = wording.markdown_cell
    answers = "\n".join(f"- {cell(said)}" for said in page.answer)
    blocks = [f"# {cell(page.title)}", answers, wording.full_report(report, link), *markdown_of(page.parts)]
    return "\n\n".join(blocks) + "\n"
