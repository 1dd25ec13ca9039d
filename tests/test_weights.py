"""Weights and optimizer state from a file are those of the model that they fill, or the file is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bardflow.errors import BardError
from bardflow.model.machine.device import Device
from bardflow.model.machine.execution import Execution
from bardflow.model.networks.gpt import build
from bardflow.model.networks.spec import GPTSpec
from bardflow.model.networks.weights import WrongWeights
from bardflow.model.training.checkpoints import NotAModel, load_model, load_snapshot, save_model, save_snapshot
from bardflow.model.training.loop import Training, begin, restore
from bardflow.model.training.spec import TrainingSpec
from tests.conftest import CHECKOUT

SPECS = {
    "modern": GPTSpec(layers=2, heads=2, width=16, context=8),
    "classic": GPTSpec(architecture="classic", layers=2, heads=2, width=16, context=8, biases=True, activation="gelu"),
    "tied": GPTSpec(architecture="classic", layers=1, heads=2, width=16, context=8, tied=True, activation="gelu"),
    "llama": GPTSpec(architecture="llama", layers=1, heads=2, width=16, context=8, query_key_norm=True, tied=True),
    "lfm2": GPTSpec(architecture="lfm2", layers=2, heads=2, width=16, context=8, activation="silu"),
}
CPU = Device("cpu", "f32")
Change = Callable[[dict[str, Tensor], str], None]


def a_row(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name] = tensors[name][:1].clone()


def half(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name] = tensors[name].half()


def gone(tensors: dict[str, Tensor], name: str) -> None:
    del tensors[name]


def more(tensors: dict[str, Tensor], name: str) -> None:
    tensors[f"{name}.more"] = torch.zeros(3)


CHANGES: dict[str, tuple[Change, str]] = {
    "a row that would be stretched over the matrix": (a_row, r"is float32 \(1, 16\), but float32 \("),
    "another type": (half, r"is float16 \(.*\), but float32 \("),
    "a missing one": (gone, "has no "),
    "one too many": (more, r"\.more, which the model lacks"),
}


def changed(path: Path, change: Change, name: str) -> None:
    tensors = load_file(path)
    change(tensors, name)
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("spec", SPECS)
def test_a_model_folder_with_other_tensors_is_refused(spec: str, change: str, tmp_path: Path) -> None:
    save_model(build(SPECS[spec], 23), tmp_path)
    name = "model.embed_tokens.weight" if spec in ("modern", "llama", "lfm2") else "transformer.wte.weight"
    doing, said = CHANGES[change]
    changed(tmp_path / "model.safetensors", doing, name)
    with pytest.raises(NotAModel, match=said) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("spec", SPECS)
def test_a_snapshot_with_other_weights_is_refused(spec: str, change: str, tmp_path: Path) -> None:
    save_snapshot(begin(SPECS[spec], 23, 1), tmp_path)
    assert isinstance(restore(load_snapshot(tmp_path)), torch.nn.Module)
    doing, said = CHANGES[change]
    changed(tmp_path / "weights.safetensors", doing, "tokens.weight")
    with pytest.raises(WrongWeights, match=said) as caught:
        restore(load_snapshot(tmp_path))
    assert str(tmp_path / "weights.safetensors") in str(caught.value)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("spec", SPECS)
def test_a_model_takes_no_others_weights_and_stays_as_it_was(spec: str, change: str) -> None:
    gpt = build(SPECS[spec], 23)
    before = {name: weight.clone() for name, weight in gpt.state_dict().items()}
    others = {name: torch.ones_like(weight) for name, weight in gpt.to_transformers()[1].items()}
    doing, said = CHANGES[change]
    doing(others, list(others)[-1 if change == "a missing one" else 0])
    with pytest.raises(WrongWeights, match=said):
        gpt.load_transformers(others)
    assert all(torch.equal(weight, before[name]) for name, weight in gpt.state_dict().items())


def trained(folder: Path, optimizer: Any) -> TrainingSpec:
    spec = TrainingSpec(steps=4, batch=2, optimizer=optimizer)
    training = Training(begin(SPECS["modern"], 23, 1), spec, CPU, Execution(micro_batch=2))
    for _ in training.steps(torch.arange(200).numpy().astype("uint16") % 23, 2):
        pass
    save_snapshot(training.state(), folder)
    return spec


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("optimizer", "name"),
    [
        ("adamw", "blocks.1.query.weight/exp_avg_sq"),
        ("adamw", "tokens.weight/exp_avg"),
        ("muon", "blocks.0.query.weight/momentum_buffer"),
    ],
)
def test_a_snapshot_with_another_optimizer_state_is_refused(
    optimizer: str, name: str, change: str, tmp_path: Path
) -> None:
    spec = trained(tmp_path, optimizer)
    Training(load_snapshot(tmp_path), spec, CPU, Execution(micro_batch=2))
    doing, said = CHANGES[change]
    changed(tmp_path / "optimizer.safetensors", doing, name)
    with pytest.raises(WrongWeights, match=said) as caught:
        Training(load_snapshot(tmp_path), spec, CPU, Execution(micro_batch=2))
    assert str(tmp_path / "optimizer.safetensors") in str(caught.value)


def test_the_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, "adamw")
    with pytest.raises(WrongWeights, match=r"optimizer\.safetensors"):
        Training(load_snapshot(tmp_path), TrainingSpec(optimizer="muon"), CPU, Execution(micro_batch=2))


def test_after_the_first_step_there_is_optimizer_state(tmp_path: Path) -> None:
    spec = trained(tmp_path, "muon")
    save_file({}, tmp_path / "optimizer.safetensors", {"format": "pt"})
    with pytest.raises(WrongWeights, match=r"optimizer\.safetensors has no .* \(and \d+ more\)"):
        Training(load_snapshot(tmp_path), spec, CPU, Execution(micro_batch=2))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_looking_at_what_was_saved_loads_no_compiler(optimizer: str, tmp_path: Path) -> None:
    trained(tmp_path, optimizer)
    code = """
import sys
from pathlib import Path
from bardflow.model.machine.device import Device
from bardflow.model.machine.execution import Execution
from bardflow.model.training.checkpoints import load_snapshot
from bardflow.model.training.loop import Training
from bardflow.model.training.spec import TrainingSpec
folder, optimizer = sys.argv[1:]
Training(load_snapshot(Path(folder)), TrainingSpec(optimizer=optimizer), Device("cpu", "f32"), Execution(micro_batch=2))
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    arguments = [sys.executable, "-c", code, str(tmp_path), optimizer]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=CHECKOUT).stdout == "[]\n"


def test_state_at_rest_in_bf16_is_taken(tmp_path: Path) -> None:
    spec = trained(tmp_path, "muon")
    for name in load_file(tmp_path / "optimizer.safetensors"):
        if not name.endswith("/step"):
            changed(tmp_path / "optimizer.safetensors", lambda t, n: t.update({n: t[n].bfloat16()}), name)
    Training(load_snapshot(tmp_path), spec, CPU, Execution(micro_batch=2, optimizer_state="bf16"))


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"step": 1}', b'{"step": 1, "vocabulary_size": 3, "gpt": {"heads": 0}}']
)
def test_a_state_that_cannot_be_read_is_refused_with_its_folder(content: bytes, tmp_path: Path) -> None:
    save_snapshot(begin(SPECS["modern"], 23, 1), tmp_path)
    (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(BardError, match="holds no snapshot") as caught:
        load_snapshot(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_config_that_is_no_table_is_refused(tmp_path: Path) -> None:
    save_model(build(SPECS["modern"], 23), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(NotAModel, match="no object of JSON"):
        load_model(tmp_path)
