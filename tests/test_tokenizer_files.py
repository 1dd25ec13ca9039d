"""Laws of a tokenizer.json of another program as a vocabulary: a text comes back byte for byte, or is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bardflow.commands.planning import foresee_run
from bardflow.model.vocabulary import (
    NotLossless,
    TextStream,
    VocabularyError,
    decode,
    encode,
    save,
    spellings,
    vocabulary_from_file,
    vocabulary_size,
)
from bardflow.storage.handles import Corpus, Model, Source, TokenShards, Vocabulary
from bardflow.storage.lineage import lineage
from bardflow.tasks.exporting import check, export
from bardflow.tasks.recipes import recipe
from bardflow.tasks.run import store
from bardflow.tasks.vocabulary import line_of
from tests.quick import quickly, run
from tests.test_vocabulary import TEXT, any_text

# The words of Qwen's tokenizers: contractions, letters with one sign before them, single digits, signs, white space.
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def trained(tokenizer: Tokenizer, size: int = 400) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def gpt2() -> Tokenizer:
    """A byte-level BPE as GPT-2's file has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trained(tokenizer).add_special_tokens(["<|endoftext|>"])
    return tokenizer


def qwen() -> Tokenizer:
    """A byte-level BPE as Qwen's file has it: NFC, words of its own, and added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trained(tokenizer).add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return tokenizer


def gemma() -> Tokenizer:
    """A BPE over characters with byte fallback as Gemma's file has it: blanks are written as another character."""
    characters = [c for c in dict.fromkeys(TEXT) if c != " "]
    tokens = ["<pad>", "<bos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *characters]
    model = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[("h", "e")] if "he" in tokens else [])
    model.byte_fallback, model.fuse_unk = True, True
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def bert() -> Tokenizer:
    """A WordPiece as BERT's file has it: lower case, blanks dropped, [UNK]."""
    tokenizer = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "speak": 1, "##ing": 2}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def t5() -> Tokenizer:
    """A Unigram as T5's file has it: a blank before each text, and no bytes."""
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("▁the", -1.0), ("e", -2.0)], 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def llama() -> Tokenizer:
    """A BPE as Llama 2's file has it: a blank is put before each text, and taken away from the decoded text."""
    tokenizer = gemma()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def stored(tokenizer: Tokenizer, folder: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Path:
    """A file of the tokenizer, with a change of its JSON."""
    table = json.loads(tokenizer.to_str())
    change(table)
    path = folder / "their-tokenizer.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    return path


def ids_of(tokenizer: Tokenizer, *pieces: str) -> list[int]:
    return np.concatenate(list(encode(tokenizer, pieces))).tolist()


LOSSLESS = pytest.mark.parametrize("make", [gpt2, qwen, gemma])


@LOSSLESS
@settings(max_examples=150)
@given(text=any_text)
def test_a_text_comes_back_or_is_refused_with_the_place(make: Callable[[], Tokenizer], text: str) -> None:
    tokenizer = MADE.setdefault(make.__name__, make())
    try:
        ids = ids_of(tokenizer, text)
    except NotLossless as refused:
        assert make is not gpt2, "bytes spell everything"
        assert refused.text == text[refused.offset :][:40] != refused.came_back
        changed = tokenizer.normalizer.normalize_str(text) != text
        assert changed if make is qwen else "▁" in text
    else:
        assert decode(tokenizer, ids) == text
        stream = TextStream(tokenizer)
        assert "".join(map(stream.take, ids)) + stream.end() == text


MADE: dict[str, Tokenizer] = {}


@LOSSLESS
@pytest.mark.parametrize(
    "text", [TEXT, TEXT * 60, "話說天下大勢分久必合" * 5000, "<|endoftext|> [UNK] <0x41> <tool_call>"]
)
def test_the_same_file_opened_by_transformers_has_the_same_ids(
    make: Callable[[], Tokenizer], text: str, tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = vocabulary_from_file(stored(make(), tmp_path))
    save(tokenizer, tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    pieces = [text[i : i + 10_000] for i in range(0, len(text), 10_000)]
    assert ids_of(tokenizer, *pieces) == [i for piece in pieces for i in theirs(piece)["input_ids"]]
    assert theirs.decode(ids_of(tokenizer, text)) == text


@LOSSLESS
def test_pieces_have_the_same_text_as_the_whole_wherever_they_are_cut(make: Callable[[], Tokenizer]) -> None:
    tokenizer, text = make(), TEXT + "  \n\n x\n"
    for cut in range(1, len(text), 7):
        assert decode(tokenizer, ids_of(tokenizer, text[:cut], text[cut:])) == text


def with_cls(tokenizer: Tokenizer) -> Tokenizer:
    one = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", one)]
    )
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=7)
    return tokenizer


def test_no_tokens_are_added_to_a_text_and_none_taken_away(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    plain = gpt2().encode(TEXT).ids
    assert gpt2().encode(TEXT).ids != with_cls(gpt2()).encode(TEXT).ids, "the file would cut and add"
    tokenizer = vocabulary_from_file(stored(with_cls(gpt2()), tmp_path))
    assert ids_of(tokenizer, TEXT) == plain
    save(tokenizer, tmp_path)
    assert PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))(TEXT)["input_ids"] == plain


