"""Experiments over several trainings: what each took, how sure the differences are, and the pages about them."""

import math
from itertools import pairwise
from typing import NamedTuple

from prefect import task
from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel, ConfigDict

from model import device as devices
from model.comparison import Comparison, compare
from model.ladder import Fit, fit, knee
from model.plan import Machine, choose
from model.probe import settled_bytes, step_seconds
from model.spec import GPTSpec
from model.training import TrainingSpec
from pages import experiment as pages
from storage.handles import Checkpoint, Corpus, Evaluation, Model, Report, TokenShards, Vocabulary
from storage.lineage import spelled
from tasks.answers import origin, refs, store
from tasks.caching import SAME_QUESTION
from tasks.champion import LUCK, signed
from tasks.evaluation import charges_of, scores_of, write_json
from tasks.reporting import HTML, PAGE, html_of, made_at
from tasks.saying import say
from tasks.searching import TO_THE_END

# Steps are tried for so much of the time that they shall fill, to find out how many fill it.
TRIED = 0.05


class Figures(BaseModel):
    """What one training of an experiment cost and reached."""

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
        """What is not a table of the vocabulary's size."""
        return self.parameters - self.embedding_parameters


@task(version="1", cache_policy=SAME_QUESTION)
def steps_within(vocabulary: Vocabulary, gpt: GPTSpec, training: TrainingSpec, seconds: float) -> int:
    """How many steps fill so many seconds on this machine, by taking some. At least 20.

    The answer is kept like every other, so that an experiment that is asked again trains nothing again.
    """
    size, device = store().facts(vocabulary)["size"], devices.choose(training.precision)
    machine = Machine.model_validate(
        {"device": device.name, "precision": device.precision, "base": settled_bytes(device)}
    )
    execution = choose(gpt, size, training, machine, None).execution
    step = step_seconds(gpt, size, training, execution, device, max(1.0, TRIED * seconds), most=50)
    steps = max(20, round(seconds / step))
    say(f"a step takes {1000 * step:,.1f} ms here: {steps:,} steps in {seconds:g} s")
    return steps


def characters_per_token(corpus: Corpus, shards: TokenShards) -> float:
    """The training part's mean length of a token."""
    characters: int = store().facts(corpus)["survey"]["train_characters"]
    tokens: int = store().facts(shards)["tokens"]["train"]
    return characters / tokens


def figures(model: Model, evaluation: Evaluation, last_leg: Checkpoint) -> Figures:
    """What a training reached, and what all its legs took."""
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
    """The legs of a training that led to a checkpoint, first to last, without the one that nothing was trained for."""
    legs = [last]
    while store().facts(before := spelled(store().origin(legs[0]).inputs["checkpoint"]))["step"]:
        legs.insert(0, Checkpoint(digest=before.digest))
    return legs


def compared(own: Evaluation, theirs: Evaluation) -> Comparison:
    """Two trainings on the same text, with the luck of their seeds."""
    return compare(charges_of(own), charges_of(theirs), luck=LUCK * scores_of(theirs).bits_per_character)


def interval(found: Comparison) -> str:
    """`+0.0213 (+0.0101 to +0.0325)`."""
    return f"{signed(found.difference)} ({signed(found.low)} to {signed(found.high)})"


def keep_experiment(page: pages.ExperimentPage) -> Report:
    """Keep an experiment's page as JSON and HTML."""
    with store().draft() as draft:
        write_json(draft.folder / PAGE, page.model_dump(mode="json"))
        (draft.folder / HTML).write_text(pages.render(page), encoding="utf-8")
        return store().keep(draft, Report, {"title": page.title, "experiment": page.experiment}, origin())


def show_experiment(name: str, report: Report, *, by: str) -> str:
    """Give an experiment's report its name, put its tables where Prefect's UI shows them, and say its answer."""
    page = pages.ExperimentPage.model_validate_json((store().folder(report) / PAGE).read_bytes())
    head = refs().head(name)
    if head is None or head.handle != report:
        refs().move(name, report, after=head, by=by, why=page.answer[0])
    create_markdown_artifact(
        key=name.replace("/", "-"),
        markdown=pages.markdown(page, html_of(report).as_uri()),
        description=page.answer[0],
    )
    for said in page.answer:
        say(said)
    say(f"report: {html_of(report)}")
    return str(html_of(report))


