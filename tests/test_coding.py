"""A model's bits are real: a file of about that size gives the text back."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bardflow.model.machine.device import Device
from bardflow.model.networks.spec import GPTSpec
from bardflow.model.scoring import coding
from bardflow.model.scoring.coding import NotCoded, compress, decompress
from bardflow.model.scoring.held_out import charges, score
from tests.conftest import SMALL_NETWORKS
from tests.test_scoring import CPU, lively, some_text

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
@pytest.mark.parametrize("spec", SMALL_NETWORKS)
@settings(max_examples=15)
@given(length=st.integers(0, 300), stretch=st.sampled_from([8, 40, 8192]), before=st.integers(0, 16))
def test_what_was_compressed_comes_back_and_takes_what_the_score_says(
    spec: GPTSpec, length: int, stretch: int, before: int
) -> None:
    gpt, tokens = lively(spec), some_text(length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coding, "STRETCH_TOKENS", stretch)
        coded = compress(gpt, tokens, before=before, device=CPU)
        assert decompress(gpt, coded, before=before, device=CPU).tolist() == tokens.tolist()
    stretches = max(1, length // stretch)
    bits = score(gpt, tokens, before=np.array([before]), device=CPU).bits_per(1) if length else 0.0
    # The count, the token before each stretch, and up to two words of 32 bits with which the coder ends.
    overhead = 32 + stretches * math.log2(17) + 64
    assert bits - 1 <= len(coded) * 8 <= bits * 1.001 + overhead


@pytest.mark.parametrize(("sure", "most_bits"), [(2, 20), (6, 60), (14, 120), (1e4, math.inf)])
def test_a_token_that_the_model_all_but_rules_out_costs_what_the_score_says(sure: float, most_bits: float) -> None:
    gpt = lively(SMALL_NETWORKS[0])
    gpt.head.weight.data.mul_(sure)
    tokens = some_text(200)
    coded = compress(gpt, tokens, before=0, device=CPU)
    assert decompress(gpt, coded, before=0, device=CPU).tolist() == tokens.tolist()
    bits = charges(gpt, tokens, before=np.array([0]), device=CPU).astype(np.float64) / math.log(2)
    assert most_bits / 2 < bits.max() < most_bits or most_bits == math.inf
    if most_bits < math.inf:  # f32 has no shares below 2^-126
        assert bits.sum() - 1 <= len(coded) * 8 <= bits.sum() * 1.001 + 32 + 64


def test_another_model_reads_something_else_or_says_so() -> None:
    tokens = some_text(300)
    coded = compress(lively(SMALL_NETWORKS[0]), tokens, before=0, device=Device("cpu", "f32"))
    try:
        found = decompress(lively(SMALL_NETWORKS[1]), coded, before=0, device=CPU)
    except NotCoded:
        return
    assert found.tolist() != tokens.tolist()


@pytest.mark.parametrize("length", [0, 3, 9])
def test_a_file_that_was_cut_short_is_refused(length: int) -> None:
    with pytest.raises(NotCoded, match=f"{length} bytes"):
        decompress(lively(SMALL_NETWORKS[0]), b"\0" * length, before=0, device=CPU)
