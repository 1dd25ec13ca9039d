"""Sampling: drawing tokens from a model one at a time, and decoding them to text.

The window that the model sees of a text of n tokens depends only on n (`window_start`). It is the whole text while that
fits the context. Whenever the window is full, its start moves to the next multiple of half a context. So with a
key-value cache, nearly every token is computed once and alone. When the window is full, its newer half is computed
again in one pass, because its keys depend on the older half, which is dropped. Without a cache, the same window is
computed for each token. Both give the same logits up to the rounding of sums. They also give the same tokens, unless
two tokens differ by less than that rounding at the limit of `top_k` or `top_p`, or in the draw.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

from bardflow.errors import BardError
from bardflow.model.machine import Device
from bardflow.model.networks import GPT, KeyValueCache
from bardflow.model.vocabulary import (
    NotLossless,
    TextStream,
    UnknownCharacter,
    VocabularyError,
    encode,
    spellings,
)

Logits = npt.NDArray[np.float32]


class SamplingError(BardError):
    """A prompt cannot be continued, or a model's logits are not finite."""


class SamplingSpec(BaseModel):
    """How the next token is drawn: `top_p` applies to the tokens that `top_k` leaves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=0.8, ge=0, le=10, description="0: always the most probable token")
    top_k: int | None = Field(default=200, ge=1, description="draw from so many of the most probable; null: from all")
    top_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="draw from the fewest most probable ones that together have this probability; null: from all",
    )
    seed: int = Field(default=1337, ge=0, lt=2**32)


def opening(tokenizer: Tokenizer) -> str:
    """Return the default prompt: a line end, or the first token that is a text if the vocabulary has no line end."""
    for text in ("\n", *(token.decode(errors="replace") for token in spellings(tokenizer) if token)):
        try:
            next(encode(tokenizer, [text]))
        except (UnknownCharacter, NotLossless):
            continue
        return text
    raise VocabularyError("no token of this vocabulary is a text of its own; give a prompt")


def sample(
    gpt: GPT, prompt: Sequence[int], spec: SamplingSpec, device: Device, *, row: int = 0, cached: bool = True
) -> Iterator[int]:
    """Yield token ids that continue `prompt`, without end: the same ids as row `row` of a batch."""
    rows = sample_rows(gpt, [prompt], spec, device, first_row=row, cached=cached)
    return (drawn for [drawn] in rows)


def sample_rows(
    gpt: GPT,
    prompts: Sequence[Sequence[int]],
    spec: SamplingSpec,
    device: Device,
    *,
    first_row: int = 0,
    cached: bool = True,
) -> Iterator[list[int]]:
    """Yield the next token id of each prompt's continuation, without end. The caller decides when to stop.

    Prompts can differ in length and be longer than the context. Row i draws on the CPU from its own generator, with the
    seed (seed, first_row + i), so its tokens do not depend on other rows or other random numbers. The model computes in
    f32, also if its weights have another type, and is left in evaluation mode. `cached=False` computes the whole window
    for each token: the same tokens, but slower (see the module).

    Raises:
        SamplingError: there is no prompt, or one is empty or has a token that is not in the vocabulary; while drawing,
            if the model's logits are not finite.
    """
    checked_prompts(gpt, prompts)
    drawing = _drawing(in_f32(gpt.eval()), prompts, spec, device, first_row, cached)
    return ([token for token, _ in drawn] for drawn in drawing)


def checked_prompts(gpt: GPT, prompts: Sequence[Sequence[int]]) -> None:
    """Check that prompts can be continued.

    Raises:
        SamplingError: there is no prompt, or one is empty or has a token that is not in the vocabulary.
    """
    vocabulary_size = gpt.tokens.weight.shape[0]
    if not prompts:
        raise SamplingError("no prompt was given; give one for each text, each of at least one token")
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise SamplingError(f"prompt {row} has no tokens; give at least one, such as a new line's")
        if not 0 <= min(prompt) <= max(prompt) < vocabulary_size:
            raise SamplingError(
                f"prompt {row} has the token {min(prompt) if min(prompt) < 0 else max(prompt)}, but this model's are 0 "
                f"to {vocabulary_size - 1}; encode it with the model's own vocabulary"
            )


class Drawn(NamedTuple):
    """A drawn token, and the most probable tokens in its place, before temperature, `top_k` and `top_p`.

    `likeliest` has their ids, and `shares` their probabilities.
    """

    token: int
    likeliest: list[int]
    shares: list[float]


def sample_watched(
    gpt: GPT, prompt: Sequence[int], spec: SamplingSpec, device: Device, *, likeliest: int
) -> Iterator[Drawn]:
    """Yield the tokens that `sample` draws, each with the `likeliest` most probable ones in its place, without end.

    Raises:
        SamplingError: as in `sample_rows`.
    """
    checked_prompts(gpt, [prompt])
    for [(token, logits_V)] in _drawing(in_f32(gpt.eval()), [prompt], spec, device, 0, True):
        shares_V = np.exp(logits_V.astype(np.float64) - logits_V.max())
        shares_V /= shares_V.sum()
        ids = np.argsort(-shares_V, kind="stable")[:likeliest]
        yield Drawn(token, ids.tolist(), shares_V[ids].tolist())


def _drawing(
    gpt: GPT, prompts: Sequence[Sequence[int]], spec: SamplingSpec, device: Device, first_row: int, cached: bool
) -> Iterator[list[tuple[int, Logits]]]:
    # PCG64 explicitly, because NumPy guarantees its numbers. torch's CPU generator uses only 32 bits of a seed.
    generators = [
        np.random.Generator(np.random.PCG64((spec.seed, row))) for row in range(first_row, first_row + len(prompts))
    ]
    windows = [list(prompt[window_start(len(prompt), gpt.context) :]) for prompt in prompts]
    cache = empty_cache(gpt, len(windows), device) if cached else None
    while True:
        with torch.inference_mode(), torch.autocast(device.name, enabled=False):
            logits_BV = read(gpt, windows, device) if cache is None else read_on(gpt, windows, cache, device)
        drawn = [
            (draw(logits_V, spec, generator), logits_V)
            for logits_V, generator in zip(logits_BV.cpu().numpy(), generators, strict=True)
        ]
        for row, (token, _) in enumerate(drawn):
            windows[row].append(token)
            if len(windows[row]) > gpt.context:
                del windows[row][: gpt.context // 2]
                if cache is not None:
                    cache.clear(row)
        yield drawn


def window_start(tokens: int, context: int) -> int:
    """The start of the window in a text of this many tokens; the window ends with the text and fits the context.

    The start moves by half a context, rounded down, when the window would be longer than the context. So for a text
    longer than the context, the model sees more than half a context, and at most a whole one.
    """
    step = context // 2
    return step * max(0, -((context - tokens) // step))


def read(gpt: GPT, windows: Sequence[Sequence[int]], device: Device) -> torch.Tensor:
    """Compute logits (B, V) for the token after each window, without a cache; windows of one length go together."""
    order = sorted(range(len(windows)), key=lambda row: len(windows[row]))
    logits_BV = torch.empty(len(windows), gpt.tokens.weight.shape[0], device=device.name)
    for length in {len(window): None for window in windows}:
        rows = [row for row in order if len(windows[row]) == length]
        logits_BV[rows] = gpt(torch.tensor([windows[row] for row in rows], device=device.name))[:, -1]
    return logits_BV


def read_on(gpt: GPT, windows: Sequence[Sequence[int]], cache: KeyValueCache, device: Device) -> torch.Tensor:
    """Compute logits (B, V) for the token after each window, of which a part is in the cache.

    If all rows have the same number of new tokens, they are computed together. Otherwise (prompts of unequal length, or
    one row's window was full), each row is computed alone.
    """
    unread = [window[length:] for window, length in zip(windows, cache.lengths.tolist(), strict=True)]
    if len({len(tokens) for tokens in unread}) == 1:
        return gpt.extend(torch.tensor(unread, device=device.name), cache)
    each = (gpt.extend(torch.tensor([tokens], device=device.name), cache.row(b)) for b, tokens in enumerate(unread))
    return torch.cat(list(each))


def empty_cache(gpt: GPT, rows: int, device: Device) -> KeyValueCache:
    """Return an empty cache of this model for `rows` rows."""
    return KeyValueCache(
        layers=gpt.attention_blocks,
        rows=rows,
        heads=gpt.heads,
        context=gpt.context,
        head_width=gpt.channels,
        device=device.name,
        recent=gpt.recent,
    )


def in_f32(gpt: GPT) -> GPT:
    """Return the model itself if all its weights are f32, else a copy in f32."""
    if all(parameter.dtype == torch.float32 for parameter in gpt.parameters()):
        return gpt
    return copy.deepcopy(gpt).float()


def draw(logits_V: Logits, spec: SamplingSpec, generator: np.random.Generator) -> int:
    """Draw a token from the softmax at the spec's temperature over the tokens that `top_k` and `top_p` leave.

    The draw is an exponential race (Gumbel 1954): the token with the lowest -log(1 - u) / probability is drawn. Each
    token has its own u. So if rounding adds a token at the limit of `top_k` or `top_p`, the draw changes only if that
    token is drawn. With a single u and cumulative probabilities, it would shift all other tokens: random models then
    gave different tokens with and without a cache once in about 4,000 tokens, and with the race never in 7,200. Of
    equal logits, lower ids come first: at temperature 0, and if `top_k` or `top_p` leaves only some of them.

    Raises:
        SamplingError: the largest logit is not a finite number.
    """
    likeliest = int(logits_V.argmax())
    if not np.isfinite(logits_V[likeliest]):
        raise SamplingError(
            f"the model's logit for token {likeliest} is {logits_V[likeliest]}, but a finite number is expected; its "
            "training may have diverged: look at its losses, and train again with a smaller learning rate"
        )
    if spec.temperature == 0:
        return likeliest
    ids = most(logits_V, spec.top_k or len(logits_V))
    with np.errstate(over="ignore"):  # at a tiny temperature, minus infinity is right
        shares = np.exp((logits_V[ids].astype(np.float64) - logits_V[likeliest]) / spec.temperature)
    if spec.top_p is not None and spec.top_p < 1:
        # Sorted by logits, because different logits can give equal shares, and the larger logit must still be first.
        order = np.argsort(-logits_V[ids], kind="stable")
        reached = np.cumsum(shares[order])
        nucleus = order[: np.searchsorted(reached, spec.top_p * reached[-1]) + 1]
        ids, shares = ids[nucleus], shares[nucleus]
    waits = -np.log1p(-generator.random(len(logits_V))[ids])
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # a share of 0 gives infinity
        return int(ids[np.nanargmin(waits / shares)])


def most(logits_V: Logits, k: int) -> npt.NDArray[np.intp]:
    """The ids of the k largest logits in ascending order, and of equal ones the lower ids, without a full sort."""
    if k >= len(logits_V):
        return np.arange(len(logits_V))
    least = np.partition(logits_V, -k)[-k]
    ids = np.flatnonzero(logits_V >= least)
    if (excess := len(ids) - k) > 0:
        equal = np.flatnonzero(logits_V[ids] == least)
        ids = np.delete(ids, equal[-excess:])
    return ids


def write(
    gpt: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    characters: int | None,
    spec: SamplingSpec,
    device: Device,
    *,
    rows: int = 1,
    tokens: int | None = None,
) -> Iterator[tuple[int, str]]:
    """Generate texts that continue `prompt`: yield (row, text) for each drawn token.

    A row ends after `characters` or `tokens`, whichever is first; at least one of the two must be given. The text is
    what no later token can change: whole characters, often none. The joined texts of a row are the first `characters`
    of its decoded tokens, in which invalid bytes are U+FFFD. Nothing is yielded for rows that have ended.

    Raises:
        ValueError: neither `characters` nor `tokens` is given.
        SamplingError: the prompt is empty, or `rows` is not positive; while drawing, if the model's logits are not
            finite.
        UnknownCharacter: the vocabulary cannot spell the prompt.
    """
    if characters is None and tokens is None:
        raise ValueError("a text that ends neither after characters nor after tokens has no end; give one of them")
    [ids] = encode(tokenizer, [prompt])
    steps = sample_rows(gpt, [ids.tolist()] * rows, spec, device)
    return _writing(steps, tokenizer, characters, tokens, rows)


def _writing(
    steps: Iterator[list[int]], tokenizer: Tokenizer, characters: int | None, tokens: int | None, rows: int
) -> Iterator[tuple[int, str]]:
    streams, lengths = [TextStream(tokenizer) for _ in range(rows)], [0] * rows
    unfinished = list(range(rows))
    for number, drawn in enumerate(steps, start=1):
        for row in tuple(unfinished):
            text = streams[row].take(drawn[row])
            long = characters is not None and lengths[row] + len(text) + streams[row].at_least >= characters
            if long or number == tokens:
                text += streams[row].end()
                unfinished.remove(row)
            text = text if characters is None else text[: characters - lengths[row]]
            lengths[row] += len(text)
            yield row, text
        if not unfinished:
            return
