"""Estimates of a training run on a rented GPU: whether it fits, its time and its price."""

import tomllib
from importlib import resources
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from bardflow.errors import BardError
from bardflow.model.machine import Execution
from bardflow.model.networks import GPTSpec
from bardflow.model.planning.plan import (
    Machine,
    TooLittleMemory,
    activation_bytes_per_token,
    choose,
    flops_per_step,
    parameters,
)
from bardflow.model.training import TrainingSpec

# Assumptions; each may be wrong by a factor of two:
UTILISATION = 0.35  # of the dense peak, in matrix products; nanoGPT's README: about 0.4 for 124 M on A100s, compiled
BANDWIDTH = 0.7  # of the memory bandwidth, outside matrix products
KERNELS_PER_LAYER = 100  # for each layer and micro-batch, forward and backward
SECONDS_PER_KERNEL = 5.5e-6  # in a CUDA graph, one after another: recipe `best` on an H100 (benchmarks/LOG.md)
SETUP_SECONDS = 15 * 60  # to rent, install and upload the text
CONTEXT_BYTES = 600_000_000  # GPU memory that CUDA and its libraries take


class CardError(BardError):
    """A GPU or a price is not valid."""


class Card(BaseModel):
    """A GPU and its price; the fields are described in model/planning/gpus.toml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory_mib: int = Field(gt=0)
    precision: Literal["f32", "bf16", "f16"]
    tflops: float = Field(gt=0)
    gigabytes_per_second: float = Field(gt=0)
    dollars_per_hour: float = Field(ge=0)


class Rented(NamedTuple):
    """A training run on a GPU. If it does not fit, `why` says so and the figures are None."""

    card: str
    peak_bytes: int | None
    execution: Execution | None
    seconds: float | None
    dollars: float | None
    why: str = ""


def cards(prices: dict[str, float]) -> dict[str, Card]:
    """Read the GPUs of model/planning/gpus.toml by name; `prices` replaces the prices of some.

    Raises:
        CardError: the file is not valid, or a price is negative or for a GPU that is not in the file.
    """
    try:
        listed = TypeAdapter(dict[str, Card]).validate_python(
            tomllib.loads(resources.files("bardflow.model.planning").joinpath("gpus.toml").read_text("utf-8"))
        )
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise CardError(f"model/planning/gpus.toml is not as its first lines say: {error}") from error
    for name, price in prices.items():
        if name not in listed:
            raise CardError(
                f"--price names {name!r}, but model/planning/gpus.toml has {', '.join(listed)}; name one, or add it"
            )
        if price < 0:
            raise CardError(f"--price {name}={price:g} is negative; give dollars an hour")
    return {
        name: card.model_copy(update={"dollars_per_hour": prices.get(name, card.dollars_per_hour)})
        for name, card in listed.items()
    }


def rented(gpt: GPTSpec, vocabulary_size: int, training: TrainingSpec, name: str, card: Card) -> Rented:
    """Estimate the training run on this GPU, with the fastest execution that fits into its memory."""
    precision = card.precision if training.precision == "auto" else training.precision
    machine = Machine(device="cuda", precision=precision, base=CONTEXT_BYTES, compiles=True)
    try:
        plan = choose(gpt, vocabulary_size, training, machine, card.memory_mib * 2**20)
    except TooLittleMemory as error:
        return Rented(name, None, None, None, None, str(error))
    seconds = training.steps * step_seconds(gpt, vocabulary_size, training, plan.execution, machine, card)
    dollars = (seconds + SETUP_SECONDS) / 3600 * card.dollars_per_hour
    return Rented(name, plan.peak.total, plan.execution, seconds, dollars)


def step_seconds(
    gpt: GPTSpec,
    vocabulary_size: int,
    training: TrainingSpec,
    execution: Execution,
    machine: Machine,
    card: Card,
) -> float:
    """Estimate the seconds of a step: matrix products plus memory traffic, or starting the kernels if that is slower.

    The rates are the datasheet's. The optimizer moves bytes for each parameter (weight, gradient and two moments, read
    and written). Each kept activation is moved four times (written, read, and the same for its gradient).
    """
    # A GPU without bf16 units computes in f32.
    products = flops_per_step(gpt, vocabulary_size, training) * (4 / 3 if execution.recompute else 1)
    tokens = training.batch * gpt.context
    moved = 28 * parameters(gpt, vocabulary_size).total
    moved += 4 * activation_bytes_per_token(gpt, Execution(micro_batch=1), machine) * tokens
    computing = products / (UTILISATION * card.tflops * 1e12) + moved / (BANDWIDTH * card.gigabytes_per_second * 1e9)
    micro_batches = -(-training.batch // execution.micro_batch)
    starting = micro_batches * gpt.layers * KERNELS_PER_LAYER * SECONDS_PER_KERNEL
    return max(computing, starting)


def worth(here_seconds: float | None, offers: list[Rented]) -> str:
    """Say in a sentence whether renting is worth it. `here_seconds` is None if the run does not fit on this machine."""
    fitting = [o for o in offers if o.seconds is not None and o.dollars is not None]
    if not fitting:
        return "no card of the list has the memory for it" + ("" if here_seconds else ", and neither has this machine")
    cheapest = min(fitting, key=_dollars)
    if here_seconds is None:
        return (
            f"yes, if at all: it does not fit here, and on {cheapest.card} it takes {_hours(_total(cheapest))} with "
            f"set-up, for {cheapest.dollars:.2f} dollars"
        )
    if here_seconds <= 2 * SETUP_SECONDS:
        return f"no: this machine is done in {_hours(here_seconds)}; renting and setting up alone takes about 15 min"
    faster = [o for o in fitting if _total(o) < here_seconds / 2]
    if not faster:
        return f"no: no card of the list is twice as fast as this machine ({_hours(here_seconds)})"
    best = min(faster, key=_dollars)
    return (
        f"if {_hours(here_seconds - _total(best))} sooner is worth {best.dollars:.2f} dollars to you: {best.card} "
        f"takes {_hours(_total(best))} with set-up, this machine {_hours(here_seconds)}"
    )


def _dollars(offer: Rented) -> float:
    assert offer.dollars is not None
    return offer.dollars


def _total(offer: Rented) -> float:
    assert offer.seconds is not None
    return offer.seconds + SETUP_SECONDS


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"
