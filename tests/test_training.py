"""Laws of training: a fold over legs that forgets nothing, and the arithmetic of a step."""

import gc
import itertools
import math
import subprocess
import sys
import tempfile
import weakref
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from bardflow.model.leg import LegRun
from bardflow.model.machine.device import Device
from bardflow.model.machine.execution import Execution
from bardflow.model.networks import NOT_CHARGED
from bardflow.model.networks.dropout import Dropout
from bardflow.model.networks.spec import GPTSpec
from bardflow.model.scoring.held_out import score
from bardflow.model.training.batches import Batches, TooFewTokens
from bardflow.model.training.checkpoints import load_snapshot, save_snapshot
from bardflow.model.training.factors import dropout_share, learning_rate_factor
from bardflow.model.training.loop import (
    Diverged,
    Snapshot,
    Training,
    begin,
    best_leg,
    hopeless,
    restore,
)
from bardflow.model.training.spec import TrainingSpec

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = Device("cpu", "f32")
WHOLE = Execution(micro_batch=64)
VOCABULARY = 23
MODERN = GPTSpec(layers=2, heads=2, width=16, context=8)
CLASSIC = GPTSpec(architecture="classic", layers=2, heads=2, width=16, context=8, activation="gelu", tied=True)
LLAMA = GPTSpec(
    architecture="llama", layers=2, heads=2, width=16, context=8, key_value_heads=1, query_key_norm=True, tied=True
)


def some_text(length: int = 300) -> npt.NDArray[np.uint16]:
    """Tokens that a model can learn something about."""
    drawn = np.random.default_rng(0).integers(0, VOCABULARY, length)
    return np.where(np.arange(length) % 3 == 0, 7, drawn).astype(np.uint16)


def run(
    snapshot: Snapshot, spec: TrainingSpec, until: int, device: Device = CPU, execution: Execution = WHOLE
) -> Snapshot:
    """One leg."""
    training = Training(snapshot, spec, device, execution)
    for _ in training.steps(some_text(), until):
        pass
    return training.snapshot()


def through_files(snapshot: Snapshot) -> Snapshot:
    """The snapshot as another process finds it."""
    with tempfile.TemporaryDirectory() as folder:
        save_snapshot(snapshot, Path(folder))
        found = load_snapshot(Path(folder))
        return replace(found, weights=dict(found.weights), optimizer=dict(found.optimizer))


def assert_same(one: Snapshot, other: Snapshot) -> None:
    """Equal to the bit: steps, weights, optimizer state."""
    assert (one.step, one.gpt, one.vocabulary_size) == (other.step, other.gpt, other.vocabulary_size)
    for ours, theirs in ((one.weights, other.weights), (one.optimizer, other.optimizer)):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype, name
            assert torch.equal(tensor, theirs[name]), name


EXECUTIONS = [
    WHOLE,
    Execution(micro_batch=4, loss_tokens=5),
    Execution(micro_batch=3, recompute=True, optimizer_state="bf16"),
]
# Each pair of the five is there, but not each combination of all.
LEGS = [
    (*three, 0.2 * ((number + way) % 2), EXECUTIONS[way])
    for number, three in enumerate(itertools.product((MODERN, CLASSIC), ("adamw", "muon"), ("f32", "bf16")))
    for way in range(3)
]
LEGS += [
    *itertools.product((LLAMA,), ("muon",), ("f32", "bf16"), (0.0, 0.2), EXECUTIONS[-1:]),
]


def test_a_leg_with_a_constant_rate_is_the_same_in_a_longer_training() -> None:
    for schedule in ("constant", "trapezoid"):
        short, long = (TrainingSpec(steps=n, schedule=schedule, leg_steps=100) for n in (500, 900))
        shared = [until for until in short.leg_ends() if short.for_leg(until) == long.for_leg(until)]
        assert shared == ([100, 200, 300, 400, 500] if schedule == "constant" else [100, 200, 300, 400])
        for until in shared:
            leg = short.for_leg(until)
            for step in range(until):
                assert (
                    learning_rate_factor(step, leg)
                    == learning_rate_factor(step, short)
                    == learning_rate_factor(step, long)
                )
    for schedule in ("linear", "cosine"):
        short, long = (TrainingSpec(steps=n, schedule=schedule, leg_steps=100) for n in (500, 900))
        assert not any(short.for_leg(until) == long.for_leg(until) for until in short.leg_ends())


