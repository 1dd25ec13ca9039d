"""Functions that write and read models, as folders for `transformers`, and training snapshots, without pickle."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bardflow.errors import BardError
from bardflow.files import read_json
from bardflow.identity import identity, restored
from bardflow.model.networks import GPT, GPTSpec, WrongWeights, build, network
from bardflow.model.training.loop import Snapshot

# The key that `transformers` needs. There is only one, because safetensors writes several in random order.
METADATA = {"format": "pt"}
# The largest number in a config.json: some lists are made of so many items before a network is.
LARGEST_NUMBER = 1 << 24


class NotAModel(BardError):
    """A folder has no model that `save_model` wrote, or no snapshot that `save_snapshot` wrote."""


def save_model(gpt: GPT, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` as transformers' `gpt2` or `nanochat`, in f32."""
    config, weights = gpt.to_transformers()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({n: w.detach().contiguous().clone() for n, w in weights.items()}, folder / "model.safetensors", METADATA)


def load_model(folder: Path) -> GPT:
    """Read a model that `save_model` wrote.

    Raises:
        NotAModel: one of the two files is missing or has other content.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise NotAModel(f"{folder} is not a model folder: it has no {name}; give one that `save_model` wrote")
    try:
        config = read_json(folder / "config.json")
        spec = spec_of(config)
        require_as_large(spec, rows_of(config), [folder / "model.safetensors"])
        weights = load_file(folder / "model.safetensors")
        with torch.random.fork_rng(devices=[]):
            gpt = build(spec, config["vocab_size"])
        gpt.load_transformers(weights)
    except (KeyError, TypeError, ValueError, OSError, SafetensorError, WrongWeights) as error:
        raise NotAModel(f"{folder} holds no model that `save_model` wrote: {type(error).__name__} {error}") from error
    return gpt


def rows_of(config: dict[str, Any]) -> int:
    """Return the rows of the table of tokens.

    Raises:
        KeyError, ValueError: `vocab_size` is missing or is no number of rows.
    """
    rows = config["vocab_size"]
    if not isinstance(rows, int) or rows < 1:
        raise ValueError(f"vocab_size is {rows!r}, but a number of tokens is expected")
    return rows


def require_as_large(spec: GPTSpec, rows: int, files: list[Path]) -> None:
    """Check that files can have the weights of a network, before it takes their memory: a weight has at least a byte.

    Raises:
        ValueError: they are too small for this spec and these rows of the table of tokens.
    """
    # The table, and in each block two matrices of the MLP and two of the attention.
    least = spec.width * (rows + 2 * spec.layers * (spec.inner + spec.channels * spec.heads))
    size = sum(file.stat().st_size for file in files)
    if least > size:
        raise ValueError(
            f"its config.json is of a network with {least:,} weights or more, but its weights have {size:,} bytes"
        )


def spec_of(config: Any) -> GPTSpec:
    """Return the spec of a `config.json`.

    Raises:
        ValueError: the architecture, or a value of a field, is not supported.
        KeyError: a field is missing.
    """
    if not isinstance(config, dict):
        raise ValueError("it is no object of JSON")
    for field, value in config.items():
        if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
            raise ValueError(f"{field} is {value}, and numbers up to {LARGEST_NUMBER:,} are read here")
    architectures = get_args(GPTSpec.model_fields["architecture"].annotation)
    kinds = {kind: name for name in architectures for kind in network(name).MODEL_TYPES}
    if (name := kinds.get(config["model_type"])) is None:
        *others, last = kinds
        raise ValueError(f"its model_type is {config['model_type']!r}, but {', '.join(others)} or {last} is expected")
    return GPTSpec(architecture=name, **network(name).fields_of(config))


def save_snapshot(snapshot: Snapshot, folder: Path) -> None:
    """Write `weights.safetensors`, `optimizer.safetensors` and `state.json`."""
    save_file(each_its_own(snapshot.weights), folder / "weights.safetensors", METADATA)
    save_file(each_its_own(snapshot.optimizer), folder / "optimizer.safetensors", METADATA)
    state = {"step": snapshot.step, "vocabulary_size": snapshot.vocabulary_size, "gpt": identity(snapshot.gpt)}
    (folder / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True) + "\n")


def each_its_own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share another's memory, such as a tied table, because safetensors does not allow it."""
    owners: dict[int, str] = {}
    return {
        name: tensor if owners.setdefault(tensor.data_ptr(), name) == name else tensor.clone()
        for name, tensor in ((n, t.detach().cpu().contiguous()) for n, t in tensors.items())
    }


class Stored(Mapping[str, Tensor]):
    """The tensors of a safetensors file by name; each is memory-mapped when read, until it is deleted.

    If they are copied one at a time into a model or an optimizer, the file and its copy are never both in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with safe_open(path, "pt") as file:
            self.names = tuple(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        with safe_open(self.path, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def load_snapshot(folder: Path) -> Snapshot:
    """Read a snapshot that `save_snapshot` wrote. Its tensors are read when they are used, so the folder must stay.

    Raises:
        NotAModel: one of the files is missing or has other content.
    """
    try:
        state = read_json(folder / "state.json")
        return Snapshot(
            step=state["step"],
            gpt=restored(GPTSpec, state["gpt"]),
            vocabulary_size=state["vocabulary_size"],
            weights=Stored(folder / "weights.safetensors"),
            optimizer=Stored(folder / "optimizer.safetensors"),
        )
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise NotAModel(
            f"{folder} holds no snapshot that `save_snapshot` wrote: {type(error).__name__} {error}"
        ) from error