@task(version="1", cache_policy=SAME_QUESTION)
def publish_vocabularies(
    names: list[str],
    corpora: list[Corpus],
    models: list[Model],
    evaluations: list[Evaluation],
    last_legs: list[Checkpoint],
    budget: str,
) -> Report:
    """The page that says which vocabulary suits which text. The lists run alongside, one entry a training."""
    trials = [
        _Tried(name, corpus, evaluation, figures(model, evaluation, leg))
        for name, corpus, model, evaluation, leg in zip(names, corpora, models, evaluations, last_legs, strict=True)
    ]
    parts, answer = [], []
    for corpus in dict.fromkeys(corpora):
        here = [trial for trial in trials if trial.corpus == corpus]
        best = min(here, key=lambda trial: trial.figures.bits_per_character)
        against = {t.name: compared(t.evaluation, best.evaluation) for t in here if t is not best}
        title = store().facts(corpus)["title"]
        answer.append(_which(title, best, against))
        parts.append(_vocabulary_part(title, here, best, against))
    page = pages.ExperimentPage(
        experiment="compare-vocabularies",
        title="Vocabularies compared",
        question=f"Which vocabulary predicts a text best with the same network body and {budget}? Losses in nats per "
        "token are of units of different length and say nothing here; bits per character do.",
        created=max(made_at(evaluation) for evaluation in evaluations),
        answer=tuple(answer),
        parts=tuple(parts),
        lineage=tuple(f"{t.name}: {model}" for t, model in zip(trials, models, strict=True)),
    )
    return keep_experiment(page)


class _Tried(NamedTuple):
    name: str
    corpus: Corpus
    evaluation: Evaluation
    figures: Figures


def _which(title: str, best: _Tried, against: dict[str, Comparison]) -> str:
    """The answer for one text in a sentence or two."""
    said = [f"{title}: {best.name} needs the fewest bits per character, {best.figures.bits_per_character:.4f}."]
    near = [name for name, found in against.items() if found.verdict == "not distinguishable"]
    worse = [f"{name} {interval(found)}" for name, found in against.items() if found.verdict == "worse"]
    if near:
        said.append(f"Not distinguishable from it: {', '.join(near)}.")
    if worse:
        said.append(f"Worse, with the 95 % interval of the difference: {'; '.join(worse)}.")
    return " ".join(said)


def _vocabulary_part(title: str, here: list[_Tried], best: _Tried, against: dict[str, Comparison]) -> pages.Part:
    columns = (
        "vocabulary", "bits per character", "against the best", "nats per token", "tokens", "characters per token",
        "context, tokens", "context, characters", "embedding", "body", "steps", "seconds", "characters seen, M",
        "characters a second", "peak, MB",
    )  # fmt: skip
    rows: list[tuple[pages.Cell, ...]] = []
    for t in here:
        f = t.figures
        rows.append(
            (
                t.name, f"{f.bits_per_character:.4f}", interval(against[t.name]) if t is not best else "the best",
                f"{f.nats_per_token:.4f}", f.vocabulary_size, round(f.characters_per_token, 3), f.context,
                round(f.context * f.characters_per_token), f.embedding_parameters, f.body_parameters, f.steps,
                round(f.seconds, 1), round(f.characters_seen / 1e6, 2), round(f.characters_seen / f.seconds),
                round(f.peak_bytes / 1e6),
            )
        )  # fmt: skip
    chart = pages.Chart(
        title="Bits per character against the length of a token",
        x_label="characters per token",
        y_label="bits per character",
        lines=tuple(
            pages.Line(
                name=t.name,
                x=(t.figures.characters_per_token,),
                y=(t.figures.bits_per_character,),
                labels=(t.name,),
                style="points",
            )
            for t in here
        ),
        log_x=True,
    )
    table = pages.Table(
        title="Every vocabulary",
        columns=columns,
        rows=tuple(rows),
        best=here.index(best),
        note="Context is equal in characters, as far as whole tokens allow. Bits per character are of the whole "
        "validation part; against the best: the difference and its 95 % interval, by a paired block bootstrap widened "
        "by the luck of a seed.",
    )
    return pages.Part(title=title, charts=(chart,), tables=(table,))


