"""The text of HTML and Markdown files, and recognition of HTML, with the encoding that it declares.

HTML is read by resiliparse, which is an extra. Trafilatura was tried too: it leaves out headings and repeated short
paragraphs of books, and with its dependencies it is five times as large.
"""

import re
from collections.abc import Iterable
from typing import Any

from bardflow.errors import installing
from bardflow.sources.spec import CorpusError

# The largest file, in characters and tags. An element takes 580 bytes of memory, and the text ten times its size.
LARGEST_MARKUP = 1 << 24
MOST_TAGS = 500_000
# Extraction of the main text takes time that grows with the square of this depth: 60 ms for 1,000.
_DEEPEST = 1_000

# Possessive: else 40 comments without a page after them would be divided in 2^40 ways.
_HTML = re.compile(r"\ufeff?\s*(?:<\?xml[^>]*>\s*)?(?:<!--(?>.*?-->)\s*+)*+(?:<!doctype\s+html|<html)\b", re.I | re.S)
_BLOCK = re.compile(r"<(/?)(?:div|article|section|main)\b", re.I)
_DECLARED = re.compile(
    rb"""<meta[^>]{1,200}?charset\s*=\s*["']?\s*([\w.:-]+)|<\?xml[^>]{1,200}?encoding\s*=\s*["']([\w.:-]+)""", re.I
)
# Browsers look for a declaration in so many bytes (https://html.spec.whatwg.org, "prescan a byte stream").
_PRESCAN_BYTES = 1024
# Labels that mean another encoding on the web (https://encoding.spec.whatwg.org, "names and labels").
_LABELS = {
    **dict.fromkeys(("iso-8859-1", "latin1", "latin-1", "us-ascii", "ascii"), "windows-1252"),
    **dict.fromkeys(("gb2312", "gbk", "gb_2312-80", "x-gbk"), "gb18030"),
    **dict.fromkeys(("shift_jis", "shift-jis", "x-sjis", "sjis", "windows-31j"), "cp932"),
    **dict.fromkeys(("euc-kr", "ks_c_5601-1987", "korean"), "cp949"),
    **{"iso-8859-9": "windows-1254", "x-euc-jp": "euc-jp", "tis-620": "cp874", "windows-874": "cp874"},
}
# `---` on the first line, fields, and `---` or `...`.
_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(?:.*\n)*?(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)")


def is_html(head: bytes) -> bool:
    """Whether a file is an HTML page, by its first bytes: `<!DOCTYPE html` or `<html`."""
    utf_16 = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    return (
        _HTML.match(head.removeprefix(b"\xef\xbb\xbf").decode("utf-16" if utf_16 else "latin-1", "ignore")) is not None
    )


def declared_encoding(head: bytes) -> str | None:
    """The encoding that the start of an HTML file declares in `<meta>` or `<?xml`, as browsers understand it."""
    found = _DECLARED.search(head[:_PRESCAN_BYTES]) if is_html(head) else None
    if found is None:
        return None
    label = (found[1] or found[2]).decode("ascii", "ignore").lower()
    return _LABELS.get(label, label)


def html_text(blocks: Iterable[str], name: str, *, main: bool = True) -> str:
    """The text of an HTML file: paragraphs with blank lines between them, without ruby and without `alt` texts.

    With `main`, navigation, headers, footers, sidebars and comments of a web page are left out.

    Raises CorpusError if the file is not HTML, has no text, is too large or too deep, or resiliparse is not installed.
    """
    page = _whole(blocks, name)
    if not page.lstrip("\ufeff \t\r\n").startswith("<"):
        raise CorpusError(f'{name} is not HTML, as format = "html" in the corpus file says; leave the file out.')
    text = _text(page, name, main=main)
    if main and not text:
        raise CorpusError(f"{name} is HTML without a main text, as a page of links is; leave the file out.")
    return text


def markdown_text(blocks: Iterable[str], name: str) -> str:
    """The text of a Markdown file (CommonMark with tables) without its marks and its front matter.

    Raises CorpusError if the file is too large, or resiliparse is not installed.
    """
    from markdown_it import MarkdownIt

    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(
        _FRONT_MATTER.sub("", _whole(blocks, name))
    )  # fmt: skip
    return _text(page, name, main=False)


def _whole(blocks: Iterable[str], name: str) -> str:
    read: list[str] = []
    size = 0
    for block in blocks:
        read.append(block)
        size += len(block)
        if size > LARGEST_MARKUP:
            raise CorpusError(f"{name} has more than {LARGEST_MARKUP:,} characters, too many for one page; divide it.")
    return "".join(read)


def _text(page: str, name: str, *, main: bool) -> str:
    try:
        from resiliparse.extract.html2text import extract_plain_text
    except ImportError as error:
        raise CorpusError(f"{name} needs the resiliparse library: {installing('html')}") from error
    if page.count("<") > MOST_TAGS:
        raise CorpusError(f"{name} has more than {MOST_TAGS:,} tags, too many for one page; divide it.")
    depth = 0
    for tag in _BLOCK.finditer(page):
        depth = max(0, depth + (-1 if tag[1] else 1))
        if depth > _DEEPEST:
            raise CorpusError(f"{name} has elements nested more than {_DEEPEST:,} deep, unlike a text; leave it out.")
    extract: Any = extract_plain_text
    text: str = extract(
        page, preserve_formatting=True, main_content=main, list_bullets=False, alt_texts=False, comments=False,
        skip_elements=["rt", "rp"],
    )  # fmt: skip
    return f"{text.rstrip()}\n" if text.strip() else ""