def test_a_trapezoid_is_constant_and_then_falls_to_the_final_share() -> None:
    spec = TrainingSpec(steps=100, schedule="trapezoid", warmup_steps=10, cooldown=0.3, final_learning_rate=0.1)
    factors = [learning_rate_factor(step, spec) for step in range(100)]
    assert factors[10:71] == [1.0] * 61 and factors[9] < 1
    assert factors[70:] == sorted(factors[70:], reverse=True) and factors[71] < 1
    assert factors[99] == pytest.approx(0.1)
    assert factors[85] == pytest.approx(1 - 0.9 * 15 / 29)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("gpt", [MODERN, CLASSIC], ids=["modern", "classic"])
def test_a_training_that_nobody_holds_is_gone_with_all_its_weights(gpt: GPTSpec, precision: Any) -> None:
    spec = TrainingSpec(steps=2, batch=4)
    training = Training(begin(gpt, VOCABULARY, 1), spec, Device("cpu", precision), Execution(micro_batch=2))
    for _ in training.steps(some_text(200), 2):
        pass
    held = [weakref.ref(training), *map(weakref.ref, training.gpt.parameters())]
    held += map(weakref.ref, training.working.parameters())
    gc.disable()  # a leg's end must not wait for the collector
    try:
        del training
        assert not [what for what in held if what() is not None]
    finally:
        gc.enable()


@cache
def in_one_leg(gpt: GPTSpec, spec: TrainingSpec, device: Device, execution: Execution) -> tuple[Snapshot, Snapshot]:
    """The state before training and after all of it, the same for every example."""
    first = begin(gpt, VOCABULARY, 1)
    return first, run(first, spec, spec.steps, device, execution)


@pytest.mark.parametrize(("gpt", "optimizer", "precision", "dropout", "execution"), LEGS)
@settings(max_examples=2)
@given(cuts=st.sets(st.integers(1, 8), min_size=1, max_size=3))
def test_two_legs_equal_one(
    gpt: GPTSpec, optimizer: Any, precision: Any, dropout: float, execution: Execution, cuts: set[int]
) -> None:
    gpt = gpt.model_copy(update={"dropout": dropout})
    spec = TrainingSpec(
        steps=9,
        batch=6,
        warmup_steps=2,
        optimizer=optimizer,
        input_noise=dropout / 2,
        dropout_warmup_steps=int(20 * dropout),
        average_decay=dropout,
    )
    device = Device("cpu", precision)
    first, undisturbed = in_one_leg(gpt, spec, device, execution)
    resumed = through_files(first)
    for until in [*sorted(cuts), 9]:
        torch.manual_seed(until)  # whatever the new process draws first
        resumed = through_files(run(resumed, spec, until, device, execution))
    assert_same(undisturbed, resumed)
    assert not torch.equal(undisturbed.weights["tokens.weight"], first.weights["tokens.weight"])


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_two_legs_equal_one_on_two_threads(precision: Any) -> None:
    torch.set_num_threads(2)
    # Wide enough (16,384 activations a layer) for torch to share the work out.
    gpt = GPTSpec(layers=1, heads=2, width=64, context=32, dropout=0.2)
    spec, device = TrainingSpec(steps=4, batch=8), Device("cpu", precision)
    first = begin(gpt, VOCABULARY, 1)
    halfway = through_files(run(first, spec, 2, device))
    assert_same(run(first, spec, 4, device), run(halfway, spec, 4, device))


