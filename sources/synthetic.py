"""A generated play in an invented language: a text of any length that needs no network and never changes.

It has structure at several distances: syllables, words (with frequencies by Zipf's law), agreement of subject and verb
within a sentence, and a few speakers and things for each scene.
"""

import hashlib
import sys
from array import array
from collections.abc import Iterator
from itertools import accumulate

_CHUNK_CHARACTERS = 65_536
_DRAWS_A_BLOCK = 32_768
# Tables of 65,536 entries, so that one 16-bit draw picks a word with its probability.
_TABLE = 65_536

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "kl", "st", "tr", "sh")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ou")
_CODAS = ("", "", "", "n", "r", "l", "s", "m")
_SPEAKERS = 24
_NOUNS, _VERBS, _ADJECTIVES = 600, 300, 200
_CAST, _THINGS, _SPEECHES = 3, 4, 12


def generate(characters: int, seed: int) -> Iterator[str]:
    """Yield exactly `characters` ASCII characters in chunks of about 65,536, equal on all machines and Python versions.

    The language is always the same; the seed determines the text. A longer text starts with the shorter one.
    Random numbers are the output of SHAKE-128 (FIPS 202) as little-endian 16-bit numbers. All arithmetic is integer.
    Raises ValueError if `characters` or `seed` is negative.
    """
    if characters < 0 or seed < 0:
        raise ValueError(f"characters and seed cannot be negative, and are {characters} and {seed}")
    left = characters
    held: list[str] = []
    size = 0
    for scene in _scenes(_draws(f"text {seed}")):
        if left <= 0:
            return
        held.append(scene)
        size += len(scene)
        if size >= min(left, _CHUNK_CHARACTERS):
            chunk = "".join(held)[:left]
            yield chunk
            left -= len(chunk)
            held, size = [], 0


def _draws(label: str) -> Iterator[int]:
    """An endless stream of 16-bit numbers that depends on the label."""
    block = 0
    while True:
        numbers = array("H", hashlib.shake_128(f"{label}/{block}".encode()).digest(2 * _DRAWS_A_BLOCK))
        if sys.byteorder == "big":
            numbers.byteswap()
        yield from numbers
        block += 1


def _words(kind: str, count: int) -> list[str]:
    """`count` different words of one to three syllables, the shorter ones first (as in real languages)."""
    draws = _draws(f"words {kind}")
    found: dict[str, None] = {}
    while len(found) < count:
        # The first tenth of the words has one syllable less.
        syllables = 1 + (len(found) > count // 10) + next(draws) % 2
        found[
            "".join(
                _ONSETS[next(draws) % len(_ONSETS)]
                + _VOWELS[next(draws) % len(_VOWELS)]
                + _CODAS[next(draws) % len(_CODAS)]
                for _ in range(syllables)
            )
        ] = None
    return list(found)


def _zipf(words: list[str]) -> list[str]:
    """A table in which the word of rank r takes a share in proportion to 1/r (Zipf's law)."""
    weights = [1_000_000 // rank for rank in range(1, len(words) + 1)]
    borders = [0, *(_TABLE * cumulated // sum(weights) for cumulated in accumulate(weights))]
    return [word for word, low, high in zip(words, borders, borders[1:], strict=False) for _ in range(high - low)]


def _scenes(draws: Iterator[int]) -> Iterator[str]:
    nouns = _zipf(_words("nouns", _NOUNS))
    verbs = _zipf(_words("verbs", _VERBS))
    adjectives = _zipf(_words("adjectives", _ADJECTIVES))
    speakers = [word.upper() for word in _words("speakers", _SPEAKERS)]
    draw = draws.__next__
    number = 0
    while True:
        number += 1
        place = nouns[draw()]
        cast = [speakers[draw() % _SPEAKERS] for _ in range(_CAST)]
        things = [nouns[draw()] for _ in range(_THINGS)]
        lines = [f"SCENE {number}. Ta {place}.\n\n"]
        speaker = 0
        for _ in range(4 + draw() % _SPEECHES):
            # A speaker never follows themselves.
            speaker = (speaker + 1 + draw() % (_CAST - 1)) % _CAST
            lines.append(f"{cast[speaker]}:\n")
            for _ in range(1 + draw() % 4):
                shape = draw()
                # Half of the subjects are things of the scene. A plural subject (-i) has a plural verb (-en).
                subject = things[shape % _THINGS] if shape & 64 else nouns[draw()]
                noun_end, verb_end = ("i", "en") if shape & 128 else ("", "")
                sentence = f"{subject}{noun_end} {verbs[draw()]}{verb_end}"
                if shape & 256:
                    sentence = f"{adjectives[draw()]}{noun_end} {sentence}"
                if shape & 512:
                    sentence += f" ta {things[draw() % _THINGS] if shape & 1024 else nouns[draw()]}"
                if shape & 2048 and shape & 4096:
                    sentence += f", ve {nouns[draw()]}{noun_end} {verbs[draw()]}{verb_end}"
                end = "?" if shape >> 13 == 0 else "!" if shape >> 13 == 1 else "."
                lines.append(f"{sentence[0].upper()}{sentence[1:]}{end}{' ' if shape & 32 else chr(10)}")
            if lines[-1].endswith(" "):
                lines[-1] = lines[-1][:-1] + "\n"
            lines.append("\n")
        yield "".join(lines)
