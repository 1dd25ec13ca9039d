"""A text as numbers, and hashes of its stretches."""

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.uint32]
Hashes = npt.NDArray[np.uint64]

# An odd factor, so that it has an inverse modulo 2^64 (its bits have no meaning: 2^64 over the golden ratio).
BASE = 0x9E3779B97F4A7C15


def code_points(text: str) -> Points:
    """Return the Unicode code point of each character, shape [characters].

    Raises:
        UnicodeEncodeError: the text has half of a surrogate pair.
    """
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def powers(count: int) -> tuple[Hashes, Hashes]:
    """Return the first `count` powers of BASE modulo 2**64, from 1 on, and those of its inverse."""
    both = []
    for factor in (BASE, pow(BASE, -1, 1 << 64)):
        factors = np.full(count, factor, np.uint64)
        factors[:1] = 1
        both.append(np.cumprod(factors, dtype=np.uint64))
    return both[0], both[1]


def running_sums(points: Points, powers: Hashes) -> Hashes:
    """Return the sums of (p_j + 1) BASE^j modulo 2**64 for all j < i, shape [characters + 1].

    The hash of a stretch is the difference of two of them, divided by BASE^start. One is added to each code point, so
    that runs of U+0000 of different lengths have different hashes.
    """
    sums = np.zeros(len(points) + 1, np.uint64)
    np.cumsum((points.astype(np.uint64) + np.uint64(1)) * powers[: len(points)], out=sums[1:])
    return sums
