"""The scaling ladder: the next size, whether a size is worth its cost, and the report."""

import math
from itertools import pairwise

from prefect import task

from bardflow.model.planning import WORTH, Fit, fit, foreseen_knee, knee
from bardflow.model.scoring import Comparison
from bardflow.pages.experiment import ExperimentPage
from bardflow.pages.parts import Cell, Chart, Line, Part, Table
from bardflow.storage.handles import Checkpoint, Corpus, Evaluation, Model, Report
from bardflow.tasks.caching import CACHE_BY_INPUTS
from bardflow.tasks.experiments import Figures, compared, figures, interval, keep_experiment
from bardflow.tasks.reporting import made_at
from bardflow.tasks.run import store


@task(version="1", cache_policy=CACHE_BY_INPUTS)
def publish_ladder(
    corpus: Corpus,
    models: list[Model],
    evaluations: list[Evaluation],
    last_legs: list[Checkpoint],
    stopped: str,
    next_rung: str,
    next_flops_factor: float,
) -> Report:
    """Publish the report: loss against parameters, time and memory, the knee, and an estimate for the next size."""
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
        f"{title}: {_knee(names, rungs, at, curve)}",
        f"The lowest of {len(rungs)} rungs is {names[losses.index(min(losses))]} with {min(losses):.4f} bits per "
        f"character. {stopped}",
        _next(rungs, curve, next_rung, next_flops_factor),
    )
    rows: list[tuple[Cell, ...]] = [
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
        fitted = Line(
            name=f"fit: {curve.floor:.3f} + {curve.amplitude:.3g} / body^{curve.exponent:.2f}",
            x=tuple(dense),
            y=tuple(curve.at(n) for n in dense),
            style="line",
        )
        own = Line(name="measured", x=tuple(sizes), y=tuple(losses), labels=tuple(names), style="points")
        charts.insert(
            0,
            Chart(
                title="Bits per character against parameters of the body, and a power law through it",
                x_label="parameters of the body",
                y_label="bits per character",
                lines=(own, fitted),
                log_x=True,
                marked=(sizes[at], "knee") if at < len(rungs) - 1 else None,
            ),
        )
    table = Table(
        title="The rungs",
        columns=(
            "layers x width", "parameters", "body", "bits per character", "against the rung before", "verdict",
            "seconds", "characters a second", "peak, MB",
        ),
        rows=tuple(rows),
        best=at,
        note="The knee stands out, or the last rung where none was met. Steps and batch are equal; "
        "learning rates follow the width (ARCHITECTURE.md).",
    )  # fmt: skip
    page = ExperimentPage(
        experiment="scaling-ladder",
        title=f"Scaling ladder: {title}",
        question="How large a model pays on this text, and what would the next size cost?",
        created=max(made_at(evaluation) for evaluation in evaluations),
        answer=answer,
        parts=(Part(title="Loss and cost", charts=tuple(charts), tables=(table,)),),
        lineage=tuple(f"{name}: {model}" for name, model in zip(names, models, strict=True)),
    )
    return keep_experiment(page)


def _ladder_chart(label: str, x: list[float], losses: list[float], names: list[str], at: int) -> Chart:
    line = Line(name="measured", x=tuple(x), y=tuple(losses), labels=tuple(names))
    return Chart(
        title=f"Bits per character against {label}",
        x_label=label,
        y_label="bits per character",
        lines=(line,),
        log_x=True,
        marked=(x[at], "knee") if at < len(x) - 1 else None,
    )


def _knee(names: list[str], rungs: list[Figures], at: int, curve: Fit | None) -> str:
    """Describe the knee in a sentence; if no knee was reached, describe the one that the fit predicts."""
    last = f"{names[at]} ({rungs[at].parameters:,} parameters, {rungs[at].bits_per_character:.4f} bits per character, "
    last += f"{rungs[at].seconds:.0f} s)"
    worth = f"{100 * WORTH:g} %"
    if at < len(rungs) - 1:
        return f"the knee is {last}: past it, twice the time brings less than {worth} fewer bits."
    said = f"no knee up to {last}: there twice the time still brings {worth} fewer bits or more."
    sizes, seconds = [float(f.body_parameters) for f in rungs], [f.seconds for f in rungs]
    seen = foreseen_knee(curve, sizes, seconds) if curve is not None else None
    if seen is None:
        return said
    return f"{said} By the fit the knee lies at about {seen[0] / 1e6:.1f} M parameters in the body, {seen[1]:.0f} s."


def _next(rungs: list[Figures], curve: Fit | None, shape: str, flops_factor: float) -> str:
    """Describe the next size in a sentence: its cost, and the loss that the fit predicts."""
    last = rungs[-1]
    body = last.body_parameters * flops_factor
    promised = f"; the fit promises {curve.at(body):.4f} bits per character" if curve is not None else ""
    return (
        f"The next rung, {shape}, would have about {body / 1e6:.2f} M parameters in its body and take about "
        f"{last.seconds * flops_factor:.0f} s{promised}."
    )


def learning_rate_factor(width: int, base_width: int) -> float:
    """Return the factor by which both learning rates change with the width.

    AdamW trains the embedding table and the head. The best rate for the table does not depend on the width; for the
    head it is inverse to it (muP; Yang et al. 2022). They share one rate, so the factor is the geometric mean of the
    two. Muon's updates have a spectral norm that does not depend on the shape (Bernstein 2024), which suggests a
    constant rate. But the ladder also grows in depth, and the measured best rate falls with the same root
    (benchmarks/LOG.md, "Learning rates between widths").
    """
    return math.sqrt(base_width / width)


def larger(layers: int, width: int) -> tuple[int, int]:
    """Return the next size's layers and width: about twice the parameters of the body, 12 x layers x width^2."""
    for shape in RUNGS:
        if shape[0] * shape[1] ** 2 > 1.3 * layers * width**2:
            return shape
    return layers + 2, round(width * 1.25 / 32) * 32


# Layers and width of each size; each has about twice the parameters of the one before.
RUNGS: tuple[tuple[int, int], ...] = (
    (2, 48), (2, 64), (3, 80), (3, 112), (4, 128), (5, 160), (6, 208), (6, 288), (8, 352), (9, 464), (12, 576),
)  # fmt: skip


def heads_of(width: int) -> int:
    """Return the number of heads for which a head has about 48 channels, and an even number of channels."""
    fitting = [h for h in range(1, width // 16 + 1) if width % h == 0 and (width // h) % 2 == 0]
    return min(fitting, key=lambda h: abs(width / h - 48))


def pays(own: Evaluation, before: Evaluation, least: float) -> tuple[bool, Comparison]:
    """Return whether a size beats the best one so far with 95 % confidence and by `least`, and the comparison."""
    found = compared(own, before)
    return found.verdict == "better" and -found.difference >= least, found
