"""Functions for all experiments: cost and scores of a training run, comparing two runs, and storing the report."""

from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel, ConfigDict

from bardflow.model.scoring import Comparison, compare
from bardflow.pages import experiment as pages
from bardflow.pages.experiment import ExperimentPage
from bardflow.storage.handles import Checkpoint, Evaluation, Model, Report
from bardflow.storage.lineage import handle_of
from bardflow.tasks.champion import LUCK, signed
from bardflow.tasks.evaluation import charges_of, scores_of, write_json
from bardflow.tasks.reporting import HTML, PAGE, address_of, html_of
from bardflow.tasks.run import origin, refs, store
from bardflow.tasks.saying import say


class Figures(BaseModel):
    """The cost and the scores of one training run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits_per_character: float
    nats_per_token: float
    characters_per_token: float
    parameters: int
    embedding_parameters: int
    vocabulary_size: int
    context: int
    steps: int
    seconds: float
    characters_seen: float
    peak_bytes: int

    @property
    def body_parameters(self) -> int:
        """The number of parameters outside the embedding table and the head."""
        return self.parameters - self.embedding_parameters


def figures(model: Model, evaluation: Evaluation, last_leg: Checkpoint) -> Figures:
    """Return the scores of a training run, and the cost of all its legs."""
    facts, scores = store().facts(model), scores_of(evaluation)
    legs = legs_behind(last_leg)
    measured = [store().origin(leg).measured for leg in legs]
    per_token = scores.characters / scores.tokens
    return Figures(
        bits_per_character=scores.bits_per_character,
        nats_per_token=scores.nats_per_token,
        characters_per_token=per_token,
        parameters=facts["parameters"],
        embedding_parameters=facts["embedding_parameters"],
        vocabulary_size=facts["vocabulary_size"],
        context=facts["gpt"]["context"],
        steps=store().facts(last_leg)["step"],
        seconds=sum(m["train_seconds"] for m in measured),
        characters_seen=sum(m["tokens"] for m in measured) * per_token,
        peak_bytes=max(m["peak_bytes"] for m in measured),
    )


def legs_behind(last: Checkpoint) -> list[Checkpoint]:
    """Return all legs up to a checkpoint in order, without the initial checkpoint."""
    legs = [last]
    while store().facts(before := handle_of(store().origin(legs[0]).inputs["checkpoint"]))["step"]:
        legs.insert(0, Checkpoint(digest=before.digest))
    return legs


def compared(own: Evaluation, theirs: Evaluation) -> Comparison:
    """Compare two training runs on the same text; the interval includes the variation between seeds."""
    return compare(charges_of(own), charges_of(theirs), luck=LUCK * scores_of(theirs).bits_per_character)


def interval(found: Comparison) -> str:
    """Format a difference with its confidence interval, such as `+0.0213 (+0.0101 to +0.0325)`."""
    return f"{signed(found.difference)} ({signed(found.low)} to {signed(found.high)})"


def keep_experiment(page: ExperimentPage) -> Report:
    """Store an experiment's report as JSON and HTML."""
    with store().draft() as draft:
        write_json(draft.folder / PAGE, page.model_dump(mode="json"))
        (draft.folder / HTML).write_text(pages.render(page), encoding="utf-8")
        return store().keep(draft, Report, {"title": page.title, "experiment": page.experiment}, origin())


def show_experiment(name: str, report: Report, *, by: str) -> str:
    """Name an experiment's report, publish it in Prefect's UI, log its answer, and return the report's path."""
    page = ExperimentPage.model_validate_json((store().folder(report) / PAGE).read_bytes())
    head = refs().head(name)
    if head is None or head.handle != report:
        refs().move(name, report, after=head, by=by, why=page.answer[0])
    create_markdown_artifact(
        key=name.replace("/", "-"),
        markdown=pages.markdown(page, html_of(report), address_of(report)),
        description=page.answer[0],
    )
    for said in page.answer:
        say(said)
    say(f"report: {html_of(report)}")
    return str(html_of(report))