@pytest.mark.parametrize("gpt", [MODERN, CLASSIC])
def test_scoring_between_two_steps_does_not_change_the_training(gpt: GPTSpec) -> None:
    spec = TrainingSpec(steps=6, batch=4)
    first = begin(gpt.model_copy(update={"dropout": 0.3}), VOCABULARY, 1)
    watched = Training(first, spec, CPU, WHOLE)
    for _ in watched.steps(some_text(), 6):
        score(watched.gpt, some_text(20), before=some_text(1), device=CPU)
    assert_same(watched.snapshot(), run(first, spec, 6))


@pytest.mark.parametrize("gpt", [MODERN, CLASSIC, CLASSIC.model_copy(update={"tied": True})])
def test_averages_are_the_moving_average_of_the_weights_after_each_step(gpt: GPTSpec) -> None:
    spec, first = TrainingSpec(steps=30, batch=4, average_decay=0.6), begin(gpt, VOCABULARY, 1)
    averages = {name: parameter.detach().clone() for name, parameter in restore(first).named_parameters()}
    training = Training(first, spec, CPU, WHOLE)
    for step in training.steps(some_text(), spec.steps):
        decay = min(0.6, step.number / (step.number + 9))
        for name, average in averages.items():
            average.mul_(decay).add_(training.named[name].detach(), alpha=1 - decay)
    done = training.snapshot()
    averaged = dict(restore(done, averaged=True).named_parameters())
    for name, average in averages.items():
        torch.testing.assert_close(averaged[name], average, rtol=1e-5, atol=1e-6)
        assert not torch.equal(averaged[name], done.weights[name])
    without = run(first, spec.model_copy(update={"average_decay": 0.0}), spec.steps)
    assert all(torch.equal(without.weights[name], weights) for name, weights in done.weights.items())
    for name, parameter in restore(without, averaged=True).named_parameters():
        assert torch.equal(parameter, done.weights[name])


def test_a_leg_scores_the_averages_and_leaves_the_weights() -> None:
    spec, first = TrainingSpec(steps=6, batch=4, average_decay=0.9), begin(MODERN, VOCABULARY, 1)
    leg = LegRun(lambda: Training(first, spec, CPU, WHOLE), some_text(), some_text(40), 6, CPU)
    for _ in leg.steps():
        pass
    before = leg.training.snapshot()
    nats = leg.finished().validation_nats_per_token
    assert_same(before, leg.training.snapshot())
    for averaged in (True, False):
        found = score(restore(before, averaged=averaged), some_text(40), before=some_text()[-1:], device=CPU)
        assert (found.nats_per_token == nats) is averaged


def test_dropout_grows_to_its_share_on_each_device_alike() -> None:
    gpt, spec = MODERN.model_copy(update={"dropout": 0.4}), TrainingSpec(dropout_warmup_steps=8)
    assert [dropout_share(step, spec, gpt) for step in (0, 2, 8, 9)] == pytest.approx([0, 0.1, 0.4, 0.4])
    assert dropout_share(0, TrainingSpec(), gpt) == 0.4
    for number in (0, 2, 5, 9):
        step = torch.tensor(number)
        share = dropout_share(step, spec, gpt)
        assert isinstance(share, torch.Tensor)
        assert float(share) == pytest.approx(dropout_share(number, spec, gpt))
        x = torch.empty(8, 100)
        masks = [Dropout(s, seed=1, step=step).mask("here", x) for s in (share, dropout_share(number, spec, gpt))]
        assert torch.equal(*masks)


def test_a_snapshot_stays_as_it_was_taken() -> None:
    training = Training(begin(MODERN, VOCABULARY, 1), TrainingSpec(steps=6, batch=4), CPU, WHOLE)
    steps = training.steps(some_text(), 6)
    next(steps)
    taken, kept = training.snapshot(), through_files(training.snapshot())
    next(steps)
    assert taken.step == 1
    assert_same(taken, kept)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_on_does_not_touch_the_snapshot_it_began_from(optimizer: Any) -> None:
    spec = TrainingSpec(steps=6, batch=4, optimizer=optimizer)
    leg = run(begin(CLASSIC, VOCABULARY, 1), spec, 2)
    kept = through_files(leg)
    run(leg, spec, 6)
    assert_same(leg, kept)


