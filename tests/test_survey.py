"""Laws of what is counted in a text, and of what is proposed and warned of."""

import threading
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bardflow.sources.documents import PARTS, Part, Piece
from bardflow.sources.survey import Survey, SurveyThread, survey


def surveyed(train: str, validation: str) -> Survey:
    return survey([("train", Piece(0, train)), ("validation", Piece(0, validation))])


def test_a_survey_counts_characters_bytes_lines_and_what_only_validation_has() -> None:
    counted = surveyed("ab\n三", "b\nc三c\nd")
    assert (counted.characters, counted.bytes_utf8, counted.lines, counted.distinct) == (11, 15, 4, 6)
    assert (counted.train_characters, counted.train_bytes) == (4, 6)
    assert (counted.validation_characters, counted.validation_bytes) == (7, 9)
    assert (counted.unseen_distinct, counted.unseen_occurrences) == (2, 3)
    assert counted.longest_line == 3
    assert any("2 characters (3 occurrences, 42.86%" in warning for warning in counted.warnings)


@settings(max_examples=60)
@given(
    lines=st.lists(st.integers(0, 12), min_size=2, max_size=60),
    border=st.integers(1, 59),
    size=st.integers(1, 50),
)
def test_a_survey_does_not_depend_on_where_pieces_end(lines: list[int], border: int, size: int) -> None:
    text = "".join(f"{n} is a line long enough to tell\n" for n in lines)
    border = min(border, len(lines) - 1) * (len(text) // len(lines))
    halves: tuple[tuple[Part, str], ...] = (("train", text[:border]), ("validation", text[border:]))
    cut = [(part, Piece(0, half[at : at + size])) for part, half in halves for at in range(0, len(half), size)]
    assert survey(cut) == survey((part, Piece(0, half)) for part, half in halves)


def test_a_thread_surveys_the_pieces_that_are_passed_on() -> None:
    parts = [(part, Piece(0, "To be, or not to be: that is the question.\n" * 9)) for part in PARTS for _ in range(99)]
    with SurveyThread() as surveying:
        assert list(surveying.passing(parts)) == parts
        assert surveying.result() == survey(parts)


def test_an_error_of_the_survey_does_not_stop_the_pieces_and_is_raised_with_the_result() -> None:
    parts: list[tuple[Part, Piece]] = [("train", Piece(0, "\ud800" * 200_000))] * 99  # half a character: no UTF-8
    with SurveyThread() as surveying:
        assert list(surveying.passing(parts)) == parts
        with pytest.raises(UnicodeEncodeError):
            surveying.result()


def test_an_error_of_the_other_work_ends_the_thread() -> None:
    with pytest.raises(ZeroDivisionError), SurveyThread() as surveying:
        for _, (document, _) in surveying.passing([("train", Piece(0, "one"))] * 99):
            assert 1 / document
    assert not any(thread.name.startswith("survey") for thread in threading.enumerate())


def test_duplicates_and_overlap_are_shares_of_telling_lines() -> None:
    lines = [f"line number {n} is long enough" for n in range(8)]
    train = "\n".join([*lines, lines[0], "short", "short"]) + "\n"
    counted = surveyed(train, "\n".join([lines[1], "and a line that is quite new", "short"]) + "\n")
    assert counted.duplicate_lines == 2
    assert counted.duplicate_share == pytest.approx(2 / 11)
    assert counted.overlap == 0.5
    assert any("will be too good" in warning for warning in counted.warnings)


def test_a_text_of_very_many_lines_is_judged_by_a_sample_in_bounded_memory() -> None:
    # 600,000 different lines, each twice: more than a survey remembers. The last tenth repeats the first.
    def pieces() -> Iterator[tuple[Part, Piece]]:
        for start in range(0, 1_200_000, 1_000):
            text = "".join(f"this is line number {n % 600_000}\n" for n in range(start, start + 1_000))
            yield ("train" if start < 1_080_000 else "validation"), Piece(0, text)

    counted = survey(pieces())
    assert counted.duplicate_share == pytest.approx(0.5, abs=0.01)
    assert counted.overlap == 1


def test_carriage_returns_at_the_end_of_a_line_are_no_part_of_it_however_many() -> None:
    line = "a line of more than twenty characters"
    ends = ["\n", "\r\n", "\r" * 100_000 + "\n", "\n" + "\r" * 100_000 + "\n"]
    counted = survey(("train", Piece(0, line + end)) for end in ends * 10)
    # All lines but those of nothing else are equal.
    assert (counted.lines, counted.duplicate_lines, counted.longest_line) == (50, 39, 100_000 + len(line))


def test_a_line_without_end_is_measured_in_bounded_memory() -> None:
    tracemalloc.start()
    counted = survey((("train" if n else "validation"), Piece(0, "x" * 65_536)) for n in range(400))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counted.longest_line == 399 * 65_536
    assert any("lost its line ends" in warning for warning in counted.warnings)
    assert peak < 100 * 65_536, "a quarter of the line"


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("\ufefftext\r\n", ("strip-bom", "crlf")),
        ("*** START OF THE PROJECT GUTENBERG EBOOK ***\n", ("gutenberg",)),
        ("cafe\u0301\n", ("nfc",)),
        ("薄暗い［＃「薄暗い」に傍点］所\n", ("aozora",)),
        ("【テキスト中に現れる記号について】\n\n《》：ルビ\n", ("aozora",)),
        ("《三國志》是一部書。一｜二\n", ()),
        ("A mark [12] and [Footnote 1: a note]\n", ()),
        (("It was the best of times, it was the worst of times, it was the age of\n" * 5 + "\n") * 9, ("unwrap",)),
        ("plain text\n", ()),
    ],
)
def test_the_steps_that_a_text_needs_are_proposed(text: str, steps: tuple[str, ...]) -> None:
    assert surveyed(text, "plain text\n").cleaning == steps


def test_the_suggested_vocabulary_follows_the_number_of_characters() -> None:
    assert surveyed("abc", "d").suggestion.vocabulary == "char"
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    assert surveyed(many, "d").suggestion.vocabulary == "bpe"
    assert "301" in surveyed(many, "d").suggestion.reason


def test_signs_of_trouble_are_warned_of_in_plain_words() -> None:
    warnings = " ".join(surveyed("<!DOCTYPE html>\ufffd\n", "x").warnings)
    for part in ("HTML", "1 times the replacement character", "Only 18 characters", "its scores will be imprecise"):
        assert part in warnings
