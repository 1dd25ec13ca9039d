"""The report of a training run: its values, and their HTML and Markdown."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AwareDatetime, Field, model_validator

from bardflow.pages import wording
from bardflow.pages.parts import Count, PageModel, Part, charts_of, markdown_of, markdown_table, shown
from bardflow.pages.template import fill

Seconds = Annotated[float, Field(ge=0)]
Bits = Annotated[float, Field(ge=0)]


class CleanedStep(PageModel):
    """The counts of a cleaning step."""

    step: str
    lines_removed: Count
    characters_removed: Count
    characters_added: Count


class CorpusFacts(PageModel):
    """The corpus: `language` is a BCP 47 tag (`en`, `zh-Hant`), `sha256` is that of the source's bytes.

    A mixture of corpora has no address and no sha256 of its own. `unseen_distinct` and `unseen_occurrences` count the
    characters that occur only in the validation set. `format` is that of its files: `text` (also for rows), `html`,
    `markdown` or `epub`. `rows` counts the rows of its files, with those that have no value and are left out; None if
    the corpus has no rows. `validation_of` is the length of a long validation set of which stretches were kept, and
    None if all was kept.
    """

    name: str
    title: str
    language: str
    licence: str
    address: str | None
    sha256: str | None
    characters: Count
    bytes_utf8: Count
    distinct: Count
    documents: Count
    train_characters: Count
    validation_characters: Count
    unseen_distinct: Count
    unseen_occurrences: Count
    cleaned: tuple[CleanedStep, ...] = ()
    format: str = "text"
    rows: Count | None = None
    rows_without_value: Count | None = None
    validation_of: Count | None = None


class VocabularyFacts(PageModel):
    """The vocabulary: its kind (`char`, `bpe`), number of tokens, and mean length of a token on the validation set."""

    kind: str
    size: Annotated[int, Field(ge=1)]
    characters_per_token: Annotated[float, Field(gt=0)]


class ModelFacts(PageModel):
    """The network: its shape, its numbers of parameters, and the model that the training began from."""

    architecture: str
    parameters: Count
    embedding_parameters: Count
    layers: Count
    heads: Count
    width: Count
    context: Count
    base: str | None = None


class Scores(PageModel):
    """The loss over the whole validation set, and its tokens, characters and UTF-8 bytes.

    The first three are for disjoint windows, `sliding_bits_per_character` for overlapping windows in which every token
    sees at least half a context. `compressed_bytes` is the size of the compression proof, or None without one. Both are
    None in older reports. `bf16_error_bits` bounds the error per character of scores that were computed in bf16.
    """

    nats_per_token: Bits
    bits_per_character: Bits
    bits_per_byte: Bits
    sliding_bits_per_character: Bits | None = None
    compressed_bytes: Count | None = None
    tokens: Count
    characters: Count
    bytes_utf8: Count
    bf16_error_bits: Bits | None = Field(default=None, exclude_if=lambda error: error is None)


class Baseline(PageModel):
    """A baseline. Those of kind `compressor` and `statistical` were measured on this run's validation set.

    `interval` is the confidence interval of this run's bits per character minus the baseline's, if it is known.
    """

    name: str
    kind: Literal["statistical", "compressor", "published"]
    bits_per_character: Bits
    note: str = ""
    interval: tuple[float, float] | None = Field(default=None, exclude_if=lambda interval: interval is None)


class Verdict(PageModel):
    """Whether this run's model became champion, why, and the champion it was compared with.

    `interval` is the confidence interval of this run's bits per character minus the rival's.
    """

    moved: bool
    reason: str
    rival: str | None = None
    rival_bits_per_character: Bits | None = None
    interval: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _a_rival_has_a_score(self) -> Self:
        if (self.rival is None) != (self.rival_bits_per_character is None):
            raise ValueError(
                f"rival is {self.rival!r} and its score {self.rival_bits_per_character!r}: give both, or neither"
            )
        return self


class CurvePoint(PageModel):
    """Losses in nats per token after `step` optimizer steps and `seconds` of training; None if not measured."""

    step: Count
    seconds: Seconds
    train_nats: Bits | None = None
    validation_nats: Bits | None = None
    learning_rate: Annotated[float, Field(ge=0)]


class Sample(PageModel):
    """A text that was generated after `prompt`, in row `row` of the batch with this seed."""

    prompt: str
    text: str
    temperature: Annotated[float, Field(ge=0)]
    seed: int
    row: Count = 0


class Alternative(PageModel):
    """A probable token and its probability."""

    text: str
    share: Annotated[float, Field(ge=0, le=1)]


class Surprise(PageModel):
    """A piece of the validation set, the bits that it costs, and the most probable tokens at its start."""

    text: str
    bits: Bits
    likeliest: tuple[Alternative, ...] = ()


class Cost(PageModel):
    """The cost of training; `peak_bytes` is the peak memory of the process, or of the GPU if there is one.

    `peak_of` is `leg` for the peak of a training leg, or `process` on systems that measure only the whole process.
    `planned_peak_bytes` is the planned peak, or None in older reports.
    """

    train_seconds: Seconds
    tokens_per_second: Annotated[float, Field(ge=0)]
    peak_bytes: Count
    peak_of: Literal["leg", "process"] = "process"
    planned_peak_bytes: Count | None = None
    device: str
    precision: str
    threads: Count
    software: dict[str, str]


class LineageStep(PageModel):
    """An artifact of the lineage: its kind and digest, the task that made it, and the time.

    `inputs` are the digests of its inputs.
    """

    kind: str
    digest: str
    made_by: str
    when: AwareDatetime
    detail: str = ""
    inputs: tuple[str, ...] = ()


class RunPage(PageModel):
    """The values of a run's report. Equal values give equal HTML."""

    title: str
    created: AwareDatetime
    corpus: CorpusFacts
    recipe: str
    settings: dict[str, str | int | float | bool | None]
    overrides: tuple[str, ...] = ()
    vocabulary: VocabularyFacts
    model: ModelFacts
    scores: Scores
    baselines: tuple[Baseline, ...]
    verdict: Verdict
    curve: tuple[CurvePoint, ...]
    best_step: Count
    stopped_early: bool
    samples: tuple[Sample, ...]
    rival_samples: tuple[Sample, ...] = ()
    surprises: tuple[Surprise, ...] = ()
    parts: tuple[Part, ...] = ()
    cost: Cost
    lineage: tuple[LineageStep, ...]

    @model_validator(mode="before")
    @classmethod
    def _version_0_1(cls, values: Any) -> Any:
        # Version 0.1 had a field `memorised`, which is a part now. Parts are computed from the evaluation.
        return (
            {name: value for name, value in values.items() if name != "memorised"}
            if isinstance(values, dict)
            else values
        )

    @model_validator(mode="after")
    def _overrides_are_settings(self) -> Self:
        if strange := sorted(set(self.overrides) - self.settings.keys()):
            raise ValueError(f"overrides name {strange}, which settings lack; settings has {sorted(self.settings)}")
        return self

    @model_validator(mode="after")
    def _the_curve_runs_forward_and_holds_its_best_step(self) -> Self:
        for before, after in pairwise(self.curve):
            if after.step < before.step or after.seconds < before.seconds:
                raise ValueError(
                    f"the curve goes back, from step {before.step} at {before.seconds} s to step {after.step} at "
                    f"{after.seconds} s; give the points in order, with seconds added up over the legs"
                )
        scored = {point.step for point in self.curve if point.validation_nats is not None}
        if scored and self.best_step not in scored:
            raise ValueError(f"best_step is {self.best_step}, but validation losses are given at {sorted(scored)} only")
        return self


