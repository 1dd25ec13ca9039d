"""The report of a training run, made from artifacts."""

import os
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact

from bardflow.errors import BardError, installing
from bardflow.home import REPORTS_SITE, home
from bardflow.pages import run as pages
from bardflow.pages.parts import Part
from bardflow.storage.handles import Baselines, Checkpoint, Corpus, Evaluation, Handle, Model, Report, Source
from bardflow.storage.lineage import Ancestor, handle_of, lineage, source_address
from bardflow.tasks.caching import CACHE_BY_INPUTS
from bardflow.tasks.duplicates import duplicates_section
from bardflow.tasks.evaluation import (
    EvaluationSpec,
    baselines_beside,
    samples_of,
    scores_of,
    surprises_of,
)
from bardflow.tasks.memorised import memorised_section
from bardflow.tasks.mixture import mixture_section
from bardflow.tasks.recipes import Recipe
from bardflow.tasks.run import origin, refs, store
from bardflow.tasks.saying import say
from bardflow.tasks.training import LOG, LogLine, best, validation_losses

PAGE = "page.json"
HTML = "report.html"
METRICS = "metrics.jsonl"
# Additional sections of a report. Each function returns the content, or None if it has nothing to show.
Section = Callable[[Model, Evaluation, Corpus], Part | None]
SECTIONS: tuple[Section, ...] = (mixture_section, memorised_section, duplicates_section)


@task(version="6", cache_policy=CACHE_BY_INPUTS)
def publish_report(
    model: Model,
    evaluation: Evaluation,
    baselines: Baselines,
    corpus: Corpus,
    recipe: Recipe,
    overridden: list[str],
    verdict: pages.Verdict,
    legs: list[Checkpoint],
    rival: Evaluation | None,
) -> Report:
    """Write a run's report as HTML and JSON."""
    page = pages.RunPage(
        title=f"{store().facts(corpus)['title']}: {recipe.name}",
        created=made_at(evaluation),
        corpus=corpus_facts(corpus),
        recipe=recipe.name,
        settings=recipe.settings(),
        overrides=tuple(overridden),
        vocabulary=vocabulary_facts(model, evaluation),
        model=model_facts(model),
        scores=scores_of(evaluation),
        baselines=baselines_beside(baselines, evaluation),
        verdict=verdict,
        curve=tuple(curve(legs)),
        best_step=store().facts(best(legs))["step"],
        stopped_early=store().facts(legs[-1])["step"] < recipe.training.steps,
        samples=tuple(samples_of(evaluation)),
        rival_samples=tuple(samples_of(rival)) if rival else (),
        surprises=tuple(surprises_of(evaluation)),
        parts=sections(model, evaluation, corpus),
        cost=cost(legs),
        lineage=tuple(lineage_step(ancestor) for ancestor in lineage(store(), model)),
    )
    return keep_page(page)


@task(version="6", cache_policy=CACHE_BY_INPUTS)
def rescore_report(
    report: Report, model: Model, evaluation: Evaluation, baselines: Baselines, corpus: Corpus
) -> Report:
    """Write the report of an earlier run again, with scores on the current text."""
    page = page_of(report)
    return keep_page(
        page.model_copy(
            update={
                "created": made_at(evaluation),
                "corpus": corpus_facts(corpus),
                "vocabulary": vocabulary_facts(model, evaluation),
                "scores": scores_of(evaluation),
                "baselines": baselines_beside(baselines, evaluation),
                "samples": tuple(samples_of(evaluation)),
                "parts": sections(model, evaluation, corpus),
                "surprises": tuple(surprises_of(evaluation)),
            }
        )
    )


def sections(model: Model, evaluation: Evaluation, corpus: Corpus) -> tuple[Part, ...]:
    """Return the content of all sections that have something to show."""
    return tuple(part for section in SECTIONS if (part := section(model, evaluation, corpus)))


def made_at(handle: Handle) -> datetime:
    """Return when an artifact was first made. A report has its evaluation's time, so a repeated report is equal."""
    return datetime.fromisoformat(store().origin(handle).at)


def keep_page(page: pages.RunPage) -> Report:
    """Store a report as JSON and HTML, and its loss curve as JSON lines."""
    with store().draft() as draft:
        (draft.folder / PAGE).write_text(f"{page.model_dump_json(indent=2)}\n", encoding="utf-8")
        (draft.folder / HTML).write_text(pages.render(page), encoding="utf-8")
        (draft.folder / METRICS).write_text("".join(f"{point.model_dump_json()}\n" for point in page.curve))
        return store().keep(draft, Report, {"title": page.title}, origin())


