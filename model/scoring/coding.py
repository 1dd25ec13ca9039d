"""Compression of a text with a model's predictions, as a proof of its score.

A range coder (the `constriction` library's; Bamler 2022) spends -log2(p) bits on a token of probability p, so the file
is as long as the model's loss on the text in disjoint windows. Decompression computes each probability from the tokens
decoded so far. Both directions run the same forward passes, so on the same machine, with the same torch version and
number of threads, the probabilities are equal to the last bit. Elsewhere decompression may fail.

The library's probabilities have 24 bits, so it spends at most 24 bits on a token, too few for a very improbable token.
A token with a probability below RARE is therefore coded in steps of at most 24 bits each: first that it is a rare
token, then which one, by the probabilities among the rare tokens.
"""

import math
import struct
from collections.abc import Callable
from typing import Any

import constriction
import numpy as np
import numpy.typing as npt
import torch

from bardflow.errors import BardError
from bardflow.model.machine import Device
from bardflow.model.networks import GPT
from bardflow.model.sampling import empty_cache, in_f32
from bardflow.model.scoring.held_out import Progress
from bardflow.model.training import Tokens

Ids = npt.NDArray[np.int64]

# Tokens in a stretch. Stretches are coded in parallel; the token before each, except the first, is stored in the file.
STRETCH_TOKENS = 2**13
MOST_STRETCHES = 64
HEADER = struct.Struct("<I")
RARE = 2.0**-20
# The probability of a token whose probability is too small for f32.
LEAST = 2.0**-126


class NotCoded(BardError):
    """The file was not written by `compress` with this model."""


def compress(gpt: GPT, tokens: Tokens, *, before: int, device: Device, progress: Progress | None = None) -> bytes:
    """Compress tokens with the model's probabilities. `before` is the token that precedes the text.

    `progress` is called with the number of coded tokens.
    """
    gpt = in_f32(gpt.eval())
    ids = np.asarray(tokens[0 : len(tokens)], np.int64)
    first, rows = _stretches(len(ids), gpt.context)
    coder = constriction.stream.queue.RangeEncoder()
    precede = np.concatenate([[before], ids[first[1:] - 1]]).astype(np.int64)
    if rows > 1:
        coder.encode(precede[1:].astype(np.int32), _uniform(gpt))

    def known(at: Ids, shares_bV: npt.NDArray[np.float32]) -> Ids:
        likely_bW = _with_rare(shares_bV)
        rare = shares_bV.shape[1]
        codes = np.where(shares_bV[np.arange(len(at)), ids[at]] < RARE, rare, ids[at])
        coder.encode(codes.astype(np.int32), _by_shares(), likely_bW)
        for row in np.flatnonzero(codes == rare):
            _encode_rare(coder, int(ids[at[row]]), shares_bV[row])
        return ids[at]

    _passes(gpt, len(ids), precede, device, known, progress)
    words: npt.NDArray[np.uint32] = coder.get_compressed()
    return HEADER.pack(len(ids)) + words.astype("<u4").tobytes()


def decompress(gpt: GPT, coded: bytes, *, before: int, device: Device, progress: Progress | None = None) -> Ids:
    """Decompress a file that `compress` wrote with the same model, `before` and device, and return its tokens.

    `progress` is called with the number of decoded tokens.

    Raises:
        NotCoded: the file is cut short, or `compress` did not write it with this model.
    """
    if len(coded) < HEADER.size or (len(coded) - HEADER.size) % 4:
        raise NotCoded(f"{len(coded)} bytes were given, but a coded text has 4 and a multiple of 4; was it cut short?")
    gpt = in_f32(gpt.eval())
    (count,) = HEADER.unpack(coded[: HEADER.size])
    _, rows = _stretches(count, gpt.context)
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(coded[HEADER.size :], "<u4").astype(np.uint32))
    ids = np.empty(count, np.int64)

    def read(at: Ids, shares_bV: npt.NDArray[np.float32]) -> Ids:
        try:
            codes = coder.decode(_by_shares(), _with_rare(shares_bV))
            for row in np.flatnonzero(codes == shares_bV.shape[1]):
                codes[row] = _decode_rare(coder, shares_bV[row])
            ids[at] = codes
        except AssertionError as error:  # what the library raises for invalid data
            raise NotCoded("these bytes were not coded with this model's shares, or were changed since") from error
        return ids[at]

    precede = np.array([before, *(coder.decode(_uniform(gpt), rows - 1) if rows > 1 else ())], np.int64)
    _passes(gpt, count, precede, device, read, progress)
    return ids


