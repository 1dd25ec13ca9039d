import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer

from bardflow.model.vocabulary import (
    NotText,
    UnknownCharacter,
    VocabularyError,
    VocabularySpec,
    decode,
    encode,
    learn,
    load,
    save,
    spellings,
    token_dtype,
    vocabulary_size,
)

TEXT = (
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak. "
    "I'll hear, and they'll hear.\n"
    "話說天下大勢，分久必合，合久必分：週末七國分爭，併入於秦。\r\n　　及秦滅之後，楚、漢分爭，又併入於漢。\n"
    "<0x41><0x41><0x41> <0xE4><0xE4> a tab\there, 3.14159 and 1234567890\n"
    "they'll, we'll\n\n\n\n    x  \n\n   \n\n\n      y \n\n\n\n"
) * 4

CHAR = VocabularySpec(kind="char", byte_fallback="always")
BPE = VocabularySpec(kind="bpe", size=400)
BPE_CHAR = VocabularySpec(kind="bpe-char", size=440)
UNIGRAM = VocabularySpec(kind="unigram", size=280)
WORDPIECE = VocabularySpec(kind="wordpiece", size=600)
LOSSLESS = pytest.mark.parametrize("spec", [CHAR, BPE, BPE_CHAR, UNIGRAM, WORDPIECE], ids=lambda spec: spec.kind)

# What breaks tokenizers: white space of all kinds, characters of two, three and four bytes, unseen ones, byte tokens.
awkward = st.lists(
    st.sampled_from(
        [
            *"ab'sdtlve 12,。，　\n\r\t\0\x1c\x85\u00a0\u2028\ufeff分久é\u0301\u0e33😀👨\u200d👩Ġ▁…#",
            "<0x41>",
            "\n\n",
            "  ",
            "[UNK]",
            "<unk>",
            "<|endoftext|>",
            "##the",
        ]
    ),
    max_size=60,
).map("".join)
any_text = st.one_of(awkward, st.text(max_size=60))


@cache
def learned(spec: VocabularySpec) -> Tokenizer:
    return learn(lambda: [TEXT], spec, characters=len(TEXT), unseen=False)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    (ids,) = encode(tokenizer, [text])
    return ids.tolist()


@LOSSLESS
@given(text=any_text)
@settings(max_examples=150)
def test_decoding_what_was_encoded_gives_the_text(spec: VocabularySpec, text: str) -> None:
    tokenizer = learned(spec)
    assert decode(tokenizer, ids_of(tokenizer, text)) == text


@LOSSLESS
@pytest.mark.parametrize(
    "text",
    [
        "",
        "<0x41>",
        "\r\n",
        "\0",
        "\n" * 100,
        " " * 100,
        "　" * 50 + "合",
        "饕餮😀",
        "Ġ<unk>",
        "##x ## …… [UNK]",
        "▁▁ ▁",
        "😀" * 40,
    ],
)
def test_awkward_texts_come_back(spec: VocabularySpec, text: str) -> None:
    tokenizer = learned(spec)
    assert decode(tokenizer, ids_of(tokenizer, text)) == text
    assert decode(tokenizer, ids_of(tokenizer, TEXT + text + TEXT)) == TEXT + text + TEXT


