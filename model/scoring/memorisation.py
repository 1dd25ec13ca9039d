"""A search for the parts of a text that occur word for word in another."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bardflow.code_points import Hashes, Points, code_points, powers, running_sums

# A shared stretch of at least this many characters is verbatim. English passages share shorter ones by chance: of tiny
# Shakespeare's validation set 1.6 % is in such stretches of the training set, nearly all names and titles.
VERBATIM_CHARACTERS = 20

# The other text is searched in blocks of this many characters: about 30 MB of arrays for any length.
BLOCK = 1 << 19
# Hashes are first looked up by this many of their bits, in a table of 4 MB.
TABLE_BITS = np.uint64(22)


class Verbatim(NamedTuple):
    """The longest stretch of a text that occurs in another, and the share of its characters in verbatim stretches."""

    longest: str
    share: float


def verbatim(text: str, known: str) -> Verbatim:
    """Find the first of the longest stretches of `text` that occur in `known`, and the share in verbatim stretches.

    Windows of VERBATIM_CHARACTERS cover every stretch of at least that length. If a stretch occurs, so do its parts, so
    the longest length is found by binary search. `known` is searched once for each length, about ten times
    (benchmarks/LOG.md).
    """
    ours, theirs = code_points(text), code_points(known)
    found = {VERBATIM_CHARACTERS: _places(ours, theirs, VERBATIM_CHARACTERS)}
    covered = np.zeros(len(ours) + 1, np.int64)
    np.add.at(covered, found[VERBATIM_CHARACTERS], 1)
    np.add.at(covered, found[VERBATIM_CHARACTERS] + VERBATIM_CHARACTERS, -1)
    share = float((np.cumsum(covered)[:-1] > 0).mean()) if len(ours) else 0.0

    shortest, longer = 0, VERBATIM_CHARACTERS  # a window of the first length occurs; the second is not checked yet
    while longer <= len(ours) and len(found.setdefault(longer, _places(ours, theirs, longer))):
        shortest, longer = longer, 2 * longer
    longer = min(longer, len(ours) + 1)
    while longer - shortest > 1:
        middle = (shortest + longer) // 2
        found[middle] = _places(ours, theirs, middle)
        shortest, longer = (middle, longer) if len(found[middle]) else (shortest, middle)
    start = int(found[shortest][0]) if shortest else 0
    return Verbatim(text[start : start + shortest], share)


def _places(ours: Points, theirs: Points, length: int) -> npt.NDArray[np.intp]:
    """Return the positions in `ours` of all windows of that length that occur in `theirs`, ascending.

    Windows are found by a hash of 64 bits and then compared character by character.
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


def _hashes(codes: Points, length: int) -> Iterator[tuple[int, Hashes]]:
    """Yield the hashes of all windows of that length in blocks, with the position of each block."""
    size = min(BLOCK, len(codes))
    base, inverse = powers(size + length)
    for begin in range(0, len(codes) - length + 1, BLOCK):
        sums = running_sums(codes[begin : begin + BLOCK + length - 1], base)
        hashes = sums[length:] - sums[:-length]
        hashes *= inverse[: len(hashes)]
        yield begin, hashes


def _slots(hashes: Hashes) -> npt.NDArray[np.intp]:
    """Return indexes into the table: the upper bits, because the lower ones depend only on lower bits of the codes."""
    return (hashes >> (np.uint64(64) - TABLE_BITS)).astype(np.intp)
