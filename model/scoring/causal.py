"""Scoring any causal language model that `transformers` opens, in the same bits as the models trained here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bardflow.errors import BardError, installing

# Windows are at most this long unless the caller says otherwise: a window's logits are all in memory.
LONGEST_CONTEXT = 1024
# Names of the longest context in configurations of transformers.
CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
# Logits before a changed token may differ by this share of their size, from rounding.
ROUNDING = 1e-3


class NotScorable(BardError):
    """A model or its tokenizer cannot give each character of a text a probability."""


class CausalModel(nn.Module):
    """A model of `transformers` as a `Predictor`: `hidden` returns logits, so `head` is the identity.

    `context` is the length of a window in tokens.
    """

    def __init__(self, model: Any, context: int) -> None:
        super().__init__()
        self.model, self.context = model, context
        self.tokens = model.get_input_embeddings()
        self.head = nn.Identity()

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """Return logits (B, T, V) for the token after each of ids (B, T)."""
        logits_BTV: Tensor = self.model(input_ids=ids_BT, use_cache=False).logits
        return logits_BTV


class Tokenized(NamedTuple):
    """A text as ids of one vocabulary, and the number of characters that begin in each token."""

    ids: npt.NDArray[np.int64]
    started: npt.NDArray[np.int64]


def open_causal(folder: Path, *, context: int | None = None) -> tuple[CausalModel, Any]:
    """Open a model folder with `transformers` in f32, and return the model and its tokenizer.

    `context` is the length of windows: by default the model's, and at most LONGEST_CONTEXT tokens.

    Raises:
        NotScorable: transformers is not installed or cannot open it, the context is too long, the tokenizer gives no
            offsets, or the model is not causal.
    """
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise NotScorable(f"this needs the transformers library: {installing('hub')}") from error
    with quiet():
        return _opened(folder, context)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers, and no warnings, such as that a faster kernel for LFM2 is not installed."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _opened(folder: Path, context: int | None) -> tuple[CausalModel, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        opened: Any = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        model, report = opened
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise NotScorable(f"transformers cannot open {folder}: {str(error).splitlines()[0]}") from error
    if missing := sorted(report["missing_keys"]):
        raise NotScorable(
            f"{folder} is not a whole model: it has no {missing[0]}, and transformers would take random numbers"
        )
    if not tokenizer.is_fast:
        raise NotScorable(
            f"{folder} has no tokenizer.json, and other tokenizers do not say which characters a token has"
        )
    longest = next((int(value) for name in CONTEXTS if (value := getattr(model.config, name, None))), LONGEST_CONTEXT)
    if context is not None and not 2 <= context <= longest:
        raise NotScorable(f"context {context} was given, but the model's windows have 2 to {longest:,} tokens")
    causal = CausalModel(model.eval(), context or min(longest, LONGEST_CONTEXT))
    _require_causal(causal, folder)
    return causal, tokenizer


@torch.inference_mode()
def _require_causal(model: CausalModel, folder: Path) -> None:
    """Check that a token does not change logits before it; a model that sees the future would score too well."""
    rows, length = model.tokens.weight.shape[0], min(16, model.context)
    ids_T = torch.arange(length) * 7919 % rows
    other_T = ids_T.clone()
    other_T[-1] = (other_T[-1] + 1) % rows
    one_TV, other_TV = model.hidden(torch.stack([ids_T, other_T]))[:, :-1]
    if not (one_TV - other_TV).abs().max() <= ROUNDING * one_TV.abs().max():
        raise NotScorable(f"{folder} is not a causal model: its prediction of a token changes with later tokens")


def tokenized(tokenizer: Any, text: str, *, name: str) -> Tokenized:
    """Encode a text without special tokens, and check that the tokens give the text.

    Raises:
        NotScorable: the tokenizer changes the text; the message has the place.
    """
    done = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.asarray(done["input_ids"], np.int64)
    back = tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    # Some tokenizers put a space before the first word, and some take one away when they decode.
    ours, theirs = text.lstrip(" "), back.lstrip(" ")
    if ours != theirs:
        at = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        raise NotScorable(
            f"the tokenizer of {name} changes the text, so its bits would be those of another text: "
            f"{ours[at : at + 20]!r} at character {at:,} became {theirs[at : at + 20]!r}"
        )
    ends = np.maximum.accumulate([end for _, end in done["offset_mapping"]]) if len(ids) else np.zeros(0, np.int64)
    if len(ends) and ends[-1] != len(text):
        raise NotScorable(
            f"the tokenizer of {name} leaves out the last {len(text) - ends[-1]:,} characters of the text"
        )
    return Tokenized(ids, np.diff(ends, prepend=0))


def generate(model: CausalModel, tokenizer: Any, prompt: str, tokens: int, *, seed: int, **sampling: Any) -> str:
    """Generate text with transformers' own sampling, and return it without the prompt; the same seed gives the same."""
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.model.device)
    tokens = min(tokens, model.context - ids.shape[1] - 1)
    drawing = {name: value for name, value in sampling.items() if value is not None} if sampling["temperature"] else {}
    with quiet(), torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        drawn = model.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=bool(drawing),
            pad_token_id=0,
            eos_token_id=None,
            **drawing,
        )
    text: str = tokenizer.decode(drawn[0, ids.shape[1] :].tolist(), clean_up_tokenization_spaces=False)
    return text