def test_a_finished_run_takes_no_further_step() -> None:
    done = run(begin(MODERN, VOCABULARY, 1), TrainingSpec(steps=2, batch=2), 2)
    assert list(Training(done, TrainingSpec(steps=2, batch=2), CPU, WHOLE).steps(some_text(), 2)) == []


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_equal_states_are_equal_files_and_no_pickles(optimizer: Any, tmp_path: Path) -> None:
    spec = TrainingSpec(steps=3, batch=4, optimizer=optimizer)
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        save_snapshot(run(begin(CLASSIC, VOCABULARY, 1), spec, 3), folder)
    files = sorted(p.name for p in folders[0].iterdir())
    assert files == ["optimizer.safetensors", "state.json", "weights.safetensors"]
    for name in files:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
        if name.endswith(".safetensors"):
            with safe_open(folders[0] / name, "pt") as opened:
                assert opened.keys()


def test_first_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(3)
    expected_draw = torch.rand(2)
    torch.manual_seed(3)
    one = begin(CLASSIC, VOCABULARY, 1)
    assert torch.equal(torch.rand(2), expected_draw), "begin drew from the global generator"
    assert_same(one, begin(CLASSIC, VOCABULARY, 1))
    assert not torch.equal(one.weights["tokens.weight"], begin(CLASSIC, VOCABULARY, 2).weights["tokens.weight"])