def test_ids_may_have_holes_and_the_size_is_the_largest_and_one(tmp_path: Path) -> None:
    def move(table: dict[str, Any]) -> None:
        vocab = table["model"]["vocab"]
        vocab[max(vocab, key=vocab.__getitem__)] = 70_000

    table_of_holes = stored(gpt2(), tmp_path, move)
    tokenizer = vocabulary_from_file(table_of_holes)
    assert vocabulary_size(tokenizer) == 70_001 == len(spellings(tokenizer))
    assert tokenizer.get_vocab_size() < 1000
    ids = ids_of(tokenizer, TEXT + "<|endoftext|>")
    assert decode(tokenizer, ids) == TEXT + "<|endoftext|>"
    [array] = encode(tokenizer, ["a"])
    assert array.dtype == np.uint32
    assert decode(tokenizer, [ids[0], 69_999, ids[1]]) == decode(tokenizer, ids[:2]), "an id without a token is no text"
    stream = TextStream(tokenizer)
    assert stream.take(69_999) == ""
    with pytest.raises(VocabularyError, match="70001 was given; this vocabulary's ids are 0 to 70000"):
        stream.take(70_001)
    save(tokenizer, tmp_path)
    lines = (tmp_path / "vocabulary.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 70_001 and lines[69_999] == "69999\tunused" and lines[400] == '400\t"<|endoftext|>"'


def test_a_hole_between_the_bytes_of_a_character_is_no_text() -> None:
    tokenizer = gemma()
    table = json.loads(tokenizer.to_str())
    table["model"]["vocab"]["秦始皇"] = 9000
    tokenizer = Tokenizer.from_str(json.dumps(table))
    low, high = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "é".encode())
    stream = TextStream(tokenizer)
    ids = [low, 8000, high]
    assert "".join(map(stream.take, ids)) + stream.end() == decode(tokenizer, ids) == "é"


@pytest.mark.parametrize(
    ("make", "text", "place", "came_back", "why"),
    [
        (qwen, "caf\u00e9 cafe\u0301", 8, "\u00e9", r"normalizer \(NFC\) changes the text"),
        (gemma, "a ▁ b", 2, "  b", "decoder replaces '▁' by ' '"),
    ],
)
def test_a_step_that_changes_the_text_is_named_with_the_first_place(
    make: Callable[[], Tokenizer], text: str, place: int, came_back: str, why: str, tmp_path: Path
) -> None:
    tokenizer = vocabulary_from_file(stored(make(), tmp_path))
    with pytest.raises(NotLossless, match=why) as caught:
        list(encode(tokenizer, ["whole", text]))
    assert (caught.value.piece, caught.value.offset, caught.value.came_back) == (1, place, came_back)


def test_what_a_tokenizer_drops_or_adds_is_refused(tmp_path: Path) -> None:
    blanks = gpt2()
    blanks.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    with pytest.raises(NotLossless, match="lstrip") as caught:
        list(encode(vocabulary_from_file(stored(blanks, tmp_path)), ["a  <mask> b"]))
    assert caught.value.offset == 1
    spaced = gpt2()
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(NotLossless, match="add_prefix_space"):
        list(encode(vocabulary_from_file(stored(spaced, tmp_path)), ["a"]))

    def few(table: dict[str, Any]) -> None:
        del table["model"]["vocab"]["Ģ"]
        table["model"]["merges"], table["added_tokens"] = [], []

    partial = vocabulary_from_file(stored(gpt2(), tmp_path, few))
    with pytest.raises(NotLossless, match="no tokens for this text") as caught:
        list(encode(partial, ["abc \u0400 d"]))
    assert caught.value.offset == 4


@pytest.mark.parametrize("make", [bert, llama, t5])
def test_a_decoder_that_adds_or_removes_blanks_is_refused_at_once(
    make: Callable[[], Tokenizer], tmp_path: Path
) -> None:
    with pytest.raises(VocabularyError, match="depends on its neighbours"):
        vocabulary_from_file(stored(make(), tmp_path))


