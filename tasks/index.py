"""The index page of all reports, made from the names in the store."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import yaml
from pydantic import ValidationError

from bardflow.errors import BardError
from bardflow.home import home, project_folder
from bardflow.pages import index as pages
from bardflow.pages.experiment import ExperimentPage
from bardflow.sources.corpora import corpus_names, load_corpus
from bardflow.sources.spec import RESERVED_NAMES, CorpusError
from bardflow.storage.disk import set_mode
from bardflow.storage.handles import Evaluation, Handle, Report
from bardflow.storage.manifests import StoreError
from bardflow.storage.refs import Entry, Refs
from bardflow.tasks.reporting import PAGE, link_to, page_of
from bardflow.tasks.run import refs, store

INDEX = "index.html"
EXPERIMENTS = "experiments"
# Names under a corpus that are not recipes.
SEATS = ("champion", "text", "evaluated")
EVALUATED = "evaluated"


def write_index() -> Path:
    """Write the index page to the home atomically and return its path.

    This reads only manifests, origins and the values of reports, so its cost does not depend on the corpora. A
    damaged report is listed as a problem, without a link.
    """
    home().mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    try:
        refs().names()  # this brings them here
    except BardError as error:
        problems.append(str(error))
    page = pages.IndexPage(
        created=datetime.now(UTC),
        boards=tuple(board(name) for name in corpora()),
        experiments=tuple(experiments(problems)),
        schedule=tuple(schedule(problems)),
        problems=tuple(problems),
    )
    with NamedTemporaryFile("w", encoding="utf-8", dir=home(), suffix=".html", delete=False) as file:
        file.write(pages.render(page))
    draft = Path(file.name)
    set_mode(draft, 0o644)
    return draft.replace(home() / INDEX)


def here() -> Refs:
    """Return the names as `write_index` brought them here, without a request to the remote for each."""
    return Refs(home())


def corpora() -> list[str]:
    """Return the corpora that have a file or a name in the store."""
    named = {name.partition("/")[0] for name in here().names()} - set(RESERVED_NAMES)
    return sorted(named | set(corpus_names(project_folder() / "corpora")))


def board(corpus: str) -> pages.Board:
    """Return the section of the page about a corpus and its models."""
    problems: list[str] = []
    facts: dict[str, Any] = {}
    described, text = False, None
    reigns: tuple[pages.Reign, ...] = ()
    ranked: list[pages.Standing] = []
    try:
        if corpus in corpus_names(project_folder() / "corpora"):
            facts = load_corpus(corpus, project_folder() / "corpora").model_dump(mode="json")
    except CorpusError as error:
        problems.append(str(error))
    if corpus in RESERVED_NAMES:
        return pages.Board(
            corpus=corpus,
            title=corpus,
            news="nothing is trained on it",
            problems=tuple(problems),
        )
    try:
        text = here().head(f"{corpus}/text")
        if text is not None and (seen := facts_of(text.handle)) is not None:
            facts, described = seen, True
        reigns = tuple(reign(entry) for entry in here().history(f"{corpus}/champion"))
        ranked = list(standings(corpus, text, reigns[-1].model if reigns else None, problems))
    except BardError as error:
        problems.append(str(error))
    return pages.Board(
        corpus=corpus,
        title=facts.get("title", corpus),
        language=facts.get("language"),
        licence=facts.get("licence"),
        characters=facts["survey"]["characters"] if described else None,
        news=f"The text: {text.why}, {text.at[:16].replace('T', ' ')} UTC"
        if text is not None
        else "train-gpt has not seen it yet",
        reigns=reigns,
        standings=tuple(sorted(ranked, key=lambda s: (not s.current, s.bits_per_character))),
        problems=tuple(problems),
    )


def facts_of(handle: Handle) -> dict[str, Any] | None:
    """Return an artifact's facts, or None if it is no longer in the store."""
    try:
        return store().facts(handle)
    except StoreError:
        return None


