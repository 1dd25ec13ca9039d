"""Training in legs: each leg is a cached task that takes a checkpoint and returns the next one."""

import json
from collections.abc import Iterable
from typing import Any

from prefect import task
from pydantic import BaseModel, ConfigDict

from bardflow.engine.legs import Job, trained
from bardflow.identity import identity
from bardflow.model.leg import LegRun
from bardflow.model.machine import device as devices
from bardflow.model.networks import GPTSpec, count_parameters
from bardflow.model.planning import Plan
from bardflow.model.training import (
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
from bardflow.tasks.cluster import folder_of, require_wanted, spread
from bardflow.tasks.run import origin, store
from bardflow.tasks.saying import Progress, say, watched

LOG = "log.jsonl"


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


@task(version="3", cache_policy=CACHE_BY_INPUTS.ignoring("plan"))
def train_leg(checkpoint: Checkpoint, shards: TokenShards, spec: TrainingSpec, until: int, plan: Plan) -> Checkpoint:
    """Train from the checkpoint to step `until`, then score the validation set.

    The plan says how a step is computed, and by how many workers, and does not change the result. So it is not part of
    the cache key.

    Raises:
        BardError: as `model.leg.LegRun`, and `engine.legs.trained` on a cluster.
    """
    begun = store().facts(checkpoint)["step"]
    doing = f"steps {begun:,} to {until:,}" + ("" if spec.schedule == "constant" else f" of {spec.steps:,}")
    execution = plan.execution
    with store().draft() as draft, spread(execution.workers) as cluster:
        if cluster is None:
            device = devices.choose(spec.precision)
            run = LegRun(
                lambda: Training(load_snapshot(store().folder(checkpoint)), spec, device, execution),
                read_shards(store().folder(shards), "train"),
                read_shards(store().folder(shards), "validation"),
                until,
                device,
            )
            steps = watched(
                run.steps(),
                total=until - begun,
                doing=doing,
                unit="step",
                note=lambda step: f"loss {step.loss.item():.3f}",
            )
            for _ in steps:
                pass
            leg = run.finished()
            save_snapshot(run.training.state(), draft.folder)
        else:
            job = Job(folder_of(cluster, checkpoint), folder_of(cluster, shards), spec, until, execution)
            with Progress(doing, "step", until - begun) as progress:
                leg = trained(
                    cluster, job, draft.folder, lambda step, loss: progress(step - begun), say, require_wanted
                )
        lines = [LogLine(step=p.step, train_nats=p.train_nats, learning_rate=p.learning_rate) for p in leg.points]
        say(
            f"step {until:,}: train {lines[-1].train_nats:.4f}, validation {leg.validation_nats_per_token:.4f} nats "
            f"per token, {leg.tokens / leg.train_seconds:,.0f} tokens per second"
        )
        (draft.folder / LOG).write_text("".join(f"{line.model_dump_json()}\n" for line in lines))
        facts = {"step": until, "validation_nats_per_token": leg.validation_nats_per_token}
        measured: dict[str, Any] = {
            "seconds": [point.seconds for point in leg.points],
            "train_seconds": leg.train_seconds,
            "tokens": leg.tokens,
            "peak_bytes": leg.peak_bytes,
            "peak_of": leg.peak_of,
            "planned_peak_bytes": plan.peak.total,
            "execution": execution.model_copy(update={"workers": leg.workers}).model_dump(),
            "device": leg.device,
            "precision": leg.precision,
            "threads": leg.threads,
        }
        return store().keep(draft, Checkpoint, facts, origin(**measured))


@task(version="1", cache_policy=CACHE_BY_INPUTS)
def export_model(checkpoint: Checkpoint, vocabulary: Vocabulary, corpus: Corpus) -> Model:
    """Write the checkpoint's model as a folder that `transformers` can load, with its tokenizer and a card."""
    snapshot = load_snapshot(store().folder(checkpoint))
    gpt = restore(snapshot, averaged=True)
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


def validation_losses(legs: Iterable[Checkpoint]) -> list[float]:
    """Return each leg's validation loss in nats per token."""
    return [store().facts(leg)["validation_nats_per_token"] for leg in legs]


def is_hopeless(legs: list[Checkpoint], patience: int | None) -> bool:
    """Return whether training stops here: the last `patience` legs did not lower the validation loss."""
    return hopeless(validation_losses(legs), patience)


def best(legs: list[Checkpoint]) -> Checkpoint:
    """Return the leg with the lowest validation loss."""
    return legs[best_leg(validation_losses(legs))]