@LOSSLESS
@given(text=any_text)
@settings(max_examples=150)
def test_pieces_cut_after_a_newline_before_a_non_space_encode_as_the_whole(spec: VocabularySpec, text: str) -> None:
    tokenizer = learned(spec)
    cuts = [i + 1 for i in range(len(text) - 1) if text[i] == "\n" and not text[i + 1].isspace()]
    edges = [0, *cuts, len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    assert np.concatenate(list(encode(tokenizer, pieces))).tolist() == ids_of(tokenizer, text)


@LOSSLESS
@pytest.mark.parametrize(
    "make",
    [
        lambda: TEXT * 50,  # has newlines to cut at
        lambda: "話說天下大勢分久必合合久必分" * 4000,  # one run of letters
        lambda: " \t" * 20_000 + "\n" * 20_000 + "x",
        lambda: "天下，大勢 they'll 合久" * 4000,
        lambda: "aa" + "'ll" * 20_000,  # a page may end within a word that only its last letter decides
    ],
    ids=["lines", "letters", "space", "mixed", "undecided"],
)
def test_a_long_piece_encodes_as_the_plain_library_does(spec: VocabularySpec, make: Callable[[], str]) -> None:
    text = make()
    tokenizer = learned(spec)
    assert ids_of(tokenizer, text) == tokenizer.encode(text).ids


@given(text=any_text)
@settings(max_examples=150)
def test_characters_are_looked_up_as_the_library_encodes_them(text: str) -> None:
    assert ids_of(learned(CHAR), text) == learned(CHAR).encode(text).ids


@pytest.mark.parametrize("ignores_merges", [False, True])
def test_a_tokenizer_that_knows_more_than_characters_is_left_to_the_library(ignores_merges: bool) -> None:
    tokenizer = Tokenizer.from_str(learned(CHAR).to_str())
    if ignores_merges:  # then a word that is the name of a token becomes this token, here a byte
        changed = json.loads(tokenizer.to_str())
        changed["model"]["ignore_merges"] = True
        tokenizer = Tokenizer.from_str(json.dumps(changed))
        assert tokenizer.encode("<0x41>").ids == [0x41]
        with pytest.raises(VocabularyError, match="<0x41>"):
            ids_of(tokenizer, "<0x41>")
    else:
        tokenizer.add_tokens(["First"])
        assert ids_of(tokenizer, TEXT) == tokenizer.encode(TEXT).ids
        assert len(ids_of(tokenizer, "First")) == 1


@LOSSLESS
def test_the_files_open_and_round_trip_with_none_of_this_code(spec: VocabularySpec, tmp_path: Path) -> None:
    save(learned(spec), tmp_path)
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = TEXT + "饕餮 <0x41> 😀\r\n"
    ids = plain.encode(text).ids
    assert ids == ids_of(learned(spec), text)
    assert plain.decode(ids) == text
    assert load(tmp_path / "tokenizer.json").to_str() == plain.to_str()


@LOSSLESS
def test_transformers_gives_the_same_ids(spec: VocabularySpec, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    save(learned(spec), tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    text = TEXT + " they 're . Isn 't 饕餮 <0x41> 😀\r\n"
    assert theirs(text)["input_ids"] == ids_of(learned(spec), text)
    assert theirs.decode(ids_of(learned(spec), text)) == text


PROGRAM = """
import sys
from hashlib import sha256
from pathlib import Path
from bardflow.model.vocabulary import VocabularySpec, learn, save
text = Path(sys.argv[1]).read_bytes().decode()
for kind, size in (("char", None), ("bpe", 700), ("bpe-char", 700), ("unigram", 700), ("wordpiece", 700)):
    spec = VocabularySpec(kind=kind, size=size, learn_from=int(sys.argv[2]))
    tokenizer = learn(lambda: [text], spec, characters=len(text), unseen=True)
    save(tokenizer, Path(sys.argv[3]))
    for name in ("tokenizer.json", "vocabulary.txt"):
        print(sha256((Path(sys.argv[3]) / name).read_bytes()).hexdigest())
"""


@pytest.mark.slow
def test_the_same_text_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    words = ["秦", "漢", "they", "ll", " ", "\n", "天下", "hear", ",", "é"]
    draws = np.random.default_rng(7).integers(0, len(words), 20_000)
    (tmp_path / "text").write_text("".join(words[i] for i in draws), encoding="utf-8", newline="")

    def digests(hash_seed: str, threads: str, at_most: str) -> str:
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "RAYON_NUM_THREADS": threads}
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "text"), at_most, str(tmp_path)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    whole = digests("1", "1", "1000000")
    assert len(set(whole.split())) == 10
    assert digests("2", "4", "1000000") == whole
    assert digests("3", "1", "9000") == digests("4", "4", "9000") != whole


def test_a_wordpiece_token_that_continues_a_word_is_another_than_the_one_that_begins_it(tmp_path: Path) -> None:
    text = "he theme he he theme theme\n" * 20
    tokenizer = learn(lambda: [text], VocabularySpec(kind="wordpiece", size=530), characters=len(text), unseen=False)
    save(tokenizer, tmp_path)
    rows = [line.split("\t") for line in (tmp_path / "vocabulary.txt").read_text(encoding="utf-8").splitlines()]
    assert [i for i, row in enumerate(rows) if row[2:] == ["continues a word"]][:256] == list(range(256, 512))
    assert rows[ord("h") - 0x21][1:] == ['"h"'] and ['"h"', "continues a word"] in [row[1:] for row in rows]
    assert tokenizer.model.unk_token not in tokenizer.get_vocab()
    # The longest token is cut off first: "he" begins the first word, and is a part of " theme" in the second.
    assert [spellings(tokenizer)[i] for i in ids_of(tokenizer, "he theme")] == [b"he", b" theme"]


def test_a_text_without_the_bytes_of_another_gives_tokens_for_all_of_them() -> None:
    tokenizer = learn(lambda: ["aaa"], VocabularySpec(kind="unigram", size=5000), characters=3, unseen=False)
    assert vocabulary_size(tokenizer) >= 256
    for text in ("", "b", "分😀", "".join(map(chr, range(256)))):
        assert decode(tokenizer, ids_of(tokenizer, text)) == text


def test_character_ids_follow_the_code_points() -> None:
    tokenizer = learn(lambda: ["cab", "\n秦a"], VocabularySpec(), characters=5, unseen=False)
    assert sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__) == ["\n", "a", "b", "c", "秦"]


