"""Headings are found as by Python's `re`, and no expression and no text takes for ever."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bardflow.errors import BardError
from bardflow.sources.cleaning import clean
from bardflow.sources.documents import extent, read
from bardflow.sources.heading import Heading
from bardflow.sources.markup import is_html
from bardflow.sources.proposals import _HEADINGS
from bardflow.sources.spec import CorpusError, CorpusSpec, DocumentsSpec, PathSource
from bardflow.sources.tally import Tally

ATOMS = (
    "a",
    "é",
    "章",
    ".",
    r"\w",
    r"\W",
    r"\d",
    r"\s",
    r"\S",
    r"\b",
    r"\B",
    "^",
    "$",
    "[a-c]",
    "[^a]",
    r"[\w-]",
    "１",
)
PATTERNS = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map("|".join),
        st.tuples(inner, st.sampled_from(["", "*", "+", "?", "*?", "+?", "{2}", "{1,2}"])).map(
            lambda p: f"({p[0]}){p[1]}"
        ),
        inner.map(lambda p: f"(?i:{p})"),
        inner.map(lambda p: f"(?={p})"),
        inner.map(lambda p: f"(?<!x)(?!{p})"),
        inner.map(lambda p: rf"({p})\1"),
    ),
    max_leaves=6,
)


# An empty line is left out: there, versions of Python differ on \B. A line of a text is never empty.
@given(PATTERNS, st.text("aAbcé章　 １1-\t\x0b\x85\u2028", min_size=1, max_size=8), st.sampled_from(["\n", ""]))
def test_a_line_matches_as_by_pythons_re(pattern: str, line: str, end: str) -> None:
    try:
        heading = Heading(pattern)
    except ValueError:
        with pytest.raises((re.error, OverflowError)):
            re.compile(pattern)
        return
    assert heading.is_in(line + end) == (re.search(pattern, line + end) is not None)


@pytest.mark.parametrize("pattern", _HEADINGS)
def test_the_headings_that_are_proposed_are_legal(pattern: str) -> None:
    assert not Heading(pattern).is_in("a line of prose\n")


# Each with a line for which Python's `re` would need years.
SLOW = [
    (r"^(a|aa)+$", "a" * 200 + "b"),
    (r"(?:a|b|ab)*(?:a|b|ab)*(?:a|b|ab)*$", "ab" * 2_000 + "c"),
    (r"(?=(a|aa)+$)", "a" * 200 + "b"),
    (r"^([^ ]|\w|.)*\1{3}$", "ab" * 100 + "c"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "line"), SLOW, ids=[pattern for pattern, _ in SLOW])
def test_a_heading_that_takes_too_long_is_an_error(pattern: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"one\n{line}\ntwo\n")
    spec = CorpusSpec(
        name="it",
        title="It",
        source=PathSource(path="a.txt"),
        documents=DocumentsSpec(cut="heading", heading=pattern),
    )
    began = time.process_time()
    with pytest.raises(CorpusError, match=r"takes too long to match.*Avoid repeats within repeats"):
        extent(read(spec, tmp_path))
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(" * 30 + "a+" + ")+" * 30, "repeats groups"),
        ("((a{1000}){1000}){1000}", "repeats groups"),
        ("(a{40}){40}", "repeats groups"),
        ("a" * 501, "longer than 500"),
        ("a{99999999999999999999}", "regular expression"),
        ("(?R)a", "not a regular expression"),
        (r"\p{L}", "not a regular expression"),
        ("(?<=a+)b", "not a regular expression"),
        ("(?P<x>", "not a regular expression"),
        ("[", "not a regular expression"),
        ("*", "not a regular expression"),
        ("(?(1)a|b)", "not a regular expression"),
    ],
)
def test_an_expression_that_would_fill_the_memory_or_is_none_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Heading(pattern)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("\r" * 300_000 + "a\n", ["crlf"]),
        ("a" + "\u0301\u0316" * 300_000, ["nfc"]),
        (" " * 300_000 + "x", ["gutenberg"]),
    ],
    ids=["carriage returns", "combining marks", "blanks"],
)
def test_a_long_line_takes_time_in_proportion_to_its_length(text: str, steps: list[str]) -> None:
    began = time.process_time()
    try:
        for _ in clean([text], steps, [Tally()]):
            pass
    except BardError as error:
        assert "combining marks" in str(error)
    assert time.process_time() - began < 5


def test_carriage_returns_become_one_line_end_or_each_their_own() -> None:
    assert "".join(clean(["a\r\r\nb\r\n", "\r\r", "\rc\r\r\r\n"], ["crlf"], [Tally()])) == "a\nb\n\n\n\nc\n"


def test_comments_without_a_page_are_no_html() -> None:
    comments = b"<!---->" * 200 + b"<!-- a -- > -->\n"
    assert is_html(comments + b"<!DOCTYPE html>")
    assert not is_html(comments + b"text")
