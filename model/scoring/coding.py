"""A text as a file that the model's own predictions make short: the proof that its bits are real.

A range coder (the `constriction` library's; Bamler 2022) spends minus log2 of a token's share on it, so the file is as
long as the model's charge for the text in disjoint windows, and the model that reads the file back must draw every
share from what it has decoded alone. Both directions compute the same passes, so on one machine, with one version of
torch and one number of threads, they find the same shares to the last bit; elsewhere the file need not open.

The library's shares have 24 bits, so it spends at most 24 bits on a token, and a model that is badly surprised would
be billed too little. Tokens with a share below RARE are therefore coded in steps, each of them within 24 bits: first
that the token is one of the rare ones, then which of them it is, by their shares among themselves.
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

# So many tokens are a stretch: stretches are read side by side, and what precedes each but the first is written out.
STRETCH_TOKENS = 2**13
MOST_STRETCHES = 64
HEADER = struct.Struct("<I")
RARE = 2.0**-20
# What a token is taken to have whose share is too small for f32.
LEAST = 2.0**-126


class NotCoded(BardError):
    """A file was not written by `compress` for this model."""


def compress(gpt: GPT, tokens: Tokens, *, before: int, device: Device, progress: Progress | None = None) -> bytes:
    """The tokens, as few bytes as the model's shares of them allow. `before` is the token that precedes the text.

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
    """The tokens behind a file that `compress` wrote with the same model, `before` and device.

    `progress` is called with the number of decoded tokens.

    Raises:
        NotCoded: the file is too short or is none of its files.
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
        except AssertionError as error:  # the library's name for data that no encoder writes
            raise NotCoded("these bytes were not coded with this model's shares, or were changed since") from error
        return ids[at]

    precede = np.array([before, *(coder.decode(_uniform(gpt), rows - 1) if rows > 1 else ())], np.int64)
    _passes(gpt, count, precede, device, read, progress)
    return ids


def _stretches(count: int, context: int) -> tuple[Ids, int]:
    """Where each stretch of a text of `count` tokens begins (at a disjoint window's start), and how many there are."""
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
    """Token after token of all stretches: `settle` gets their places and shares, and says which tokens they are."""
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
        # A stretch that has ended is still read, so that all passes are of one shape; nobody asks what it says.
        going = np.flatnonzero(first + step < ends)
        current[going] = settle(first[going] + step, np.ascontiguousarray(shares_BV[going]))
        done += len(going)
        if progress is not None:
            progress(done)


def _with_rare(shares_bV: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Shares of the likely tokens, and in a further column that of all rare ones together, but at least RARE."""
    is_rare = shares_bV < RARE
    together = np.where(is_rare, shares_bV, 0).sum(axis=1, dtype=np.float64).clip(RARE)
    likely = np.concatenate([np.where(is_rare, 0, shares_bV), together[:, None]], axis=1, dtype=np.float64)
    return np.ascontiguousarray(likely / likely.sum(axis=1, keepdims=True), np.float32)


def _among_rare(shares_V: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], list[float]]:
    """Shares of the rare tokens among themselves, and shares of the yeses that are coded before them.

    Where the rare ones have less than RARE together, `_with_rare` gave them RARE. The yeses make up for that: their
    product is the ratio of the two, and none is smaller than RARE.
    """
    rare = np.where(shares_V < RARE, shares_V, 0).astype(np.float64)
    if not rare.any():  # too small for f32: all alike
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
