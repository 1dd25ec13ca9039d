"""Numbers, times and foreign text as a reader should see them."""

import html
import re
from datetime import UTC, datetime
from pathlib import Path

# C0 controls other than tab and newline, and DEL: a byte-fallback model can emit them, HTML forbids most of them.
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)} | {0x7F: 0x2421}
# C1 controls have no pictures of their own.
_CONTROL_PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
MINUS = "\N{MINUS SIGN}"
_MARKDOWN_MARKS = re.compile(r"([\\`*_\[\]|~$])")


def grouped(count: int) -> str:
    """1115394 as `1,115,394`."""
    return f"{count:,}"


def score(value: float) -> str:
    """A loss or a rate with the four decimals that published losses use."""
    return f"{value:.4f}"


def gap(value: float) -> str:
    """A difference of two scores, with its sign (a true minus)."""
    return f"{value:+.4f}".replace("-", MINUS)


def percent(part: int, whole: int) -> str:
    """`part` of `whole` in per cent, two decimals; `0 %` of nothing."""
    return f"{100 * part / whole:.2f} %" if part else "0 %"


def share(part: float) -> str:
    """A share of 1 in per cent, one decimal."""
    return f"{100 * part:.1f} %"


def memory(count: int) -> str:
    """A number of bytes in the largest binary unit that keeps it at 1 or more."""
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if amount >= 100 or unit == "B" else f"{amount:.1f} {unit}"


def span(seconds: float) -> str:
    """A length of time in its two largest units."""
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
    """A setting as it would stand in TOML; `none` for no value."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def visible(text: str) -> str:
    """The text with its control characters shown as pictures (NUL as ␀), so that HTML can carry it."""
    return text.replace("\r\n", "\n").translate(_CONTROL_PICTURES)


def quoted(text: str) -> str:
    """A token so that its spaces and line breaks are seen."""
    return f"“{visible(text).replace(' ', '␣').replace(chr(10), '⏎')}”"


def markdown_cell(text: str) -> str:
    """Foreign text as one Markdown table cell: no markup, no HTML, no line break, no bar that would end the cell."""
    one_line = " ".join(visible(text).split())
    return html.escape(_MARKDOWN_MARKS.sub(r"\\\1", one_line), quote=False)


def full_report(file: Path, link: str) -> str:
    """The line of Markdown that leads from Prefect's UI to a report: a link that opens it, and its file."""
    return f"[Full report]({link}), the file `{file}`"


def title_language(title: str, language: str) -> str:
    """What language to read a corpus's title in: a Chinese text may well have an English one."""
    return "en" if title.isascii() else language
