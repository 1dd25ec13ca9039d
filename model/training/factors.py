"""The factors of a step: on the learning rates, by their schedule, on gradients in f16, and the share of dropout."""

import math
from collections.abc import Callable

from torch import Tensor

from bardflow.model.machine import Device
from bardflow.model.networks import GPTSpec
from bardflow.model.training.spec import TrainingSpec


def gradient_factor(spec: TrainingSpec, gpt: GPTSpec, device: Device) -> float:
    """The factor on gradients in f16, whose range is small; 1 in other precisions.

    A token's logits have gradients of up to 1 / tokens of the batch. With the factor they are up to 1 / 64, so that
    sums over tokens stay far below 65,504, the largest number of f16, and the smallest normal one, 6e-5, is 4e-3 of
    that. It is a power of two, so that in f32 it changes no digit (Micikevicius et al. 2018, section 3.2).
    """
    if device.precision != "f16":
        return 1.0
    return float(2 ** math.floor(math.log2(max(1, spec.batch * gpt.context / 64))))


def dropout_share(step: int | Tensor, spec: TrainingSpec, gpt: GPTSpec) -> float | Tensor:
    """The share of activations that a step (0, 1, …) drops: it grows evenly from 0 in the first `dropout_warmup_steps`.

    So the model first learns fast what holds in general, and dropout is there once it would memorise the text
    (curriculum dropout, Morerio et al. 2017, https://arxiv.org/abs/1703.06229).
    """
    if not spec.dropout_warmup_steps:
        return gpt.dropout
    if isinstance(step, Tensor):
        return (step / spec.dropout_warmup_steps).clamp(max=1.0) * gpt.dropout
    return min(1.0, step / spec.dropout_warmup_steps) * gpt.dropout


def learning_rate_factor(step: int, spec: TrainingSpec) -> float:
    """The learning rate of a step (0, 1, …) as a share of its peak.

    After a linear warm-up follows the schedule; the last step (`steps - 1`) has the final share. For `trapezoid`, see
    Hägele et al. 2024 (https://arxiv.org/abs/2405.18392), who found a cooldown of 20 % as good as a cosine.
    """
    if step < spec.warmup_steps:
        return (step + 1) / (spec.warmup_steps + 1)
    begins = max(spec.warmup_steps, spec.cooldown_start) if spec.schedule == "trapezoid" else spec.warmup_steps
    done = max(0, step - begins) / max(1, spec.steps - 1 - begins)
    left: Callable[[float], float] = {
        "cosine": lambda d: 0.5 * (1 + math.cos(math.pi * d)),
        "linear": lambda d: 1 - d,
        "constant": lambda d: 1.0,
        "trapezoid": lambda d: 1 - d,
    }[spec.schedule]
    return spec.final_learning_rate + (1 - spec.final_learning_rate) * left(done)
