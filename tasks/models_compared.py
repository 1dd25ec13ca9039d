"""The report that puts models side by side on one text: bits, where they differ most, and samples."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from prefect import task

from bardflow.model.scoring import Comparison, compare
from bardflow.pages.experiment import ExperimentPage
from bardflow.pages.parts import Cell, Part, Table
from bardflow.storage.documents import read_text
from bardflow.storage.handles import Baselines, Corpus, Evaluation, Model, Report
from bardflow.tasks.caching import CACHE_BY_INPUTS
from bardflow.tasks.evaluation import baselines_of, charges_of, samples_of, scores_of
from bardflow.tasks.experiments import interval, keep_experiment
from bardflow.tasks.reporting import made_at
from bardflow.tasks.run import store

# Passages of this many characters are compared, and so many of the most different ones are shown.
PASSAGE = 80
SHOWN = 5

Bits = npt.NDArray[np.float64]


class _Scored(NamedTuple):
    name: str
    evaluation: Evaluation
    bits: float


@task(version="2", cache_policy=CACHE_BY_INPUTS)
def publish_models(
    names: list[str], evaluations: list[Evaluation], models: list[Model], corpus: Corpus, baselines: Baselines
) -> Report:
    """Publish the comparison. `models` are those that were trained or imported here; others have only an evaluation."""
    scored = [
        _Scored(name, evaluation, scores_of(evaluation).bits_per_character)
        for name, evaluation in zip(names, evaluations, strict=True)
    ]
    best = min(scored, key=lambda one: one.bits)
    against = {one.name: _compared(one.evaluation, best.evaluation) for one in scored if one is not best}
    facts = store().facts(corpus)
    parts = [_scores(scored, best, against), _others(scored, baselines)]
    if len(scored) > 1:
        rival = min((one for one in scored if one is not best), key=lambda one: one.bits)
        parts.append(_differences(best, rival, corpus))
    parts += [_samples(one, facts["language"]) for one in scored if samples_of(one.evaluation)]
    page = ExperimentPage(
        experiment="compare-models",
        title=f"Models compared on {facts['title']}",
        question="Which of these models predicts the validation set best? Bits per character are comparable also where "
        "vocabularies differ.",
        created=max(made_at(evaluation) for evaluation in evaluations),
        answer=tuple(_answers(scored, best, against, baselines)),
        parts=tuple(parts),
        lineage=tuple(f"{one.name}: {_made_of(one.evaluation)}" for one in scored),
    )
    return keep_experiment(page)


def _compared(own: Evaluation, theirs: Evaluation) -> Comparison:
    """Compare two sets of weights. The variation between seeds does not count: nothing is said about new trainings."""
    return compare(charges_of(own), charges_of(theirs), luck=0)


def _made_of(evaluation: Evaluation) -> str:
    made = store().origin(evaluation)
    return str(made.measured.get("address") or made.inputs["model"])


def _answers(scored: list[_Scored], best: _Scored, against: dict[str, Comparison], baselines: Baselines) -> list[str]:
    said = [f"{best.name} needs the fewest bits per character: {best.bits:.4f}."]
    for name, found in against.items():
        unsure = " The difference may be chance." if found.verdict == "not distinguishable" else ""
        said.append(f"{name} needs {interval(found)} bits per character more.{unsure}".replace("+", ""))
    measured = [b for b in baselines_of(baselines) if b.kind != "published"]
    if measured:
        strongest = min(measured, key=lambda baseline: baseline.bits_per_character)
        beaten = sum(one.bits < strongest.bits_per_character for one in scored)
        said.append(
            f"{beaten} of {len(scored)} predict better than the best baseline, {strongest.name} "
            f"({strongest.bits_per_character:.4f})."
        )
    if any("type" in store().facts(one.evaluation) for one in scored):
        said.append("A pretrained model may have read this text before; then its bits are too low.")
    return said


def _scores(scored: list[_Scored], best: _Scored, against: dict[str, Comparison]) -> Part:
    """Return the scores in one table and the models in another: as one, it would be wider than a page."""
    rows: list[tuple[Cell, ...]] = []
    models: list[tuple[Cell, ...]] = []
    for one in scored:
        scores = scores_of(one.evaluation)
        difference = interval(against[one.name]) if one.name in against else "the best"
        sliding = _score(scores.sliding_bits_per_character)
        rows.append((one.name, f"{one.bits:.4f}", difference, sliding, f"{scores.bits_per_byte:.4f}"))
        tokens = (f"{scores.nats_per_token:.4f}", scores.tokens, round(scores.characters / scores.tokens, 3))
        models.append((one.name, *_facts(one.evaluation), *tokens))
    table = Table(
        title="Scores",
        columns=("model", "bits per character", "against the best", "overlapping windows", "bits per byte"),
        rows=tuple(rows),
        best=scored.index(best),
        note="Over the whole validation set, every character charged, in disjoint windows of the context. Against the "
        "best: the difference and its 95 % interval by a paired block bootstrap, for these weights.",
    )
    described = Table(
        title="Models",
        columns=(
            "model", "architecture", "parameters", "vocabulary", "context", "nats per token", "tokens",
            "characters per token",
        ),
        rows=tuple(models),
        note="Nats per token cannot be compared between vocabularies. Tokens are those of the validation set.",
    )  # fmt: skip
    return Part(title="Scores", tables=(table, described))


def _score(bits: float | None) -> str | None:
    return None if bits is None else f"{bits:.4f}"


def _facts(evaluation: Evaluation) -> tuple[Cell, Cell, Cell, Cell]:
    """Return the architecture, and the numbers of parameters, tokens of the vocabulary and tokens of the context."""
    facts = store().facts(evaluation)
    if "type" in facts:
        return facts["type"], facts["parameters"], facts["vocabulary_size"], facts["context"]
    model = store().facts(Model(digest=store().origin(evaluation).inputs["model"].partition("/")[2]))
    gpt = model["gpt"]
    return gpt["architecture"], model["parameters"], model["vocabulary_size"], gpt["context"]


def _others(scored: list[_Scored], baselines: Baselines) -> Part:
    listed = [(one.name, one.bits, "model") for one in scored]
    listed += [(b.name, b.bits_per_character, b.kind) for b in baselines_of(baselines)]
    rows = tuple((name, f"{bits:.4f}", kind) for name, bits, kind in sorted(listed, key=lambda row: row[1]))
    table = Table(title="Beside other predictors", columns=("predictor", "bits per character", "kind"), rows=rows)
    return Part(title="Beside other predictors", tables=(table,))


def _differences(best: _Scored, rival: _Scored, corpus: Corpus) -> Part:
    """Return the passages where the two best models differ most, in both directions."""
    ours, theirs = (charges_of(one.evaluation).astype(np.float64) / np.log(2) for one in (best, rival))
    text = "".join(read_text(store().folder(corpus), "validation"))
    tables: list[Table] = []
    nowhere: list[str] = []
    for better, worse, own, other in ((best, rival, ours, theirs), (rival, best, theirs, ours)):
        rows = tuple(
            (text[start : start + PASSAGE], f"{_mean(own, start):.2f}", f"{_mean(other, start):.2f}")
            for start in most_different(other - own)
        )
        if rows:
            title = f"Where {better.name} is better than {worse.name}"
            tables.append(Table(title=title, columns=("passage", "bits per character", "of the other"), rows=rows))
        else:
            nowhere.append(f"No passage of {PASSAGE} characters is predicted better by {better.name}.")
    return Part(title="Where they differ most", findings=tuple(nowhere), tables=tuple(tables))


def most_different(excess: Bits) -> list[int]:
    """Return the starts of passages with the largest mean excess, largest first; they do not overlap."""
    size = min(PASSAGE, len(excess))
    sums = np.concatenate([[0.0], np.cumsum(excess)])
    means = (sums[size:] - sums[:-size]) / size
    found: list[int] = []
    for start in np.argsort(-means, kind="stable").tolist():
        if means[start] <= 0 or len(found) == SHOWN:
            break
        if all(abs(start - other) >= size for other in found):
            found.append(start)
    return found


def _mean(bits: Bits, start: int) -> float:
    return float(bits[start : start + PASSAGE].mean())


def _samples(one: _Scored, language: str) -> Part:
    texts = samples_of(one.evaluation)
    said = f"Temperature {texts[0].temperature:g}, seed {texts[0].seed}; the prompt is {texts[0].prompt!r}."
    return Part(
        title=f"Samples of {one.name}",
        findings=(said,),
        quotes=tuple(sample.text for sample in texts if sample.text),
        language=language,
    )
