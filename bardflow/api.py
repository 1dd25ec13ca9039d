"""The Python API: train a model, load it, generate text and score a text."""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tokenizers import Tokenizer

from bardflow.errors import BardError
from bardflow.home import home, remote_address
from bardflow.model.machine import Device, device
from bardflow.model.networks import GPT
from bardflow.model.sampling import SamplingSpec, write
from bardflow.model.scoring import score
from bardflow.model.training import load_model
from bardflow.model.vocabulary import TOKENIZER_FILE, encode
from bardflow.model.vocabulary import load as load_tokenizer
from bardflow.outcome import Outcome
from bardflow.storage.handles import Model
from bardflow.storage.refs import Refs, resolve
from bardflow.storage.remote import remote_of
from bardflow.storage.store import Store


def train(
    corpus: str = "tiny-shakespeare",
    recipe: str = "small",
    *,
    memory_limit: str | int | None = None,
    workers: int | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> Outcome:
    """Train and evaluate a model as `bard train` does, and return its scores and the digests of its artifacts.

    `overrides` are fields of the recipe, such as `steps=500`. Cached results are used again. The training runs in a
    separate process, because Prefect reads its settings from the environment when it is imported. Progress goes to
    standard error unless `quiet` is true.

    Raises:
        BardError: the corpus, the recipe or a field does not exist, or the training failed; the message says more.
    """
    command = [sys.executable, "-m", "bardflow", "train", corpus, "--recipe", recipe, "--json"]
    command += [word for name, value in overrides.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    command += [] if memory_limit is None else ["--memory-limit", str(memory_limit)]
    command += [] if workers is None else ["--workers", str(workers)]
    said: list[str] = []
    # Output goes to a file, because an unread pipe holds only 64 KiB and a sample may be longer.
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, encoding="utf-8") as running,
    ):
        assert running.stderr is not None
        for line in running.stderr:
            said.append(line)
            if not quiet:
                print(line, end="", file=sys.stderr)
        running.wait()
        output.seek(0)
        result = output.read()
    if running.returncode:
        start = max((i for i, line in enumerate(said) if line.startswith("bard: ")), default=max(0, len(said) - 20))
        raise BardError("".join(said[start:]).removeprefix("bard: ").strip() or f"`{' '.join(command)}` failed")
    return Outcome.model_validate_json(result)


@dataclass(frozen=True)
class TextScore:
    """How well a model predicts a text; `nats` is the sum of -log probability over its tokens."""

    nats: float
    tokens: int
    characters: int

    @property
    def nats_per_token(self) -> float:
        """The mean cross-entropy loss in nats. Compare it only between models with the same vocabulary."""
        return self.nats / self.tokens

    @property
    def bits_per_character(self) -> float:
        """The loss in bits, divided by the length in characters; comparable between all models."""
        return self.nats / math.log(2) / self.characters


@dataclass(frozen=True)
class LoadedModel:
    """A trained model: the network in f32 on `device`, and its tokenizer (Hugging Face `tokenizers`)."""

    gpt: GPT
    tokenizer: Tokenizer
    device: Device

    def generate(self, prompt: str = "\n", *, characters: int = 500, **sampling: Any) -> str:
        """Return text that continues `prompt`, without the prompt. `sampling`: temperature, top_k, top_p, seed.

        Raises:
            BardError: the vocabulary cannot encode the prompt, or a sampling setting is not legal.
        """
        return "".join(self.stream(prompt, characters=characters, **sampling))

    def stream(self, prompt: str = "\n", *, characters: int = 500, **sampling: Any) -> Iterator[str]:
        """Return an iterator over the text of `generate`, in pieces as they are generated.

        Raises:
            BardError: as `generate`.
        """
        try:
            spec = SamplingSpec(**sampling)
        except ValidationError as error:
            raise BardError(f"the sampling settings {sampling} are not legal: {error}") from error
        return (text for _, text in write(self.gpt, self.tokenizer, prompt, characters, spec, self.device))

    def score(self, text: str, *, before: str = "\n") -> TextScore:
        """Score each token of `text`. The text `before` precedes it and has at least one token.

        The tokens are scored in disjoint windows of the model's context length, as in a report.

        Raises:
            BardError: the vocabulary cannot encode the text, or the text is empty.
        """
        ids, preceding = encode(self.tokenizer, [text, before])
        scored = score(self.gpt, ids, before=preceding, device=self.device)
        return TextScore(scored.nats, scored.tokens, len(text))


def load(ref: str) -> LoadedModel:
    """Load a model by its name (`tiny-shakespeare/champion`), its digest, or a folder that `bard export` wrote.

    Raises:
        BardError: there is no such artifact, or it is not a model.
    """
    folder = Path(ref).expanduser()
    if not (folder / TOKENIZER_FILE).is_file():
        remote = remote_of(home(), *remote_address())
        store = Store(home(), remote)
        handle = resolve(store, Refs(home(), remote), ref)
        if not isinstance(handle, Model):
            raise BardError(f"{ref} is a {type(handle).__name__}, not a Model; give one, such as NAME/champion")
        folder = store.folder(handle)
    place = device.choose("f32")
    return LoadedModel(load_model(folder).to(place.name), load_tokenizer(folder / TOKENIZER_FILE), place)