def render(page: RunPage) -> str:
    """One self-contained HTML document, readable without a network and scripts."""
    return fill(
        "run.html",
        page=page,
        remarks=_remarks(page),
        rows=_score_rows(page),
        curve=_curve_view(page),
        planned=_planned(page.cost),
        lineage=_lineage_views(page),
        charts=charts_of(page.parts),
        shown=shown,
        tasks=list(dict.fromkeys(step.made_by for step in page.lineage)),
    )


def markdown(page: RunPage, report: Path, link: str) -> str:
    """The scores as Markdown tables for Prefect's UI, with a link to the HTML report."""
    cell, scores, verdict = wording.markdown_cell, page.scores, page.verdict
    measures = [
        ("bits per character", wording.score(scores.bits_per_character)),
        ("nats per token", wording.score(scores.nats_per_token)),
        ("bits per byte", wording.score(scores.bits_per_byte)),
        *(
            [("bits per character, overlapping windows", wording.score(scores.sliding_bits_per_character))]
            if scores.sliding_bits_per_character is not None
            else []
        ),
        ("characters scored", wording.grouped(scores.characters)),
        ("tokens scored", wording.grouped(scores.tokens)),
        ("UTF-8 bytes scored", wording.grouped(scores.bytes_utf8)),
        ("parameters", wording.grouped(page.model.parameters)),
        ("training time", wording.span(page.cost.train_seconds)),
        ("peak memory", wording.memory(page.cost.peak_bytes)),
        *(("planned peak memory", text) for text in _planned(page.cost)),
    ]
    rows = [
        (
            f"**{cell(row.name)}**" if row.kind == "this" else cell(row.name),
            wording.score(row.bits_per_character),
            "" if row.kind == "this" else wording.gap(row.gap),
        )
        for row in _score_rows(page)
    ]
    # A list instead of a column, because Prefect's tables do not wrap.
    notes = [f"- {cell(row.name)}: {cell(row.note)}" for row in _score_rows(page) if row.note]
    blocks = [
        f"# {cell(page.title)}",
        f"**{_verdict_name(verdict)}** {cell(verdict.reason)}",
        *(cell(remark.text) for remark in _remarks(page)),
        wording.full_report(report, link),
        "## Score over the whole validation set",
        markdown_table(("measure", "value"), measures),
        "## Beside other ways to predict the same text (bits per character, lower is better)",
        markdown_table(("predictor", "bits per character", "against this model"), rows),
        "\n".join(notes),
        *markdown_of(page.parts),
    ]
    return "\n\n".join(blocks) + "\n"


