"""Cleaning steps for the marks of digital libraries: Aozora Bunko's annotations, Project Gutenberg's footnotes."""

import re
from collections.abc import Iterator
from itertools import islice

from bardflow.sources.tally import Lines, Tally

# Aozora Bunko's marks are described at https://www.aozora.gr.jp/annotation/. A note can hold notes.
_NOTE = r"［＃(?:[^［］\n]|［(?:[^［］\n]|［[^［］\n]*+］)*+］)*+］"
_AOZORA = re.compile(rf"※(?P<gaiji>{_NOTE})|{_NOTE}|《[^《》\n]*+》|｜(?=[^｜《》\n]++《[^《》\n]*+》)")
_UNICODE = re.compile(r"U\+([0-9A-Fa-f]{4,6})")
# Plane, row and cell of JIS X 0213, such as 第3水準1-84-77. A page and a line have two numbers.
_JIS = re.compile(r"(?:水準|、)([12])-(\d{1,2})-(\d{1,2})(?!\d|-)")
# The geta mark, which stands for a character that cannot be printed.
GETA = "〓"

_RULE = re.compile(r"-{10,}\s*$")
_EXPLANATION = "【テキスト中に現れる記号について】"
_EXPLANATION_LINES = 100
_PUBLISHED = re.compile(r"底本[：:]")
_AOZORA_NOTE = re.compile(r"［＃[^［］\n]*+］")


def has_aozora_sign(text: str) -> bool:
    """Say whether a text has marks that only Aozora Bunko's texts have.

    Ruby alone is no sign: in Chinese, 《》 encloses titles.
    """
    # `in` is many times faster than an expression, and nearly all texts have neither.
    return _EXPLANATION in text or ("［＃" in text and _AOZORA_NOTE.search(text) is not None)


def aozora(lines: Iterator[str], tally: Tally) -> Iterator[str]:
    """Remove Aozora Bunko's marks: ruby 《…》 with its ｜, notes ［＃…］, the explanation of the marks, and the footer.

    A note ※［＃…］ stands for a character that Shift_JIS lacks. It becomes this character, if the note gives U+ and a
    number of Unicode, or plane, row and cell of JIS X 0213; else 〓. The explanation is between two lines of hyphens.
    The footer begins at `底本：` and ends at the next explanation or the end of the file.
    """
    ahead = Lines(lines)
    blanks: list[str] = []
    in_footer = False
    for line in ahead:
        if _RULE.match(line) and (explanation := _explanation(ahead)):
            tally.drop(line, *explanation)
            ahead.drop_blank(tally)
            in_footer = False
        elif in_footer:
            tally.drop(line)
        elif not line.strip():
            blanks.append(line)
        elif _PUBLISHED.match(line):
            tally.drop(*blanks, line)
            blanks.clear()
            in_footer = True
        else:
            yield from blanks
            blanks.clear()
            yield from _plain(line, tally)
    yield from blanks


def _explanation(ahead: Lines) -> list[str]:
    """The lines of the explanation after its first line of hyphens; none, and nothing is taken, for other hyphens."""
    found: list[str] = []
    for line in islice(ahead, _EXPLANATION_LINES):
        found.append(line)
        if len(found) == 3 and not any(_EXPLANATION in first for first in found):
            break
        if _RULE.match(line):
            if any(_EXPLANATION in first for first in found):
                return found
            break
    ahead.put_back(found)
    return []


def _plain(line: str, tally: Tally) -> Iterator[str]:
    """The line without marks, if anything is left of it."""
    marks = [(mark[0], _instead(mark)) for mark in _AOZORA.finditer(line)]
    plain = _AOZORA.sub(_instead, line)
    if marks and not plain.strip():
        tally.drop(line)
        return
    tally.characters_removed += sum(len(mark) for mark, _ in marks)
    tally.characters_added += sum(len(instead) for _, instead in marks)
    yield plain


def _instead(mark: re.Match[str]) -> str:
    return "" if mark["gaiji"] is None else _character(mark["gaiji"])


def _character(note: str) -> str:
    """The character that a note describes, or the geta mark."""
    # The note's own code is the last one: the description can contain notes.
    for code in reversed(_UNICODE.findall(note)):
        if int(code, 16) <= 0x10FFFF and (character := chr(int(code, 16))).isprintable():
            return character
    for plane, row, cell in reversed(_JIS.findall(note)):
        if int(row) <= 94 and int(cell) <= 94:
            data = bytes([0x8F] * (plane == "2") + [0xA0 + int(row), 0xA0 + int(cell)])
            try:
                return data.decode("euc_jis_2004")
            except UnicodeDecodeError:
                continue
    return GETA


_FOOTNOTE = re.compile(
    r"(?P<note>\[(?:Footnote|Illustration|Sidenote)(?=[\]:. ]|\s))|\[(?:\d{1,4}|[A-Z]|\*{1,3}|[†‡])\]"
)
_BRACKETS = re.compile(r"[\[\]]")
# A note that has no closing bracket within so many lines is left as it is.
_FOOTNOTE_LINES = 500


def footnotes(lines: Iterator[str], tally: Tally) -> Iterator[str]:
    """Remove the marks of footnotes, such as [12], [A] and [*], and notes in brackets, also of several lines.

    Notes are `[Footnote 3: …]`, `[Illustration: …]` and `[Sidenote: …]`, as Project Gutenberg's books have them.
    """
    ahead = Lines(lines)
    for line in ahead:
        text, at, kept = line, 0, ""
        while mark := _FOOTNOTE.search(text, at):
            kept += text[at : mark.start()]
            end = mark.end()
            if mark["note"]:
                text, end = _with_rest(text, mark.start(), ahead)
            if end == mark.start():  # it is not closed
                kept, at = kept + mark[0], mark.end()
                continue
            if kept.endswith(" ") and text[end : end + 1] in (*" \r\n.,;:!?)", ""):
                kept = kept[:-1]
            at = end
        kept += text[at:]
        if kept != text and not kept.strip():
            tally.drop(*re.findall(r"[^\n]*\n|[^\n]+", text))
            continue
        tally.lines_removed += text.count("\n") - kept.count("\n")
        tally.characters_removed += len(text) - len(kept)
        yield kept


def _with_rest(text: str, start: int, ahead: Lines) -> tuple[str, int]:
    """The text with the lines up to the closing bracket of the note at `start`, and its end; else `start`."""
    read: list[str] = []
    depth, before = 0, 0
    piece: str | None = text
    while piece is not None:
        for bracket in _BRACKETS.finditer(piece, 0 if read else start):
            depth += 1 if bracket[0] == "[" else -1
            if not depth:
                return text + "".join(read), before + bracket.end()
        before += len(piece)
        piece = next(ahead, None) if len(read) < _FOOTNOTE_LINES else None
        if piece is not None:
            read.append(piece)
    ahead.put_back(read)
    return text, start