@pytest.mark.parametrize(
    ("fallback", "unseen", "size"),
    [("auto", False, 3), ("auto", True, 259), ("always", False, 259), ("never", True, 3)],
)
def test_bytes_are_added_as_the_spec_says(fallback: str, unseen: bool, size: int) -> None:
    spec = VocabularySpec.model_validate({"kind": "char", "byte_fallback": fallback})
    assert learn(lambda: ["abc"], spec, characters=3, unseen=unseen).get_vocab_size() == size


@pytest.mark.parametrize(("page", "piece", "offset"), [(0, 0, 2), (40_000, 0, 40_002), (5, 1, 7)])
def test_an_unknown_character_is_named_and_never_dropped(page: int, piece: int, offset: int) -> None:
    tokenizer = learn(lambda: ["ab"], VocabularySpec(), characters=2, unseen=False)
    pieces = ["ab"] * piece + ["a" * page + "abéb"]
    with pytest.raises(UnknownCharacter, match=rf"'é' \(U\+00E9\), at offset {offset} of piece {piece}") as caught:
        list(encode(tokenizer, pieces))
    assert (caught.value.character, caught.value.offset, caught.value.piece) == ("é", offset, piece)


@pytest.mark.parametrize("kind", ["char", "bpe", "bpe-char", "unigram", "wordpiece"])
@pytest.mark.parametrize(("before", "piece"), [(0, 0), (40_000, 0), (5, 1)])
def test_half_of_a_surrogate_pair_is_named_and_never_a_bare_type_error(kind: str, before: int, piece: int) -> None:
    spec = VocabularySpec.model_validate({"kind": kind, "size": None if kind == "char" else 600})
    tokenizer = learn(lambda: ["ab"], spec, characters=2, unseen=False)
    with pytest.raises(NotText, match=rf"at offset {before} of piece {piece} stands U\+DCFF") as caught:
        list(encode(tokenizer, ["ab"] * piece + ["a" * before + "\udcffab"]))
    assert (caught.value.offset, caught.value.piece) == (before, piece)


def test_no_merge_spells_a_byte_token() -> None:
    text = "<0x41><0x42>" * 500
    tokenizer = learn(lambda: [text], VocabularySpec(kind="bpe-char", size=1000), characters=len(text), unseen=False)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    assert tokens[:256] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert any(len(token) > 1 for token in tokens[256:])  # the text does give merges
    assert decode(tokenizer, ids_of(tokenizer, text)) == text
    assert max(ids_of(tokenizer, text)) >= 256 > 0x41 not in ids_of(tokenizer, text)


def test_a_size_below_the_alphabet_is_an_error_that_says_the_least() -> None:
    for kind, least_size in (("bpe", 256), ("bpe-char", 256), ("unigram", 256), ("wordpiece", 512)):
        with pytest.raises(ValidationError, match=f"least is {least_size}"):
            VocabularySpec.model_validate({"kind": kind, "size": least_size - 1})
    with pytest.raises(VocabularyError, match="least size is 259"):
        learn(lambda: ["abc"], VocabularySpec(kind="bpe-char", size=258), characters=3, unseen=False)
    least = learn(lambda: ["abc"], VocabularySpec(kind="bpe-char", size=259), characters=3, unseen=False)
    assert least.get_vocab_size() == 259


@pytest.mark.parametrize("kind", ["bpe", "bpe-char", "unigram", "wordpiece"])
def test_a_text_that_repeats_too_little_gives_fewer_tokens(kind: str) -> None:
    spec = VocabularySpec.model_validate({"kind": kind, "size": 50_000})
    size = learn(lambda: [TEXT], spec, characters=len(TEXT), unseen=False).get_vocab_size()
    assert 256 < size < 2000


