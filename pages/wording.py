"""Formatting of numbers, times and text from users."""

import html
import re
from datetime import UTC, datetime
from pathlib import Path

# C0 controls except tab and newline, and DEL: models with byte fallback can generate them, HTML forbids most.
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)} | {0x7F: 0x2421}
# C1 controls have no symbols.
_CONTROL_PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
MINUS = "\N{MINUS SIGN}"
_MARKDOWN_MARKS = re.compile(r"([\\`*_\[\]|~$])")


def grouped(count: int) -> str:
    """A count with thousands separators: `1,115,394`."""
    return f"{count:,}"


def score(value: float) -> str:
    """A loss with four decimals, as in publications."""
    return f"{value:.4f}"


def gap(value: float) -> str:
    """A difference of two scores with its sign, with the character U+2212 for minus."""
    return f"{value:+.4f}".replace("-", MINUS)


def percent(part: int, whole: int) -> str:
    """`part` of `whole` in percent, with two decimals; `0 %` if `part` is 0."""
    return f"{100 * part / whole:.2f} %" if part else "0 %"


def share(part: float) -> str:
    """A fraction in percent, with one decimal."""
    return f"{100 * part:.1f} %"


def memory(count: int) -> str:
    """A number of bytes in the largest binary unit in which it is 1 or more."""
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if amount >= 100 or unit == "B" else f"{amount:.1f} {unit}"


def span(seconds: float) -> str:
    """A duration in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def moment(when: datetime) -> str:
    """A point in time as `2026-11-22 19:32 UTC`."""
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def setting(value: str | int | float | bool | None) -> str:
    """A setting as it is written in TOML; `none` for no value."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def visible(text: str) -> str:
    """The text with control characters as visible symbols (NUL as ␀), which HTML allows."""
    return text.replace("\r\n", "\n").translate(_CONTROL_PICTURES)


def quoted(text: str) -> str:
    """A token in quotes with visible spaces and line breaks."""
    return f"“{visible(text).replace(' ', '␣').replace(chr(10), '⏎')}”"


def markdown_cell(text: str) -> str:
    """Text as a Markdown table cell, escaped and without line breaks."""
    one_line = " ".join(visible(text).split())
    return html.escape(_MARKDOWN_MARKS.sub(r"\\\1", one_line), quote=False)


def full_report(file: Path, link: str) -> str:
    """Markdown with a link to a report, and the path of its file."""
    return f"[Full report]({link}), the file `{file}`"


def title_language(title: str, language: str) -> str:
    """The language of a corpus's title: English if it is ASCII, because a Chinese text may have an English title."""
    return "en" if title.isascii() else language
