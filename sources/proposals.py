"""What the text of a new corpus tells: headings of chapters, its title and its language."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from statistics import median

# With fewer headings or shorter chapters, it is a table of contents or a list. If a chapter has most of the text, the
# headings divide only a part of it.
_FEWEST_HEADINGS = 3
_CHAPTER_CHARACTERS = 500
_LARGEST_CHAPTER = 0.6
_HEAD_CHARACTERS = 4_000

_NUMBER = r"(?:[IVXLC]+|\d{1,3}|(?i:one|two|three|four|five|six|seven|eight|nine|ten|the [a-z]+))"
_FOREIGN = r"(?:[IVXLC]+|\d{1,3}|\w{2,20})"
# Headings by which documents may be cut, the largest divisions last.
_HEADINGS = (
    r"^第[〇○零一二三四五六七八九十百千\d０-９]{1,7}[回章卷節节話话折]",
    rf"^(?:CHAPTER|Chapter|CANTO|Canto|STAVE|LETTER|Letter) {_NUMBER}\b",
    rf"^(?:CHAPITRE|Chapitre|CAPÍTULO|Capítulo|CAPITOLO|Capitolo|KAPITEL|Kapitel|ROZDZIAŁ|ГЛАВА|Глава) {_FOREIGN}\b",
    r"^\w{4,20} (?:Kapitel|KAPITEL)\b",
    # ADVENTURE II. THE RED-HEADED LEAGUE, or without the word.
    r"^(?:[A-ZÀ-Þ]{3,12} )?(?:[IVXLC]{1,7}|\d{1,3})\. [^a-zß-ÿ]*[A-ZÀ-Þ]{3}[^a-zß-ÿ]*$",
    r"^[IVXLC]{1,7}\.?$",
    rf"^(?:ACT|Act|BOOK|Book|PART|Part) {_NUMBER}\b",
    r"^(?:ACTE|AKT|ACTO|ATTO|ДЕЙСТВИЕ) [\w]{1,20}\b",
)

# The names of languages in Project Gutenberg's headers.
_LANGUAGES = {
    **{"english": "en", "french": "fr", "german": "de", "spanish": "es", "italian": "it", "portuguese": "pt"},
    **{"dutch": "nl", "latin": "la", "greek": "el", "chinese": "zh", "japanese": "ja", "russian": "ru"},
    **{"finnish": "fi", "swedish": "sv", "danish": "da", "norwegian": "no", "polish": "pl", "hungarian": "hu"},
    **{"czech": "cs", "catalan": "ca", "esperanto": "eo", "tagalog": "tl", "hebrew": "he", "korean": "ko"},
}
# Scripts that are used for one language, by the first word of the names of their characters in Unicode. A Japanese
# text has Chinese characters too, so it is recognised first.
_SCRIPTS = (
    *(("HIRAGANA", "ja"), ("KATAKANA", "ja"), ("HANGUL", "ko"), ("CJK", "zh"), ("GREEK", "el"), ("HEBREW", "he")),
    *(("THAI", "th"), ("GEORGIAN", "ka"), ("ARMENIAN", "hy"), ("TAMIL", "ta"), ("BENGALI", "bn")),
)
_SCRIPT_SHARE = 0.15

_TITLES = (
    re.compile(r"^Title: *(.+?)\s*$", re.MULTILINE),
    re.compile(r"Project Gutenberg (?i:ebook|etext) of (.+?)(?:, by [^,]+)?\s*$", re.MULTILINE),
)
_LANGUAGE = re.compile(r"^Language: *(\w+)", re.MULTILINE)


def proposed_heading(lines: Iterable[str]) -> str | None:
    """The regular expression of the headings of a text's chapters, or None if it has no chapters.

    At least three lines match it, half of the chapters have at least 500 characters, and none has most of the text.
    """
    patterns = [re.compile(pattern) for pattern in _HEADINGS]
    places: list[list[int]] = [[] for _ in patterns]
    at = 0
    for line in lines:
        for pattern, found in zip(patterns, places, strict=True):
            if pattern.search(line):
                found.append(at)
        at += len(line)
    for pattern, found in zip(patterns, places, strict=True):
        if len(found) >= _FEWEST_HEADINGS:
            sizes = [end - start for start, end in zip(found, [*found[1:], at], strict=True)]
            if median(sizes) >= _CHAPTER_CHARACTERS and max(sizes) <= _LARGEST_CHAPTER * at:
                return pattern.pattern
    return None


def proposed_title(head: str) -> str | None:
    """The title in the header of a Project Gutenberg text, or None."""
    found = (pattern.search(head[:_HEAD_CHARACTERS]) for pattern in _TITLES)
    return next((match[1] for match in found if match is not None), None)


def proposed_language(text: str) -> str | None:
    """The language tag (BCP 47) of a text, by Project Gutenberg's header or by its script; None if both do not tell."""
    named = _LANGUAGE.search(text[:_HEAD_CHARACTERS])
    if named is not None:
        return _LANGUAGES.get(named[1].lower())
    letters = [character for character in text if character.isalpha()]
    scripts = Counter(unicodedata.name(letter, "").split(" ")[0] for letter in letters)
    return next((tag for script, tag in _SCRIPTS if scripts[script] > _SCRIPT_SHARE * len(letters)), None)
