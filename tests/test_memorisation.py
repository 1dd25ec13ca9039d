"""What stands word for word in another text, against a plain count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bardflow.model.scoring import memorisation
from bardflow.model.scoring.memorisation import VERBATIM_CHARACTERS, Verbatim, verbatim


def plainly(text: str, known: str) -> Verbatim:
    """For each place the longest stretch that begins there and occurs: searched character by character."""
    longest, covered = "", set[int]()
    for start in range(len(text)):
        end = start
        while end < len(text) and text[start : end + 1] in known:
            end += 1
        longest = max(longest, text[start:end], key=len)
        if end - start >= VERBATIM_CHARACTERS:
            covered |= set(range(start, end))
    return Verbatim(longest, len(covered) / len(text) if text else 0.0)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, str]:
    """A text, some of it cut from the other; few different characters, so that stretches occur again and again."""
    letters = st.sampled_from(draw(st.sampled_from(["a", "ab", "a\0", "ab字\U0001f600", "the cat sat "])))
    known = draw(st.text(letters, max_size=300))
    parts = []
    for _ in range(draw(st.integers(0, 6))):
        if known and draw(st.booleans()):
            start = draw(st.integers(0, len(known) - 1))
            parts.append(known[start : start + draw(st.integers(1, 80))])
        else:
            parts.append(draw(st.text(letters, max_size=30)))
    return "".join(parts), known


@pytest.mark.parametrize("block", [7, 64, memorisation.BLOCK])
def test_it_is_what_a_plain_search_finds_wherever_blocks_end(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorisation, "BLOCK", block)

    @given(pairs())
    def law(pair: tuple[str, str]) -> None:
        assert verbatim(*pair) == plainly(*pair)

    law()


def test_of_equally_long_stretches_the_first_is_quoted_and_nothing_is_nothing() -> None:
    assert verbatim("xxab..cdyy", "cd ab").longest == "ab"
    assert verbatim("", "abc") == verbatim("abc", "") == verbatim("xyz", "abc") == Verbatim("", 0.0)


def test_windows_of_one_hash_are_still_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    # With a factor of 1 a window's hash is the sum of its characters: an anagram has the same.
    monkeypatch.setattr("bardflow.code_points.BASE", 1)
    stretch = "a stretch of more than twenty characters"
    assert verbatim(stretch, stretch[::-1]).share == 0
    assert verbatim(stretch, stretch[::-1] + stretch) == Verbatim(stretch, 1.0)
