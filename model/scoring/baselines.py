"""Baselines for the validation set, in bits per character: uniform guessing, n-gram models and compressors."""

from __future__ import annotations

import bz2
import lzma
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bardflow.code_points import code_points
from bardflow.errors import BardError

UNICODE = 0x110000  # the number of code points

# The models that count characters score at most this many validation characters: stretches of a longer text. The n-gram
# model takes about 65 bytes for each of them, as for each training character.
COUNTED_CHARACTERS = 2**21
STRETCH_CHARACTERS = 2**12
# At most this many characters from the start are compressed: xz -9 takes seconds for a million characters.
COMPRESSED_CHARACTERS = 2**23

# Compressors and the n-gram model are measured side by side for texts up to this length, beyond it one after the other:
# each takes hundreds of megabytes then.
SIDE_BY_SIDE_CHARACTERS = 2**22

# The window of xz -9 in bytes; earlier training text cannot help it. bz2 -9 works in blocks of 900 kB.
XZ_LOOKS_BACK = 64 << 20
# A file's length is a multiple of this many bytes: https://tukaani.org/xz/xz-file-format.txt, section 1.2.
FILE_UNITS = {"xz": 4, "bz2": 1}

# Bits per character of the last tenth, by order; above 7, more context does not help on texts of this size.
#   order                5       6       7       8      10
#   Shakespeare     2.2523  2.1967  2.1878  2.1917  2.1965
#   Three Kingdoms  6.7799  6.7790  6.7788  6.7793  6.7790
# Chosen on the validation set, so the baseline is as strong as possible and does not flatter the model.
ORDER = 7

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer]
Ids = npt.NDArray[np.int32]


class BaselineError(BardError):
    """The training text or the text to score is empty."""


@dataclass(frozen=True)
class Baseline:
    """A baseline's name, kind, bits per character on the validation set, and description.

    `bits` has the bits of each character of the validation set, if the baseline gives them and scores all characters.
    """

    name: str
    kind: Literal["statistical", "compressor"]
    bits_per_character: float
    note: str
    bits: Floats | None = None


def measure(train: str, validation: str, *, train_characters: int | None = None) -> Iterator[Baseline]:
    """Measure the baselines and yield each when it is ready; none learns from the validation set.

    `train` is the text just before `validation`. If it is only the end of the training set, `train_characters` is the
    length of the whole. Limit it by memory and time: the n-gram model takes about 65 bytes and 1 microsecond for each
    character. Models that count score every character of a validation set of up to COUNTED_CHARACTERS, and evenly
    spread stretches of a longer one. Compressors score the first COMPRESSED_CHARACTERS. Each baseline's note says what
    was left out.

    Raises:
        BaselineError: either text is empty.
    """
    distinct = len(set(train) | set(validation))
    _length(train, validation)
    stretches = _stretches(validation)
    squeezed = validation[:COMPRESSED_CHARACTERS]
    train_bytes, validation_bytes = train.encode(), squeezed.encode()
    learned = "" if train_characters in (None, len(train)) else f"; learned from the last {len(train):,} characters"
    counted = learned
    if len(stretches) > 1:
        scored = sum(map(len, stretches))
        counted += f"; over {scored:,} characters in {len(stretches):,} evenly spread stretches"
    compressed_of = learned if squeezed == validation else f"{learned}; over the first {len(squeezed):,} characters"
    methods: tuple[Literal["xz", "bz2"], ...] = ("xz", "bz2")
    with ThreadPoolExecutor(2 if len(train) + len(validation) <= SIDE_BY_SIDE_CHARACTERS else 1) as pool:
        counting = pool.submit(kneser_ney, train, validation)
        compressing = [pool.submit(compressed, train_bytes, validation_bytes, method) for method in methods]
        yield Baseline("uniform", "statistical", uniform(distinct), f"a guess among the {distinct} distinct characters")
        yield Baseline(
            "order 0",
            "statistical",
            order_zero(train, "".join(stretches)),
            f"how often each character occurs in the training text{counted}",
        )
        bits_of_each = counting.result()
        yield Baseline(
            f"{ORDER}-gram",
            "statistical",
            float(bits_of_each.mean()),
            f"modified Kneser-Ney over characters, each from the {ORDER - 1} before it{counted}",
            bits_of_each if len(stretches) == 1 else None,
        )
        measured = [future.result() for future in compressing]
    for method, bits in zip(methods, measured, strict=True):
        note = f"size of both texts less size of the training text{compressed_of}"
        if bits == 8 * FILE_UNITS[method]:
            note += f"; the text adds at most {FILE_UNITS[method]} B, the least that a file's size shows"
        yield Baseline(f"{method} -9", "compressor", bits / len(squeezed), note)


