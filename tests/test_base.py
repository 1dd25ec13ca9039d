"""A training that begins from a model: one of the store, or one in the format of transformers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bardflow.errors import BardError
from bardflow.model.training import NotAModel, load_model, load_pretrained, save_model
from bardflow.model.vocabulary import VocabularySpec, learn
from bardflow.outcome import Outcome
from bardflow.storage.handles import Model
from bardflow.storage.lineage import lineage
from bardflow.tasks.recipes import RecipeError
from bardflow.tasks.reporting import page_of
from bardflow.tasks.run import store
from tests import quick
from tests.conftest import CHECKOUT, own_text, serving

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def run(**changes: object) -> Outcome:
    """Train quickly, with the width of the base model or of the recipe."""
    return quick.run(**{"width": None} | changes)


def foreign(kind: str, vocabulary_size: int, **more: Any) -> Any:
    """A model with random weights, made by transformers."""
    import transformers

    torch.manual_seed(5)
    named = {"gpt2": "GPT2", "llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    shape = GPT2 if kind == "gpt2" else {**LLAMA, **({"head_dim": 12} if kind == "qwen3" else {})}
    config = getattr(transformers, f"{named}Config")(**{**shape, "vocab_size": vocabulary_size, **more})
    architecture = "GPT2LMHeadModel" if kind == "gpt2" else f"{named}ForCausalLM"
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a model of transformers with a byte-level tokenizer, and returns its folder."""

    def written(kind: str, *, tokens: int = 300, rows: int = 320, dtype: Any = torch.float32, **more: Any) -> Path:
        folder = tmp_path / kind
        tokenizer = learn(
            lambda: [own_text()], VocabularySpec(kind="bpe", size=tokens), characters=len(own_text()), unseen=False
        )
        foreign(kind, rows, **more).to(dtype).save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        return folder

    return written


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("gpt2", {}),
        ("gpt2", {"activation_function": "relu"}),
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "rope_theta": 5e5}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("qwen3", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    ],
)
def test_a_model_of_transformers_is_read_and_computes_the_same(
    kind: str, more: dict[str, Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write(kind, **more)
    theirs, ours = foreign(kind, 320, **more), load_pretrained(folder).eval()
    ids_BT = torch.randint(320, (2, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected_BTV = theirs(ids_BT).logits
        assert expected_BTV.std() > 0.1
        assert (ours(ids_BT) - expected_BTV).abs().max() < 1e-4
        nats = theirs(ids_BT, labels=ids_BT).loss
        own = torch.nn.functional.cross_entropy(ours(ids_BT)[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())
    assert abs(float(nats - own)) < 1e-5
    again = tmp_path / "again"
    again.mkdir()
    save_model(ours, again)
    with torch.no_grad():
        assert torch.equal(load_model(again).eval()(ids_BT), ours(ids_BT))


def test_weights_in_bf16_in_several_files_and_without_a_prefix_are_read(write: Callable[..., Path]) -> None:
    folder = write("gpt2", dtype=torch.bfloat16)
    whole = load_pretrained(folder)
    weights = {name.removeprefix("transformer."): w for name, w in load_file(folder / "model.safetensors").items()}
    weights["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    names = sorted(weights)
    parts = {"one.safetensors": names[:5], "two.safetensors": names[5:]}
    (folder / "model.safetensors").unlink()
    for file, inside in parts.items():
        save_file({name: weights[name].contiguous() for name in inside}, folder / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, weight in load_pretrained(folder).state_dict().items():
        assert weight.dtype == torch.float32 and torch.equal(weight, whole.state_dict()[name]), name


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_type = 'llama3'"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window = True"),
        ("qwen3", {"model_type": "mamba"}, "model_type is 'mamba'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ("gpt2", {"n_inner": 100}, "n_inner = 100"),
        ("gpt2", {"n_layer": 3}, r"has no transformer\.h\.2"),
        ("gpt2", {"activation_function": "mish"}, "mish"),
    ],
)
def test_a_model_with_parts_that_no_network_has_is_refused(
    kind: str, change: dict[str, Any], said: str, write: Callable[..., Path]
) -> None:
    folder = write(kind)
    edit(folder, **change)
    with pytest.raises(NotAModel, match=said):
        load_pretrained(folder)


def spoil(folder: Path, how: str) -> None:
    match how:
        case "no config":
            (folder / "config.json").unlink()
        case "pickle":
            (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        case "index that leaves":
            (folder / "model.safetensors").unlink()
            (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
        case "damaged":
            content = (folder / "model.safetensors").read_bytes()
            (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
        case "not finite":
            weights = load_file(folder / "model.safetensors")
            weights["transformer.ln_f.weight"][3] = float("nan")
            save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no config", "has no config.json"),
        ("pickle", "can run code"),
        ("index that leaves", "not a file beside it"),
        ("damaged", "cannot be read as a model"),
        ("not finite", "not finite"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused(how: str, said: str, write: Callable[..., Path]) -> None:
    folder = write("gpt2")
    spoil(folder, how)
    with pytest.raises(NotAModel, match=said):
        load_pretrained(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("answers")
@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_a_training_begins_from_a_folder_with_its_tokenizer(kind: str, write: Callable[..., Path]) -> None:
    folder = write(kind)
    begun = run(base_model=str(folder), learning_rate=1e-4, optimizer="adamw", precision="f32")
    model = Model(digest=begun.model)
    facts = store().facts(model)
    assert begun.trained and facts["vocabulary_size"] == 300 and facts["base"].startswith(f"{folder.name} (")
    assert facts["gpt"]["context"] == 16 and facts["gpt"].get("key_value_heads") == (None if kind == "gpt2" else 2)
    assert [type(a.handle).__name__ for a in lineage(store(), model)].count("Model") == 2
    card = (store().folder(model) / "README.md").read_text()
    assert f"began from {folder.name} (" in card
    # Four small steps from these weights: near them, and not them.
    before, after = (load_pretrained(folder).state_dict(), load_model(store().folder(model)).state_dict())
    apart = max(float((after[n] - w[: len(after[n])]).abs().max()) for n, w in before.items())
    assert 0 < apart < 4 * 1e-4 * 1.1
    page = page_of(_report(begun))
    assert page.model.base == facts["base"] and "layers" not in page.settings and page.settings["context"] == 16
    again = run(base_model=str(folder), learning_rate=1e-4, optimizer="adamw", precision="f32")
    assert not again.trained and again.model == begun.model
    # The path is no part of the model.
    moved = folder.rename(folder.with_name("elsewhere"))
    assert run(base_model=str(moved), learning_rate=1e-4, optimizer="adamw", precision="f32").model == begun.model
    # Another model in the same folder is another question.
    write(kind, initializer_range=0.05)
    assert run(base_model=str(folder), learning_rate=1e-4, optimizer="adamw", precision="f32").trained


def _report(outcome: Outcome) -> Any:
    from bardflow.storage.handles import Report

    return Report(digest=Path(outcome.report).parent.name)


@pytest.mark.slow
@pytest.mark.usefixtures("answers")
def test_a_training_begins_from_a_champion_and_meets_it(caplog: pytest.LogCaptureFixture) -> None:
    first = run(steps=8)
    caplog.clear()
    further = run(base_model="own/champion", steps=8)
    said = {line.split()[0]: line.split()[1] for line in caplog.messages if len(line.split()) > 2}
    # The model's vocabulary is the artifact that it was trained with, so the text is not tokenized again.
    assert said["vocabulary_of"] == "done" and said["tokenize_corpus"] == "cached"
    facts = store().facts(Model(digest=further.model))
    assert first.model[:8] in facts["base"] and facts["vocabulary_kind"] == "char"
    assert further.bits_per_character < first.bits_per_character
    assert "champion" in further.verdict


@pytest.mark.usefixtures("answers")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_model": "own/champion"}, "there is no 'own/champion'"),
        ({"base_model": "./nowhere"}, "is not a folder"),
        ({"base_model": "hub:not a name"}, "write hub:OWNER/NAME"),
        ({"base_model": "own/champion", "layers": 3}, "layers cannot be set with base_model"),
        ({"base_model": "own/champion", "vocabulary_size": 300, "vocabulary_kind": "bpe"}, "vocabulary_"),
    ],
)
def test_a_wrong_base_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(BardError, match=said):
        run(**changes)


@pytest.mark.usefixtures("answers")
def test_a_context_beyond_the_models_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(NotAModel, match="sees 32 tokens"):
        run(base_model=str(write("gpt2")), context=64)


def test_a_recipe_file_with_a_base_has_no_network(project: Path) -> None:
    from bardflow.tasks.recipes import load_recipe

    (project / "recipes").mkdir()
    path = project / "recipes" / "further.toml"
    path.write_text('[base]\nmodel = "own/champion"\n[gpt]\ncontext = 32\n')
    assert load_recipe("further").recipe.base.model == "own/champion"
    path.write_text('[base]\nmodel = "own/champion"\n[gpt]\nwidth = 32\n')
    with pytest.raises(RecipeError, match="width cannot be set with base_model"):
        load_recipe("further")


HUB_CLIENT = """
import sys
from bardflow.errors import BardError
from bardflow.tasks.base_model import from_hub
for name in sys.argv[1:]:
    try:
        print(from_hub(name))
    except BardError as error:
        print("refused:", error)
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub(folder: Path) -> Any:
    """What the Hugging Face Hub answers for the model someone/model, whose files are in the folder."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    def listing(request: Request) -> Response:
        if request.path_params["name"] != "model":
            return JSONResponse({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        files = [{"rfilename": path.name} for path in folder.iterdir()]
        return JSONResponse({"id": "someone/model", "modelId": "someone/model", "sha": COMMIT, "siblings": files})

    def tree(request: Request) -> Response:
        return JSONResponse(
            [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": path.name}
                for path in folder.iterdir()
            ]
        )

    def file(request: Request) -> Response:
        content = (folder / request.path_params["file"]).read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{request.path_params["file"]}"'}
        return Response(content, headers=headers)

    return Starlette(
        routes=[
            Route("/api/models/someone/{name}/revision/{revision}", listing),
            Route("/api/models/someone/model/tree/{revision}", tree),
            Route("/someone/model/resolve/{revision}/{file}", file, methods=["GET", "HEAD"]),
        ]
    )


@pytest.mark.slow
def test_a_model_is_fetched_from_the_hub_without_code_or_pickles(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = write("qwen3")
    for name in ("pytorch_model.bin", "modeling_own.py"):
        (folder / name).write_text("print('run')")
    with serving(hub(folder)) as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        asked = [sys.executable, "-c", HUB_CLIENT, "hub:someone/model", "hub:someone/model@v1", "hub:someone/other"]
        done = subprocess.run(asked, env=environment, capture_output=True, text=True, cwd=CHECKOUT)
        assert done.returncode == 0, done.stderr
        said = done.stdout.splitlines()
    fetched = Path(said[0])
    assert said[1] == said[0] and {path.name for path in fetched.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    assert torch.equal(load_pretrained(fetched).tokens.weight, load_pretrained(folder).tokens.weight)
    assert "hub:someone/other cannot be fetched" in said[2]
