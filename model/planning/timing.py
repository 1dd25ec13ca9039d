"""Measurements of the seconds of a training step and the memory of this process."""

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
    """Seconds of a step and of scoring a validation token, the peak bytes of the steps, and the number of threads."""

    step_seconds: float
    validation_token_seconds: float
    peak_bytes: int
    threads: int


def settled_bytes(device: Device) -> int:
    """Measure the memory of this process in bytes, after everything that a training run loads is loaded.

    Matrix products load kernels and start threads, 40 MB on a CPU. A step of a tiny model loads all of them, so a plan
    starts from a measured value.
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
    """Train on random tokens for about `seconds`; the time does not depend on the tokens.

    A step of more than two micro-batches is not run whole. Steps of one and of two show the cost of one more.
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
    """Measure the median seconds of up to `most` steps, without the first, which includes one-time work."""
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
    """Draw token ids uniformly."""
    return np.random.default_rng(0).integers(0, vocabulary_size, count).astype(np.uint32)