def note_length(corpus: str, recipe: Recipe) -> None:
    """Log whether this training continues the recipe's last run, if it differs only in having more steps."""
    entry = refs().head(f"{corpus}/{recipe.name}")
    if entry is None or not isinstance(entry.handle, Report) or store().damage(entry.handle):
        return
    before, now = page_of(entry.handle).settings, recipe.settings()
    if {name for name in now if before.get(name) != now[name]} != {"steps"}:
        return
    last, steps = int(str(before["steps"])), recipe.training.steps
    if steps > last and recipe.training.continues:
        say(f"{steps:,} steps: this continues the run of {last:,} steps from its last checkpoint with a constant rate")
    elif steps > last:
        say(
            f"{steps:,} steps: schedule = {recipe.training.schedule} spreads the learning rate over all steps, so the "
            f"run of {last:,} steps cannot be continued, and training starts at step 0. With schedule = trapezoid or "
            f"constant, a longer run continues a shorter one; --base {corpus}/champion trains the champion further"
        )


def write_tensorboard(page: pages.RunPage, folder: Path) -> Path:
    """Write a run's loss curve and scores as a TensorBoard run with torch's writer, and return the folder.

    Raises:
        BardError: the tensorboard library is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise BardError(f"this needs the tensorboard library: {installing('tensorboard')}") from error
    folder.mkdir(parents=True, exist_ok=True)
    begun = page.created.timestamp()
    with SummaryWriter(str(folder)) as writer:
        for point in page.curve:
            figures = {
                "loss/train": point.train_nats,
                "loss/validation": point.validation_nats,
                "learning_rate": point.learning_rate,
            }
            for name, value in figures.items():
                if value is not None:
                    writer.add_scalar(name, value, point.step, begun + point.seconds)
        last = page.curve[-1].step if page.curve else 0
        writer.add_scalar("score/bits_per_character", page.scores.bits_per_character, last)
    return folder


def page_of(report: Report) -> pages.RunPage:
    """Read the values of a report."""
    return _page_at(store().folder(report) / PAGE)


@lru_cache(maxsize=8)
def _page_at(path: Path) -> pages.RunPage:
    # Parsing 400 kB takes 15 ms, and a run reads a report three times. An artifact never changes.
    return pages.RunPage.model_validate_json(path.read_bytes())


def evaluated_with(report: Report) -> EvaluationSpec:
    """Return the evaluation spec of a report's run."""
    return evaluation_spec(page_of(report).settings)


def evaluation_spec(settings: Mapping[str, Any]) -> EvaluationSpec:
    """Return the evaluation spec in a report's settings; newer fields, which older reports lack, get defaults."""
    known = EvaluationSpec.model_fields.keys() & settings.keys()
    return EvaluationSpec.model_validate({field: settings[field] for field in known})


def address_of(report: Report) -> str:
    """Return the link to a report for Prefect's UI: on the site of `bard up` if that runs, else the file.

    Browsers do not open file links on a page that was loaded over http.
    """
    site = os.environ.get(REPORTS_SITE)
    return f"{site}/{link_to(report)}" if site else html_of(report).as_uri()


def link_to(report: Report) -> str:
    """Return the path of a report's HTML file, relative to the home and the index page."""
    return html_of(report).relative_to(home()).as_posix()


def html_of(report: Report) -> Path:
    """Return the path of a report's HTML file."""
    return store().folder(report) / HTML


def show_in_prefect(corpus: str, report: Report) -> None:
    """Publish a report's tables in Prefect's UI."""
    page = page_of(report)
    create_markdown_artifact(
        key=f"{corpus}-{page.recipe}",
        markdown=pages.markdown(page, html_of(report), address_of(report)),
        description=f"{page.scores.bits_per_character:.4f} bits per character",
    )