@task(version="1", cache_policy=SAME_QUESTION)
def publish_ladder(
    corpus: Corpus,
    models: list[Model],
    evaluations: list[Evaluation],
    last_legs: list[Checkpoint],
    stopped: str,
    next_rung: str,
    next_flops_factor: float,
) -> Report:
    """The page about a ladder of sizes: loss against parameters, time and memory, the knee, the next rung."""
    rungs = [figures(*of) for of in zip(models, evaluations, last_legs, strict=True)]
    losses = [f.bits_per_character for f in rungs]
    sizes = [float(f.body_parameters) for f in rungs]
    curve = fit(sizes, losses)
    at = knee([f.seconds for f in rungs], losses)
    title = store().facts(corpus)["title"]
    shapes = [store().facts(model)["gpt"] for model in models]
    names = [f"{shape['layers']} x {shape['width']}" for shape in shapes]
    pairs = [None, *(compared(b, a) for a, b in pairwise(evaluations))]
    answer = (
        f"{title}: the knee is {names[at]} ({rungs[at].parameters:,} parameters, {losses[at]:.4f} bits per character, "
        f"{rungs[at].seconds:.0f} s): past it, twice the time brings less than 1 % fewer bits.",
        f"The lowest of {len(rungs)} rungs is {names[losses.index(min(losses))]} with {min(losses):.4f} bits per "
        f"character. {stopped}",
        _next(rungs, curve, next_rung, next_flops_factor),
    )
    rows: list[tuple[pages.Cell, ...]] = [
        (
            name, f.parameters, f.body_parameters, f"{f.bits_per_character:.4f}", interval(pair) if pair else "",
            pair.verdict if pair else "", round(f.seconds, 1), round(f.characters_seen / f.seconds),
            round(f.peak_bytes / 1e6),
        )
        for name, f, pair in zip(names, rungs, pairs, strict=True)
    ]  # fmt: skip
    measured = {"parameters": [float(f.parameters) for f in rungs], "seconds of training": [f.seconds for f in rungs]}
    measured["peak memory, MB"] = [f.peak_bytes / 1e6 for f in rungs]
    charts = [_ladder_chart(label, x, losses, names, at) for label, x in measured.items()]
    if curve is not None:
        dense = [sizes[0] * (3 * sizes[-1] / sizes[0]) ** (i / 60) for i in range(61)]
        fitted = pages.Line(
            name=f"fit: {curve.floor:.3f} + {curve.amplitude:.3g} / body^{curve.exponent:.2f}",
            x=tuple(dense),
            y=tuple(curve.at(n) for n in dense),
            style="line",
        )
        own = pages.Line(name="measured", x=tuple(sizes), y=tuple(losses), labels=tuple(names), style="points")
        charts.insert(
            0,
            pages.Chart(
                title="Bits per character against parameters of the body, and a power law through it",
                x_label="parameters of the body",
                y_label="bits per character",
                lines=(own, fitted),
                log_x=True,
                marked=(sizes[at], "knee"),
            ),
        )
    table = pages.Table(
        title="The rungs",
        columns=(
            "layers x width", "parameters", "body", "bits per character", "against the rung before", "verdict",
            "seconds", "characters a second", "peak, MB",
        ),
        rows=tuple(rows),
        best=at,
        note="The knee stands out. Steps and batch are equal, learning rates follow the width (ARCHITECTURE.md).",
    )  # fmt: skip
    page = pages.ExperimentPage(
        experiment="scaling-ladder",
        title=f"Scaling ladder: {title}",
        question="How large a model pays on this text, and what would the next size cost?",
        created=max(made_at(evaluation) for evaluation in evaluations),
        answer=answer,
        parts=(pages.Part(title="Loss and cost", charts=tuple(charts), tables=(table,)),),
        lineage=tuple(f"{name}: {model}" for name, model in zip(names, models, strict=True)),
    )
    return keep_experiment(page)


def _ladder_chart(label: str, x: list[float], losses: list[float], names: list[str], at: int) -> pages.Chart:
    line = pages.Line(name="measured", x=tuple(x), y=tuple(losses), labels=tuple(names))
    return pages.Chart(
        title=f"Bits per character against {label}",
        x_label=label,
        y_label="bits per character",
        lines=(line,),
        log_x=True,
        marked=(x[at], "knee"),
    )


def _next(rungs: list[Figures], curve: Fit | None, shape: str, flops_factor: float) -> str:
    """What the rung after the last would cost, and what the fit promises for it."""
    last = rungs[-1]
    body = last.body_parameters * flops_factor
    promised = f"; the fit promises {curve.at(body):.4f} bits per character" if curve is not None else ""
    return (
        f"The next rung, {shape}, would have about {body / 1e6:.2f} M parameters in its body and take about "
        f"{last.seconds * flops_factor:.0f} s{promised}."
    )


