"""Sections of reports: sentences, charts, tables and quotations under a heading, as HTML or Markdown."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from bardflow.pages import wording

Count = Annotated[int, Field(ge=0)]
Cell = str | int | float | None


class PageModel(BaseModel):
    """Base class of values on pages: frozen, no unknown fields, no NaN and no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Line(PageModel):
    """A line or a set of points with optional labels."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    labels: tuple[str, ...] = ()
    style: Literal["points", "line", "both"] = "both"


class Chart(PageModel):
    """A chart of lines; `marked` is a labelled value of x."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    log_x: bool = False
    marked: tuple[float, str] | None = None


class Table(PageModel):
    """A table; the first column names the row, `best` is the index of a highlighted row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    best: int | None = None
    note: str = ""


class Part(PageModel):
    """A section: sentences, charts, tables, and quotations in a language (a BCP 47 tag)."""

    title: str
    findings: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    quotes: tuple[str, ...] = ()
    language: str = "und"


def charts_of(parts: Sequence[Part]) -> list[list[tuple[str, str]]]:
    """Each part's charts as SVG, in a wide and a narrow version."""
    from bardflow.pages.line_chart import line_chart  # matplotlib takes 0.6 s to import

    return [
        [
            (
                line_chart(chart, name=f"chart-{i}-{j}-wide", width=840),
                line_chart(chart, name=f"chart-{i}-{j}-narrow", width=350),
            )
            for j, chart in enumerate(part.charts)
        ]
        for i, part in enumerate(parts)
    ]


def markdown_of(parts: Sequence[Part]) -> list[str]:
    """The parts' sentences and tables as blocks of Markdown."""
    cell = wording.markdown_cell
    blocks = []
    for part in parts:
        blocks.append(f"## {cell(part.title)}")
        blocks += [cell(said) for said in part.findings]
        for table in part.tables:
            if table.title != part.title:
                blocks.append(f"### {cell(table.title)}")
            rows = [[cell(shown(value)) for value in row] for row in table.rows]
            blocks.append(markdown_table([cell(name) for name in table.columns], rows))
    return blocks


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is aligned to the left, the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(value: Cell) -> str:
    """A cell as text: grouped counts, and numbers with four significant digits."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return wording.grouped(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.4g}"
