"""How long a step takes here, by taking a few."""

import statistics
import time
from typing import NamedTuple

import numpy as np
import torch

from bardflow.model.machine import Device, Execution, forget_peak, peak_bytes, resident_bytes
from bardflow.model.networks import GPTSpec
from bardflow.model.scoring import score
from bardflow.model.training import Training, TrainingSpec, begin

TIMED_STEPS = 3


class Probe(NamedTuple):
    """Seconds of a step and of scoring a validation token, and the bytes held at most while steps were taken."""

    step_seconds: float
    validation_token_seconds: float
    peak_bytes: int
    threads: int


def settled_bytes(device: Device) -> int:
    """What this process holds once everything that a training loads on the way is there.

    Products bring kernels and threads, 40 MB on a CPU. A step of a tiny model brings all of them, so that a plan begins
    from what is measured.
    """
    gpt = GPTSpec(layers=1, heads=2, width=32, context=16)
    here = Training(begin(gpt, 8, 0), TrainingSpec(steps=1, batch=4), device, Execution(micro_batch=2))
    tokens = random_tokens(8, 200)
    for _ in here.steps(tokens, 1):
        pass
    score(here.gpt, tokens, before=tokens[:1], device=Device(device.name, "f32"))
    forget_peak(device)
    return resident_bytes(device)


def probe(
    gpt: GPTSpec, vocabulary_size: int, training: TrainingSpec, execution: Execution, device: Device, *, seconds: float
) -> Probe:
    """Train on random tokens for about so many seconds, which tokens they are makes no difference to time.

    A step of many micro-batches is not taken whole: one of one and one of two say what a further micro-batch costs.
    """
    forget_peak(device)
    micro_batches = -(-training.batch // execution.micro_batch)
    if micro_batches <= 2:
        step = step_seconds(gpt, vocabulary_size, training, execution, device, seconds)
    else:
        one, two = (
            step_seconds(
                gpt,
                vocabulary_size,
                training.model_copy(update={"batch": number * execution.micro_batch}),
                execution,
                device,
                seconds * number / 3,
            )
            for number in (1, 2)
        )
        whole = training.batch / execution.micro_batch  # the last micro-batch may be smaller
        step = one + (whole - 1) * max(0.0, two - one)
    peak = peak_bytes(device)
    gpt_here = Training(begin(gpt, vocabulary_size, training.seed), training, device, execution).gpt
    tokens = random_tokens(vocabulary_size, gpt.context)
    timed = []
    for _ in range(2):
        begun = time.monotonic()
        score(gpt_here, tokens, before=tokens[:1], device=Device(device.name, "f32"))
        timed.append(time.monotonic() - begun)
    return Probe(step, min(timed) / gpt.context, peak, torch.get_num_threads())


def step_seconds(
    gpt: GPTSpec,
    vocabulary_size: int,
    training: TrainingSpec,
    execution: Execution,
    device: Device,
    seconds: float,
    *,
    most: int = TIMED_STEPS,
) -> float:
    """The median of up to `most` steps after a first one, which also pays for what is made once."""
    here = Training(begin(gpt, vocabulary_size, training.seed), training, device, execution)
    tokens = random_tokens(vocabulary_size, training.batch * gpt.context + 1)
    begun = time.monotonic()
    timed: list[float] = []
    for step in here.steps(tokens, 1 + most):
        step.loss.item()  # waits for the device
        timed.append(time.monotonic() - begun)
        if sum(timed) + min(timed) > seconds and len(timed) > 1:
            break
        begun = time.monotonic()
    return statistics.median(timed[1:])


def random_tokens(vocabulary_size: int, count: int) -> "np.ndarray[tuple[int], np.dtype[np.uint32]]":
    """Token ids drawn evenly."""
    return np.random.default_rng(0).integers(0, vocabulary_size, count).astype(np.uint32)
