"""`bard plan`: memory, time and price of a training run, before it starts."""

import os
from typing import Any

from pydantic import BaseModel, ConfigDict

from bardflow.home import home, project_folder
from bardflow.model.machine import device as devices
from bardflow.model.machine import memory
from bardflow.model.networks import Parameters
from bardflow.model.planning import Plan, cloud, disk_bytes, flops_per_step, parameters, probe
from bardflow.sources.adding import look
from bardflow.sources.corpora import load_corpus, load_parts
from bardflow.sources.mixing import survey_of_mixture
from bardflow.sources.spec import MixtureSpec
from bardflow.tasks.base_model import shape_of
from bardflow.tasks.planning import in_megabytes, in_words, planned
from bardflow.tasks.recipes import Recipe
from bardflow.tasks.run import refs, store
from bardflow.tasks.vocabulary import size_before_learning


class Offer(BaseModel):
    """The training run on one rented GPU; figures are None if the run does not fit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    card: str
    dollars_per_hour: float
    peak_bytes: int | None
    micro_batch: int | None
    seconds: float | None
    dollars: float | None
    why: str


class Foreseen(BaseModel):
    """The result of `bard plan`, as `--json` prints it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str
    recipe: str
    vocabulary_size: int
    parameters: Parameters
    flops_per_step: int
    steps: int
    tokens_per_step: int
    plan: Plan
    peak_bytes: int
    moment: str
    free_bytes: int
    device: str
    precision: str
    threads: int | None
    step_seconds: float | None
    training_seconds: float | None
    validation_seconds: float | None
    probe_peak_bytes: int | None
    checkpoints: int
    disk_bytes: int
    offers: list[Offer]
    verdict: str


def foresee_run(
    corpus: str, recipe: Recipe, memory_limit: int | str | None, prices: dict[str, float], probe_seconds: float
) -> Foreseen:
    """Plan a run of a recipe on a corpus, time a few steps, and estimate it for the GPUs of model/planning/gpus.toml.

    Raises:
        BardError: the corpus cannot be fetched, or a limit or a price is not legal.
    """
    # The process of a run has these modules in memory, so the plan must count them.
    import bardflow.flows.train_gpt  # noqa: F401

    gpt, training = recipe.gpt, recipe.training
    on_offer = cloud.cards(prices)
    counted = survey_of(corpus)
    if recipe.base.model is None:
        size = size_before_learning(
            recipe.vocabulary,
            distinct=counted["distinct"] - counted["unseen_distinct"],
            unseen=counted["unseen_distinct"] > 0,
        )
    else:
        gpt, size = shape_of(recipe.base, gpt)
    plan = planned(gpt, size, training, memory_limit)
    device = devices.choose(training.precision)
    free = memory.free_bytes(device)
    fits = plan.peak.total <= free
    found = (
        probe(gpt, size, training, plan.execution, device, seconds=probe_seconds) if fits and probe_seconds else None
    )
    offers = [cloud.rented(gpt, size, training, name, card) for name, card in on_offer.items()]
    legs = len(training.leg_ends())
    here = None if found is None else found.step_seconds * training.steps
    if found is None and fits:
        verdict = "not known without a probe: leave --probe-seconds out"
    else:
        verdict = cloud.worth(here, offers)
    return Foreseen(
        corpus=corpus,
        recipe=recipe.name,
        vocabulary_size=size,
        parameters=parameters(gpt, size),
        flops_per_step=flops_per_step(gpt, size, training),
        steps=training.steps,
        tokens_per_step=training.batch * gpt.context,
        plan=plan,
        peak_bytes=plan.peak.total,
        moment=plan.moment,
        free_bytes=free,
        device=device.name,
        precision=device.precision,
        threads=found and found.threads,
        step_seconds=found and found.step_seconds,
        training_seconds=here,
        validation_seconds=found and legs * training.validation_tokens * found.validation_token_seconds,
        probe_peak_bytes=found and found.peak_bytes,
        checkpoints=legs + 1,
        disk_bytes=disk_bytes(gpt, size, training, plan.execution),
        offers=[
            Offer(
                card=offer.card,
                dollars_per_hour=on_offer[offer.card].dollars_per_hour,
                peak_bytes=offer.peak_bytes,
                micro_batch=offer.execution.micro_batch if offer.execution else None,
                seconds=offer.seconds,
                dollars=offer.dollars,
                why=offer.why,
            )
            for offer in offers
        ],
        verdict=verdict,
    )