def learning_rate_factor(width: int, base_width: int) -> float:
    """The factor of AdamW's learning rate for another width (muP; Yang et al. 2022).

    What AdamW trains here are the table of tokens, whose best rate does not depend on the width, and the head, whose
    best rate falls with it; they share one rate, which takes the mean of the two in logarithms. Muon's updates have a
    spectral norm that does not depend on the shape (Bernstein 2024), so its rate stays.
    """
    return math.sqrt(base_width / width)


def larger(layers: int, width: int) -> tuple[int, int]:
    """The next rung's layers and width: about twice the parameters of the body, 12 x layers x width^2 each."""
    for shape in RUNGS:
        if shape[0] * shape[1] ** 2 > 1.3 * layers * width**2:
            return shape
    return layers + 2, round(width * 1.25 / 32) * 32


# Layers and widths, each about twice the one before; heads of about 48 channels.
RUNGS: tuple[tuple[int, int], ...] = (
    (2, 48), (2, 64), (3, 80), (3, 112), (4, 128), (5, 160), (6, 208), (6, 288), (8, 352), (9, 464), (12, 576),
)  # fmt: skip


def heads_of(width: int) -> int:
    """As many heads as make one near 48 channels wide, with an even width each."""
    fitting = [h for h in range(1, width // 16 + 1) if width % h == 0 and (width // h) % 2 == 0]
    return min(fitting, key=lambda h: abs(width / h - 48))


def pays(own: Evaluation, before: Evaluation, least: float) -> tuple[bool, Comparison]:
    """Whether a rung is surely better than the best before, and by at least so many bits per character."""
    found = compared(own, before)
    return found.verdict == "better" and -found.difference >= least, found


def bits_so_far(corpus: Corpus, leg: Checkpoint, shards: TokenShards) -> float:
    """A leg's validation loss in bits per character, so that trials of different vocabularies compare."""
    per_token: float = store().facts(leg)["validation_nats_per_token"]
    tokens: int = store().facts(shards)["tokens"]["validation"]
    characters: int = store().facts(corpus)["survey"]["validation_characters"]
    return per_token * tokens / characters / math.log(2)


@task(version="1", cache_policy=SAME_QUESTION)
def publish_sweep(
    corpus: Corpus,
    tried: list[str],
    reached: list[float],
    endings: list[str],
    model: Model,
    evaluation: Evaluation,
    searched: str,
) -> Report:
    """The page about a search: every trial, and the best one's whole score. The lists run alongside."""
    title = store().facts(corpus)["title"]
    order = sorted(range(len(tried)), key=lambda i: reached[i])
    best, scores = order[0], scores_of(evaluation)
    stopped = sum(ending != TO_THE_END for ending in endings)
    answer = (
        f"{title}: the best of {len(tried)} trials is {tried[best]}, with {scores.bits_per_character:.4f} bits per "
        f"character. {stopped} were stopped early.",
    )
    rows: list[tuple[pages.Cell, ...]] = [(tried[i], f"{reached[i]:.4f}", endings[i]) for i in order]
    numbers = tuple(float(i + 1) for i in range(len(reached)))
    so_far = tuple(min(reached[: i + 1]) for i in range(len(reached)))
    chart = pages.Chart(
        title="Every trial, and the best so far",
        x_label="trial",
        y_label="bits per character",
        lines=(
            pages.Line(name="trial", x=numbers, y=tuple(reached), style="points"),
            pages.Line(name="best so far", x=numbers, y=so_far, style="line"),
        ),
    )
    table = pages.Table(
        title="Trials, the best first",
        columns=("fields", "bits per character", "ended"),
        rows=tuple(rows),
        best=0,
        note="Of the lowest leg, on the part of the validation text that legs are scored on. Chosen by that text, the "
        "best trial's figure flatters it a little.",
    )
    page = pages.ExperimentPage(
        experiment="sweep",
        title=f"Sweep: {title}",
        question=f"Which values reach the fewest bits per character? Searched: {searched}.",
        created=made_at(evaluation),
        answer=answer,
        parts=(pages.Part(title="Trials", charts=(chart,), tables=(table,)),),
        lineage=(f"the best: {model}",),
    )
    return keep_experiment(page)
