"""Comparing vocabularies at an equal budget: the number of steps for a time budget, and the report."""

from typing import NamedTuple

from prefect import task

from bardflow.model.machine import device as devices
from bardflow.model.networks import GPTSpec
from bardflow.model.planning import Machine, choose, settled_bytes, step_seconds
from bardflow.model.scoring import Comparison
from bardflow.model.training import TrainingSpec
from bardflow.pages.experiment import ExperimentPage
from bardflow.pages.parts import Cell, Chart, Line, Part, Table
from bardflow.storage.handles import Checkpoint, Corpus, Evaluation, Model, Report, TokenShards, Vocabulary
from bardflow.tasks.caching import CACHE_BY_INPUTS
from bardflow.tasks.experiments import Figures, compared, figures, interval, keep_experiment
from bardflow.tasks.reporting import made_at
from bardflow.tasks.run import store

# Steps are timed for this share of the budget, in this number of rounds.
TRIED = 0.05
ROUNDS = 3
# A larger relative difference from the budget is reported.
OFF_BUDGET = 0.15


@task(version="2", cache_policy=CACHE_BY_INPUTS)
def steps_within(
    vocabularies: list[Vocabulary], gpts: list[GPTSpec], trainings: list[TrainingSpec], seconds: float
) -> list[int]:
    """Measure how many training steps of each trial take `seconds` on this machine; return at least 20 each.

    All trials are timed in turn, in several rounds. The fastest round counts, because other load only adds time. The
    result is cached, so a repeated experiment trains nothing.
    """
    here = {precision: devices.choose(precision) for precision in {training.precision for training in trainings}}
    base = {precision: settled_bytes(device) for precision, device in here.items()}
    trials = []
    for vocabulary, gpt, training in zip(vocabularies, gpts, trainings, strict=True):
        size, device = store().facts(vocabulary)["size"], here[training.precision]
        machine = Machine.here(device, base[training.precision])
        execution = choose(gpt, size, training, machine, None).execution
        trials.append((gpt, size, training, execution, device))
    tried = max(0.5, TRIED * seconds / ROUNDS)
    rounds = [[step_seconds(*trial, tried, most=50) for trial in trials] for _ in range(ROUNDS)]
    return steps_of_the_fastest(rounds, seconds)


def steps_of_the_fastest(rounds: list[list[float]], seconds: float) -> list[int]:
    """Return how many steps of each trial take `seconds`, at least 20; `rounds` has seconds per step by round."""
    return [max(20, round(seconds / min(times))) for times in zip(*rounds, strict=True)]


def characters_per_token(corpus: Corpus, shards: TokenShards) -> float:
    """Return the mean length of a token on the training set, in characters."""
    characters: int = store().facts(corpus)["survey"]["train_characters"]
    tokens: int = store().facts(shards)["tokens"]["train"]
    return characters / tokens


@task(version="2", cache_policy=CACHE_BY_INPUTS)
def publish_vocabularies(
    names: list[str],
    corpora: list[Corpus],
    models: list[Model],
    evaluations: list[Evaluation],
    last_legs: list[Checkpoint],
    budget: str,
    seconds: float | None,
) -> Report:
    """Publish the report on the vocabularies. Each list has one item for each training run.

    `seconds` is the training time of each run, or None if the budget is not time.
    """
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
        parts.append(_vocabulary_part(title, here, best, against, seconds))
    page = ExperimentPage(
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
    """Describe which vocabulary is the best for one text, in a few sentences."""
    said = [f"{title}: {best.name} needs the fewest bits per character, {best.figures.bits_per_character:.4f}."]
    near = [name for name, found in against.items() if found.verdict == "not distinguishable"]
    worse = [f"{name} {interval(found)}" for name, found in against.items() if found.verdict == "worse"]
    if near:
        said.append(f"Not distinguishable from it: {', '.join(near)}.")
    if worse:
        said.append(f"Worse, with the 95 % interval of the difference: {'; '.join(worse)}.")
    return " ".join(said)


def _vocabulary_part(
    title: str, here: list[_Tried], best: _Tried, against: dict[str, Comparison], seconds: float | None
) -> Part:
    columns = (
        "vocabulary", "bits per character", "against the best", "nats per token", "tokens", "characters per token",
        "context, tokens", "context, characters", "embedding", "body", "steps", "seconds", "characters seen, M",
        "characters a second", "peak, MB",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = []
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
    chart = Chart(
        title="Bits per character against the length of a token",
        x_label="characters per token",
        y_label="bits per character",
        lines=tuple(
            Line(
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
    table = Table(
        title="Every vocabulary",
        columns=columns,
        rows=tuple(rows),
        best=here.index(best),
        note="Context is equal in characters, as far as whole tokens allow. Bits per character are of the whole "
        "validation set; against the best: the difference and its 95 % interval, by a paired block bootstrap widened "
        "by the luck of a seed.",
    )
    took = {t.name: t.figures.seconds for t in here}
    findings = (said,) if seconds and (said := strayed(took, seconds)) else ()
    return Part(title=title, findings=findings, charts=(chart,), tables=(table,))


def strayed(took: dict[str, float], seconds: float) -> str:
    """Return a sentence that lists runs whose training time misses the budget; empty if there are none."""
    off = [f"{name} {time:.0f} s" for name, time in took.items() if abs(time / seconds - 1) > OFF_BUDGET]
    if not off:
        return ""
    meant = f"Steps were counted out for {seconds:g} s on this machine when nothing else runs on it."
    return f"{meant} Trained for more or less: {', '.join(off)}."
