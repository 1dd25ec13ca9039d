"""Pretrained models: reading folders in the format of `transformers`, and beginning a training from one."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from bardflow.files import read_json
from bardflow.model.networks import GPT, GPTSpec, WrongWeights, build, fill
from bardflow.model.training.checkpoints import NotAModel, Stored, load_model, require_as_large, rows_of, spec_of
from bardflow.model.training.loop import Snapshot

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Tensors of older files that are no weights: causal masks, and the frequencies of rotary positions.
NO_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
# Prefixes that some files leave out.
PREFIXES = ("", "transformer.", "model.")


class BaseDoesNotFit(NotAModel):
    """A training cannot begin from this model with these settings."""


def spec_at(folder: Path) -> GPTSpec:
    """Return the network of a model folder, from its `config.json`.

    Raises:
        NotAModel: the file is missing, or the model has parts that no network here has; the message says what.
    """
    return _read_config(folder)[0]


def _read_config(folder: Path) -> tuple[GPTSpec, int]:
    """Return the network and the number of rows of the table of tokens."""
    try:
        config = read_json(folder / CONFIG)
        return spec_of(config), rows_of(config)
    except FileNotFoundError as error:
        raise NotAModel(f"{folder} is not a model folder: it has no {CONFIG}") from error
    except (KeyError, TypeError, ValueError, OSError) as error:
        reason = f"{CONFIG} has no {error}" if isinstance(error, KeyError) else str(error)
        raise NotAModel(
            f"{folder} cannot be read as a model: {reason}. Models of the types gpt2, llama, qwen2, qwen3 and nanochat "
            "can be; `bard score` scores others."
        ) from error


def load_pretrained(folder: Path, tokens: int | None = None) -> GPT:
    """Read a model in the format of `transformers`, in f32: GPT-2, Llama, Qwen2, Qwen3, and what `save_model` wrote.

    Weights may be in several files, in f16 or bf16, and named without the usual prefix. With `tokens`, the size of its
    vocabulary, further rows of its tables are left out: some models have unused ones, so that a size is round.

    Raises:
        NotAModel: a file is missing or damaged, or the model has parts that no network here has; the message says what.
    """
    spec, rows = _read_config(folder)
    files = weight_files(folder)
    try:
        require_as_large(spec, rows, files)
        with torch.random.fork_rng(devices=[]):
            gpt = build(spec, rows)
        gpt.load_transformers(_Adapted(files, list(gpt.to_transformers()[1])))
    except (SafetensorError, WrongWeights, ValueError, OSError) as error:
        raise NotAModel(f"{folder} cannot be read as a model: {error}") from error
    strange = [name for name, weight in gpt.state_dict().items() if not torch.isfinite(weight).all()]
    if strange:
        raise NotAModel(f"{folder}: {strange[0]} has weights that are not finite; fetch the model again")
    return gpt if tokens is None else _without_unused(gpt, spec, tokens, folder)


def _without_unused(gpt: GPT, spec: GPTSpec, tokens: int, folder: Path) -> GPT:
    rows = gpt.tokens.weight.shape[0]
    if tokens > rows:
        raise NotAModel(f"{folder} has {rows:,} rows in its table of tokens, but its vocabulary has {tokens:,} tokens")
    if tokens == rows:
        return gpt
    with torch.random.fork_rng(devices=[]):
        smaller = build(spec, tokens)
    used = {
        name: weight[:tokens] if name in ("tokens.weight", "head.weight") else weight
        for name, weight in gpt.state_dict().items()
    }
    fill(smaller.state_dict(), used)
    return smaller


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder.

    Raises:
        NotAModel: there are none, or the index names a file that is missing or outside of the folder.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        raise NotAModel(
            f"{folder} has no {WEIGHTS}"
            + (
                f", only {pickled[0]}, which can run code when it is opened: load it with transformers and write it "
                "with `save_pretrained`"
                if pickled
                else "; give a folder with a model's weights"
            )
        )
    try:
        names = sorted(set(read_json(folder / INDEX)["weight_map"].values()), key=str)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise NotAModel(f"{folder / INDEX} is damaged: {type(error).__name__} {error}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
            raise NotAModel(f"{folder / INDEX} names {name!r}, which is not a file beside it")
    return [folder / name for name in names]


def begin_from(folder: Path, *, context: int, dropout: float) -> Snapshot:
    """Return the snapshot of step 0 with the weights of a model that `save_model` wrote.

    Learned positions beyond `context` are left out.

    Raises:
        NotAModel: as `load_model`.
        BaseDoesNotFit: `context` is larger than the model's.
    """
    gpt = load_model(folder)
    spec = begun_spec(spec_at(folder), context=context, dropout=dropout)
    weights = {
        name: weight[:context] if name == "positions.weight" else weight for name, weight in gpt.state_dict().items()
    }
    return Snapshot(0, spec, gpt.tokens.weight.shape[0], weights, {})


def begun_spec(base: GPTSpec, *, context: int, dropout: float) -> GPTSpec:
    """Return the network of a training that begins from a model: the model's, with another context and dropout.

    Raises:
        BaseDoesNotFit: `context` is larger than the model's.
    """
    if context > base.context:
        raise BaseDoesNotFit(
            f"context = {context} was given, but the model to begin from sees {base.context} tokens; give at most that"
        )
    return base.model_copy(update={"context": context, "dropout": dropout})


class _Adapted(Mapping[str, Tensor]):
    """Tensors of files by the names that a model expects, in f32. Each is read when it is used."""

    def __init__(self, files: list[Path], expected: list[str]) -> None:
        self.path = files[0].parent
        stored = {name: file for path in files for file in [Stored(path)] for name in file}
        self._places: dict[str, tuple[Stored, str]] = {}
        for name, file in stored.items():
            if name.endswith(NO_WEIGHTS) and name not in expected:
                continue
            known = next((prefix + name for prefix in PREFIXES if prefix + name in expected), name)
            if known == "lm_head.weight" and known not in expected:
                continue  # a copy of the tied table
            self._places[known] = (file, name)

    def __getitem__(self, name: str) -> Tensor:
        file, stored = self._places[name]
        tensor = file[stored]
        return tensor.float() if tensor.is_floating_point() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