def reign(entry: Entry) -> pages.Reign:
    """Describe a change of the champion, with its score if that is still in the store."""
    scored, report = facts_of(Evaluation(digest=entry.notes["evaluation"])), Report(digest=entry.notes["report"])
    return pages.Reign(
        number=entry.number,
        when=datetime.fromisoformat(entry.at),
        by=entry.by,
        why=entry.why,
        model=entry.digest,
        recipe=entry.notes["recipe"],
        bits_per_character=None if scored is None else scored["bits_per_character"],
        link=whole_link(report),
    )


def whole_link(report: Report) -> str | None:
    """Return the link to a report, or None if the report is missing or damaged."""
    try:
        return link_to(report)
    except StoreError:
        return None


def standings(corpus: str, text: Entry | None, seated: str | None, problems: list[str]) -> Iterable[pages.Standing]:
    """Yield each model of the corpus's recipes once, with its last readable report.

    For a champion, this is the report of `evaluate-gpt` on the current text, if there is one.
    """
    evaluated = here().head(f"{corpus}/{EVALUATED}")
    for name in here().names():
        recipe = name.partition("/")[2]
        if name.partition("/")[0] != corpus or recipe in SEATS:
            continue
        last = {entry.notes["model"]: entry for entry in here().history(name)}
        for model, entry in last.items():
            if evaluated is not None and evaluated.notes["model"] == model and evaluated.at >= entry.at:
                entry = evaluated
            report = Report(digest=entry.digest)
            if facts_of(report) is None:
                continue
            try:
                page, made = page_of(report), store().origin(Evaluation(digest=entry.notes["evaluation"]))
            except StoreError as error:
                problems.append(f"{name}: {report} is left out: {error}")
                continue
            except (ValidationError, OSError) as error:
                problems.append(f"{name}: {report} is left out, this version cannot read it: {one_line(error)}")
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


def one_line(error: Exception) -> str:
    """Return the first line of an error's message; pydantic's messages have one line for each mistake."""
    return str(error).partition("\n")[0]


def experiments(problems: list[str]) -> Iterable[pages.ExperimentLink]:
    """Yield the last report of each experiment, and add errors to `problems`."""
    for name in here().names():
        if not name.startswith(f"{EXPERIMENTS}/"):
            continue
        try:
            entry = here().head(name)
            if entry is None or facts_of(entry.handle) is None:
                continue
            report = Report(digest=entry.digest)
            page = ExperimentPage.model_validate_json((store().folder(report) / PAGE).read_bytes())
        except StoreError as error:
            problems.append(f"{name} is left out: {error}")
            continue
        except (ValidationError, OSError) as error:
            problems.append(f"{name} is left out, this version cannot read it: {one_line(error)}")
            continue
        yield pages.ExperimentLink(
            name=name, title=page.title, answer=page.answer, when=page.created, link=link_to(report)
        )


def schedule(problems: list[str]) -> Iterable[pages.Scheduled]:
    """Yield the deployments in `prefect.yaml` with their schedules, and add errors to `problems`."""
    path = project_folder() / "prefect.yaml"
    try:
        for deployment in yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"]:
            flow = deployment["entrypoint"].partition(":")[2].replace("_", "-")
            schedules = [s for s in deployment.get("schedules") or [] if s.get("active", True)]
            yield pages.Scheduled(
                deployment=f"{flow}/{deployment['name']}",
                description=deployment.get("description") or "",
                when=tuple(said(schedule) for schedule in schedules),
            )
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, LookupError, StopIteration, TypeError) as error:
        problems.append(f"{path} is not as it should be, so the schedule is not shown: {error!r}")


def said(schedule: dict[str, Any]) -> str:
    """Describe a schedule in a few words."""
    rule = next(f"{kind} {schedule[kind]}" for kind in ("cron", "interval", "rrule") if kind in schedule)
    return f"{rule.removeprefix('cron ')}{' s' * ('interval' in schedule)} {schedule.get('timezone', 'UTC')}"