def survey_of(corpus: str) -> dict[str, Any]:
    """Return the survey of a corpus's text, from the store or by fetching the text."""
    spec = load_corpus(corpus, project_folder() / "corpora")
    entry = refs().head(f"{corpus}/text")
    if entry is not None and not store().damage(entry.handle):
        survey: dict[str, Any] = store().facts(entry.handle)["survey"]
        return survey
    mirror = os.environ.get("CORPORA_MIRROR") or None
    if isinstance(spec, MixtureSpec):
        parts = load_parts(spec, project_folder() / "corpora")
        mixed = survey_of_mixture(spec, parts, project=project_folder(), downloads=home() / "downloads", mirror=mirror)
        return mixed.model_dump(mode="json")
    seen = look(spec, project=project_folder(), downloads=home() / "downloads", mirror=mirror)
    return seen.survey.model_dump(mode="json")


def table(foreseen: Foreseen, recipe: Recipe) -> str:
    """Format the plan as text."""
    f, training = foreseen, recipe.training
    peak = f.plan.peak
    lines = [
        f"{f.recipe} on {f.corpus}: {f.vocabulary_size:,} tokens, {f.steps:,} steps of {f.tokens_per_step:,} tokens",
        "",
        f"parameters    {f.parameters.total:>14,}   {f.parameters.embedding:,} in embeddings, "
        f"{f.parameters.body:,} in the body",
        f"FLOPs         {f.flops_per_step:>14.4g}   a step (6 N + 12 L C T a token); "
        f"{f.flops_per_step * f.steps:.4g} in all",
        f"disk          {in_megabytes(f.disk_bytes):>14}   for {f.checkpoints:,} checkpoints",
        f"peak memory   {in_megabytes(f.peak_bytes):>14}   while {f.moment}; {in_megabytes(f.free_bytes)} are free",
        *(
            f"  {name:<12}{in_megabytes(count):>14}   {100 * count / peak.total:.0f} %"
            for name, count in peak.model_dump().items()
        ),
        f"computed as   {in_words(f.plan, training)}",
    ]
    if f.peak_bytes > f.free_bytes:
        lines.append("fits here     no: try --memory-limit free, a smaller batch, or a smaller model")
    if f.step_seconds is not None and f.training_seconds is not None and f.validation_seconds is not None:
        rate = f.tokens_per_step / f.step_seconds
        reached = f.flops_per_step / f.step_seconds / 1e9
        lines.append(
            f"time          {span(f.training_seconds):>14}   {f.step_seconds:.3g} s a step, {rate:,.0f} tokens and "
            f"{reached:,.0f} GFLOPs a second on {f.device} ({f.threads} threads, {f.precision})"
        )
        lines.append(
            f"              {span(f.validation_seconds):>14}   for the validation loss after each leg, beside it"
        )
    lines += [
        "",
        f"{'rented card':<12}{'fits':>6}{'peak':>12}{'micro-batch':>13}{'time':>12}{'$/h':>8}{'dollars':>10}",
    ]
    for offer in f.offers:
        if offer.seconds is None or offer.peak_bytes is None:
            lines.append(f"{offer.card:<12}{'no':>6}{'':>12}{'':>13}{'':>12}{offer.dollars_per_hour:>8.2f}")
            continue
        lines.append(
            f"{offer.card:<12}{'yes':>6}{in_megabytes(offer.peak_bytes):>12}{offer.micro_batch:>13,}"
            f"{span(offer.seconds):>12}{offer.dollars_per_hour:>8.2f}{offer.dollars:>10.2f}"
        )
    lines += [
        f"(from datasheets, at {cloud.UTILISATION:.0%} of the peak, give or take a factor of two; dollars with "
        f"{cloud.SETUP_SECONDS // 60} min of set-up, at the assumed prices of model/planning/gpus.toml or "
        "--price CARD=DOLLARS)",
        "",
        f"is the cloud worth it?  {f.verdict}",
    ]
    return "\n".join(lines)


def span(seconds: float) -> str:
    """Format a length of time in its largest unit."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"
