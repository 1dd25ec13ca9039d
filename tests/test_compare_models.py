"""Models side by side: trained here, imported, and any causal model of transformers, in the same bits."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, normalizers

from bardflow.errors import BardError
from bardflow.flows.compare_models import compare_models
from bardflow.model.machine import Device
from bardflow.model.scoring import NotScorable, by_character, charges, generate, open_causal, tokenized
from bardflow.model.vocabulary import VocabularySpec, learn
from bardflow.pages.experiment import ExperimentPage
from bardflow.storage.handles import Evaluation
from bardflow.storage.lineage import handle_of
from bardflow.tasks.evaluation import charges_of, scores_of
from bardflow.tasks.models_compared import PASSAGE, most_different
from bardflow.tasks.run import refs, store
from tests.conftest import own_text
from tests.quick import run

pytestmark = pytest.mark.slow

CPU = Device("cpu", "f32")


def tokenizer_of(text: str, size: int = 300) -> Tokenizer:
    return learn(lambda: [text], VocabularySpec(kind="bpe", size=size), characters=len(text), unseen=False)


def write_model(folder: Path, kind: str = "gpt2", tokenizer: Tokenizer | None = None, **more: Any) -> Path:
    """A model with random weights, as transformers writes it."""
    import transformers

    torch.manual_seed(3)
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2, n_positions=64, **more)
        model: Any = transformers.GPT2LMHeadModel(config)
    elif kind == "gpt_neox":
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        neox = transformers.GPTNeoXConfig(vocab_size=320, max_position_embeddings=64, **shape)
        model = transformers.GPTNeoXForCausalLM(neox)
    elif kind == "lfm2":
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
        layers = ["conv", "full_attention"]
        lfm2 = transformers.Lfm2Config(vocab_size=320, intermediate_size=64, layer_types=layers, **shape)
        model = transformers.Lfm2ForCausalLM(lfm2)
    else:
        shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        bert = transformers.BertConfig(vocab_size=320, max_position_embeddings=64, **shape)
        model = transformers.BertLMHeadModel(bert)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    (tokenizer or tokenizer_of(own_text())).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_the_bits_are_those_of_transformers_own_loss(kind: str, tmp_path: Path) -> None:
    model, tokenizer = open_causal(write_model(tmp_path / kind, kind), context=32)
    text = own_text()[-3000:]
    ids, started = tokenized(tokenizer, text, name=kind)
    charged = charges(model, ids[32:].astype(np.uint16), before=ids[:32].astype(np.uint16), device=CPU)
    # A disjoint window predicts 32 tokens from 32: the last one before it, and its own without the last.
    for window in range(0, len(ids) - 64, 32):
        labels = torch.from_numpy(ids[window + 31 : window + 64])[None]
        with torch.no_grad():
            nats = float(model.model(labels, labels=labels).loss)
        assert abs(nats - charged[window : window + 32].mean()) < 1e-4
    assert started.sum() == len(text)
    assert math.isclose(by_character(charged, started[32:]).sum(), charged.sum(), rel_tol=1e-5)


def test_scoring_and_sampling_print_nothing_of_transformers(tmp_path: Path) -> None:
    """It warns once in a process that a faster kernel for LFM2 is not installed: at the first logits, and sampling."""
    folder = write_model(tmp_path / "lfm2", "lfm2")
    words = (
        "from pathlib import Path; from bardflow.model.scoring import generate, open_causal; "
        f"model, tokenizer = open_causal(Path({str(folder)!r}), context=32); "
        "generate(model, tokenizer, 'the', 4, seed=1, temperature=1.0)"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize(
    "text", ["plain", "  two  spaces \n\n\n tabs\t", "曹操敗走", "naïve 😀 e\u0301 \r\n", "<|endoftext|>"]
)
def test_characters_begin_in_the_tokens_that_have_their_first_byte(text: str, tmp_path: Path) -> None:
    _, tokenizer = open_causal(write_model(tmp_path / "gpt2"))
    ids, started = tokenized(tokenizer, text, name="gpt2")
    assert started.sum() == len(text) and len(ids) == len(started)
    assert started[0] > 0


def test_a_tokenizer_that_changes_the_text_is_refused(tmp_path: Path) -> None:
    lower = tokenizer_of(own_text().lower())
    lower.normalizer = normalizers.Lowercase()
    _, tokenizer = open_causal(write_model(tmp_path / "lower", tokenizer=lower))
    with pytest.raises(NotScorable, match=r"'Verse 0.*' at character 0 became 'verse 0"):
        tokenized(tokenizer, own_text()[:200], name="lower")


def test_a_model_that_sees_the_future_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotScorable, match="not a causal model"):
        open_causal(write_model(tmp_path / "bert", "bert"))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("model.safetensors", "cannot open"),
        ("config.json", "cannot open"),
        ("tokenizer.json", "cannot open|tokenizer.json"),
    ],
)
def test_a_folder_without_a_part_is_refused(file: str, said: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "gpt2")
    (folder / file).unlink()
    with pytest.raises(NotScorable, match=said):
        open_causal(folder)


def test_a_context_beyond_the_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotScorable, match="windows have 2 to 64 tokens"):
        open_causal(write_model(tmp_path / "gpt2"), context=100)


def test_equal_seeds_generate_equal_text(tmp_path: Path) -> None:
    model, tokenizer = open_causal(write_model(tmp_path / "gpt2"))
    one, same, other = (
        generate(model, tokenizer, "\n", 20, seed=seed, temperature=1.0, top_k=50) for seed in (1, 1, 2)
    )
    assert one == same != other


def test_the_most_different_passages_come_first_and_do_not_overlap() -> None:
    excess = np.zeros(2000)
    excess[500:560], excess[900:980], excess[1500:1520] = 3, 1, -9
    found = most_different(excess)
    assert abs(found[0] - 490) <= 30 and abs(found[1] - 900) <= 1
    assert all(abs(a - b) >= PASSAGE for i, a in enumerate(found) for b in found[:i])
    assert all(excess[start : start + PASSAGE].mean() > 0 for start in found)
    assert most_different(-np.ones(30)) == []


def page_at(report: str) -> ExperimentPage:
    return ExperimentPage.model_validate_json((Path(report).parent / "page.json").read_bytes())


@pytest.mark.usefixtures("quickly_answered")
def test_a_pretrained_model_stands_beside_the_champion(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained = run()
    folder = write_model(tmp_path / "gpt2")
    report = compare_models([str(folder), "own/champion"], "own")
    page = page_at(report)
    rows = {row[0]: row for row in page.parts[0].tables[0].rows}
    assert rows["own/champion"][1] == f"{trained.bits_per_character:.4f}"
    models = {row[0]: row for row in page.parts[0].tables[1].rows}
    assert models[str(folder)][1] == "gpt2" and models[str(folder)][4] == 64
    best = min(rows.values(), key=lambda row: float(str(row[1])))
    assert page.answer[0] == f"{best[0]} needs the fewest bits per character: {best[1]}."
    assert [part.title for part in page.parts][-2:] == [f"Samples of {folder}", "Samples of own/champion"]
    # The losses by character add up to the score.
    entry = refs().head("experiments/compare-models-own")
    assert entry is not None
    inputs = [handle_of(text) for text in store().origin(entry.handle).inputs.values()]
    made = [handle for handle in inputs if isinstance(handle, Evaluation)]
    assert len(made) == 2
    for evaluation in made:
        scores = scores_of(evaluation)
        bits = charges_of(evaluation).sum(dtype=np.float64) / math.log(2) / scores.characters
        assert math.isclose(bits, scores.bits_per_character, rel_tol=1e-5)
    caplog.clear()
    assert compare_models([str(folder), "own/champion"], "own") == report
    did = {line.split()[0]: line.split()[1] for line in caplog.messages if len(line.split()) > 2}
    assert did["evaluate_pretrained"] == did["evaluate_model"] == did["publish_models"] == "cached"
    # The same files elsewhere are the same model; other weights are another.
    moved = folder.rename(tmp_path / "moved")
    compare_models([str(moved), "own/champion"], "own")
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 1e-3}))
    caplog.clear()
    compare_models([str(moved), "own/champion"], "own")
    did = {line.split()[0]: line.split()[1] for line in caplog.messages if len(line.split()) > 2}
    assert did["evaluate_pretrained"] == "done"


@pytest.mark.usefixtures("quickly_answered")
@pytest.mark.parametrize(
    ("models", "said"),
    [(["own/champion"], "there is no 'own/champion'"), (["./nowhere"], "not a folder"), (["own/text"], "not a model")],
)
def test_what_is_no_model_is_refused(models: list[str], said: str) -> None:
    if models == ["own/text"]:
        run()
    with pytest.raises(BardError, match=said):
        compare_models(models, "own")
