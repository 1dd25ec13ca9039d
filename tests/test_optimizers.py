"""The laws of the optimizers and of the learning rate's schedule."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bardflow.model.machine.device import Device
from bardflow.model.networks.spec import GPTSpec
from bardflow.model.training.factors import learning_rate_factor
from bardflow.model.training.loop import begin, restore
from bardflow.model.training.optimizers import OPTIMIZERS, AdamW, Muon, round_at_random
from bardflow.model.training.spec import TrainingSpec

CPU = Device("cpu", "f32")
BETAS = (0.9, 0.99)
CLASSIC = GPTSpec(
    architecture="classic", layers=2, heads=2, width=16, context=8, activation="gelu", tied=True, biases=True
)


@pytest.mark.parametrize(
    ("ours", "theirs", "apart"),
    [
        (
            lambda p: Muon(p, peak=0.1, weight_decay=0.2, momentum=0.95, precision=torch.bfloat16),
            lambda p: torch.optim.Muon(p, lr=0.1, weight_decay=0.2, momentum=0.95),
            0.02,
        ),
        (
            lambda p: Muon(p, peak=0.1, weight_decay=0.2, momentum=0.95, precision=torch.bfloat16, iterations=3),
            lambda p: torch.optim.Muon(p, lr=0.1, weight_decay=0.2, momentum=0.95, ns_steps=3),
            0.02,
        ),
        (
            lambda p: AdamW(p, peak=0.1, weight_decay=0.2, betas=BETAS),
            lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2, betas=BETAS, fused=True),
            0.0,
        ),
    ],
    ids=["muon", "muon of three iterations", "adamw"],
)
def test_an_optimizer_is_torchs_up_to_rounding(ours: Any, theirs: Any, apart: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 16), (16, 64), (64, 16), (16, 16)]
    one, other = ([torch.nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    optimizer, reference = ours(one), theirs(other)
    for _ in range(3):
        for p, q in zip(one, other, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        optimizer.step(0.1)
        reference.step()
    for p, q in zip(one, other, strict=True):
        assert p.grad is None
        assert (p - q).norm() <= apart * (q - 1).norm()


def test_state_rounded_at_random_is_right_on_average() -> None:
    x = torch.full((100_000,), 1.001)
    rounded = torch.empty_like(x, dtype=torch.bfloat16)
    round_at_random(x.clone(), rounded, np.random.default_rng(0))
    assert set(rounded.tolist()) == {1.0, 1.0078125}
    assert abs(float(rounded.double().mean()) - 1.001) < 1e-4


@given(
    steps=st.integers(2, 500),
    warmup=st.integers(0, 100),
    final=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "linear"]),
)
def test_the_learning_rate_climbs_to_its_peak_and_ends_at_its_final_share(
    steps: int, warmup: int, final: float, schedule: Any
) -> None:
    warmup = min(warmup, steps - 2)
    spec = TrainingSpec(steps=steps, warmup_steps=warmup, final_learning_rate=final, schedule=schedule)
    factors = [learning_rate_factor(step, spec) for step in range(steps)]
    assert math.isclose(factors[0], 1 / (warmup + 1))
    assert math.isclose(factors[warmup], 1)
    assert math.isclose(factors[-1], final, abs_tol=1e-9)
    assert factors[: warmup + 1] == sorted(factors[: warmup + 1])
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(factors[warmup:]))


def test_a_constant_schedule_stays_at_its_peak() -> None:
    spec = TrainingSpec(steps=50, warmup_steps=10, schedule="constant")
    assert {learning_rate_factor(step, spec) for step in range(10, 50)} == {1.0}


def test_muon_takes_the_blocks_matrices_and_adamw_the_rest() -> None:
    gpt = restore(begin(CLASSIC, 23, 1))
    names = {id(p): name for name, p in gpt.named_parameters()}
    spec = TrainingSpec(optimizer="muon", weight_decay=0.3)
    tables, vectors, *muons = OPTIMIZERS[spec.optimizer].make(dict(gpt.named_parameters()), spec, CPU)
    assert {names[id(p)] for p in tables.parameters} == {"tokens.weight", "positions.weight"}
    assert all(p.dim() == 1 for p in vectors.parameters)
    assert all(isinstance(muon, Muon) for muon in muons)
    assert {names[id(p)] for muon in muons for p in muon.parameters} == {
        n for n, p in gpt.named_parameters() if n.startswith("blocks.") and p.dim() == 2
    }
    assert [o.weight_decay for o in (tables, vectors, *muons)] == [0.3, 0.0, *(0.3 for _ in muons)]
    owned = [p for o in (tables, vectors, *muons) for p in o.parameters]
    assert len(owned) == len({id(p) for p in owned}) == len(names)