def uniform(distinct: int) -> float:
    """Return the bits per character of a guess among `distinct` equally probable characters."""
    return math.log2(distinct)


def order_zero(train: str, validation: str) -> float:
    """Score the characters by their frequency in the training text, in bits per character.

    p(w) = (count(w) + u(w)) / (characters + 1), where u distributes one count over all of Unicode (`_unigram_floor`).

    Raises:
        BaselineError: either text is empty.
    """
    _length(train, validation)
    codes, counts = np.unique(code_points(train), return_counts=True)
    charged = code_points(validation)
    place = np.minimum(np.searchsorted(codes, charged), len(codes) - 1)
    count = np.where(codes[place] == charged, counts[place], 0)
    return _bits((count + _unigram_floor(count > 0, len(codes))) / (len(train) + 1))


def kneser_ney(train: str, validation: str, order: int = ORDER) -> Floats:
    """Score with interpolated modified Kneser-Ney on n-grams of up to `order` characters: the bits of each character.

    Chen and Goodman, "An empirical study of smoothing techniques for language modeling" (1998), section 4.1.6: three
    discounts for each order, from the counts of counts. Below the highest order, an n-gram's count is the number of
    distinct characters before it. Unigrams are interpolated with a uniform distribution over the training text's
    characters and one share for all others, so every loss is finite. Counts come from the training text only, the
    context from the running text, so the first validation characters follow the training text's end. If the validation
    set is longer than COUNTED_CHARACTERS, evenly spread stretches are scored, each with the text before it as context.
    The order is at most the training text's length.

    Raises:
        BaselineError: either text is empty.
    """
    _length(train, validation)
    known = len(train)
    # Each stretch except the first follows its context, which is not scored.
    stretches = _stretches(validation)
    gap = len(validation) // len(stretches)
    before = [validation[max(0, i * gap - order + 1) : i * gap] for i in range(len(stretches))]
    parts = [part for pair in zip(before, stretches, strict=True) for part in pair]
    text = code_points(train + "".join(parts))
    charged = np.repeat([False, True] * len(stretches), [len(part) for part in parts])
    distinct = len(set(train))
    seen = np.isin(text[known:], np.unique(text[:known]))
    probability = _unigram_floor(seen, distinct)
    characters = _ids(text)
    del text
    for gram in _orders(characters, known, min(order, known)):
        probability = gram.interpolate(probability)
    bits: Floats = -np.log2(probability[charged])
    return bits


def _stretches(validation: str) -> list[str]:
    """Return the text, or stretches of COUNTED_CHARACTERS in all, each at the start of one of equal parts of it."""
    if len(validation) <= COUNTED_CHARACTERS:
        return [validation]
    count = COUNTED_CHARACTERS // STRETCH_CHARACTERS
    gap = len(validation) // count
    return [validation[i * gap : i * gap + STRETCH_CHARACTERS] for i in range(count)]


@dataclass(frozen=True)
class _Order:
    """One order of the model, evaluated at the V validation characters.

    `count` [V]: the (continuation) count of each character's n-gram; `total` [V]: that of its context; `backed_off`
    [V]: the mass that the context's discounts leave for the lower order; `discounts` [4]: for counts 0, 1, 2, and 3 or
    more.
    """

    count: Ints
    total: Ints
    backed_off: Floats
    discounts: Floats

    def interpolate(self, lower: Floats) -> Floats:
        own = self.count - self.discounts[np.minimum(self.count, 3)]
        # If the context does not occur in the training text, the lower order is used.
        return np.where(self.total > 0, (own + self.backed_off * lower) / np.maximum(self.total, 1), lower)


