"""The loss of a model on each token of a text, in nats."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bardflow.model.machine import Device, Execution
from bardflow.model.training import Tokens, TooFewTokens

# Tokens in one forward pass, and logits in memory at once: 34 MB in f32.
PASS_TOKENS = 2**12
PASS_LOGITS = 2**23

Charges = npt.NDArray[np.float32]
# Called with the number of tokens that are done.
Progress = Callable[[int], None]


class Predictor(Protocol):
    """What scoring needs of a model: a GPT, or a model of transformers (model/scoring/causal.py)."""

    context: int

    @property
    def tokens(self) -> nn.Embedding:
        """The table of tokens."""

    @property
    def head(self) -> nn.Module:
        """The function from hidden states to logits; the identity if `hidden` returns logits."""

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """Return the input of the head for ids (B, T)."""

    def eval(self) -> Any:
        """Switch off dropout."""


@dataclass(frozen=True)
class Score:
    """The total loss on a text, in nats, and its number of tokens."""

    nats: float
    tokens: int

    @property
    def nats_per_token(self) -> float:
        """Mean cross-entropy, as in training curves; comparable only within one vocabulary."""
        return self.nats / self.tokens

    def bits_per(self, units: int) -> float:
        """Return the bits for each of `units` (characters or bytes of the raw text); comparable across vocabularies."""
        return self.nats / math.log(2) / units


def score(
    gpt: Predictor, tokens: Tokens, *, before: Tokens, device: Device, execution: Execution | None = None
) -> Score:
    """Compute the total loss on a text in disjoint windows: the sum of `charges`, in f64.

    Raises:
        TooFewTokens: as `charges`.
    """
    return total(charges(gpt, tokens, before=before, device=device, execution=execution))


def total(charged: Charges) -> Score:
    """Add the losses of tokens, in f64."""
    return Score(float(charged.sum(dtype=np.float64)), len(charged))


@torch.inference_mode()
def charges(
    gpt: Predictor,
    tokens: Tokens,
    *,
    before: Tokens,
    device: Device,
    stride: int | None = None,
    execution: Execution | None = None,
) -> Charges:
    """Compute the loss of each token, in nats: minus the logarithm of its probability.

    Windows of the context length start every `stride` tokens, and each scores its last `stride` tokens. The default
    stride is the context: disjoint windows, as in published losses, where a token sees what precedes it in its window,
    and the one token before the window. With half the context as stride, each token sees at least half a context.

    `before` is the preceding text (the training set), at least one token. Its end is the context of the first tokens,
    so that they are scored like the others. At most as many windows and logits as in `execution` are computed at once,
    so that scoring takes no more memory than training.

    Raises:
        TooFewTokens: `tokens` or `before` is empty.
        ValueError: the stride is not from 1 to the context.
    """
    context = gpt.context
    stride = context if stride is None else stride
    if not 1 <= stride <= context:
        raise ValueError(f"stride {stride} was given, but windows of {context} tokens follow by 1 to {context}")
    _require_text(tokens, before)
    gpt.eval()
    rows, at_once = _at_once(gpt)
    if execution is not None:
        rows, at_once = min(rows, execution.micro_batch), min(at_once, execution.loss_tokens)
    charged = np.empty(len(tokens), np.float32)
    done = 0
    for windows_BT, new in _windows(tokens, before, context, stride, rows):
        nats_BN = _nats(gpt, windows_BT, new, at_once, device)
        charged[done : done + nats_BN.size] = nats_BN.flatten()
        done += nats_BN.size
    return charged


@torch.inference_mode()
def charges_both_ways(
    gpt: Predictor, tokens: Tokens, *, before: Tokens, device: Device, progress: Progress | None = None
) -> tuple[Charges, Charges]:
    """Compute `charges` with disjoint windows and with a stride of half a context, in two thirds of the time of both.

    Every second window with the stride is also a disjoint window, so its first half is scored too. `progress` is called
    with the number of scored tokens.

    Raises:
        TooFewTokens: as `charges`.
    """
    _require_text(tokens, before)
    gpt.eval()
    context, stride = gpt.context, max(1, gpt.context // 2)
    rows, at_once = _at_once(gpt)
    disjoint, sliding = np.empty(len(tokens), np.float32), np.empty(len(tokens), np.float32)
    done = done_disjoint = 0
    for windows_BT, new in _windows(tokens, before, context, stride, rows):
        nats_BT = _nats(gpt, windows_BT, windows_BT.shape[1] - 1, at_once, device)
        for nats_T in nats_BT:
            first = done + new - len(nats_T)
            sliding[done : done + new] = nats_T[-new:]
            if first % context == 0 and 0 <= first <= done_disjoint:
                disjoint[first : done + new] = nats_T
                done_disjoint = done + new
            done += new
        if progress is not None:
            progress(done)
    if done_disjoint < len(tokens):
        # The last disjoint window is shorter than half a context, or the context is odd and few windows coincide.
        rest = done_disjoint // context * context
        preceding = tokens[:rest] if rest else before
        disjoint[rest:] = charges(gpt, tokens[rest:], before=preceding, device=device)
    return disjoint, sliding


def _require_text(tokens: Tokens, before: Tokens) -> None:
    if not len(tokens):
        raise TooFewTokens("the text to score has no tokens; give the validation set at least one")
    if not len(before):
        raise TooFewTokens("no token precedes the text to score, but its first needs one; give the training set's end")


def _at_once(gpt: Predictor) -> tuple[int, int]:
    """Return the numbers of windows in one pass and of rows of logits at once."""
    logits = max(1, PASS_LOGITS // gpt.tokens.weight.shape[0])
    tokens = min(PASS_TOKENS, logits) if isinstance(gpt.head, nn.Identity) else PASS_TOKENS
    return max(1, tokens // gpt.context), logits


def _nats(
    gpt: Predictor, windows_BT: npt.NDArray[np.unsignedinteger], new: int, at_once: int, device: Device
) -> Charges:
    """Compute the losses of each window's last `new` tokens, (B, new)."""
    ids_BT = torch.from_numpy(windows_BT.astype(np.int64)).to(device.name)
    hidden_NC = gpt.hidden(ids_BT[:, :-1])[:, -new:].flatten(0, 1)
    targets_N = ids_BT[:, -new:].flatten()
    pieces = zip(torch.split(hidden_NC, at_once), torch.split(targets_N, at_once), strict=True)
    nats_N = torch.cat([F.cross_entropy(gpt.head(h_nC).float(), t_n, reduction="none") for h_nC, t_n in pieces])
    charged: Charges = nats_N.view(-1, new).cpu().numpy()
    return charged


