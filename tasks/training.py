"""Training in legs: each leg is a cached task that takes a checkpoint and returns the next one."""

import json
import time
from collections.abc import Iterable
from typing import Any

import torch
from prefect import task
from pydantic import BaseModel, ConfigDict

from bardflow.identity import identity
from bardflow.model.machine import device as devices
from bardflow.model.machine import memory
from bardflow.model.networks import GPTSpec, count_parameters
from bardflow.model.planning import Plan
from bardflow.model.scoring import score
from bardflow.model.training import (
    Step,
    Training,
    TrainingSpec,
    begin,
    best_leg,
    hopeless,
    load_snapshot,
    restore,
    save_model,
    save_snapshot,
)
from bardflow.model.vocabulary import TOKENIZER_FILE, load
from bardflow.storage.handles import Checkpoint, Corpus, Model, TokenShards, Vocabulary
from bardflow.storage.shards import read_shards
from bardflow.tasks.base_model import TOKENIZER_SETTINGS, base_in_words, base_of
from bardflow.tasks.caching import CACHE_BY_INPUTS
from bardflow.tasks.card import model_card
from bardflow.tasks.run import origin, store
from bardflow.tasks.saying import say, watched

LOG = "log.jsonl"
LOGGED_POINTS = 400  # the approximate number of points in a run's loss curve, which take 30 kB


class LogLine(BaseModel):
    """A point of the loss curve: the mean loss since the point before, in nats per token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    train_nats: float
    learning_rate: float


@task(version="1", cache_policy=CACHE_BY_INPUTS)
def begin_training(vocabulary: Vocabulary, gpt: GPTSpec, seed: int) -> Checkpoint:
    """Initialise the weights and return the checkpoint of step 0."""
    with store().draft() as draft:
        snapshot = begin(gpt, store().facts(vocabulary)["size"], seed)
        save_snapshot(snapshot, draft.folder)
        return store().keep(draft, Checkpoint, {"step": 0}, origin())


@task(version="2", cache_policy=CACHE_BY_INPUTS.ignoring("plan"))
def train_leg(checkpoint: Checkpoint, shards: TokenShards, spec: TrainingSpec, until: int, plan: Plan) -> Checkpoint:
    """Train from the checkpoint to step `until`, then score the validation set.

    The plan says how a step is computed and does not change the result, so it is not part of the cache key.
    """
    device = devices.choose(spec.precision)
    of_this_leg = memory.forget_peak(device)
    training = Training(load_snapshot(store().folder(checkpoint)), spec, device, plan.execution)
    train = read_shards(store().folder(shards), "train")
    validation = read_shards(store().folder(shards), "validation")[: spec.validation_tokens]

    # A leg of a constant schedule is the same in a training of any length, so its points do not depend on that.
    every = max(1, (10 * spec.leg_steps if spec.schedule == "constant" else spec.steps) // LOGGED_POINTS)
    log: list[LogLine] = []
    seconds: list[float] = []
    losses: list[torch.Tensor] = []
    tokens, begun = 0, time.monotonic()
    steps = watched(
        training.steps(train, until),
        total=until - training.step,
        doing=f"steps {training.step:,} to {until:,}" + ("" if spec.schedule == "constant" else f" of {spec.steps:,}"),
        unit="step",
        note=lambda step: f"loss {step.loss.item():.3f}",
    )
    for step in steps:
        losses.append(step.loss)
        tokens += step.tokens
        if step.number % every == 0 or step.number == until:
            log.append(log_line(step, losses))
            seconds.append(time.monotonic() - begun)
            losses = []
    trained = time.monotonic() - begun
    held_out = score(
        training.gpt,
        validation,
        before=train[-1:],
        device=devices.Device(device.name, "f32"),
        execution=plan.execution,
    )
    say(
        f"step {until:,}: train {log[-1].train_nats:.4f}, validation {held_out.nats_per_token:.4f} nats per token, "
        f"{tokens / trained:,.0f} tokens per second"
    )
    with store().draft() as draft:
        save_snapshot(training.state(), draft.folder)
        (draft.folder / LOG).write_text("".join(f"{line.model_dump_json()}\n" for line in log))
        facts = {"step": until, "validation_nats_per_token": held_out.nats_per_token}
        measured: dict[str, Any] = {
            "seconds": seconds,
            "train_seconds": trained,
            "tokens": tokens,
            "peak_bytes": memory.peak_bytes(device),
            "peak_of": "leg" if of_this_leg else "process",
            "planned_peak_bytes": plan.peak.total,
            "execution": plan.execution.model_dump(),
            "device": device.name,
            "precision": device.precision,
            "threads": torch.get_num_threads(),
        }
        return store().keep(draft, Checkpoint, facts, origin(**measured))


@task(version="1", cache_policy=CACHE_BY_INPUTS)
def export_model(checkpoint: Checkpoint, vocabulary: Vocabulary, corpus: Corpus) -> Model:
    """Write the checkpoint's model as a folder that `transformers` can load, with its tokenizer and a card."""
    snapshot = load_snapshot(store().folder(checkpoint))
    gpt = restore(snapshot)
    parameters, embedding = count_parameters(gpt)
    tokenizer_file = store().folder(vocabulary) / TOKENIZER_FILE
    with store().draft() as draft:
        save_model(gpt, draft.folder)
        load(tokenizer_file).save(str(draft.folder / TOKENIZER_FILE))
        (draft.folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_SETTINGS, indent=2) + "\n")
        base = base_of(checkpoint)
        begun = None if base is None else base_in_words(base)
        card = model_card(
            store().facts(corpus), snapshot.gpt, snapshot.step, parameters, store().facts(vocabulary), base=begun
        )
        (draft.folder / "README.md").write_text(card, encoding="utf-8")
        facts = {
            "gpt": identity(snapshot.gpt),
            "step": snapshot.step,
            "parameters": parameters,
            "embedding_parameters": embedding,
            "vocabulary_size": snapshot.vocabulary_size,
            "vocabulary_kind": store().facts(vocabulary)["kind"],
        } | ({} if begun is None else {"base": begun})
        return store().keep(draft, Model, facts, origin())


def log_line(step: Step, losses: list[torch.Tensor]) -> LogLine:
    """Return the log line of this step, with the mean of the losses since the last log line."""
    return LogLine(
        step=step.number,
        # On the CPU, because Apple's GPUs have no f64.
        train_nats=float(torch.stack(losses).cpu().double().mean()),
        learning_rate=step.learning_rate,
    )


def validation_losses(legs: Iterable[Checkpoint]) -> list[float]:
    """Return each leg's validation loss in nats per token."""
    return [store().facts(leg)["validation_nats_per_token"] for leg in legs]


def is_hopeless(legs: list[Checkpoint], patience: int | None) -> bool:
    """Return whether training stops here: the last `patience` legs did not lower the validation loss."""
    return hopeless(validation_losses(legs), patience)


def best(legs: list[Checkpoint]) -> Checkpoint:
    """Return the leg with the lowest validation loss."""
    return legs[best_leg(validation_losses(legs))]