def _orders(characters: Ids, known: int, order: int) -> Iterator[_Order]:
    """Yield the orders from the unigrams up, of the training text, of length `known`, and the validation text after it.

    `grams[s]` is a dense id of the n-gram of k characters that starts at s. Its context is the n-gram of k - 1
    characters at s, its suffix the one at s + 1.
    """
    contexts = np.zeros(len(characters) + 1, np.int32)
    letters = int(characters.max()) + 1
    grams = characters
    for k in range(1, order + 1):
        # The next order's n-grams come first, because this order counts their suffixes.
        longer = _ids(grams[:-1] * np.int64(letters) + characters[k:]) if k < order else None
        start, end = known - k + 1, len(characters) - k + 1
        example = np.full(int(grams.max()) + 1, -1, np.int32)
        example[grams[:start]] = np.arange(start, dtype=np.int32)
        if longer is None:
            counts = np.bincount(grams[:start], minlength=len(example))
        else:
            occurs = np.full(int(longer.max()) + 1, -1, np.int32)
            occurs[longer[: start - 1]] = np.arange(start - 1, dtype=np.int32)
            counts = np.bincount(grams[occurs[occurs >= 0] + 1], minlength=len(example))
            del occurs
        counts = counts.astype(np.int32)
        discounts = _discounts(counts)
        seen = np.flatnonzero(counts)
        context = contexts[example[seen]]
        size = int(contexts.max()) + 1
        total = np.bincount(context, counts[seen], size).astype(np.int64)
        backed_off = np.bincount(context, discounts[np.minimum(counts[seen], 3)], size).astype(np.float64)
        asked = contexts[start:end]
        yield _Order(counts[grams[start:end]], total[asked], backed_off[asked], discounts)
        if longer is not None:
            contexts, grams = grams, longer


def _ids(values: npt.NDArray[np.integer]) -> Ids:
    """Number the values from 0 in their order, equal ones alike: `np.unique`'s inverse in half of the memory."""
    order = np.argsort(values)
    ordered = values[order]
    del values
    begins = np.concatenate([[False], ordered[1:] != ordered[:-1]])
    del ordered
    ids = np.empty(len(order), np.int32)
    ids[order] = np.cumsum(begins, dtype=np.int32)
    return ids


def _discounts(counts: Ints) -> Floats:
    """Estimate the discounts of counts 0, 1, 2, and 3 or more: Chen and Goodman's equation 26.

    It needs n-grams that occur once, twice, three and four times. If some are missing, or an estimate is negative (a
    text of a few lines, or the unigrams of a small alphabet), the discounts are 0.5, 1 and 1.5, as in KenLM.
    """
    n1, n2, n3, n4 = (int(n) for n in np.bincount(np.minimum(counts, 5), minlength=6)[1:5])
    stand_in = np.array([0, 0.5, 1, 1.5])
    if not (n1 and n2 and n3 and n4):
        return stand_in
    y = n1 / (n1 + 2 * n2)
    estimate = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return estimate if np.all(estimate >= 0) else stand_in


def _unigram_floor(seen: npt.NDArray[np.bool_], distinct: int) -> Floats:
    """Return the uniform distribution: a share for each of `distinct` characters, one for all unseen code points."""
    share = 1 / (distinct + 1)
    return np.where(seen, share, share / (UNICODE - distinct))


def compressed(train: bytes, validation: bytes, method: Literal["xz", "bz2"]) -> float:
    """Return the bits that `validation` adds to the compressed size of `train`, at the strongest preset.

    Only the last 64 MiB of `train`, the window of xz -9, are used. bz2 gets the same, although it hardly gains from
    more than its blocks of 900 kB. A text of a few lines may add nothing to the file's size, or even make it smaller,
    because blocks end at other places. The result is then the file format's unit of length.
    """
    train = train[-XZ_LOOKS_BACK:]
    added = _compressed_size(train + validation, method) - _compressed_size(train, method)
    return 8.0 * max(FILE_UNITS[method], added)


def _compressed_size(data: bytes, method: Literal["xz", "bz2"]) -> int:
    if method == "bz2":
        return len(bz2.compress(data, 9))
    # A dictionary larger than the data does not change the output but takes memory: 674 MB at the preset's 64 MiB.
    dictionary = min(XZ_LOOKS_BACK, max(1 << 12, 1 << (len(data) - 1).bit_length()))
    return len(lzma.compress(data, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": dictionary}]))


def _bits(probabilities: Floats) -> float:
    return float(-np.log2(probabilities).mean())


def _length(train: str, validation: str) -> int:
    """Return the number of validation characters.

    Raises:
        BaselineError: either text is empty.
    """
    if not train or not validation:
        raise BaselineError(
            f"a training text of {len(train)} characters and a validation text of {len(validation)} were given; "
            "both need at least one. Check how the corpus is split."
        )
    return len(validation)
