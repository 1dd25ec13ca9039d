"""The index of all reports, put together from the names in the store."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import yaml
from pydantic import ValidationError

from bard.home import home, project_folder
from pages import index as pages
from pages.experiment import ExperimentPage
from sources.spec import corpus_names, load_corpus
from storage.handles import Evaluation, Report
from storage.refs import Entry
from storage.store import StoreError
from tasks.answers import refs, store
from tasks.evaluation import scores_of
from tasks.reporting import PAGE, link_to, page_of
from tasks.saying import say

INDEX = "index.html"
EXPERIMENTS = "experiments"
# What is a name's second word and no recipe.
SEATS = ("champion", "text")


def write_index() -> Path:
    """Write the index beside the store, whole or not at all, and say where."""
    home().mkdir(parents=True, exist_ok=True)
    page = pages.IndexPage(
        created=datetime.now(UTC),
        boards=tuple(board(name) for name in corpora()),
        experiments=tuple(experiments()),
        schedule=tuple(schedule()),
    )
    with NamedTemporaryFile("w", encoding="utf-8", dir=home(), suffix=".html", delete=False) as file:
        file.write(pages.render(page))
    draft = Path(file.name)
    draft.chmod(0o644)
    return draft.replace(home() / INDEX)


def corpora() -> list[str]:
    """The corpora that have files, and those that have names in the store."""
    named = {name.partition("/")[0] for name in refs().names()} - {EXPERIMENTS}
    return sorted(named | set(corpus_names(project_folder() / "corpora")))


def board(corpus: str) -> pages.Board:
    """What is known of a corpus and its models."""
    text = refs().head(f"{corpus}/text")
    whole = text is not None and not store().damage(text.handle)
    facts = store().facts(text.handle) if text is not None and whole else {}
    if not facts and corpus in corpus_names(project_folder() / "corpora"):
        facts = load_corpus(corpus, project_folder() / "corpora").model_dump(mode="json")
    reigns = refs().history(f"{corpus}/champion")
    seated = reigns[-1].digest if reigns else None
    return pages.Board(
        corpus=corpus,
        title=facts.get("title", corpus),
        language=facts.get("language", "und"),
        licence=facts.get("licence", "unknown"),
        characters=facts["survey"]["characters"] if whole else None,
        news=f"The text: {text.why}, {text.at[:16].replace('T', ' ')} UTC"
        if text is not None
        else "train-gpt has not seen it yet",
        reigns=tuple(reign(entry) for entry in reigns),
        standings=tuple(sorted(standings(corpus, text, seated), key=lambda s: (not s.current, s.bits_per_character))),
    )


def reign(entry: Entry) -> pages.Reign:
    """A move of the champion's seat, with its score where that still is in the store."""
    evaluation, report = Evaluation(digest=entry.notes["evaluation"]), Report(digest=entry.notes["report"])
    return pages.Reign(
        number=entry.number,
        when=datetime.fromisoformat(entry.at),
        by=entry.by,
        why=entry.why,
        model=entry.digest,
        recipe=entry.notes["recipe"],
        bits_per_character=None if store().damage(evaluation) else scores_of(evaluation).bits_per_character,
        link=None if store().damage(report) else link_to(report),
    )


def standings(corpus: str, text: Entry | None, seated: str | None) -> Iterable[pages.Standing]:
    """Each model of the corpus's recipes once, by its last report that today's pages can read."""
    for name in refs().names():
        recipe = name.partition("/")[2]
        if name.partition("/")[0] != corpus or recipe in SEATS:
            continue
        last = {entry.notes["model"]: entry for entry in refs().history(name)}
        for model, entry in last.items():
            report = Report(digest=entry.digest)
            if store().damage(report):
                continue
            try:
                page, made = page_of(report), store().origin(Evaluation(digest=entry.notes["evaluation"]))
            except (ValidationError, StoreError) as error:
                say(f"{name}: {report} is left out of the index, this version can not read it: {error}")
                continue
            settings = {name: page.settings[name] for name in page.overrides}
            yield pages.Standing(
                recipe=recipe,
                changed=tuple(f"{field} {value}" for field, value in settings.items()),
                model=model,
                bits_per_character=page.scores.bits_per_character,
                sliding_bits_per_character=page.scores.sliding_bits_per_character,
                nats_per_token=page.scores.nats_per_token,
                vocabulary=f"{page.vocabulary.kind}, {page.vocabulary.size:,}",
                parameters=page.model.parameters,
                train_seconds=page.cost.train_seconds,
                when=page.created,
                verdict=page.verdict.reason,
                link=link_to(report),
                current=text is not None and made.inputs.get("corpus", "").endswith(text.digest),
                champion=model == seated,
            )


def experiments() -> Iterable[pages.ExperimentLink]:
    """The last report of each experiment."""
    for name in refs().names():
        entry = refs().head(name) if name.startswith(f"{EXPERIMENTS}/") else None
        if entry is None or store().damage(entry.handle):
            continue
        report = Report(digest=entry.digest)
        page = ExperimentPage.model_validate_json((store().folder(report) / PAGE).read_bytes())
        yield pages.ExperimentLink(
            name=name, title=page.title, answer=page.answer, when=page.created, link=link_to(report)
        )


def schedule() -> Iterable[pages.Scheduled]:
    """What `prefect.yaml` deploys, and when it runs."""
    declared = yaml.safe_load((project_folder() / "prefect.yaml").read_text(encoding="utf-8"))
    for deployment in declared["deployments"]:
        flow = deployment["entrypoint"].partition(":")[2].replace("_", "-")
        yield pages.Scheduled(
            deployment=f"{flow}/{deployment['name']}",
            description=deployment.get("description", ""),
            when=tuple(said(schedule) for schedule in deployment.get("schedules", []) if schedule.get("active", True)),
        )


def said(schedule: dict[str, Any]) -> str:
    """A schedule's rule in a few words."""
    rule = next(f"{kind} {schedule[kind]}" for kind in ("cron", "interval", "rrule") if kind in schedule)
    return f"{rule.removeprefix('cron ')}{' s' * ('interval' in schedule)} {schedule.get('timezone', 'UTC')}"