class _Remark(NamedTuple):
    """A sentence about the score, and whether it is good."""

    good: bool
    text: str


class _ScoreRow(NamedTuple):
    """A bar: bits per character, their difference from this model's, and the length in percent of the longest bar."""

    name: str
    kind: Literal["this", "champion", "statistical", "compressor", "published"]
    bits_per_character: float
    gap: float
    share: float
    note: str


class _CurveView(NamedTuple):
    """The two versions of the loss curve, and the values of its caption."""

    wide: str
    narrow: str
    best: CurvePoint
    averaged: int
    validated: tuple[CurvePoint, ...]


def _remarks(page: RunPage) -> tuple[_Remark, ...]:
    """Sentences about the baselines that the model beats or does not beat. A tie does not count as beating."""
    own = page.scores.bits_per_character
    remarks = []
    for kind, singular in (("compressor", "general-purpose compressor"), ("statistical", "count-based model")):
        rivals = sorted((b for b in page.baselines if b.kind == kind), key=lambda b: b.bits_per_character)
        ahead = [b for b in rivals if b.bits_per_character <= own]
        if ahead:
            figures = _listed([f"{b.name} needs {wording.score(b.bits_per_character)}" for b in ahead])
            text = (
                f"This model does not beat {_listed([b.name for b in ahead])}. It needs {wording.score(own)} bits for "
                f"each character of the validation set; {figures}. A {singular} predicts this text at least as well."
            )
            remarks.append(_Remark(False, text))
        elif rivals:
            best = rivals[0]
            needs, more = wording.score(best.bits_per_character), wording.score(best.bits_per_character - own)
            text = (
                f"This model beats every {singular} measured ({_listed([b.name for b in rivals])}): the best of them, "
                f"{best.name}, needs {needs} bits for each character, {more} more{_surely(best)}."
            )
            remarks.append(_Remark(True, text))
        else:
            remarks.append(_Remark(False, f"No {singular} was measured on this text, so the score stands without one."))
    return (*remarks, *_proof(page.scores))


def _surely(baseline: Baseline) -> str:
    """How sure it is that the model needs fewer bits than the baseline, in brackets; empty if that is not known."""
    if baseline.interval is None:
        return ""
    least, most = (-bits for bits in reversed(baseline.interval))
    if least > 0:
        return f" (with 95 % confidence {wording.score(least)} to {wording.score(most)} more)"
    return " (on a text of this length, that may be chance)"


