"""Cleaning steps: each maps a stream of lines to a stream of lines and counts its changes.

A line includes its line end, which is only "\\n". For every step, the characters of the input minus those removed plus
those added are the characters of the output. The steps in `TAKE_BLOCKS` need no single lines: they also take blocks of
whole lines, which is many times faster where there is nothing to change.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice

import regex
from pydantic import BaseModel, ConfigDict

from bardflow.errors import BardError
from bardflow.sources.marks import aozora, footnotes
from bardflow.sources.tally import Lines, Tally, lines, whole_lines


class Cleaned(BaseModel):
    """The counts of a step: lines removed (or joined), characters removed, characters added."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str
    lines_removed: int
    characters_removed: int
    characters_added: int


Step = Callable[[Iterator[str], Tally], Iterator[str]]


def strip_bom(lines: Iterator[str], tally: Tally) -> Iterator[str]:
    """Remove byte-order marks at the start of a file."""
    for line in lines:
        bare = line.lstrip("\ufeff")
        tally.characters_removed += len(line) - len(bare)
        if bare:
            yield bare
            break
    yield from lines


def crlf(lines: Iterator[str], tally: Tally) -> Iterator[str]:
    r"""Replace the line ends "\r\n" (Windows) and "\r" (old Macintosh) with "\n"."""
    for line in lines:
        if "\r" not in line:
            yield line
            continue
        unified = line.replace("\r\n", "\n")
        if "\r" in unified:
            unified = re.sub(r"(?<!\r)\r+\n", "\n", line)  # from the first "\r" only: linear
        tally.characters_removed += len(line) - len(unified)
        alone = unified.count("\r")
        tally.characters_removed += alone
        tally.characters_added += alone
        # Not `splitlines`: it also splits at U+2028, U+0085, form feeds and others, which are not line ends here.
        yield from re.findall(r"[^\n]*\n|[^\n]+", unified.replace("\r", "\n")) if alone else (unified,)


# The marks in Project Gutenberg's files: those since 2003, and those of older files ("small print").
_BOOK_STARTS = re.compile(r"\s*(\*\*\*\s*START OF\b|\*END\*? ?THE SMALL PRINT)", re.IGNORECASE)
_BOOK_ENDS = re.compile(r"\s*(\*\*\*\s*END OF\b|End of (the |this )?Project Gutenberg\b)", re.IGNORECASE)
# A file without a start mark in this many lines is taken to have no header. This limits the lines in memory.
_HEADER_LINES = 3_000
# A start mark with a long title can continue for this many lines; the last one ends with ***.
_MARK_LINES = 3


def gutenberg(lines: Iterator[str], tally: Tally) -> Iterator[str]:
    """Remove Project Gutenberg's header and footer, with their marks and the blank lines next to them.

    The header ends at `*** START OF`; a file without that mark has none. A footer begins at `*** END OF` or `End of
    (the) Project Gutenberg's …` and ends at the next start mark or the end of the file.
    """
    ahead = Lines(lines)
    head = list(islice(_until(_BOOK_STARTS, ahead), _HEADER_LINES))
    if head and _BOOK_STARTS.match(head[-1]):
        tally.drop(*head)
        _drop_rest_of_mark(head[-1], ahead, tally)
    else:
        ahead.put_back(head)
    blanks: list[str] = []
    for line in ahead:
        if not line.strip():
            blanks.append(line)
        elif _BOOK_ENDS.match(line):
            tally.drop(*blanks, line)
            blanks.clear()
            for footer in _until(_BOOK_STARTS, ahead):
                tally.drop(footer)
                if _BOOK_STARTS.match(footer):
                    _drop_rest_of_mark(footer, ahead, tally)
        else:
            yield from blanks
            blanks.clear()
            yield line
    yield from blanks


def _until(mark: re.Pattern[str], lines: Iterator[str]) -> Iterator[str]:
    """Yield the lines up to and including the first that matches."""
    for line in lines:
        yield line
        if mark.match(line):
            return