@LOSSLESS
def test_a_full_vocabulary_has_the_size_that_was_asked(spec: VocabularySpec) -> None:
    assert learned(spec).get_vocab_size() == (spec.size or 256 + len(set(TEXT)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "char", "size": 65}, "Leave size out"),
        ({"kind": "bpe"}, "needs a size"),
        ({"kind": "words"}, "'char', 'bpe', 'bpe-char', 'unigram', 'wordpiece' or 'file'"),
        ({"kind": "unigram"}, "needs a size"),
        ({"kind": "file"}, "needs a file"),
        ({"kind": "file", "file": "a.json", "size": 300}, "whose size is given by the file"),
        ({"kind": "bpe", "size": 300, "file": "a.json"}, "Leave file out"),
        ({"learn_from": 0}, "greater than or equal to 1"),
        ({"sizes": 3}, "Extra inputs"),
    ],
)
def test_a_wrong_spec_is_refused_with_what_is_legal(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        VocabularySpec.model_validate(fields)


def test_an_empty_text_is_an_error() -> None:
    with pytest.raises(VocabularyError, match="empty"):
        learn(lambda: [], VocabularySpec(), characters=0, unseen=False)


def test_merges_are_learned_from_all_over_a_long_text() -> None:
    # Eight parts with a word each; a sample of an eighth of the text still meets every word.
    words = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"]
    text = "".join(f"{word} " * (40_000 // (len(word) + 1)) for word in words) + "ß"
    pieces = [text[i : i + 3001] for i in range(0, len(text), 3001)]
    spec = VocabularySpec(kind="bpe-char", size=400, learn_from=len(text) // 8)
    tokenizer = learn(lambda: pieces, spec, characters=len(text), unseen=False)
    assert all(f" {word}" in tokenizer.get_vocab() for word in words)
    assert "ß" in tokenizer.get_vocab()  # characters are asked of the whole text


def test_learning_holds_no_more_than_a_piece_at_a_time() -> None:
    def pieces() -> Iterator[str]:
        for number in range(40):
            yield chr(0x4E00 + number) * 50_000  # 100 kB each

    tracemalloc.start()
    try:
        learn(pieces, VocabularySpec(), characters=2_000_000, unseen=False)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000


def test_encoding_streams() -> None:
    asked = 0

    def pieces() -> Iterator[str]:
        nonlocal asked
        for _ in range(10_000):
            asked += 1
            yield "話說天下大勢" * 100

    next(iter(encode(learned(BPE_CHAR), pieces())))
    assert 0 < asked < 5_000


def test_every_piece_has_its_array_of_the_smallest_type() -> None:
    arrays = list(encode(learned(CHAR), ["ab", "", "a", ""]))
    assert [len(array) for array in arrays] == [2, 0, 1, 0]
    assert {array.dtype for array in arrays} == {np.dtype(np.uint16)}
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32


def test_an_id_that_is_not_in_the_vocabulary_is_an_error() -> None:
    tokenizer = learned(BPE)
    for wrong in (-1, 400):
        with pytest.raises(VocabularyError, match=f"token id {wrong} was given; this vocabulary's ids are 0 to 399"):
            decode(tokenizer, [1, wrong, 2])
    assert decode(tokenizer, []) == ""


@LOSSLESS
def test_the_listing_has_a_readable_line_for_each_token(spec: VocabularySpec, tmp_path: Path) -> None:
    save(learned(spec), tmp_path)
    lines = (tmp_path / "vocabulary.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    assert [int(row[0]) for row in rows] == list(range(learned(spec).get_vocab_size()))
    shown = [row[1] for row in rows]
    assert '"\\n"' in shown
    assert "bytes e4" in shown
    texts = [(int(row[0]), json.loads(row[1])) for row in rows if row[1].startswith('"')]
    assert len(texts) >= len(set(TEXT))
    assert all(decode(learned(spec), [i]) == text for i, text in texts)


def test_a_file_that_is_no_vocabulary_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(VocabularyError, match=r"tokenizer\.json is not a tokenizer\.json that the tokenizers library"):
        load(tmp_path / "tokenizer.json")
    with pytest.raises(VocabularyError, match="is not a file"):
        load(tmp_path)


def test_tiny_shakespeare_has_the_published_vocabulary(real_text: Callable[[str, str], str]) -> None:
    text = real_text("tiny-shakespeare", "input.txt")
    train, validation = text[:1_003_854], text[1_003_854:]
    tokenizer = learn(
        lambda: [train], VocabularySpec(), characters=len(train), unseen=not set(validation) <= set(train)
    )
    assert tokenizer.get_vocab_size() == 65
    # The lecture's ids: "hii there" is [46, 47, 47, 1, 58, 46, 43, 56, 43] in the sorted alphabet.
    assert ids_of(tokenizer, "hii there") == [46, 47, 47, 1, 58, 46, 43, 56, 43]
    assert len(ids_of(tokenizer, validation)) == len(validation)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["char", "bpe-char", "unigram", "wordpiece"])
def test_three_kingdoms_comes_back_from_what_its_first_part_taught(
    kind: str, real_text: Callable[[str, str], str]
) -> None:
    text = real_text("three-kingdoms", "23950-0.txt")
    cut = len(text) // 2
    text = text[: cut * 6 // 5]
    spec = VocabularySpec.model_validate({"kind": kind, "size": None if kind == "char" else 8192})
    tokenizer = learn(lambda: [text[:cut]], spec, characters=cut, unseen=True)
    ids = ids_of(tokenizer, text[cut:])
    assert decode(tokenizer, ids) == text[cut:]
    if kind != "char":
        assert len(ids) < len(text[cut:])