def _proof(scores: Scores) -> tuple[_Remark, ...]:
    """A sentence on the compression proof, if there is one."""
    if scores.compressed_bytes is None:
        return ()
    took = 8 * scores.compressed_bytes / scores.characters
    off = ""
    if scores.bits_per_character:  # a text of one symbol has 0 bits
        share = 100 * (took / scores.bits_per_character - 1)
        off = f" ({f'{share:+.3f}'.replace('-', wording.MINUS)} % of the score)"
    text = (
        f"The bits are real: with this model a range coder made a file of {wording.grouped(scores.compressed_bytes)} "
        f"bytes of the validation set, {wording.score(took)} bits for each character{off}, and the same bytes were "
        "read back from it."
    )
    return (_Remark(True, text),)


def _score_rows(page: RunPage) -> tuple[_ScoreRow, ...]:
    """This model, the champion and the baselines, best first; on a tie this model comes last."""
    own, verdict = page.scores.bits_per_character, page.verdict
    entries: list[tuple[str, Literal["this", "champion", "statistical", "compressor", "published"], float, str]] = [
        (b.name, b.kind, b.bits_per_character, b.note) for b in page.baselines
    ]
    if verdict.rival is not None and verdict.rival_bits_per_character is not None:
        note = "the champion until this run" if verdict.moved else "the champion"
        entries.append((verdict.rival, "champion", verdict.rival_bits_per_character, note))
    entries.append(("this model", "this", own, f"{page.recipe}, {wording.grouped(page.model.parameters)} parameters"))
    longest = max(bits for _, _, bits, _ in entries) or 1.0
    return tuple(
        _ScoreRow(name, kind, bits, bits - own, round(100 * bits / longest, 2), note)
        for name, kind, bits, note in sorted(entries, key=lambda entry: entry[2])
    )


def _curve_view(page: RunPage) -> _CurveView | None:
    """The loss curve in a wide and a narrow version, or None without validation losses."""
    validated = tuple(point for point in page.curve if point.validation_nats is not None)
    if not validated:
        return None
    from bardflow.pages.loss_chart import Series, Times, loss_chart, thinned  # matplotlib takes 0.6 s to import

    train = Series.of((p.step, p.train_nats) for p in page.curve)
    validation = Series.of((p.step, p.validation_nats) for p in page.curve)
    times = Times([p.step for p in page.curve], [p.seconds for p in page.curve])
    bits_per_nat = 1 / (math.log(2) * page.vocabulary.characters_per_token)
    drawn, averaged = thinned(train)
    wide, narrow = (
        loss_chart(drawn, validation, times, page.best_step, bits_per_nat, name=name, width=width)
        for name, width in (("loss-wide", 840), ("loss-narrow", 350))
    )
    best = next(point for point in validated if point.step == page.best_step)
    return _CurveView(wide, narrow, best, averaged, validated)


def _lineage_views(page: RunPage) -> tuple[str, str] | None:
    """The lineage in a wide and a narrow version, or None if no inputs are known."""
    from bardflow.pages.lineage_drawing import Node, lineage_drawing  # matplotlib takes 0.6 s to import

    nodes = [Node(step.kind, step.digest, step.inputs) for step in page.lineage]
    if not any(node.inputs for node in nodes):
        return None
    return (
        lineage_drawing(nodes, name="lineage-wide", width=840),
        lineage_drawing(nodes, name="lineage-narrow", width=350),
    )


def _planned(cost: Cost) -> tuple[str, ...]:
    """The planned peak memory and its error in percent, if there is a plan."""
    if cost.planned_peak_bytes is None or not cost.peak_bytes:
        return ()
    error = 100 * (cost.planned_peak_bytes / cost.peak_bytes - 1)
    sign = f"{error:+.1f}".replace("-", wording.MINUS)
    whole = " (measured over the whole process)" if cost.peak_of == "process" else ""
    return (f"{wording.memory(cost.planned_peak_bytes)}, {sign} % of the measured{whole}",)


def _verdict_name(verdict: Verdict) -> str:
    return "New champion." if verdict.moved else "The champion stays."


def _listed(names: Sequence[str]) -> str:
    """Join names: `a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