def gradient(snapshot: Snapshot, spec: TrainingSpec, execution: Execution = WHOLE) -> dict[str, torch.Tensor]:
    """The gradient of the first step, read from AdamW's first mean, which is 1 - beta1 of it."""
    after = run(snapshot, spec.model_copy(update={"optimizer": "adamw"}), 1, execution=execution)
    return {
        name.removesuffix("/exp_avg"): mean / (1 - spec.beta1)
        for name, mean in after.optimizer.items()
        if name.endswith("/exp_avg")
    }


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("micro_batch", "loss_tokens"), [(40, 1000), (20, 7), (7, 320), (1, 3)])
@pytest.mark.parametrize("gpt", [MODERN, CLASSIC])
def test_the_way_a_step_is_computed_does_not_change_the_gradient(
    gpt: GPTSpec, micro_batch: int, loss_tokens: int, recompute: bool
) -> None:
    # One step of trained weights on, so that no gradient is zero for want of a head.
    first = begin(gpt, VOCABULARY, 1)
    first = Snapshot(0, gpt, VOCABULARY, run(first, TrainingSpec(batch=8), 5).weights, {})
    # 40 windows of 300 tokens fill one epoch, so this batch holds the short ones too.
    spec = TrainingSpec(batch=40, clip=None)
    batch = Batches(some_text(), context=8, batch=40, seed=spec.seed).at(0)
    assert (batch.targets_BT == NOT_CHARGED).any()
    model = restore(first)
    F.cross_entropy(model(batch.inputs_BT).flatten(0, 1), batch.targets_BT.flatten()).backward()
    execution = Execution(micro_batch=micro_batch, loss_tokens=loss_tokens, recompute=recompute)
    for name, found in gradient(first, spec, execution).items():
        expected = model.get_parameter(name).grad
        assert expected is not None
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gpt", [MODERN, CLASSIC])
def test_scaled_logits_have_the_gradient_of_scaled_logits(gpt: GPTSpec) -> None:
    first = begin(gpt, VOCABULARY, 1)
    first = Snapshot(0, gpt, VOCABULARY, run(first, TrainingSpec(batch=8), 5).weights, {})
    spec = TrainingSpec(batch=8, clip=None, logit_scale=1.3)
    batch, model = Batches(some_text(), context=8, batch=8, seed=spec.seed).at(0), restore(first)
    F.cross_entropy(1.3 * model(batch.inputs_BT).flatten(0, 1), batch.targets_BT.flatten()).backward()
    for name, found in gradient(first, spec, Execution(micro_batch=3, loss_tokens=7)).items():
        expected = model.get_parameter(name).grad
        assert expected is not None
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gpt", [MODERN, CLASSIC])
def test_dropout_falls_on_the_same_places_however_a_step_is_computed(gpt: GPTSpec) -> None:
    first = begin(gpt.model_copy(update={"dropout": 0.4}), VOCABULARY, 1)
    first = Snapshot(0, first.gpt, VOCABULARY, run(first, TrainingSpec(batch=8), 5).weights, {})
    spec = TrainingSpec(batch=12, clip=None)
    whole = gradient(first, spec)
    for execution in (Execution(micro_batch=5), Execution(micro_batch=1, recompute=True)):
        for name, found in gradient(first, spec, execution).items():
            torch.testing.assert_close(found, whole[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gpt", [MODERN, CLASSIC])
def test_bf16_gradients_are_f32_gradients_rounded(gpt: GPTSpec) -> None:
    spec = TrainingSpec(batch=8, clip=None, optimizer="adamw")
    first = begin(gpt, VOCABULARY, 1)
    first = Snapshot(0, gpt, VOCABULARY, run(first, TrainingSpec(batch=8), 5).weights, {})
    exact = run(first, spec, 1)
    rounded = run(first, spec, 1, Device("cpu", "bf16"))
    for name, mean in exact.optimizer.items():
        if name.endswith("/exp_avg"):
            assert (rounded.optimizer[name] - mean).norm() < 0.05 * mean.norm(), name


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("step", [2, torch.tensor(2)])
def test_dropout_keeps_the_mean_and_drops_its_share(share: float, step: Any) -> None:
    mask = Dropout(share, seed=1, step=step).mask("here", torch.empty(64, 100, 7))
    assert abs(float((mask == 0).float().mean()) - share) < 0.01
    assert abs(float(mask.mean()) - 1) < 0.01


def test_a_training_loads_neither_the_compiler_nor_symbolic_algebra() -> None:
    code = """
import sys, numpy as np
from bardflow.model.planning.timing import probe
from bardflow.model.machine.device import Device
from bardflow.model.machine.execution import Execution
from bardflow.model.networks.spec import GPTSpec
from bardflow.model.training.spec import TrainingSpec
gpt = GPTSpec(layers=2, heads=1, width=8, context=8)
for architecture in ("modern", "classic", "lfm2"):
    gpt = gpt.model_copy(update={"architecture": architecture})
    for recompute in (False, True):
        how = Execution(micro_batch=1, recompute=recompute)
        probe(gpt, 9, TrainingSpec(batch=2), how, Device("cpu", "f32"), seconds=0)
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_step_reports_the_mean_loss_of_its_charged_tokens() -> None:
    first, spec = begin(MODERN, VOCABULARY, 1), TrainingSpec(batch=40)
    step = next(Training(first, spec, CPU, Execution(micro_batch=10)).steps(some_text(), 1))
    batch = Batches(some_text(), context=8, batch=40, seed=spec.seed).at(0)
    assert step.tokens == int((batch.targets_BT != NOT_CHARGED).sum())
    assert math.isclose(float(step.loss), math.log(VOCABULARY), rel_tol=1e-5)
    assert math.isclose(step.learning_rate, spec.learning_rate / 21)


@pytest.mark.parametrize("limit", [0.01, 0.1])
def test_clipping_shortens_a_long_gradient_and_keeps_its_direction(limit: float) -> None:
    first = begin(CLASSIC, VOCABULARY, 1)
    free = torch.cat([g.flatten() for g in gradient(first, TrainingSpec(batch=8, clip=None)).values()])
    clipped = torch.cat([g.flatten() for g in gradient(first, TrainingSpec(batch=8, clip=limit)).values()])
    assert free.norm() > limit
    assert math.isclose(float(clipped.norm()), limit, rel_tol=1e-3)
    assert F.cosine_similarity(free, clipped, dim=0) > 0.9999


def test_clipping_leaves_a_short_gradient_alone() -> None:
    first = begin(CLASSIC, VOCABULARY, 1)
    free, clipped = (gradient(first, TrainingSpec(batch=8, clip=limit)) for limit in (None, 1000.0))
    assert all(torch.equal(free[name], clipped[name]) for name in free)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_optimizer_follows_the_schedule(optimizer: Any) -> None:
    spec = TrainingSpec(steps=4, batch=4, warmup_steps=0, final_learning_rate=0, optimizer=optimizer)
    legs = [begin(MODERN, VOCABULARY, 1)]
    for until in range(1, 5):
        legs.append(run(legs[-1], spec, until))
    for name in legs[0].weights:
        assert not torch.equal(legs[2].weights[name], legs[3].weights[name]), name
        assert torch.equal(legs[3].weights[name], legs[4].weights[name]), f"{name} moved at a learning rate of 0"


@pytest.mark.parametrize(
    ("gpt", "optimizer", "precision"),
    [(MODERN, "muon", "f32"), (MODERN, "muon", "bf16"), (MODERN, "adamw", "f32"), (CLASSIC, "adamw", "bf16")],
)
def test_a_small_repeating_text_is_memorised(gpt: GPTSpec, optimizer: Any, precision: Any) -> None:
    text = np.tile(np.arange(VOCABULARY, dtype=np.uint16), 20)
    spec = TrainingSpec(steps=80, batch=8, optimizer=optimizer, learning_rate=0.02, warmup_steps=5)
    training = Training(begin(gpt, VOCABULARY, 1), spec, Device("cpu", precision), WHOLE)
    losses = [float(step.loss) for step in training.steps(text, 80)]
    assert losses[0] > 3
    assert losses[-1] < 0.1


def test_weights_that_ran_away_are_reported() -> None:
    first = begin(MODERN, VOCABULARY, 1)
    first.weights["head.weight"].fill_(torch.inf)
    with pytest.raises(Diverged, match=r"the loss at step 2 is nan.*smaller learning_rate than 0\.003 or muon_lea"):
        run(first, TrainingSpec(batch=2), 2)


def test_a_text_shorter_than_a_window_is_refused_before_the_first_step() -> None:
    training = Training(begin(MODERN, VOCABULARY, 1), TrainingSpec(batch=2), CPU, WHOLE)
    with pytest.raises(TooFewTokens):
        next(training.steps(some_text(8), 1))


@given(st.integers(1, 1000), st.integers(1, 300))
def test_legs_cover_every_step_once(steps: int, leg_steps: int) -> None:
    ends = TrainingSpec(steps=steps, leg_steps=leg_steps).leg_ends()
    lengths = [b - a for a, b in itertools.pairwise([0, *ends])]
    assert sum(lengths) == steps
    assert all(length == leg_steps for length in lengths[:-1])
    assert 1 <= lengths[-1] <= leg_steps


def test_the_best_leg_is_the_first_of_the_lowest() -> None:
    assert best_leg([3.0, 1.0, 2.0, 1.0]) == 1


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([3.0], 1, False),
        ([3.0, 2.0, 2.5], 1, True),
        ([3.0, 2.0, 2.5], 2, False),
        ([3.0, 2.0, 2.0, 2.0], 2, True),
        ([3.0, 2.0, 2.5, 1.9], 2, False),
        ([1.0, 2.0, 3.0, 4.0], None, False),
    ],
)
def test_training_stops_when_patience_is_over(losses: list[float], patience: int | None, expected: bool) -> None:
    assert hopeless(losses, patience) is expected


@pytest.mark.parametrize("gpt", [MODERN, CLASSIC])
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_the_score_after_a_leg_is_that_of_its_last_weights(gpt: GPTSpec, precision: Any) -> None:
    tokens, spec = some_text(), TrainingSpec(steps=30, batch=8, precision=precision)
    device = Device("cpu", precision)
    leg = LegRun(lambda: Training(begin(gpt, VOCABULARY, 1), spec, device, WHOLE), tokens, tokens, 30, device)
    for _ in leg.steps():
        pass
    nats = leg.finished().validation_nats_per_token
    exact = score(leg.training.gpt, tokens, before=tokens[-1:], device=CPU).nats_per_token
    assert nats == pytest.approx(exact, rel=1e-6 if precision == "f32" else 1e-3)
