"""Laws of the score."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.batches import TooFewTokens
from model.device import Device
from model.execution import Execution
from model.gpt import GPT, build
from model.scoring import Score, score
from model.spec import GPTSpec

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = Device("cpu", "f32")
VOCABULARY = 17
SPECS = [
    GPTSpec(layers=2, heads=2, width=16, context=8, dropout=0.4),
    GPTSpec(architecture="classic", layers=2, heads=2, width=16, context=8, activation="gelu", dropout=0.4),
]


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


def slow_nats(gpt: GPT, tokens: npt.NDArray[np.uint16], before: int) -> list[float]:
    """Each token's charge, from a forward pass of its own over the part of its window that precedes it."""
    ids = [before, *tokens.tolist()]
    charges = []
    for position in range(len(tokens)):
        window_start = position // gpt.context * gpt.context
        with torch.no_grad():
            logits_V = gpt.eval()(torch.tensor([ids[window_start : position + 1]]))[0, -1]
        charges.append(-float(logits_V.double().log_softmax(-1)[ids[position + 1]]))
    return charges


@pytest.mark.parametrize("spec", SPECS)
@settings(deadline=None, max_examples=25)
@given(length=st.integers(1, 40), before=st.integers(0, VOCABULARY - 1))
def test_every_token_is_charged_exactly_once(spec: GPTSpec, length: int, before: int) -> None:
    gpt, tokens = lively(spec), some_text(length)
    found = score(gpt, tokens, before=before, device=CPU)
    assert found.tokens == length
    assert math.isclose(found.nats, math.fsum(slow_nats(gpt, tokens, before)), rel_tol=1e-6)


@pytest.mark.parametrize("spec", SPECS)
def test_the_score_is_the_same_however_much_is_computed_at_once(spec: GPTSpec) -> None:
    gpt, tokens = lively(spec), some_text(1003)
    expected = score(gpt, tokens, before=3, device=CPU).nats
    for rows, logits in itertools.product((1, 2, 7, 64, 126), (1, 5, 10_000)):
        found = score(gpt, tokens, before=3, device=CPU, execution=Execution(micro_batch=rows, loss_tokens=logits))
        assert math.isclose(found.nats, expected, rel_tol=1e-6)


@pytest.mark.parametrize("spec", SPECS)
def test_the_first_token_is_charged_in_the_light_of_the_one_before(spec: GPTSpec) -> None:
    gpt = lively(spec)
    charges = {score(gpt, some_text(1), before=before, device=CPU).nats for before in range(VOCABULARY)}
    assert len(charges) == VOCABULARY


@pytest.mark.parametrize("spec", SPECS)
def test_the_shares_of_all_texts_add_up_to_one(spec: GPTSpec) -> None:
    gpt = lively(spec)
    texts = itertools.product(range(VOCABULARY), repeat=2)
    shares = [math.exp(-score(gpt, np.array(t, np.uint16), before=5, device=CPU).nats) for t in texts]
    assert math.isclose(sum(shares), 1, rel_tol=1e-5)


def test_a_bf16_score_is_near_the_f32_score() -> None:
    gpt, tokens = lively(SPECS[0]), some_text(500)
    exact = score(gpt, tokens, before=3, device=CPU).nats
    assert math.isclose(score(gpt, tokens, before=3, device=Device("cpu", "bf16")).nats, exact, rel_tol=1e-2)


def test_an_empty_text_has_no_score() -> None:
    with pytest.raises(TooFewTokens, match="no tokens"):
        score(lively(SPECS[0]), some_text(0), before=0, device=CPU)


def test_an_indifferent_model_pays_the_entropy_of_its_vocabulary() -> None:
    gpt = build(SPECS[0], 32)
    found = score(gpt, some_text(50), before=0, device=CPU)
    assert math.isclose(found.nats_per_token, math.log(32), rel_tol=1e-6)
    assert math.isclose(found.bits_per(50), 5, rel_tol=1e-6)
    assert math.isclose(found.bits_per(25), 10, rel_tol=1e-6)


def test_nats_become_bits_per_unit() -> None:
    assert Score(nats=math.log(2) * 12, tokens=4).nats_per_token == pytest.approx(3 * math.log(2))
    assert Score(nats=math.log(2) * 12, tokens=4).bits_per(6) == pytest.approx(2)
