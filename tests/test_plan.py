"""Laws of a plan: it counts what is there, and what it chooses fits and is the fastest that does."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bardflow.model.machine.device import Device
from bardflow.model.machine.execution import Execution
from bardflow.model.networks.gpt import build, count_parameters
from bardflow.model.networks.spec import GPTSpec
from bardflow.model.planning import cloud
from bardflow.model.planning.plan import (
    Machine,
    TooLittleMemory,
    checkpoint_bytes,
    choose,
    disk_bytes,
    flops_per_token,
    foresee,
    needed,
    parameters,
    slowness,
    unlimited,
)
from bardflow.model.training.checkpoints import save_snapshot
from bardflow.model.training.loop import Training, begin
from bardflow.model.training.spec import TrainingSpec
from tests.conftest import ARCHITECTURES

MACHINE = Machine(device="cpu", precision="bf16", base=250_000_000)
SHAPES = [
    GPTSpec(layers=2, heads=2, width=16, context=8),
    GPTSpec(architecture="classic", layers=2, heads=2, width=16, context=8, tied=True),
    GPTSpec(architecture="classic", layers=1, heads=2, width=24, context=16, biases=True),
    GPTSpec(architecture="llama", layers=2, heads=4, width=16, context=8, biases=True, key_value_heads=1, tied=True),
    GPTSpec(architecture="llama", layers=2, heads=4, width=16, context=8, head_width=6, query_key_norm=True),
    GPTSpec(architecture="lfm2", layers=3, heads=2, width=24, context=8, activation="silu"),
]
LARGE = GPTSpec(architecture="classic", layers=12, heads=12, width=768, context=1024, tied=True)
MIDDLE = GPTSpec(layers=6, heads=6, width=384, context=256)


@pytest.mark.parametrize("gpt", SHAPES)
def test_a_plan_counts_the_parameters_that_a_model_has(gpt: GPTSpec) -> None:
    total, tables = count_parameters(build(gpt, 23))
    assert (parameters(gpt, 23).total, parameters(gpt, 23).embedding) == (total, tables)


def test_gpt2_has_its_published_parameters_and_nanogpts_arithmetic() -> None:
    # 124,439,808 in GPT-2 as published; nanoGPT's estimate_mfu takes 6 N + 12 L H Q T, N without positions.
    gpt2 = LARGE.model_copy(update={"biases": True})
    assert parameters(gpt2, 50_257).total == 124_439_808
    without_positions = 124_439_808 - 1024 * 768
    assert flops_per_token(gpt2, 50_257) == 6 * without_positions + 12 * 12 * 12 * 64 * 1024


@pytest.mark.parametrize("gpt", SHAPES)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("state", "decay"), [("f32", 0.0), ("bf16", 0.0), ("bf16", 0.9)])
def test_checkpoints_take_the_planned_space(
    gpt: GPTSpec, optimizer: Any, state: Any, decay: float, tmp_path: Any
) -> None:
    training = TrainingSpec(steps=1, batch=2, optimizer=optimizer, average_decay=decay)
    execution = Execution(micro_batch=2, optimizer_state=state)
    ended = Training(begin(gpt, 23, 1), training, Device("cpu", "f32"), execution)
    for _ in ended.steps(np.arange(100, dtype=np.uint16) % 23, 1):
        pass
    save_snapshot(ended.snapshot(), tmp_path)
    found = sum(path.stat().st_size for path in tmp_path.iterdir())
    header = 20_000  # names, shapes and steps
    assert 0 <= found - checkpoint_bytes(gpt, 23, training, execution) < header
    assert disk_bytes(gpt, 23, training, execution) > found - header


training_specs = st.builds(
    TrainingSpec,
    batch=st.integers(1, 64),
    optimizer=st.sampled_from(["adamw", "muon"]),
)
shapes = st.builds(
    lambda architecture, layers, heads, context: GPTSpec(
        architecture=architecture,
        layers=max(2, layers),
        heads=heads,
        width=64 * heads,
        context=context,
        activation="silu",
    ),
    st.sampled_from(ARCHITECTURES),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([32, 256, 1024]),
)
vocabularies = st.sampled_from([65, 4181, 50_304])


@given(shapes, vocabularies, training_specs, st.floats(0.2, 1.2))
def test_what_is_chosen_fits_and_nothing_that_fits_is_faster(
    gpt: GPTSpec, size: int, training: TrainingSpec, share: float
) -> None:
    free = choose(gpt, size, training, MACHINE, None)
    limit = int(share * free.peak.total)
    try:
        plan = choose(gpt, size, training, MACHINE, limit)
    except TooLittleMemory as refusal:
        least = int(str(refusal).split("would do for this training is ")[1].split(" ")[0].replace(",", ""))
        assert least > limit
        assert needed(choose(gpt, size, training, MACHINE, least)) == least
        with pytest.raises(TooLittleMemory):
            choose(gpt, size, training, MACHINE, least - 1)
    else:
        assert needed(plan) <= limit
        more = choose(gpt, size, training, MACHINE, 2 * limit)
        fastest = unlimited(gpt, size, training, MACHINE)
        assert slowness(more.execution, gpt, fastest) <= slowness(plan.execution, gpt, fastest)


@given(shapes, vocabularies, training_specs)
def test_with_memory_enough_a_limit_changes_nothing(gpt: GPTSpec, size: int, training: TrainingSpec) -> None:
    free = choose(gpt, size, training, MACHINE, None)
    assert choose(gpt, size, training, MACHINE, needed(free)) == free
    assert free.execution == unlimited(gpt, size, training, MACHINE)


@given(shapes, vocabularies, training_specs)
def test_each_economy_takes_no_more(gpt: GPTSpec, size: int, training: TrainingSpec) -> None:
    def peak(**changes: Any) -> int:
        execution = unlimited(gpt, size, training, MACHINE).model_copy(update=changes)
        return foresee(gpt, size, training, execution, MACHINE).peak.total

    if gpt.layers > 1:
        # What is computed again, a whole block, is there beside its input, which otherwise nobody keeps.
        tokens = unlimited(gpt, size, training, MACHINE).micro_batch * gpt.context
        number = 2 if MACHINE.precision == "bf16" else 4
        assert peak(recompute=True) <= peak() + 2 * tokens * gpt.width * number
    assert peak(optimizer_state="bf16") <= peak()
    assert peak(loss_tokens=128) <= peak()
    assert peak(micro_batch=1, recompute=True) <= peak(recompute=True) + 4 * parameters(gpt, size).total


def test_logits_of_a_whole_batch_are_in_no_plan() -> None:
    plan = choose(LARGE, 50_304, TrainingSpec(batch=4), MACHINE, None)
    whole = 4 * 1024 * 50_304 * 4
    assert plan.peak.logits < whole / 8


@given(shapes, vocabularies, training_specs, st.integers(2, 8))
def test_blocks_are_in_shards_only_where_nothing_else_fits(
    gpt: GPTSpec, size: int, training: TrainingSpec, workers: int
) -> None:
    with pytest.raises(TooLittleMemory) as refusal:
        choose(gpt, size, training, MACHINE, 1)
    least = int(str(refusal.value).split("would do for this training is ")[1].split(" ")[0].replace(",", ""))
    assert not choose(gpt, size, training, MACHINE, least, workers).execution.sharded
    try:
        plan = choose(gpt, size, training, MACHINE, least - 1, workers)
    except TooLittleMemory:
        assert gpt.layers < 8, "with few blocks, those that are whole at once weigh more than what is divided"
    else:
        assert plan.execution.sharded and plan.execution.workers == workers and needed(plan) < least


def test_seven_billion_parameters_fit_on_eight_cards_in_shards_and_not_on_one() -> None:
    gpt = GPTSpec(architecture="llama", layers=32, heads=32, width=4096, context=2048, dropout=0.0)
    card = Machine(device="cuda", precision="bf16", base=10**9, compiles=True)
    training = TrainingSpec(steps=1000, batch=8)
    with pytest.raises(TooLittleMemory):
        choose(gpt, 32_000, training, card, 80 * 10**9)
    plan = choose(gpt, 32_000, training, card, 80 * 10**9, workers=8)
    assert plan.execution.sharded and not plan.execution.compiled


def test_too_small_a_limit_is_refused_with_the_least_that_would_do() -> None:
    with pytest.raises(
        TooLittleMemory, match=r"memory_limit is 1,000,000 bytes, but the least .* is [0-9,]+ .*smaller"
    ):
        choose(MIDDLE, 65, TrainingSpec(batch=64), MACHINE, 1_000_000)


def test_half_the_memory_is_had_without_touching_the_optimizers_precision_where_activations_weigh_most() -> None:
    training = TrainingSpec(batch=64)
    whole = foresee(MIDDLE, 65, training, Execution(micro_batch=64), MACHINE)
    half = choose(MIDDLE, 65, training, MACHINE, whole.peak.total // 2)
    assert half.execution.optimizer_state == "f32"
    assert half.execution.micro_batch < 64


def test_a_card_that_is_too_small_says_so_and_a_larger_one_takes_the_whole_batch() -> None:
    listed = cloud.cards({})
    tiny = listed["L4"].model_copy(update={"memory_mib": 700})
    refused = cloud.rented(LARGE, 50_304, TrainingSpec(batch=4), "tiny", tiny)
    assert refused.seconds is None and "least that would do" in refused.why
    offers = [cloud.rented(LARGE, 50_304, TrainingSpec(batch=4), name, card) for name, card in listed.items()]
    assert all(offer.execution is not None and offer.execution.micro_batch == 4 for offer in offers)
    seconds = {offer.card: offer.seconds or 0 for offer in offers}
    assert seconds["H100 80GB"] < seconds["A100 80GB"] < seconds["L4"] < seconds["T4"]


def test_prices_are_the_users_own_if_given() -> None:
    assert cloud.cards({"L4": 0.5})["L4"].dollars_per_hour == 0.5
    with pytest.raises(cloud.CardError, match=r"'L5', but model/planning/gpus.toml has T4, L4"):
        cloud.cards({"L5": 1.0})
    with pytest.raises(cloud.CardError, match="negative"):
        cloud.cards({"L4": -1.0})


@pytest.mark.parametrize(
    ("here", "said"), [(60.0, "no: this machine is done"), (1e6, "sooner is worth"), (None, "does not fit here")]
)
def test_the_verdict_is_plain(here: float | None, said: str) -> None:
    offers = [
        cloud.rented(MIDDLE, 65, TrainingSpec(steps=1000, batch=64), name, card)
        for name, card in cloud.cards({}).items()
    ]
    assert said in cloud.worth(here, offers)