def corpus_facts(corpus: Corpus) -> pages.CorpusFacts:
    """Return a corpus's facts and the address of its source, which a mixture does not have."""
    facts, made = store().facts(corpus), store().origin(corpus)
    source = handle_of(made.inputs["source"]) if "source" in made.inputs else None
    files = store().manifest(source).files if source else {}
    survey, rows = facts["survey"], facts.get("rows", {})
    counted = {name: survey[name] for name in pages.CorpusFacts.model_fields if name in survey}
    return pages.CorpusFacts(
        name=facts["name"],
        title=facts["title"],
        language=facts["language"],
        licence=facts["licence"],
        address=source_address(store().origin(source)) if source else None,
        # A source of several files is identified by the digest of its artifact.
        sha256=next(iter(files.values())).sha256 if len(files) == 1 else source.digest if source else None,
        cleaned=tuple(
            pages.CleanedStep(**{name: step[name] for name in pages.CleanedStep.model_fields})
            for step in facts["cleaned"]
        ),
        format=facts.get("format", "text"),
        rows=rows.get("rows"),
        rows_without_value=rows.get("without_value"),
        validation_of=facts.get("validation_kept", {}).get("of"),
        **counted,
    )


def vocabulary_facts(model: Model, evaluation: Evaluation) -> pages.VocabularyFacts:
    """Return the vocabulary's kind and size, and the mean length of a token on the validation set."""
    facts, scores = store().facts(model), scores_of(evaluation)
    return pages.VocabularyFacts(
        kind=facts["vocabulary_kind"],
        size=facts["vocabulary_size"],
        characters_per_token=scores.characters / scores.tokens,
    )


def model_facts(model: Model) -> pages.ModelFacts:
    """Return the network's shape and size."""
    facts = store().facts(model)
    gpt = {name: facts["gpt"][name] for name in ("architecture", "layers", "heads", "width", "context")}
    return pages.ModelFacts(
        parameters=facts["parameters"],
        embedding_parameters=facts["embedding_parameters"],
        base=facts.get("base"),
        **gpt,
    )


def curve(legs: list[Checkpoint]) -> list[pages.CurvePoint]:
    """Return the loss curve over all legs, with their training seconds added up."""
    points: list[pages.CurvePoint] = []
    passed = 0.0
    for leg, validation in zip(legs, validation_losses(legs), strict=True):
        seconds = store().origin(leg).measured["seconds"]
        lines = [LogLine.model_validate_json(line) for line in (store().folder(leg) / LOG).read_text().splitlines()]
        for line, at in zip(lines, seconds, strict=True):
            points.append(
                pages.CurvePoint(
                    step=line.step,
                    seconds=passed + at,
                    train_nats=line.train_nats,
                    validation_nats=validation if line is lines[-1] else None,
                    learning_rate=line.learning_rate,
                )
            )
        passed += seconds[-1]
    return points


def cost(legs: list[Checkpoint]) -> pages.Cost:
    """Return the cost of all legs; device and software are those of the last leg."""
    measured: list[dict[str, Any]] = [store().origin(leg).measured for leg in legs]
    seconds = sum(m["train_seconds"] for m in measured)
    last, highest = measured[-1], max(measured, key=lambda m: m["peak_bytes"])
    return pages.Cost(
        train_seconds=seconds,
        tokens_per_second=sum(m["tokens"] for m in measured) / seconds,
        peak_bytes=highest["peak_bytes"],
        peak_of=highest["peak_of"],
        planned_peak_bytes=highest["planned_peak_bytes"],
        device=last["device"],
        precision=last["precision"],
        threads=last["threads"],
        software=store().origin(legs[-1]).packages,
    )


def lineage_step(ancestor: Ancestor) -> pages.LineageStep:
    """Describe one artifact of the lineage from the source to the model."""
    return pages.LineageStep(
        kind=type(ancestor.handle).__name__,
        digest=ancestor.handle.digest,
        made_by=ancestor.origin.task,
        when=made_at(ancestor.handle),
        detail=detail(ancestor),
        inputs=tuple(handle_of(text).digest for text in ancestor.origin.inputs.values()),
    )


def detail(ancestor: Ancestor) -> str:
    """Describe an artifact in a few words."""
    handle: Handle = ancestor.handle
    facts, files = ancestor.manifest.facts, ancestor.manifest.files
    match handle:
        case Source():
            content = f"sha256 {next(iter(files.values())).sha256}" if len(files) == 1 else f"{len(files)} files"
            declared, came_from = source_address(ancestor.origin), ancestor.origin.measured["address"]
            return f"{declared}{f', by way of {came_from}' if came_from != declared else ''}: {content}"
        case Corpus():
            survey = facts["survey"]
            return f"{survey['characters']:,} characters, {survey['documents']:,} documents"
        case Checkpoint():
            return f"step {facts['step']:,}"
        case Model():
            return f"{facts['parameters']:,} parameters"
        case _:
            return ", ".join(f"{key} {value}" for key, value in facts.items() if not isinstance(value, dict | list))