def _drop_rest_of_mark(mark: str, lines: Lines, tally: Tally) -> None:
    """Drop the rest of a wrapped start mark, and the blank lines after it."""
    if mark.lstrip().startswith("***") and not mark.rstrip().endswith("***"):
        rest = list(islice(lines, _MARK_LINES))
        length = next((n for n, line in enumerate(rest, 1) if line.rstrip().endswith("***")), 0)
        tally.drop(*rest[:length])
        lines.put_back(rest[length:])
    lines.drop_blank(tally)


# So many combining marks in a row are no text: 30 are enough for all languages (Unicode Annex 15, "Stream-Safe"). The
# time to order them grows with the square of their number.
_MARKS = regex.compile(r"(?<!\p{M})\p{M}{1001}")


def nfc(blocks: Iterator[str], tally: Tally) -> Iterator[str]:
    """Compose characters (Unicode Normalization Form C).

    Raises BardError for more than 1,000 combining marks in a row.
    """
    for block in blocks:
        few_marks = len(block) <= 1_000 or block.isascii() or _MARKS.search(block) is None
        if few_marks and unicodedata.is_normalized("NFC", block):
            yield block
        else:
            yield from _composed(block, tally)


def _composed(block: str, tally: Tally) -> Iterator[str]:
    for line in lines([block]):
        if len(line) > 1_000 and not line.isascii() and (marks := _MARKS.search(line)) is not None:
            raise BardError(
                f"A character with more than 1,000 combining marks, at character {marks.start():,} of the line "
                f"{line[:40]!r}, is no text. Remove it, or leave the cleaning step nfc out."
            )
        if unicodedata.is_normalized("NFC", line):
            yield line
            continue
        composed = unicodedata.normalize("NFC", line)
        before, after = Counter(line), Counter(composed)
        tally.characters_removed += (before - after).total()
        tally.characters_added += (after - before).total()
        yield composed


# A hard-wrapped text has a right edge that many lines nearly reach. The share of lines within 12 columns of the edge is
# 83 % in the Three Kingdoms (edge at column 76), but also 48 % in the verse of tiny Shakespeare (column 52). So an edge
# below 60 columns is taken for verse. A share of a third is enough, because of prose with much dialogue.
_NARROWEST, _WIDEST = 60, 120
_EDGE_COLUMNS, _EDGE_SHARE = 12, 1 / 3
_SAMPLE_LINES = 5_000
# A line counts as wrapped if the next word would end beyond the edge, or less than this many columns before it. Two
# lines of the Three Kingdoms are wrapped 10 columns early, in mid-sentence; lines of verse are shorter than that.
_SLACK_COLUMNS = 10

_HEADING = re.compile(
    r"第[〇○零一二三四五六七八九十百千兩两0-9０-９]{1,9}[回章節节卷篇折幕]"
    r"|(CHAPTER|BOOK|PART|VOLUME|CANTO|ACT|SCENE|LETTER)\s+([IVXLCDM]+|[0-9]+|THE)\b"
    r"|(Chapter|Book|Part|Volume|Canto|Act|Scene|Letter)\s+([IVXLCDM]+|[0-9]+)\s*([.:—–-]|$)"
)
# These never start a paragraph. An ideographic space before one is no indent, but replaces a character that the
# source could not encode (the Three Kingdoms: "左右去其\n　，放起孟獲").
_CLOSING = "，。、；：？！）」』】》〉…,.;:?!)]}"
# Characters to remove from the end of a line before the next one is joined: line ends and spaces (Unicode's Zs without
# the ogham space mark, which is visible). Form feeds, U+0085 and U+2028 are not line ends here, and are kept.
BLANKS = "\t\n\r \u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_DASHES = "-‐–—―─"


