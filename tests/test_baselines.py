import bz2
import lzma
import math
import random
from collections import Counter
from collections.abc import Callable

import pytest

from bardflow.model.scoring import baselines
from bardflow.model.scoring.baselines import (
    FILE_UNITS,
    UNICODE,
    BaselineError,
    compressed,
    measure,
    order_zero,
    uniform,
)

RHYME = "the cat sat on the mat; the rat sat on the cat; that was that.\n" * 3 + "a hat, a bat, at last a rat\n"

_draws = random.Random(7)
DRAWN = "".join(_draws.choices("etaoin shr\n", range(11, 0, -1), k=1500))


@pytest.fixture(scope="module")
def shakespeare(real_text: Callable[[str, str], str]) -> tuple[str, str]:
    text = real_text("tiny-shakespeare", "input.txt")
    return text[:1_003_854], text[1_003_854:]


def kneser_ney(train: str, validation: str, order: int = baselines.ORDER) -> float:
    """The mean of the bits of all characters."""
    return float(baselines.kneser_ney(train, validation, order).mean())


def direct_kneser_ney(train: str, history: str, character: str, order: int) -> float:
    """The definition, one dictionary an order: no arrays, no ids."""
    counts = {order: Counter(train[i : i + order] for i in range(len(train) - order + 1))}
    for k in range(order - 1, 0, -1):
        counts[k] = Counter(gram[1:] for gram in counts[k + 1])
    alphabet = set(train)
    share = 1 / (len(alphabet) + 1)
    p = share if character in alphabet else share / (UNICODE - len(alphabet))
    for k in range(1, order + 1):
        context = history[len(history) - k + 1 :]
        after = {gram[-1]: count for gram, count in counts[k].items() if gram[:-1] == context}
        if not after:
            continue
        n1, n2, n3, n4 = (sum(count == n for count in counts[k].values()) for n in (1, 2, 3, 4))
        d = [0, 0.5, 1, 1.5]
        if n1 and n2 and n3 and n4:
            y = n1 / (n1 + 2 * n2)
            estimate = [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
            d = estimate if min(estimate) >= 0 else d
        freed = sum(d[min(count, 3)] for count in after.values())
        count = after.get(character, 0)
        p = (count - d[min(count, 3)] + freed * p) / sum(after.values())
    return p


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("validation", ["the rat sat on a hat.\n", "zebra cat\n", "日本 the 日", "\0"])
@pytest.mark.parametrize("train", [RHYME, DRAWN], ids=["rhyme", "drawn"])
def test_the_arrays_agree_with_the_definition(train: str, validation: str, order: int) -> None:
    running = train
    bits = 0.0
    for character in validation:
        bits -= math.log2(direct_kneser_ney(train, running, character, order))
        running += character
    assert kneser_ney(train, validation, order) == pytest.approx(bits / len(validation), rel=1e-12)


def test_the_definition_is_tried_with_estimated_discounts_and_with_the_stand_ins() -> None:
    def counts_of_counts(text: str, order: int) -> set[int]:
        return set(Counter(text[i : i + order] for i in range(len(text) - order + 1)).values())

    assert {1, 2, 3, 4} <= counts_of_counts(DRAWN, 3)
    assert not {1, 2, 3, 4} <= counts_of_counts(RHYME, 5)


@pytest.mark.parametrize("order", [1, 2, 4, 7])
@pytest.mark.parametrize("prefix", ["", "the ca", "th日", "qqqq", "a"])
def test_probabilities_of_all_characters_sum_to_one(order: int, prefix: str) -> None:
    def probability(character: str) -> float:
        bits = kneser_ney(RHYME, prefix + character, order) * (len(prefix) + 1)
        before = kneser_ney(RHYME, prefix, order) * len(prefix) if prefix else 0.0
        return 2 ** (before - bits)

    alphabet = set(RHYME)
    total = sum(map(probability, alphabet)) + probability("\uffff") * (UNICODE - len(alphabet))
    assert total == pytest.approx(1, abs=1e-9)


def test_order_zero_probabilities_sum_to_one() -> None:
    alphabet = set(RHYME)
    total = sum(2 ** -order_zero(RHYME, character) for character in alphabet)
    assert total + 2 ** -order_zero(RHYME, "日") * (UNICODE - len(alphabet)) == pytest.approx(1, abs=1e-9)


def test_order_zero_is_its_formula() -> None:
    # "aab": (2 + 1/3) / 4 and (1 + 1/3) / 4, and for each unseen one 1/3 of a count over the rest of Unicode.
    expected = -(math.log2(7 / 12) + math.log2(4 / 12) + math.log2(1 / 12 / (UNICODE - 2))) / 3
    assert order_zero("aab", "ab日") == pytest.approx(expected, rel=1e-12)


def test_uniform_is_the_logarithm() -> None:
    assert uniform(64) == 6


def test_an_unseen_character_costs_much_but_finitely() -> None:
    for bits in (kneser_ney(RHYME, "日"), order_zero(RHYME, "日")):
        assert 15 < bits < 40
    assert kneser_ney(RHYME, "the cat日") > kneser_ney(RHYME, "the cats")


def test_the_first_validation_character_sees_the_end_of_the_training_text() -> None:
    after_the = kneser_ney(RHYME + "the c", "a", 5)
    assert after_the < 1 < kneser_ney(RHYME + "xxxxx", "a", 5)


def test_the_model_does_not_learn_from_the_validation_text() -> None:
    # The same sentence again costs what it cost the first time, history being equal.
    new = "zyx wvu\n"
    history = "zyx wvu\n" * 2
    once = kneser_ney(RHYME, history + new, 3) * (len(history) + len(new)) - kneser_ney(RHYME, history, 3) * len(
        history
    )
    twice = kneser_ney(RHYME, history + new + new, 3) * (len(history) + 2 * len(new))
    assert twice - kneser_ney(RHYME, history + new, 3) * (len(history) + len(new)) == pytest.approx(once, rel=1e-9)


def test_an_order_beyond_the_training_text_is_its_length() -> None:
    assert kneser_ney("ab", "ab", 9) == kneser_ney("ab", "ab", 2)
    assert math.isfinite(kneser_ney("a", "日a"))


@pytest.mark.parametrize(("train", "validation"), [("", "a"), ("a", "")])
def test_an_empty_text_is_an_error(train: str, validation: str) -> None:
    for score in (kneser_ney, order_zero, lambda *texts: list(measure(*texts))):
        with pytest.raises(BaselineError, match="need at least one"):
            score(train, validation)


def test_a_small_dictionary_compresses_as_the_preset_does(shakespeare: tuple[str, str]) -> None:
    train, validation = (text.encode() for text in shakespeare)
    plain = len(lzma.compress(train + validation, preset=9)) - len(lzma.compress(train, preset=9))
    assert compressed(train, validation, "xz") == 8 * plain
    assert compressed(b"", b"a" * 100, "bz2") == 8 * (len(bz2.compress(b"a" * 100)) - len(bz2.compress(b"")))


def test_tiny_shakespeare_has_the_known_figures(shakespeare: tuple[str, str]) -> None:
    baselines = {baseline.name: baseline.bits_per_character for baseline in measure(*shakespeare)}
    assert baselines["uniform"] == math.log2(65)
    assert baselines["order 0"] == pytest.approx(4.829, abs=0.001)
    assert baselines["7-gram"] == pytest.approx(2.188, abs=0.001)
    assert baselines["xz -9"] == pytest.approx(2.516, abs=0.005)  # liblzma's versions differ a little
    assert baselines["bz2 -9"] == pytest.approx(2.398, abs=0.001)


def test_context_helps_on_both_scripts(shakespeare: tuple[str, str], real_text: Callable[[str, str], str]) -> None:
    kingdoms = real_text("three-kingdoms", "23950-0.txt")
    cut = len(kingdoms) * 9 // 10
    for train, validation in (shakespeare, (kingdoms[:cut], kingdoms[cut:])):
        ladder = [order_zero(train, validation), *(kneser_ney(train, validation, order) for order in (2, 3, 5))]
        assert ladder == sorted(ladder, reverse=True)
        assert ladder[0] < uniform(len(set(train + validation)))


def test_a_text_that_only_repeats_the_training_text_never_costs_a_compressor_nothing() -> None:
    line = "Sing, muse, of the flow of bards.\n"
    for count in (90, 300, 810, 2_000):
        for baseline in measure(line * count, line * (count // 9)):
            if baseline.kind == "compressor":
                added = round(baseline.bits_per_character * len(line) * (count // 9) / 8)
                least = FILE_UNITS[baseline.name.split()[0]]
                assert added >= least, (baseline, count)
                assert ("the least that a file's size shows" in baseline.note) == (added == least)


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "COUNTED_CHARACTERS", 400)
    monkeypatch.setattr(baselines, "STRETCH_CHARACTERS", 40)
    monkeypatch.setattr(baselines, "COMPRESSED_CHARACTERS", 500)


@pytest.mark.usefixtures("small_bounds")
def test_of_a_long_validation_text_stretches_are_charged_after_what_precedes_them() -> None:
    train, validation = DRAWN, RHYME * 4
    order, gap = 4, len(validation) // 10
    expected = [
        -math.log2(direct_kneser_ney(train, train + validation[: i * gap + k], validation[i * gap + k], order))
        for i in range(10)
        for k in range(40)
    ]
    assert math.isclose(kneser_ney(train, validation, order), sum(expected) / len(expected), rel_tol=1e-9)


def test_the_bits_of_each_character_are_given_where_all_are_scored() -> None:
    given = {b.name: b for b in measure(RHYME, RHYME[:50])}
    bits = given["7-gram"].bits
    assert bits is not None and len(bits) == 50
    assert bits.mean() == given["7-gram"].bits_per_character
    assert [b.name for b in given.values() if b.bits is not None] == ["7-gram"]


@pytest.mark.usefixtures("small_bounds")
def test_what_was_left_out_of_long_texts_stands_in_the_notes() -> None:
    notes = {b.name: b.note for b in measure(RHYME, RHYME * 4, train_characters=10 * len(RHYME))}
    assert "distinct" in notes["uniform"]
    for name in ("order 0", "7-gram"):
        assert f"learned from the last {len(RHYME)} characters; over 400 characters in 10 evenly spread" in notes[name]
    for name in ("xz -9", "bz2 -9"):
        assert notes[name].endswith(f"learned from the last {len(RHYME)} characters; over the first 500 characters")
    whole = {b.name: b.note for b in measure(RHYME, RHYME, train_characters=len(RHYME))}
    assert not any(";" in note for note in whole.values())
