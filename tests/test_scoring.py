"""Laws of the score."""

import copy
import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bardflow.model.machine.device import Device
from bardflow.model.machine.execution import Execution
from bardflow.model.networks.gpt import build
from bardflow.model.networks.network import GPT
from bardflow.model.networks.spec import GPTSpec
from bardflow.model.scoring.bf16 import charges_in_bf16
from bardflow.model.scoring.held_out import Score, by_character, characters_started, charges, charges_both_ways, score
from bardflow.model.training.batches import TooFewTokens
from tests.conftest import SMALL_NETWORKS

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = Device("cpu", "f32")
VOCABULARY = 17
BEFORE = np.array([3], np.uint16)


def lively(spec: GPTSpec) -> GPT:
    """A model with opinions: a fresh modern one finds every token equally likely."""
    torch.manual_seed(0)
    gpt = build(spec, VOCABULARY)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return gpt


def some_text(length: int, seed: int = 0) -> npt.NDArray[np.uint16]:
    """Tokens."""
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).astype(np.uint16)


def slow_nats(gpt: GPT, tokens: npt.NDArray[np.uint16], before: npt.NDArray[np.uint16], stride: int) -> list[float]:
    """Each token's charge, from a forward pass of its own over the part of its window that precedes it."""
    ids = [*before.tolist(), *tokens.tolist()]
    charged = []
    for position in range(len(before), len(ids)):
        block = len(before) + (position - len(before)) // stride * stride
        window = ids[max(0, block - (gpt.context - stride + 1)) : position]
        with torch.no_grad():
            logits_V = gpt.eval()(torch.tensor([window]))[0, -1]
        charged.append(-float(logits_V.double().log_softmax(-1)[ids[position]]))
    return charged


