"""How much of a text stands word for word in another."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# A stretch of so many characters is called verbatim. Two passages of English share fewer by chance: of tiny
# Shakespeare's validation set 1.6 % stands in such stretches of the training set, nearly all of it names and titles.
VERBATIM_CHARACTERS = 20

# The other text is gone through in blocks of so many characters: some 30 MB of arrays, whatever its length.
BLOCK = 1 << 19
# An odd factor, so that it has an inverse modulo 2^64 (its bits are of no meaning: 2^64 over the golden ratio).
BASE = np.uint64(0x9E3779B97F4A7C15)
INVERSE = np.uint64(pow(int(BASE), -1, 2**64))
# Hashes are first looked for by so many of their bits, in a table of 4 MB.
TABLE_BITS = np.uint64(22)

Hashes = npt.NDArray[np.uint64]
Codes = npt.NDArray[np.uint32]


class Verbatim(NamedTuple):
    """The longest stretch of a text that stands in another, and the share of its characters in verbatim stretches."""

    longest: str
    share: float


def verbatim(text: str, known: str) -> Verbatim:
    """What of `text` stands in `known`: the first of the longest stretches, and the share of characters in long ones.

    A stretch of VERBATIM_CHARACTERS or more is made of windows of just so many characters, so these cover what it
    covers. Whether any window of a length occurs is the more likely the shorter it is, so the longest is found by
    halving. `known` is gone through once for each length, ten times or so (benchmarks/LOG.md).
    """
    ours, theirs = _codes(text), _codes(known)
    found = {VERBATIM_CHARACTERS: _places(ours, theirs, VERBATIM_CHARACTERS)}
    covered = np.zeros(len(ours) + 1, np.int64)
    np.add.at(covered, found[VERBATIM_CHARACTERS], 1)
    np.add.at(covered, found[VERBATIM_CHARACTERS] + VERBATIM_CHARACTERS, -1)
    share = float((np.cumsum(covered)[:-1] > 0).mean()) if len(ours) else 0.0

    shortest, longer = 0, VERBATIM_CHARACTERS  # a window of the one length occurs, of the other it is not known
    while longer <= len(ours) and len(found.setdefault(longer, _places(ours, theirs, longer))):
        shortest, longer = longer, 2 * longer
    longer = min(longer, len(ours) + 1)
    while longer - shortest > 1:
        middle = (shortest + longer) // 2
        found[middle] = _places(ours, theirs, middle)
        shortest, longer = (middle, longer) if len(found[middle]) else (shortest, middle)
    start = int(found[shortest][0]) if shortest else 0
    return Verbatim(text[start : start + shortest], share)


def _places(ours: Codes, theirs: Codes, length: int) -> npt.NDArray[np.intp]:
    """Where in `ours` a window of that length begins that occurs in `theirs`, ascending.

    Windows are looked for by a hash of 64 bits, and every one that is found is compared character by character.
    """
    if not 0 < length <= min(len(ours), len(theirs)):
        return np.empty(0, np.intp)
    windows = np.concatenate([hashes for _, hashes in _hashes(ours, length)])
    known, first = np.unique(windows, return_index=True)
    table = np.zeros(1 << int(TABLE_BITS), np.bool_)
    table[_slots(known)] = True
    occurs = np.zeros(len(known), np.bool_)
    for begin, hashes in _hashes(theirs, length):
        maybe = np.flatnonzero(table[_slots(hashes)])
        place = np.minimum(np.searchsorted(known, hashes[maybe]), len(known) - 1)
        equal = (known[place] == hashes[maybe]) & ~occurs[place]
        for one in np.unique(place[equal]):
            mine = ours[first[one] : first[one] + length]
            there = begin + maybe[equal & (place == one)]
            occurs[one] = any(np.array_equal(mine, theirs[at : at + length]) for at in there)
        if occurs.all():
            break
    return np.flatnonzero(occurs[np.searchsorted(known, windows)])


def _hashes(codes: Codes, length: int) -> Iterator[tuple[int, Hashes]]:
    """The hash of every window of that length, block by block with the first one's place.

    That of c_0 … c_{L-1} is the sum of c_i B^i modulo 2^64: a difference of two running sums, divided by B^start.
    """
    size = min(BLOCK, len(codes))
    powers = np.full(size + length, BASE, np.uint64)
    powers[0] = 1
    np.cumprod(powers, out=powers)
    inverses = np.full(size, INVERSE, np.uint64)
    inverses[0] = 1
    np.cumprod(inverses, out=inverses)
    for begin in range(0, len(codes) - length + 1, BLOCK):
        block = codes[begin : begin + BLOCK + length - 1]
        sums = np.zeros(len(block) + 1, np.uint64)
        # A character more than its code, lest a row of U+0000 be the same at every length.
        np.cumsum((block.astype(np.uint64) + np.uint64(1)) * powers[: len(block)], out=sums[1:])
        hashes = sums[length:] - sums[:-length]
        hashes *= inverses[: len(hashes)]
        yield begin, hashes


def _slots(hashes: Hashes) -> npt.NDArray[np.intp]:
    """Places in the table: the upper bits, since the lower ones of such a sum depend on the codes' lower bits alone."""
    return (hashes >> (np.uint64(64) - TABLE_BITS)).astype(np.intp)


def _codes(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
