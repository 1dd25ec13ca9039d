"""A difference between two models is called one only where chance does not explain it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bardflow.model.scoring.comparison import NotComparable, compare, resampled_means


def passages(length: int, seed: int, *, texts: int = 1, along: float = 0.97) -> np.ndarray:
    """Numbers of which neighbours are alike, around 0: an autoregression, as surprise along a text is."""
    noise = np.random.default_rng(seed).normal(size=(length + 500, texts))
    for i in range(1, len(noise)):
        noise[i] += along * noise[i - 1]
    return noise[500:].T.copy() if texts > 1 else noise[500:, 0]


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    length, texts = 30_000, 300
    held = 0
    for seed, values in enumerate(passages(length, 0, texts=texts)):
        low, high = np.quantile(resampled_means(values, seed), [0.025, 0.975])
        held += low <= 0 <= high
    # 95 % of 300, and what chance leaves of that: 4 standard deviations.
    assert abs(held / texts - 0.95) < 4 * math.sqrt(0.95 * 0.05 / texts)


def test_neighbours_that_are_alike_widen_the_interval() -> None:
    tied = passages(20_000, 3)
    shuffled = np.random.default_rng(0).permutation(tied)
    assert resampled_means(tied, 0).std() > 4 * resampled_means(shuffled, 0).std()


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), length=st.sampled_from([1, 7, 300, 5000]))
def test_turned_round_a_comparison_says_the_opposite(seed: int, length: int) -> None:
    own, theirs = np.random.default_rng(seed).random((2, length)).astype(np.float32)
    one, other = compare(own, theirs, luck=0.01), compare(theirs, own, luck=0.01)
    assert math.isclose(one.difference, -other.difference, abs_tol=1e-9)
    assert one.low <= one.difference <= one.high
    # Both draw the same places; a quantile between two draws is rounded to one side.
    assert math.isclose(one.low, -other.high, abs_tol=1e-9) and math.isclose(one.high, -other.low, abs_tol=1e-9)
    opposite = {"better": "worse", "worse": "better", "not distinguishable": "not distinguishable"}
    assert other.verdict == opposite[one.verdict]


def test_a_model_is_not_distinguishable_from_itself_and_a_clear_gap_is_called_one() -> None:
    hard = np.abs(passages(100_000, 1)).astype(np.float32)
    assert compare(hard, hard, luck=0).verdict == "not distinguishable"
    gap = compare(hard, hard + np.float32(0.05), luck=0)
    assert gap.verdict == "better"
    assert math.isclose(gap.difference, -0.05 / math.log(2), rel_tol=1e-3)


def test_what_is_hard_for_both_cancels() -> None:
    hard = np.abs(passages(100_000, 1))
    own = (hard + np.random.default_rng(2).normal(0, 0.1, len(hard))).astype(np.float32)
    found = compare(own, (hard + 0.01).astype(np.float32), luck=0)
    assert found.verdict == "better"
    assert resampled_means(hard, 0).std() > 0.01, "alone, the text's own spread hides it"


def test_luck_widens_the_interval_in_squares() -> None:
    own, theirs = np.abs(passages(50_000, 1)).astype(np.float32), np.abs(passages(50_000, 2)).astype(np.float32)
    plain, widened = compare(own, theirs, luck=0), compare(own, theirs, luck=0.3)
    extra = 1.959964 * math.sqrt(2) * 0.3
    assert math.isclose(
        (widened.high - widened.difference) ** 2, (plain.high - plain.difference) ** 2 + extra**2, rel_tol=1e-6
    )


def test_a_short_text_tells_nothing_apart() -> None:
    rng = np.random.default_rng(0)
    called = 0
    for _ in range(200):
        own, theirs = rng.exponential(1, (2, 40)).astype(np.float32)
        called += compare(own, theirs, luck=0).verdict != "not distinguishable"
    assert called <= 24, "12 in 100 at the most, of two that are equally good"


def test_charges_of_two_texts_are_not_compared() -> None:
    with pytest.raises(NotComparable, match="3 and 4"):
        compare(np.ones(3, np.float32), np.ones(4, np.float32), luck=0)
    with pytest.raises(NotComparable):
        compare(np.ones(0, np.float32), np.ones(0, np.float32), luck=0)
