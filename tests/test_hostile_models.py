"""Tokenizers, configs and weights made to do harm: each is a clear error, in bounded time."""

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bardflow.model.networks import build
from bardflow.model.training import load_model, save_model
from bardflow.model.training.pretrained import load_pretrained
from bardflow.model.vocabulary import encode, vocabulary_from_file
from tests.conftest import SMALL_NETWORKS
from tests.hostile import refused


def bpe() -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    return document


def changed(document: dict[str, Any], place: str, value: Any) -> str:
    *path, last = place.split(".")
    within = document
    for name in path:
        within = within[name]
    within[last] = value
    return json.dumps(document)


SHORT_TABLE = base64.b64encode(b"\xff\xff\xff\xffshort").decode()
ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
TOKENIZERS: dict[str, str] = {
    "nothing": "",
    "no JSON": "<html>",
    "a list": "[]",
    "lists within lists": "[" * 100_000,
    "tables within tables": '{"a":' * 100_000,
    "an unknown version": changed(bpe(), "version", "9.9"),
    "an id of 2^32 - 1": changed(bpe(), "model.vocab.a", 2**32 - 1),
    "an id of 2^24": changed(bpe(), "model.vocab.a", 2**24),
    "an id of 31 digits": changed(bpe(), "model.vocab.a", 10**30),
    "an id of 5,000 digits": changed(bpe(), "model.vocab.a", 0).replace('"a": 0', '"a": ' + "9" * 5_000),
    "a negative id": changed(bpe(), "model.vocab.a", -1),
    "an id as a text": changed(bpe(), "model.vocab.a", "__class__"),
    "one id for two tokens": changed(bpe(), "model.vocab.a", 1),
    "no tokens": changed(bpe(), "model", {"type": "BPE", "vocab": {}, "merges": []}),
    "a merge of unknown tokens": changed(bpe(), "model.merges", [["a", "zz"]]),
    "an unknown model": changed(bpe(), "model.type", "Pickle"),
    "tokens drawn at random": changed(bpe(), "model.dropout", 0.5),
    "added tokens that are none": changed(bpe(), "added_tokens", None),
    "an added token of id 2^32 - 1": changed(bpe(), "added_tokens", [{"id": 2**32 - 1, "content": "x", **ADDED}]),
    "an expression that is none": changed(
        bpe(), "pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}
    ),
    "a table that is empty": changed(bpe(), "normalizer", {"type": "Precompiled", "precompiled_charsmap": ""}),
    "a table that is too short": changed(
        bpe(), "normalizer", {"type": "Precompiled", "precompiled_charsmap": SHORT_TABLE}
    ),
    "a short table within a sequence": changed(
        bpe(),
        "normalizer",
        {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": SHORT_TABLE}]},
    ),
    "a decoder that cuts beyond the end": changed(
        bpe(), "decoder", {"type": "Strip", "content": "a", "start": 10**18, "stop": 10**18}
    ),
    "a decoder that joins": changed(bpe(), "decoder", {"type": "Metaspace", "replacement": "a", "split": True}),
    "an unknown token that is none": changed(bpe(), "model.unk_token", "[gone]"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_made_to_do_harm(name: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(TOKENIZERS[name])
    with refused():
        list(encode(vocabulary_from_file(tmp_path / "tokenizer.json"), ["abc é\n"]))


CONFIGS: dict[str, dict[str, Any] | str] = {
    "nothing": "",
    "a list": "[]",
    "lists within lists": "[" * 100_000,
    "a number of 5,000 digits": '{"model_type": "nanochat", "vocab_size": ' + "9" * 5_000 + "}",
    "an unknown kind": {"model_type": "__import__"},
    "a kind that is a list": {"model_type": []},
    "2^40 layers": {"num_hidden_layers": 2**40},
    "2^24 layers": {"num_hidden_layers": 2**24},
    "200 layers of width 16,384": {"num_hidden_layers": 200, "hidden_size": 16_384, "intermediate_size": 65_536},
    "no layers": {"num_hidden_layers": 0},
    "2^24 tokens": {"vocab_size": 2**24},
    "2^60 tokens": {"vocab_size": 2**60},
    "no tokens": {"vocab_size": 0},
    "-1 tokens": {"vocab_size": -1},
    "a text of tokens": {"vocab_size": "many"},
    "a list of tokens": {"vocab_size": [1]},
    "tokens without end": {"vocab_size": float("inf")},
    "heads of no width": {"num_attention_heads": 1_000},
    "a context of 2^40": {"max_position_embeddings": 2**40},
    "code of its own": {"model_type": "custom", "auto_map": {"AutoModel": "evil.py"}},
}


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(build(SMALL_NETWORKS[0], 11), folder)
    return folder


def copied(folder: Path, into: Path) -> Path:
    for path in folder.iterdir():
        (into / path.name).write_bytes(path.read_bytes())
    return into


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_made_to_do_harm(name: str, small_model: Path, tmp_path: Path) -> None:
    folder, config = copied(small_model, tmp_path), CONFIGS[name]
    if isinstance(config, dict):
        config = json.dumps(json.loads((folder / "config.json").read_text()) | config)
    (folder / "config.json").write_text(config)
    for load in (load_model, load_pretrained):
        with refused():
            load(folder)


def header(table: dict[str, Any] | bytes, *, size: int | None = None, data: bytes = b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
WEIGHTS: dict[str, bytes] = {
    "nothing": b"",
    "7 bytes": b"\0" * 7,
    "zeros": b"\0" * 99_999,
    "a header of 2^64 - 1 bytes": header({}, size=2**64 - 1) + b"\0" * 99_999,
    "a header of 2^40 bytes": header({}, size=2**40) + b"\0" * 99_999,
    "a header that is no JSON": header(b"<html>") + b"\0" * 99_999,
    "lists within lists": header(b"[" * 99_999),
    "a tensor beyond the end": header({"a": F32 | {"data_offsets": [0, 2**40]}}, data=b"\0" * 99_999),
    "a tensor before the start": header({"a": F32 | {"data_offsets": [-8, 8]}}, data=b"\0" * 99_999),
    "a tensor from end to start": header({"a": F32 | {"data_offsets": [8, 0]}}, data=b"\0" * 99_999),
    "tensors over each other": header({"a": F32, "b": F32}, data=b"\0" * 99_999),
    "a shape that overflows": header({"a": F32 | {"shape": [2**40, 2**40]}}, data=b"\0" * 99_999),
    "an unknown type": header({"a": F32 | {"dtype": "PICKLE"}}, data=b"\0" * 99_999),
    "a pickle": b"\x80\x04cos\nsystem\n" + b"\0" * 99_999,
    "other tensors": header({"a": F32}, data=b"\0" * 8) + b"\0" * 0,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_made_to_do_harm(name: str, small_model: Path, tmp_path: Path) -> None:
    folder = copied(small_model, tmp_path)
    (folder / "model.safetensors").write_bytes(WEIGHTS[name])
    for load in (load_model, load_pretrained):
        with refused():
            load(folder)


@pytest.mark.parametrize("names", [["../../etc/passwd"], ["/etc/passwd"], ["gone"], [1], [[]], {}, None, "x"])
def test_an_index_of_weights_leads_to_no_other_folder(names: Any, small_model: Path, tmp_path: Path) -> None:
    folder = copied(small_model, tmp_path)
    (folder / "model.safetensors").unlink()
    weights = {str(n): name for n, name in enumerate(names)} if isinstance(names, list) else names
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    with refused():
        load_pretrained(folder)
