"""The plan of a training run: its memory, and an execution that fits into the memory limit."""

import os

from prefect import task
from prefect.cache_policies import NO_CACHE

from bardflow.model.machine import device as devices
from bardflow.model.machine import memory
from bardflow.model.networks import GPTSpec
from bardflow.model.planning import Machine, Parts, Plan, choose, flops_per_step, parameters, settled_bytes
from bardflow.model.training import TrainingSpec
from bardflow.storage.handles import Model, Vocabulary
from bardflow.tasks.base_model import network_of
from bardflow.tasks.cluster import workers_of_a_training
from bardflow.tasks.run import store
from bardflow.tasks.saying import LOGGER, say

LIMIT_VARIABLE = "BARDFLOW_MEMORY_LIMIT"


@task(version="1", cache_policy=NO_CACHE)
def plan_training(
    vocabulary: Vocabulary,
    gpt: GPTSpec,
    training: TrainingSpec,
    memory_limit: int | str | None,
    base: Model | None = None,
) -> Plan:
    """Choose how to compute the training within the limit. Never cached, because free memory changes.

    With `base`, the network is that of this model, and `gpt` gives only context and dropout.

    Raises:
        model.machine.memory.BadLimit: the limit is not a number of bytes.
        model.planning.plan.TooLittleMemory: no execution fits; the message has the smallest limit that fits.
    """
    size = store().facts(vocabulary)["size"]
    if base is not None:
        gpt, size = network_of(base, gpt), store().facts(base)["vocabulary_size"]
    workers = workers_of_a_training()
    plan = planned(gpt, size, training, memory_limit, workers)
    counted = parameters(gpt, size)
    say(
        f"plan: {counted.total:,} parameters ({counted.embedding:,} in embeddings), "
        f"{flops_per_step(gpt, size, training) * training.steps:.3g} FLOPs in {training.steps:,} steps"
    )
    say(f"plan: peak {in_megabytes(plan.peak.total)}, {by_part(plan.peak)}; {in_words(plan, training)}")
    if workers > 1:
        has = "a part of the model's blocks (FSDP)" if plan.execution.sharded else "its own copy of the model"
        windows = -(-training.batch // workers)
        say(
            f"plan: {workers:,} workers compute {windows:,} windows of a step each; each has {has} and takes that "
            f"peak, {in_megabytes(workers * plan.peak.total)} in all"
        )
    free = memory.free_bytes(devices.choose(training.precision))
    if workers == 1 and plan.peak.total > free:
        LOGGER.warning(
            f"plan: only {in_megabytes(free)} are free here; --memory-limit free (or memory_limit=free) computes the "
            "same in less, or says how much it needs"
        )
    return plan


def planned(
    gpt: GPTSpec, vocabulary_size: int, training: TrainingSpec, memory_limit: int | str | None, workers: int = 1
) -> Plan:
    """Plan a training run for this process on this machine; the default limit is BARDFLOW_MEMORY_LIMIT.

    With several workers, the plan is that of each of them, and the limit is divided among them.
    """
    device = devices.choose(training.precision)
    limit = checked_limit(memory_limit, training)
    machine = Machine.here(device, settled_bytes(device))
    part = training.model_copy(update={"batch": -(-training.batch // workers)})
    return choose(gpt, vocabulary_size, part, machine, None if limit is None else limit // workers, workers)


def checked_limit(memory_limit: int | str | None, training: TrainingSpec) -> int | None:
    """Return the limit in bytes, from the argument or BARDFLOW_MEMORY_LIMIT; None if neither is given.

    Raises:
        model.machine.memory.BadLimit: the limit is not a number of bytes.
    """
    given = memory_limit if memory_limit is not None else os.environ.get(LIMIT_VARIABLE) or None
    return None if given is None else memory.limit_bytes(given, devices.choose(training.precision))


def in_megabytes(count: int) -> str:
    """Format bytes as `1,234 MB`."""
    return f"{count / 1e6:,.0f} MB"


def by_part(parts: Parts) -> str:
    """List the parts of a peak in one line, the largest first, without those of 0 MB."""
    listed = sorted(parts.model_dump().items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {in_megabytes(count)}" for name, count in listed if count >= 500_000)


def in_words(plan: Plan, training: TrainingSpec) -> str:
    """Describe in a few words how a step is computed."""
    execution = plan.execution
    windows = -(-training.batch // execution.workers)
    words = [f"{-(-windows // execution.micro_batch):,} x {execution.micro_batch:,} windows a step"]
    words += ["activations computed again"] if execution.recompute else []
    words += [f"logits of {execution.loss_tokens:,} tokens at once"]
    words += ["fused by torch.compile"] if execution.compiled else []
    words += ["optimizer state in bf16"] if execution.optimizer_state == "bf16" else []
    return ", ".join(words)