@pytest.mark.parametrize("spec", SMALL_NETWORKS)
@settings(max_examples=40)
@given(length=st.integers(1, 40), preceding=st.integers(1, 12), stride=st.sampled_from([1, 3, 4, 8]))
def test_every_token_is_charged_exactly_once(spec: GPTSpec, length: int, preceding: int, stride: int) -> None:
    gpt, tokens, before = lively(spec), some_text(length), some_text(preceding, seed=1)
    found = charges(gpt, tokens, before=before, device=CPU, stride=stride, execution=Execution(micro_batch=3))
    np.testing.assert_allclose(found, slow_nats(gpt, tokens, before, stride), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("context", [1, 2, 5, 8])
@settings(max_examples=40)
@given(length=st.integers(1, 40), preceding=st.integers(1, 12))
def test_both_ways_at_once_are_both_ways(context: int, length: int, preceding: int) -> None:
    gpt = lively(SMALL_NETWORKS[0].model_copy(update={"context": context}))
    tokens, before = some_text(length), some_text(preceding, seed=1)
    disjoint, sliding = charges_both_ways(gpt, tokens, before=before, device=CPU)
    np.testing.assert_allclose(disjoint, charges(gpt, tokens, before=before, device=CPU), rtol=1e-5, atol=1e-6)
    half = charges(gpt, tokens, before=before, device=CPU, stride=max(1, context // 2))
    np.testing.assert_allclose(sliding, half, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", SMALL_NETWORKS)
def test_half_a_context_between_windows_shows_every_token_at_least_half_a_context(spec: GPTSpec) -> None:
    gpt, tokens, before = lively(spec), some_text(30), some_text(20, seed=1)
    half = gpt.context // 2
    expected = charges(gpt, tokens, before=before, device=CPU, stride=half)
    for position in range(len(tokens)):
        ids = np.concatenate([before, tokens[:position]])
        changed = ids.copy()
        changed[-half:] = (changed[-half:] + 1) % VOCABULARY
        for seen, text in ((True, ids), (False, changed)):
            found = charges(gpt, np.append(text[20:], tokens[position:]), before=text[:20], device=CPU, stride=half)[
                position
            ]
            assert math.isclose(found, expected[position], rel_tol=1e-5) == seen


def test_a_stride_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 8"):
        charges(lively(SMALL_NETWORKS[0]), some_text(9), before=some_text(1), device=CPU, stride=9)


@pytest.mark.parametrize("spec", SMALL_NETWORKS)
def test_the_score_is_the_same_however_much_is_computed_at_once(spec: GPTSpec) -> None:
    gpt, tokens = lively(spec), some_text(1003)
    expected = score(gpt, tokens, before=BEFORE, device=CPU).nats
    for rows, logits in itertools.product((1, 2, 7, 64, 126), (1, 5, 10_000)):
        found = score(gpt, tokens, before=BEFORE, device=CPU, execution=Execution(micro_batch=rows, loss_tokens=logits))
        assert math.isclose(found.nats, expected, rel_tol=1e-6)


@pytest.mark.parametrize("spec", SMALL_NETWORKS)
def test_the_first_token_is_charged_in_the_light_of_the_one_before(spec: GPTSpec) -> None:
    gpt = lively(spec)
    charged = {score(gpt, some_text(1), before=BEFORE * 0 + i, device=CPU).nats for i in range(VOCABULARY)}
    assert len(charged) == VOCABULARY


@pytest.mark.parametrize("spec", SMALL_NETWORKS)
def test_the_shares_of_all_texts_add_up_to_one(spec: GPTSpec) -> None:
    gpt = lively(spec)
    texts = itertools.product(range(VOCABULARY), repeat=2)
    shares = [math.exp(-score(gpt, np.array(t, np.uint16), before=BEFORE, device=CPU).nats) for t in texts]
    assert math.isclose(sum(shares), 1, rel_tol=1e-5)


def test_a_bf16_score_is_near_the_f32_score() -> None:
    gpt, tokens = lively(SMALL_NETWORKS[0]), some_text(500)
    exact = score(gpt, tokens, before=BEFORE, device=CPU).nats
    assert math.isclose(score(gpt, tokens, before=BEFORE, device=Device("cpu", "bf16")).nats, exact, rel_tol=1e-2)


def test_an_empty_text_has_no_score() -> None:
    with pytest.raises(TooFewTokens, match="no tokens"):
        score(lively(SMALL_NETWORKS[0]), some_text(0), before=BEFORE, device=CPU)
    with pytest.raises(TooFewTokens, match="precedes"):
        score(lively(SMALL_NETWORKS[0]), some_text(5), before=some_text(0), device=CPU)


def test_an_indifferent_model_pays_the_entropy_of_its_vocabulary() -> None:
    gpt = build(SMALL_NETWORKS[0], 32)
    found = score(gpt, some_text(50), before=BEFORE, device=CPU)
    assert math.isclose(found.nats_per_token, math.log(32), rel_tol=1e-6)
    assert math.isclose(found.bits_per(50), 5, rel_tol=1e-6)
    assert math.isclose(found.bits_per(25), 10, rel_tol=1e-6)


def test_nats_become_bits_per_unit() -> None:
    assert Score(nats=math.log(2) * 12, tokens=4).nats_per_token == pytest.approx(3 * math.log(2))
    assert Score(nats=math.log(2) * 12, tokens=4).bits_per(6) == pytest.approx(2)


@given(text=st.text(min_size=1, max_size=30), cuts=st.sets(st.integers(1, 119)), seed=st.integers(0, 99))
def test_the_charge_of_each_character_adds_up_to_that_of_the_tokens_however_they_cut_it(
    text: str, cuts: set[int], seed: int
) -> None:
    spelled = text.encode("utf-8", "surrogatepass")
    at = [0, *sorted(cut for cut in cuts if cut < len(spelled)), len(spelled)]
    tokens = [spelled[a:b] for a, b in itertools.pairwise(at)]
    charged = np.random.default_rng(seed).random(len(tokens)).astype(np.float32)
    found = by_character(charged, characters_started(tokens))
    assert len(found) == len(text)
    assert math.isclose(found.sum(dtype=np.float64), charged.sum(dtype=np.float64), rel_tol=1e-5)


def test_a_characters_later_bytes_are_charged_to_it_and_a_word_to_its_letters_equally() -> None:
    started = characters_started([b"a", "曹".encode()[:2], "曹".encode()[2:], b"bc"])
    found = by_character(np.array([1, 2, 3, 4], np.float32), started)
    assert found.tolist() == [1, 5, 2, 2]
    with pytest.raises(ValueError, match="from its start"):
        by_character(np.array([3, 4], np.float32), started[2:])


class TestBf16:
    """Scores of long texts are computed in bf16, within a bound of those in f32."""

    @pytest.mark.parametrize("spec", SMALL_NETWORKS[:2])
    def test_both_means_are_those_in_f32_within_the_bound(self, spec: GPTSpec) -> None:
        gpt, tokens, before = lively(spec), some_text(64 * 32 * 8, seed=2), some_text(9)
        exact = charges_both_ways(gpt, tokens, before=before, device=CPU)
        differences = []
        for seed in range(4):
            found = charges_in_bf16(gpt, tokens, before=before, device=CPU, error=0.002, seed=seed)
            assert found is not None and 0 < found.error <= 0.002 and 32 * 64 <= found.sampled <= len(tokens) / 8
            differences += [(float(np.mean(f - e)), found.error) for f, e in zip(found[:2], exact, strict=True)]
            assert max(abs(found.disjoint - exact[0])) > 1e-4, "bf16 is not f32"
        assert sum(abs(difference) <= error for difference, error in differences) >= 6, "of 8, 95 % are expected"

    def test_the_mean_difference_is_added_however_large_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def far_off(gpt: GPT, dtype: torch.dtype) -> GPT:
            other, hidden = copy.deepcopy(gpt), gpt.hidden
            monkeypatch.setattr(other, "hidden", lambda ids_BT: 1.5 * hidden(ids_BT))
            return other

        gpt, tokens, before = lively(SMALL_NETWORKS[0]), some_text(64 * 32 * 8, seed=2), some_text(9)
        exact = charges_both_ways(gpt, tokens, before=before, device=CPU)
        quick = charges_both_ways(far_off(gpt, torch.bfloat16), tokens, before=before, device=CPU)
        monkeypatch.setattr("bardflow.model.scoring.bf16.working_copy", far_off)
        found = charges_in_bf16(gpt, tokens, before=before, device=CPU, error=1.0)
        assert found is not None
        for means, expected, rough in zip(found[:2], exact, quick, strict=True):
            assert abs(float(np.mean(rough - expected))) > 2 * found.error, "without it, the bound would not hold"
            assert abs(float(np.mean(means - expected))) <= found.error

    def test_where_a_sample_cannot_show_the_bound_there_are_none(self) -> None:
        gpt, before = lively(SMALL_NETWORKS[0]), some_text(9)
        for length, error in ((64 * 32 * 8, 1e-9), (64 * 32, 1.0), (5, 1.0)):
            assert charges_in_bf16(gpt, some_text(length), before=before, device=CPU, error=error) is None
