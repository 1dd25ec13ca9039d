"""A text as a file that the model's own predictions make short: the proof that its bits are real.

A range coder (the `constriction` library's; Bamler 2022) spends minus log2 of a token's share on it, so the file is as
long as the model's charge for the text in disjoint windows, and the model that reads the file back must draw every
share from what it has decoded alone. Both directions compute the same passes, so on one machine, with one version of
torch and one number of threads, they find the same shares to the last bit; elsewhere the file need not open.
"""

import math
import struct
from collections.abc import Callable, Iterator

import constriction
import numpy as np
import numpy.typing as npt
import torch

from bard.errors import BardError
from model.batches import Tokens
from model.device import Device
from model.gpt import GPT
from model.sampling import empty_cache, in_f32

Ids = npt.NDArray[np.int64]

# So many tokens are a stretch: stretches are read side by side, and what precedes each but the first is written out.
STRETCH_TOKENS = 2**13
MOST_STRETCHES = 64
HEADER = struct.Struct("<I")


class NotCoded(BardError):
    """A file was not written by `compress` for this model."""


def compress(gpt: GPT, tokens: Tokens, *, before: int, device: Device) -> bytes:
    """The tokens, as few bytes as the model's shares of them allow. `before` is the token that precedes the text."""
    gpt = in_f32(gpt.eval())
    ids = np.asarray(tokens[0 : len(tokens)], np.int64)
    first, rows = _stretches(len(ids), gpt.context)
    coder = constriction.stream.queue.RangeEncoder()
    precede = np.concatenate([[before], ids[first[1:] - 1]]).astype(np.int64)
    if rows > 1:
        coder.encode(precede[1:].astype(np.int32), _uniform(gpt))

    def known(at: Ids, shares_bV: npt.NDArray[np.float32]) -> Ids:
        coder.encode(ids[at].astype(np.int32), _by_shares(), shares_bV)
        return ids[at]

    for _ in _passes(gpt, len(ids), precede, device, known):
        pass
    words: npt.NDArray[np.uint32] = coder.get_compressed()
    return HEADER.pack(len(ids)) + words.astype("<u4").tobytes()


def decompress(gpt: GPT, coded: bytes, *, before: int, device: Device) -> Ids:
    """The tokens behind a file that `compress` wrote with the same model, `before` and device.

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
            ids[at] = coder.decode(_by_shares(), shares_bV)
        except AssertionError as error:  # the library's name for data that no encoder writes
            raise NotCoded("these bytes were not coded with this model's shares, or were changed since") from error
        return ids[at]

    precede = np.array([before, *(coder.decode(_uniform(gpt), rows - 1) if rows > 1 else ())], np.int64)
    for _ in _passes(gpt, count, precede, device, read):
        pass
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
) -> Iterator[None]:
    """Token after token of all stretches: `settle` gets their places and shares, and says which tokens they are."""
    first, rows = _stretches(count, gpt.context)
    cache = empty_cache(gpt, rows, device)
    current = precede.copy()
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
        yield


def _by_shares() -> constriction.stream.model.Categorical:
    return constriction.stream.model.Categorical(perfect=False)


def _uniform(gpt: GPT) -> constriction.stream.model.Uniform:
    return constriction.stream.model.Uniform(gpt.tokens.weight.shape[0])