def _stretches(count: int, context: int) -> tuple[Ids, int]:
    """Return the start of each stretch in a text of `count` tokens (also a window's start), and their number."""
    windows = math.ceil(count / context)
    rows = max(1, min(MOST_STRETCHES, count // STRETCH_TOKENS))
    long = math.ceil(windows / rows) * context if windows else context
    first = np.arange(0, max(count, 1), long)
    return first, len(first)


@torch.inference_mode()
def _passes(
    gpt: GPT,
    count: int,
    precede: Ids,
    device: Device,
    settle: Callable[[Ids, npt.NDArray[np.float32]], Ids],
    progress: Progress | None,
) -> None:
    """Run the model over all stretches, token by token.

    `settle` gets the positions and probabilities of the next tokens and returns the tokens.
    """
    first, rows = _stretches(count, gpt.context)
    cache = empty_cache(gpt, rows, device)
    current = precede.copy()
    done = 0
    ends = np.append(first[1:], count)
    for step in range(int((ends - first).max())):
        if step % gpt.context == 0:
            for row in range(rows):
                cache.clear(row)
        logits_BV = gpt.extend(torch.from_numpy(current[:, None]).to(device.name), cache).float()
        shares_BV = logits_BV.softmax(-1).cpu().numpy()
        # A finished stretch stays in the batch, so that all passes have one shape; its output is ignored.
        going = np.flatnonzero(first + step < ends)
        current[going] = settle(first[going] + step, np.ascontiguousarray(shares_BV[going]))
        done += len(going)
        if progress is not None:
            progress(done)


def _with_rare(shares_bV: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Set the probabilities of rare tokens to 0, append a column with their sum (at least RARE), and normalise."""
    is_rare = shares_bV < RARE
    together = np.where(is_rare, shares_bV, 0).sum(axis=1, dtype=np.float64).clip(RARE)
    likely = np.concatenate([np.where(is_rare, 0, shares_bV), together[:, None]], axis=1, dtype=np.float64)
    return np.ascontiguousarray(likely / likely.sum(axis=1, keepdims=True), np.float32)


def _among_rare(shares_V: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], list[float]]:
    """Return the probabilities among rare tokens, and those of the yes bits that are coded before them.

    If the sum of the rare tokens is below RARE, `_with_rare` raised it to RARE. The yes bits correct this: the product
    of their probabilities is the ratio of sum and RARE, and none is below RARE.
    """
    rare = np.where(shares_V < RARE, shares_V, 0).astype(np.float64)
    if not rare.any():  # all too small for f32: make them equal
        rare = np.where(shares_V < RARE, LEAST, 0)
    together = float(rare.sum())
    count = max(0, math.ceil(math.log(together / RARE) / math.log(RARE)))
    yeses = [(together / RARE) ** (1 / count)] * count if count else []
    return (rare / together).astype(np.float32), yeses


def _encode_rare(coder: Any, token: int, shares_V: npt.NDArray[np.float32]) -> None:
    among_V, yeses = _among_rare(shares_V)
    for yes in yeses:
        coder.encode(np.array([1], np.int32), _by_shares(), _yes_or_no(yes))
    code = len(among_V) if among_V[token] < RARE else token
    coder.encode(np.array([code], np.int32), _by_shares(), _with_rare(among_V[None]))
    if code != token:
        _encode_rare(coder, token, among_V)


def _decode_rare(coder: Any, shares_V: npt.NDArray[np.float32]) -> int:
    among_V, yeses = _among_rare(shares_V)
    for yes in yeses:
        coder.decode(_by_shares(), _yes_or_no(yes))
    [code] = coder.decode(_by_shares(), _with_rare(among_V[None]))
    return _decode_rare(coder, among_V) if code == len(among_V) else int(code)


def _yes_or_no(yes: float) -> npt.NDArray[np.float32]:
    return np.array([[1 - yes, yes]], np.float32)


def _by_shares() -> constriction.stream.model.Categorical:
    return constriction.stream.model.Categorical(perfect=False)


def _uniform(gpt: GPT) -> constriction.stream.model.Uniform:
    return constriction.stream.model.Uniform(gpt.tokens.weight.shape[0])
