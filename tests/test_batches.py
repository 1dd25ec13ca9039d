"""Laws of the order in which training sees a text."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batches import NOT_CHARGED, Batch, Batches, TooFewTokens

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


def first_epoch(length: int, context: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """The windows that a run visits until it has charged every token once."""
    batches = Batches(numbered(length), context=context, batch=1, seed=seed)
    found: list[tuple[list[int], list[int]]] = []
    charged = 0
    for step in range(length):
        if charged >= length - 1:
            break
        found += windows_of(batches.at(step))
        charged += sum(t != NOT_CHARGED for t in found[-1][1])
    return found


def windows_of(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """A batch's rows."""
    return list(zip(batch.inputs_BT.tolist(), batch.targets_BT.tolist(), strict=True))


def equal(one: Batch, other: Batch) -> bool:
    """Whether two batches are the same."""
    return torch.equal(one.inputs_BT, other.inputs_BT) and torch.equal(one.targets_BT, other.targets_BT)


@settings(deadline=None, max_examples=100)
@given(lengths_and_contexts, seeds, st.integers(1, 4))
def test_each_epoch_sees_every_token_once(length_context: tuple[int, int], seed: int, epochs: int) -> None:
    length, context = length_context
    batches = Batches(numbered(length), context=context, batch=1, seed=seed)
    step = 0
    for _ in range(epochs):
        seen: list[int] = []
        while len(seen) < length - 1:
            [(_, targets)] = windows_of(batches.at(step))
            seen += [t for t in targets if t != NOT_CHARGED]
            step += 1
        assert sorted(seen) == list(range(1, length))


@settings(deadline=None, max_examples=100)
@given(lengths_and_contexts, seeds, st.integers(1, 5))
def test_each_target_is_the_token_after_its_input(length_context: tuple[int, int], seed: int, batch: int) -> None:
    length, context = length_context
    for inputs, targets in windows(Batches(numbered(length), context=context, batch=batch, seed=seed), 20):
        assert inputs == list(range(inputs[0], inputs[0] + context))
        assert any(t != NOT_CHARGED for t in targets)
        assert all(t in (NOT_CHARGED, i + 1) for i, t in zip(inputs, targets, strict=True))


@settings(deadline=None, max_examples=60)
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


@settings(deadline=None, max_examples=60)
@given(lengths_and_contexts, seeds, st.integers(1, 7))
def test_the_windows_come_in_one_order_whatever_the_batch(
    length_context: tuple[int, int], seed: int, batch: int
) -> None:
    length, context = length_context
    one_by_one = Batches(numbered(length), context=context, batch=1, seed=seed)
    together = Batches(numbered(length), context=context, batch=batch, seed=seed)
    assert windows(together, 30) == windows(one_by_one, 30)


def test_the_order_differs_between_epochs() -> None:
    batches = Batches(numbered(1000), context=10, batch=1, seed=5)
    first = windows(batches, 100)
    later = windows(batches, 202)[101:]
    assert first != later
    assert {tuple(inputs) for inputs, _ in first} != {tuple(inputs) for inputs, _ in later}, "the same cuts"


def test_the_order_differs_between_seeds() -> None:
    orders = [first_epoch(200, 10, seed) for seed in range(5)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_the_order_is_no_run_through_the_text() -> None:
    starts = [inputs[0] for inputs, _ in first_epoch(1000, 10, 3)]
    assert starts != sorted(starts)


def test_a_batch_larger_than_the_text_takes_several_epochs() -> None:
    batch = Batches(numbered(4), context=3, batch=64, seed=1).at(0)
    counts = np.bincount(batch.targets_BT[batch.targets_BT != NOT_CHARGED].numpy(), minlength=4)
    assert counts[0] == 0
    assert counts[1:].max() - counts[1:].min() <= 1


@pytest.mark.parametrize("length", [0, 1, 8])
def test_a_text_shorter_than_a_window_is_refused(length: int) -> None:
    with pytest.raises(TooFewTokens, match=rf"has {length} tokens, but a window of context 8 needs 9; give"):
        Batches(numbered(length), context=8, batch=1, seed=0)


def test_a_text_of_one_window_is_enough() -> None:
    batch = Batches(numbered(9), context=8, batch=2, seed=0).at(0)
    assert batch.inputs_BT.shape == batch.targets_BT.shape == (2, 8)
    assert batch.inputs_BT.dtype == batch.targets_BT.dtype == torch.int64
