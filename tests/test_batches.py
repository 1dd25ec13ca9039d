"""Laws of the order in which training sees a text."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bardflow.model.networks import NOT_CHARGED
from bardflow.model.training.batches import Batch, Batches, TooFewTokens, with_noise

lengths_and_contexts = st.integers(2, 12).flatmap(lambda c: st.tuples(st.integers(c + 1, 80), st.just(c)))
seeds = st.integers(0, 2**32 - 1)


def numbered(length: int) -> npt.NDArray[np.uint16]:
    """A text in which each token is its own position, so that a target names the place it was cut from."""
    return np.arange(length, dtype=np.uint16)


def windows(batches: Batches, count: int) -> list[tuple[list[int], list[int]]]:
    """The first `count` windows of a run, each as its inputs and its targets."""
    found = []
    for step in range(-(-count // batches.batch)):
        found += windows_of(batches.at(step))
    return found[:count]


def epochs(length: int, context: int, seed: int, count: int) -> list[list[tuple[list[int], list[int]]]]:
    """The windows of the first `count` epochs, an epoch being over once all tokens but the first were charged."""
    batches = Batches(numbered(length), context=context, batch=1, seed=seed)
    steps = itertools.count()
    found = []
    for _ in range(count):
        epoch: list[tuple[list[int], list[int]]] = []
        while sum(t != NOT_CHARGED for _, targets in epoch for t in targets) < length - 1:
            epoch += windows_of(batches.at(next(steps)))
        found.append(epoch)
    return found


def windows_of(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """A batch's rows."""
    return list(zip(batch.inputs_BT.tolist(), batch.targets_BT.tolist(), strict=True))


def equal(one: Batch, other: Batch) -> bool:
    """Whether two batches are the same."""
    return torch.equal(one.inputs_BT, other.inputs_BT) and torch.equal(one.targets_BT, other.targets_BT)


@settings(max_examples=100)
@given(lengths_and_contexts, seeds, st.integers(1, 4))
def test_each_epoch_sees_every_token_once(length_context: tuple[int, int], seed: int, count: int) -> None:
    length, context = length_context
    for epoch in epochs(length, context, seed, count):
        seen = [t for _, targets in epoch for t in targets if t != NOT_CHARGED]
        assert sorted(seen) == list(range(1, length))


@settings(max_examples=100)
@given(lengths_and_contexts, seeds, st.integers(1, 5))
def test_each_target_is_the_token_after_its_input(length_context: tuple[int, int], seed: int, batch: int) -> None:
    length, context = length_context
    for inputs, targets in windows(Batches(numbered(length), context=context, batch=batch, seed=seed), 20):
        assert inputs == list(range(inputs[0], inputs[0] + context))
        assert any(t != NOT_CHARGED for t in targets)
        assert all(t in (NOT_CHARGED, i + 1) for i, t in zip(inputs, targets, strict=True))


@settings(max_examples=100)
@given(lengths_and_contexts, seeds, st.integers(1, 5), st.permutations(range(12)))
def test_a_batch_is_a_pure_function_of_seed_and_step(
    length_context: tuple[int, int], seed: int, batch: int, order: list[int]
) -> None:
    length, context = length_context
    in_turn = Batches(numbered(length), context=context, batch=batch, seed=seed)
    expected = [in_turn.at(step) for step in range(12)]
    jumping = Batches(numbered(length), context=context, batch=batch, seed=seed)
    for step in order:
        assert equal(jumping.at(step), expected[step])
        fresh = Batches(numbered(length), context=context, batch=batch, seed=seed)
        assert equal(fresh.at(step), expected[step])


@settings(max_examples=100)
@given(lengths_and_contexts, seeds, st.integers(1, 7))
def test_the_windows_come_in_one_order_whatever_the_batch(
    length_context: tuple[int, int], seed: int, batch: int
) -> None:
    length, context = length_context
    one_by_one = Batches(numbered(length), context=context, batch=1, seed=seed)
    together = Batches(numbered(length), context=context, batch=batch, seed=seed)
    assert windows(together, 30) == windows(one_by_one, 30)


def test_the_order_and_the_cuts_differ_between_epochs() -> None:
    found = epochs(1000, 50, 5, 4)
    cuts = [{tuple(targets) for _, targets in epoch} for epoch in found]
    assert all(one != other for one, other in itertools.combinations(found, 2))
    assert all(one != other for one, other in itertools.combinations(cuts, 2))


def test_the_order_differs_between_seeds() -> None:
    orders = [epochs(200, 10, seed, 1) for seed in range(5)]
    assert all(one != other for one, other in itertools.combinations(orders, 2))


def test_the_order_is_no_run_through_the_text() -> None:
    starts = [inputs[0] for inputs, _ in epochs(1000, 10, 3, 1)[0]]
    assert starts != sorted(starts)


def test_a_text_is_cut_at_every_place_sooner_or_later() -> None:
    # The epoch's first window charges as many tokens as the offset that was drawn: 1 to the context.
    drawn = {
        sum(t != NOT_CHARGED for t in targets)
        for epoch in epochs(30, 5, 0, 100)
        for _, targets in epoch
        if 1 in targets
    }
    assert drawn == {1, 2, 3, 4, 5}


def test_a_batch_larger_than_the_text_takes_several_epochs() -> None:
    batch = Batches(numbered(4), context=3, batch=64, seed=1).at(0)
    counts = np.bincount(batch.targets_BT[batch.targets_BT != NOT_CHARGED].numpy(), minlength=4)
    assert counts[0] == 0
    assert counts[1:].max() - counts[1:].min() <= 1


@given(seed=seeds, step=st.integers(0, 10_000))
def test_noise_is_drawn_from_seed_and_step_and_leaves_what_is_to_be_foretold(seed: int, step: int) -> None:
    batch = Batches(np.zeros(2000, np.uint16), context=64, batch=16, seed=seed).at(step)
    noisy = with_noise(batch, 0.25, vocabulary_size=50, seed=seed, step=step)
    again, other = (with_noise(batch, 0.25, vocabulary_size=50, seed=seed, step=s) for s in (step, step + 1))
    assert torch.equal(noisy.inputs_BT, again.inputs_BT) and not torch.equal(noisy.inputs_BT, other.inputs_BT)
    assert torch.equal(noisy.targets_BT, batch.targets_BT)
    assert noisy.inputs_BT.dtype == torch.int64 and 0 <= noisy.inputs_BT.min() <= noisy.inputs_BT.max() < 50
    # A quarter of 1,024, of which one in 50 draws what stood there; and five standard deviations.
    expected, spread = 0.25 * 0.98, (0.245 * 0.755 / 1024) ** 0.5
    assert abs(float((noisy.inputs_BT != batch.inputs_BT).float().mean()) - expected) < 5 * spread


@pytest.mark.parametrize("length", [0, 1, 8])
def test_a_text_shorter_than_a_window_is_refused(length: int) -> None:
    with pytest.raises(TooFewTokens, match=rf"has {length} tokens, but a window of context 8 needs 9; give"):
        Batches(numbered(length), context=8, batch=1, seed=0)


def test_a_text_of_one_window_is_enough() -> None:
    batch = Batches(numbered(9), context=8, batch=2, seed=0).at(0)
    assert batch.inputs_BT.shape == batch.targets_BT.shape == (2, 8)
    assert batch.inputs_BT.dtype == batch.targets_BT.dtype == torch.int64