def unwrap(lines: Iterator[str], tally: Tally) -> Iterator[str]:
    """Join the lines of hard-wrapped paragraphs with a space, or with none next to a Chinese or Japanese character.

    A paragraph ends at a blank line, before an indented line, at a heading, and after a line that had ample room for
    the next word (verse, addresses, a last line). The wrap width is determined from the first 5,000 lines; a text
    without a common right edge at 60 to 120 columns is not changed.
    """
    sample = list(islice(lines, _SAMPLE_LINES))
    width = wrap_width(sample)
    if width is None:
        yield from sample
        yield from lines
        return
    paragraph: list[str] = []  # the lines joined so far, the last one with its line end
    for line in chain(sample, lines):
        last = paragraph[-1] if paragraph else ""
        if not _continues(last, line, width):
            if paragraph:
                yield "".join(paragraph)
            paragraph = [line]
            continue
        kept = last.rstrip(BLANKS)
        joint = _joint(kept, line)
        tally.lines_removed += 1
        tally.characters_removed += len(last) - len(kept)
        tally.characters_added += len(joint)
        paragraph[-1] = kept + joint
        paragraph.append(line)
    if paragraph:
        yield "".join(paragraph)


def wrap_width(lines: Sequence[str]) -> int | None:
    """The column at which these lines are wrapped, or None if they are not hard-wrapped."""
    widths = sorted(columns(line.rstrip()) for line in lines if line.strip())
    if not widths:
        return None
    # One line in fifty may be longer (an address, a table); the edge is the end of the longest of the others.
    edge = widths[len(widths) - 1 - len(widths) // 50]
    near = sum(edge - _EDGE_COLUMNS <= width <= edge for width in widths)
    return edge if _NARROWEST <= edge <= _WIDEST and near >= _EDGE_SHARE * len(widths) else None


def columns(text: str) -> int:
    """The width of `text` in columns: two for a wide or full-width character (Unicode Annex 11), else one."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _continues(last: str, line: str, width: int) -> bool:
    """Whether `line` continues the paragraph of the line `last`."""
    body = line.strip()
    if not last.strip() or not body or _HEADING.match(last) or _HEADING.match(body):
        return False
    if line[0].isspace() and body[0] not in _CLOSING:
        return False
    kept = last.rstrip(BLANKS)
    return columns(kept + _joint(kept, line) + _first_word(body)) > width - _SLACK_COLUMNS


def _joint(before: str, after: str) -> str:
    """The text between two joined lines: a space, except next to an ideograph, a space or a dash."""
    if before[-1] in _DASHES or after[0].isspace() or _unspaced(before[-1]) or _unspaced(after[0]):
        return ""
    return " "


def _unspaced(character: str) -> bool:
    """Whether the character's script has no spaces between words (Hangul is wide, but has spaces)."""
    return unicodedata.east_asian_width(character) in "WF" and not unicodedata.name(character, "").startswith("HANGUL")


def _first_word(body: str) -> str:
    """The part that could move to the line before: the first word, or one character of a script without spaces."""
    return body[0] if _unspaced(body[0]) else body.split(maxsplit=1)[0]


STEPS: dict[str, Step] = {
    "strip-bom": strip_bom,
    "crlf": crlf,
    "gutenberg": gutenberg,
    "aozora": aozora,
    "footnotes": footnotes,
    "unwrap": unwrap,
    "nfc": nfc,
}
STEP_NAMES = tuple(STEPS)
TAKE_BLOCKS = ("strip-bom", "crlf", "nfc")


def clean(texts: Iterable[str], steps: Sequence[str], tallies: Sequence[Tally]) -> Iterator[str]:
    """Run the steps in order over a file or row that comes in texts of any size, and add to their tallies.

    Yields whole lines: one by one if a step needs them so, else as they come.
    """
    cleaned = whole_lines(texts)
    single = False
    for step, tally in zip(steps, tallies, strict=True):
        if not single and step not in TAKE_BLOCKS:
            cleaned, single = lines(cleaned), True
        cleaned = STEPS[step](cleaned, tally)
    return cleaned


def counted(steps: Sequence[str], tallies: Sequence[Tally]) -> tuple[Cleaned, ...]:
    """The tallies as frozen values."""
    return tuple(
        Cleaned(
            step=step,
            lines_removed=tally.lines_removed,
            characters_removed=tally.characters_removed,
            characters_added=tally.characters_added,
        )
        for step, tally in zip(steps, tallies, strict=True)
    )