def test_ids_that_the_library_would_change_or_share_are_refused(tmp_path: Path) -> None:
    def move(table: dict[str, Any]) -> None:
        table["added_tokens"][0]["id"] = 1000

    with pytest.raises(VocabularyError, match=r"endoftext\|>' the id 1000, but the tokenizers library gives it 400"):
        vocabulary_from_file(stored(gpt2(), tmp_path, move))

    def share(table: dict[str, Any]) -> None:
        table["model"]["vocab"]["!!!!"] = 5

    with pytest.raises(VocabularyError, match="gives the id 5 to two tokens"):
        vocabulary_from_file(stored(Tokenizer(models.BPE(vocab={"a": 5}, merges=[])), tmp_path, share))


def test_a_file_without_a_decoder_a_token_or_a_fixed_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="has no decoder"):
        vocabulary_from_file(stored(gpt2(), tmp_path, lambda table: table.update(decoder=None)))
    with pytest.raises(VocabularyError, match=r"dropout = 0\.1"):
        vocabulary_from_file(stored(gpt2(), tmp_path, lambda table: table["model"].update(dropout=0.1)))
    with pytest.raises(VocabularyError, match="has no tokens"):
        vocabulary_from_file(stored(Tokenizer(models.BPE()), tmp_path))
    with pytest.raises(VocabularyError, match="is not a file"):
        vocabulary_from_file(tmp_path / "none.json")
    (tmp_path / "sheet.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(VocabularyError, match=r"not a tokenizer\.json"):
        vocabulary_from_file(tmp_path / "sheet.json")


def with_file(file: str) -> dict[str, str]:
    return {"vocabulary_kind": "file", "vocabulary_file": file}


@pytest.mark.slow
@pytest.mark.usefixtures("answers")
def test_a_model_is_trained_on_the_content_of_a_file_wherever_it_lies(project: Path, tmp_path: Path) -> None:
    stored(with_cls(qwen()), project)
    first = run(**with_file("their-tokenizer.json"), compress=True)
    model = Model(digest=first.model)
    size = vocabulary_size(vocabulary_from_file(project / "their-tokenizer.json"))
    facts = store().facts(model)
    assert first.trained and (facts["vocabulary_kind"], facts["vocabulary_size"]) == ("file", size)
    [vocabulary] = [node.handle for node in lineage(store(), model) if isinstance(node.handle, Vocabulary)]
    assert store().origin(vocabulary).task == "import_vocabulary@1"
    planned = foresee_run("own", recipe("tiny", quickly(**with_file("their-tokenizer.json"))), None, {}, 0)
    assert planned.vocabulary_size == size and planned.parameters.total == facts["parameters"]

    (project / "theirs").mkdir()
    (project / "their-tokenizer.json").rename(project / "theirs" / "tokenizer.json")
    moved = run(**with_file("theirs"), compress=True)
    assert not moved.trained and moved.model == first.model

    found = export(model, tmp_path / "export") and check(tmp_path / "export", model)
    assert found and found.tokens > 100
    card = (tmp_path / "export" / "README.md").read_text()
    assert f"Vocabulary: file, {size:,} tokens" in card

    stored(gpt2(), project)
    assert run(**with_file("their-tokenizer.json")).model != first.model


@pytest.mark.usefixtures("answers")
@pytest.mark.parametrize(("share", "place"), [(0.2, "training set"), (0.97, "validation set")])
def test_a_text_that_the_file_changes_is_refused_with_its_line_before_anything_is_trained(
    share: float, place: str, project: Path
) -> None:
    stored(qwen(), project)
    text = project / "texts" / "own.txt"
    lines = text.read_text().splitlines()
    lines[int(len(lines) * share)] += " cafe\u0301"
    text.write_text("\n".join(lines) + "\n")
    with pytest.raises(VocabularyError, match=rf"at line [\d,]+ of the {place} of own, .*'e\u0301.*NFC") as caught:
        run(**with_file("their-tokenizer.json"))
    if place == "training set":
        assert f"at line {int(len(lines) * share) + 1:,} of" in str(caught.value)
    kinds = {type(handle) for handle in store().handles()}
    assert kinds == {Source, Corpus, Vocabulary} and TokenShards not in kinds
    assert not list((project / "home" / "drafts").iterdir())


@pytest.mark.usefixtures("answers")
def test_a_file_that_is_no_vocabulary_is_refused_before_a_text_is_fetched(project: Path) -> None:
    stored(bert(), project)
    for file, words in (("their-tokenizer.json", "depends on its neighbours"), ("none.json", "is not a file")):
        with pytest.raises(VocabularyError, match=words):
            run(**with_file(file))
    assert not (project / "home" / "objects").exists()


def test_a_place_in_pieces_is_a_line_of_the_text() -> None:
    pieces = ["a\nb\n", "", "c d\ne"]
    for piece, offset, line in ((0, 0, 1), (0, 2, 2), (2, 0, 3), (2, 2, 3), (2, 4, 4)):
        assert line_of(iter(pieces), piece, offset) == line
