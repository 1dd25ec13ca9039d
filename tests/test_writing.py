"""Laws of the text that tokens become as they are drawn."""

import itertools
from functools import cache as once

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bardflow.model.networks.gpt import build
from bardflow.model.networks.spec import GPTSpec
from bardflow.model.sampling import SamplingSpec, sample, write
from bardflow.model.vocabulary import TextStream, VocabularyError, VocabularySpec, decode, learn
from tests.test_sampling import CPU, lively

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = "First Citizen: you are all résolved.\n話說天下大勢，分久必合。😀 <0x41>\ufffd\n" * 6
KINDS = {
    "characters": VocabularySpec(kind="char", byte_fallback="never"),
    "characters and bytes": VocabularySpec(kind="char", byte_fallback="always"),
    "byte-level": VocabularySpec(kind="bpe", size=300),
    "merged characters and bytes": VocabularySpec(kind="bpe-char", size=340),
    "unigram": VocabularySpec(kind="unigram", size=300),
    "wordpiece": VocabularySpec(kind="wordpiece", size=560),
}
ANY_KIND = pytest.mark.parametrize("kind", KINDS)


@once
def learned(kind: str) -> Tokenizer:
    return learn(lambda: [TEXT], KINDS[kind], characters=len(TEXT), unseen=False)


@st.composite
def token_ids(draw: st.DrawFn, size: int) -> list[int]:
    """Any tokens, those of the lower ids (bytes, where there are any) and runs of them often."""
    low = st.integers(0, min(255, size - 1))
    runs = st.lists(low, min_size=1, max_size=6) | st.lists(st.integers(0, size - 1), min_size=1, max_size=3)
    spelled = [[*"é".encode()], [*"分".encode()], [*"😀".encode()], [*"😀".encode()[:3]], [*"分".encode()[:2]]]
    known = st.sampled_from([[b for b in ids if b < size] for ids in spelled])
    return [token for run in draw(st.lists(runs | known, max_size=12)) for token in run]


@ANY_KIND
@settings(max_examples=60)
@given(st.data())
def test_what_a_stream_gives_is_what_decoding_all_gives(kind: str, data: st.DataObject) -> None:
    tokenizer = learned(kind)
    ids = data.draw(token_ids(tokenizer.get_vocab_size()))
    stream, text = TextStream(tokenizer), ""
    for place, token in enumerate(ids):
        text += stream.take(token)
        so_far = decode(tokenizer, ids[: place + 1])
        assert so_far.startswith(text) and len(so_far) >= len(text) + stream.at_least
    assert text + stream.end() == decode(tokenizer, ids)
    assert stream.at_least == 0 and stream.end() == ""


@ANY_KIND
@given(st.text(st.sampled_from("abcFirst é分久😀\n,"), max_size=40))
def test_a_stream_of_whole_text_has_no_replacement_characters(kind: str, text: str) -> None:
    tokenizer = learned(kind)
    text = "".join(c for c in text if c in TEXT)
    stream = TextStream(tokenizer)
    pieces = [stream.take(token) for token in tokenizer.encode(text).ids]
    assert "".join(pieces) + stream.end() == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_comes_out_with_its_last_byte() -> None:
    tokenizer = learned("byte-level")
    stream = TextStream(tokenizer)
    signs = {token: i for token, i in tokenizer.get_vocab().items() if len(token) == 1}
    # GPT-2's signs for the bytes F0 9F 98 80, and for a.
    assert [stream.take(signs[sign]) for sign in "ðŁĺĢa"] == ["", "", "", "😀", "a"]


def test_a_run_of_byte_tokens_comes_out_when_it_ends_as_the_library_decodes_it() -> None:
    tokenizer = learned("characters and bytes")
    letter = tokenizer.token_to_id("F")
    stream = TextStream(tokenizer)
    assert [stream.take(token) for token in [*"é".encode(), letter]] == ["", "", "éF"]
    assert [stream.take(token) for token in [*"é".encode(), 0xFF, letter]] == ["", "", "", "\ufffd\ufffd\ufffdF"]
    assert [stream.take(token) for token in "é".encode()] == ["", ""] and stream.end() == "é"


@ANY_KIND
@pytest.mark.parametrize("token", [-1, 100_000])
def test_a_stream_refuses_an_id_that_the_vocabulary_lacks(kind: str, token: int) -> None:
    with pytest.raises(VocabularyError, match=f"token id {token} was given; this vocabulary's ids are 0 to"):
        TextStream(learned(kind)).take(token)


@ANY_KIND
@settings(max_examples=4)
@given(st.integers(1, 60), st.integers(0, 1000), st.sampled_from([0.0, 0.8, 5.0]))
def test_texts_are_what_their_tokens_decode_to_cut_to_the_asked_length(
    kind: str, characters: int, seed: int, temperature: float
) -> None:
    tokenizer = learned(kind)
    gpt = lively(GPTSpec(layers=1, heads=2, width=16, context=16), tokenizer.get_vocab_size())
    spec = SamplingSpec(temperature=temperature, top_k=None, seed=seed)
    pieces = list(write(gpt, tokenizer, "First 分", characters, spec, CPU, rows=3))
    prompt = tokenizer.encode("First 分").ids
    for row in range(3):
        tokens = [text for at, text in pieces if at == row]
        assert len("".join(tokens)) == characters
        ids = list(itertools.islice(sample(gpt, prompt, spec, CPU, row=row), len(tokens)))
        assert "".join(tokens) == decode(tokenizer, ids)[:characters]


@pytest.mark.parametrize("tokens", [1, 7])
def test_a_text_ends_after_so_many_tokens(tokens: int) -> None:
    tokenizer = learned("characters and bytes")
    gpt = lively(GPTSpec(layers=1, heads=2, width=16, context=16), tokenizer.get_vocab_size())
    pieces = list(write(gpt, tokenizer, "F", None, SamplingSpec(), CPU, rows=2, tokens=tokens))
    ids = list(itertools.islice(sample(gpt, tokenizer.encode("F").ids, SamplingSpec(), CPU), tokens))
    assert len(pieces) == 2 * tokens and "".join(text for row, text in pieces if row == 0) == decode(tokenizer, ids)
    assert len("".join(text for _, text in write(gpt, tokenizer, "F", 3, SamplingSpec(), CPU, tokens=99))) == 3
    with pytest.raises(ValueError, match="no end"):
        write(gpt, tokenizer, "F", None, SamplingSpec(), CPU)


def test_a_model_that_writes_nothing_but_bytes_comes_to_an_end() -> None:
    tokenizer = learned("characters and bytes")
    gpt = build(GPTSpec(layers=1, heads=2, width=16, context=16), tokenizer.get_vocab_size())
    # Indifferent, so the most probable token is always the first: the byte 00, over and over.
    pieces = list(write(gpt, tokenizer, "F", 20, SamplingSpec(temperature=0), CPU))
    assert [text for _, text in pieces] == [""] * (len(pieces) - 1) + ["\0" * 20]