class Guess(NamedTuple):
    """A token's loss in nats, and the most probable ids at its position with their probabilities."""

    nats: float
    likeliest: list[int]
    shares: list[float]


@torch.inference_mode()
def guesses(gpt: Predictor, tokens: Tokens, *, before: Tokens, device: Device, likeliest: int) -> list[Guess]:
    """Return the most probable tokens at each token of a passage, with at least half a context before it."""
    gpt.eval()
    found: list[Guess] = []
    for windows_BT, new in _windows(tokens, before, gpt.context, max(1, gpt.context // 2), 1):
        ids_BT = torch.from_numpy(windows_BT.astype(np.int64)).to(device.name)
        logits_NV = gpt.head(gpt.hidden(ids_BT[:, :-1])[:, -new:].flatten(0, 1)).float()
        shares_NV = logits_NV.softmax(-1)
        top = shares_NV.topk(min(likeliest, shares_NV.shape[1]))
        nats_N = F.cross_entropy(logits_NV, ids_BT[:, -new:].flatten(), reduction="none")
        found += map(Guess, nats_N.tolist(), top.indices.tolist(), top.values.tolist())
    return found


def _windows(
    tokens: Tokens, before: Tokens, context: int, stride: int, rows: int
) -> Iterator[tuple[npt.NDArray[np.unsignedinteger], int]]:
    """Yield windows of equal length, (B, inputs + 1), and the number of new tokens at each end, in text order."""
    # A window has one token more than inputs: the last is only a target.
    lead = before[max(0, len(before) - (context - stride + 1)) : len(before)]
    start = 0
    while start < len(tokens):
        reach = min(len(lead) + start, context - stride + 1)
        whole = (len(tokens) - start) // stride
        # Windows of equal length share a pass; at the start of a text each window is longer than the one before.
        alike = min(whole, rows) if reach == context - stride + 1 else min(whole, 1)
        stop = start + alike * stride if alike else len(tokens)
        head = lead[len(lead) - max(0, reach - start) :] if start < reach else lead[:0]
        span = np.concatenate([head, tokens[max(0, start - reach) : stop]])
        if alike:
            yield np.lib.stride_tricks.sliding_window_view(span, reach + stride)[::stride], stride
        else:
            yield span[None], stop - start
        start = stop


def characters_started(spellings: list[bytes]) -> npt.NDArray[np.int64]:
    """Count the characters that begin in each token, as the bytes that are not UTF-8 continuation bytes."""
    return np.array([sum(byte & 0xC0 != 0x80 for byte in spelled) for spelled in spellings])


def by_character(charged: Charges, started: npt.NDArray[np.int64]) -> Charges:
    """Distribute the losses of tokens over the characters of the raw text; the sum does not change.

    `started[i]` characters begin in token i and share its loss equally. If none begins (the token has later bytes of a
    character), the loss is added to the character before. So models with different vocabularies can be compared
    character by character.

    Raises:
        ValueError: no character begins in the first token.
    """
    if len(started) and not started[0]:
        raise ValueError("the first token begins no character; the text has to be encoded from its start")
    last = np.cumsum(started)
    begun = started > 0
    shared = np.repeat(charged[begun].astype(np.float64) / started[begun], started[begun])
    np.add.at(shared, last[~begun] - 1, charged[~begun])
    return shared.astype(np.float32)
