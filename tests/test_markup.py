"""HTML, Markdown and EPUB files as corpora: recognised by content, and their text extracted."""

import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bardflow.sources.adding import look
from bardflow.sources.markup import declared_encoding, is_html
from bardflow.sources.spec import CorpusError, CorpusSpec
from bardflow.sources.unpack import raw_texts
from tests.test_adding import CHINESE, JAPANESE, PLAIN, RUSSIAN, added, text_of


def page(body: str, head: str = "") -> str:
    return f"<!DOCTYPE html>\n<html><head>{head}<title>A page</title></head><body>{body}</body></html>\n"


ARTICLE = """
<header><nav><ul><li><a href="/">Home</a></li><li><a href="/about">About us</a></li></ul></nav></header>
<script>var cookies = "none";</script><style>p { color: red }</style>
<main><article><h1>The Dogs</h1><p>The dogs barked at the moon
for <i>quite</i> a long time, &amp; nobody knew why.</p><p>&ldquo;Yes.&rdquo;<br>&ldquo;No.&rdquo;</p>
<p><ruby>吾輩<rp>(</rp><rt>わがはい</rt><rp>)</rp></ruby>は猫である。</p><pre>  a verse
    of two lines</pre></article></main>
<aside class="sidebar"><a href="/cats">Ten cats</a></aside><footer><p>Copyright 1900</p></footer>
"""
ARTICLE_TEXT = """The Dogs

The dogs barked at the moon for quite a long time, & nobody knew why.

“Yes.”
“No.”

吾輩は猫である。

  a verse
    of two lines
"""


@pytest.fixture
def resiliparse() -> None:
    pytest.importorskip("resiliparse", reason="needs the extra html")


@pytest.mark.usefixtures("resiliparse")
def test_the_main_text_of_a_page_is_extracted_the_same_each_time(tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_text(page(ARTICLE))
    found = added(tmp_path)
    assert (found.spec.format, found.spec.rows, found.spec.cleaning) == ("html", None, ())
    assert {text_of(found, tmp_path) for _ in range(3)} == {ARTICLE_TEXT}
    assert not any("HTML" in warning for warning in found.survey.warnings)
    plain = added(tmp_path, form="text")
    assert plain.spec.format == "text" and text_of(plain, tmp_path) == page(ARTICLE)
    assert any("HTML" in warning for warning in plain.survey.warnings)


@pytest.mark.usefixtures("resiliparse")
def test_pages_of_a_folder_are_documents_and_another_file_among_them_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    for name in ("a.html", "b.html"):
        (tmp_path / "site" / name).write_text(page(f"<p>This is {name}, a page with a sentence.</p>"))
    found = added(tmp_path, source=tmp_path / "site")
    assert found.spec.documents.cut == "file" and found.survey.documents == 2
    assert text_of(found, tmp_path) == "".join(f"This is {n}, a page with a sentence.\n" for n in ("a.html", "b.html"))
    (tmp_path / "site" / "c.txt").write_text(PLAIN)
    with pytest.raises(CorpusError, match=r"a\.html is html, and c\.txt is plain text"):
        added(tmp_path, source=tmp_path / "site")
    with pytest.raises(CorpusError, match=r"^c\.txt is not HTML.*leave the file out"):
        look(found.spec, project=tmp_path, downloads=tmp_path, mirror=None)


@pytest.mark.usefixtures("resiliparse")
@pytest.mark.parametrize(
    ("text", "label", "encoding", "python"),
    [
        (RUSSIAN, "windows-1251", "windows-1251", "cp1251"),
        (RUSSIAN, "koi8-r", "koi8-r", "koi8-r"),
        (JAPANESE, "Shift_JIS", "cp932", "cp932"),
        (CHINESE, "gb2312", "gb18030", "gb18030"),
        ("“It’s café”, he said.", "iso-8859-1", "windows-1252", "cp1252"),
        (RUSSIAN, "windows-1251", "utf-8", "utf-8"),  # the declaration is wrong
        (RUSSIAN, "no-such-name", "koi8-r", "koi8-r"),
    ],
)
def test_the_encoding_that_a_page_declares_is_used_if_its_bytes_are_in_it(
    text: str, label: str, encoding: str, python: str, tmp_path: Path
) -> None:
    body = "".join(f"<p>{line}</p>" for line in text.splitlines())
    for meta in (f'<meta charset="{label}">', f"<META http-equiv=x content='text/html; charset={label}'>"):
        (tmp_path / "it.txt").write_bytes(page(body, meta).encode(python))
        found = added(tmp_path)
        assert (found.spec.encoding, found.spec.format) == (encoding, "html")
        assert text_of(found, tmp_path) == "\n\n".join(text.splitlines()) + "\n"


@pytest.mark.parametrize(
    ("head", "html", "declared"),
    [
        (b"<!doctype HTML>", True, None),
        (b"\xef\xbb\xbf\r\n <HTML lang=en>", True, None),
        ("\ufeff<html>".encode("utf-16"), True, None),
        (b'<?xml version="1.0" encoding="EUC-JP"?>\n<!-- a note -->\n<html xmlns="x">', True, "euc-jp"),
        (b'<html><meta charset="GBK">', True, "gb18030"),
        (b"<html>" + b" " * 2000 + b"<meta charset=gbk>", True, None),
        (b'<?xml version="1.0" encoding="utf-8"?><tei>', False, None),
        (b"<htmlish>", False, None),
        (b"The <html> tag begins a page.", False, None),
        (b"<!doctype svg>", False, None),
        (b"", False, None),
    ],
)
def test_html_is_recognised_by_how_it_begins(head: bytes, html: bool, declared: str | None) -> None:
    assert (is_html(head), declared_encoding(head)) == (html, declared)


MARKDOWN = """---
title: Not part of the text
---
# A *title*

A paragraph with **bold**, `code`, a [link](https://example.org)
and ![a picture](x.png) an image.

- one
- two

> Quoted &amp; more.

```python
x = 1
```

| a | b |
|---|---|
| 1 | 2 |
"""


@pytest.mark.usefixtures("resiliparse")
def test_markdown_is_kept_as_it_is_or_becomes_plain_text(tmp_path: Path) -> None:
    (tmp_path / "it.md").write_text(MARKDOWN)
    kept = added(tmp_path, source=tmp_path / "it.md")
    assert kept.spec.format == "text" and text_of(kept, tmp_path) == MARKDOWN
    plain = added(tmp_path, source=tmp_path / "it.md", form="markdown")
    text = text_of(plain, tmp_path)
    assert plain.spec.format == "markdown"
    assert text.startswith("A title\n\nA paragraph with bold, code, a link and an image.\n\n") and text.endswith("\n")
    assert [line.strip() for line in text.splitlines() if line.strip()][2:] == [
        *("one", "two", "Quoted & more.", "x = 1", "a\t\tb", "1\t\t2"),
    ]
    (tmp_path / "it.md").write_text("---\nA rule, and no front matter.\n")
    assert "A rule" in text_of(added(tmp_path, source=tmp_path / "it.md", form="markdown"), tmp_path)


CONTAINER = """<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0">
<rootfiles><rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"""
PACKAGE = """<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata/><manifest>
<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="c1" href="text/one%20a.xhtml" media-type="application/xhtml+xml"/>
<item id="c2" href="../OEBPS/text/two.xhtml" media-type="application/xhtml+xml"/>
<item id="cover" href="cover.xhtml" media-type="application/xhtml+xml"/>
<item id="notes" href="notes.xhtml" media-type="application/xhtml+xml"/>
<item id="image" href="cover.svg" media-type="image/svg+xml"/></manifest>
<spine><itemref idref="cover"/><itemref idref="image"/><itemref idref="nav"/><itemref idref="c2"/><itemref idref="c1"/>
<itemref idref="notes" linear="no"/></spine></package>"""
XHTML = '<?xml version="1.0" encoding="utf-8"?>\n<html xmlns="http://www.w3.org/1999/xhtml"><body>{}</body></html>'
BOOK = {
    "mimetype": "application/epub+zip",
    "META-INF/container.xml": CONTAINER,
    "OEBPS/book.opf": PACKAGE,
    "OEBPS/nav.xhtml": XHTML.format("<nav>Contents</nav>"),
    "OEBPS/cover.xhtml": XHTML.format('<img src="cover.svg" alt="A cover"/>'),
    "OEBPS/cover.svg": "<svg/>",
    "OEBPS/notes.xhtml": XHTML.format("<p>A note.</p>"),
    "OEBPS/text/one a.xhtml": XHTML.format("<h1>Chapter II</h1><ul><li>A list.</li></ul><p>The end.</p>"),
    "OEBPS/text/two.xhtml": XHTML.format("<h1>Chapter I</h1><p>Größe.</p><p>“Yes.”</p><footer>Kept.</footer>"),
}


def epub(path: Path, **changes: Any) -> Path:
    """A small book; a change of None leaves a file out."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (BOOK | changes).items():
            if content is not None:
                archive.writestr(name, content)
    return path


@pytest.mark.usefixtures("resiliparse")
def test_the_chapters_of_a_book_are_documents_in_the_order_of_reading(tmp_path: Path) -> None:
    found = added(tmp_path, source=epub(tmp_path / "it.epub"))
    assert (found.spec.format, found.spec.documents.cut, found.survey.documents) == ("epub", "file", 2)
    assert text_of(found, tmp_path) == "Chapter I\n\nGröße.\n\n“Yes.”\n\nKept.\nChapter II\n\n  A list.\n\nThe end.\n"
    (tmp_path / "texts").mkdir()
    epub(tmp_path / "texts" / "a.epub"), epub(tmp_path / "texts" / "b.epub")
    assert added(tmp_path, source=tmp_path / "texts", duplicates="keep").survey.documents == 4
    (tmp_path / "texts" / "README.md").write_text(PLAIN)
    with pytest.raises(CorpusError, match=r"a\.epub is epub, and README\.md is another"):
        added(tmp_path, source=tmp_path / "texts")
    with pytest.raises(CorpusError, match=r"README\.md is not an EPUB.*leave the file out"):
        added(tmp_path, source=tmp_path / "texts", form="epub")


ENCRYPTION = '<encryption xmlns:e="http://www.w3.org/2001/04/xmlenc#"><e:CipherReference URI="{}"/></encryption>'
DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "no list": ({"OEBPS/book.opf": None}, "has no file 'OEBPS/book.opf'"),
    "no XML": ({"OEBPS/book.opf": "<package"}, "'OEBPS/book.opf' is not XML"),
    "no chapter": ({"OEBPS/text/two.xhtml": None}, "has no file 'OEBPS/text/two.xhtml'"),
    "no item": ({"OEBPS/book.opf": PACKAGE.replace('id="c1"', 'id="c9"')}, "its spine names 'c1'"),
    "a bomb of entities": ({"OEBPS/book.opf": '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'}, "unlike that of a book"),
    "a large list": ({"META-INF/container.xml": f"<a>{'<!---->' * 3_000_000}</a>"}, "unpacks to more than 200|unlike"),
    "outside": ({"../evil.xhtml": "x"}, r"outside of the archive: '\.\./evil\.xhtml'"),
    "outside by its list": (
        {"OEBPS/book.opf": PACKAGE.replace("../OEBPS/text/two", "../../../etc/passwd")},
        r"has no file '\.\./\.\./etc/passwd\.xhtml'",
    ),
    "DRM": ({"META-INF/encryption.xml": ENCRYPTION.format("OEBPS/text/two.xhtml")}, "encrypted"),
    "a bomb": ({"OEBPS/text/two.xhtml": XHTML.format("<p>" + "a" * (1 << 26))}, "unpacks to more than 200 times"),
    "another encoding": ({"OEBPS/text/two.xhtml": XHTML.format("Größe").encode("latin-1")}, "is not UTF-8: byte"),
    "an empty book": ({"OEBPS/book.opf": PACKAGE.replace("<itemref", "<other")}, "has no text"),
}


@pytest.mark.usefixtures("resiliparse")
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_or_hostile_book_is_an_error(name: str, tmp_path: Path) -> None:
    changes, said = DAMAGED[name]
    with pytest.raises(CorpusError, match=said):
        added(tmp_path, source=epub(tmp_path / "it.epub", **changes))


@pytest.mark.usefixtures("resiliparse")
def test_fonts_may_be_encrypted_and_older_books_declare_their_encoding(tmp_path: Path) -> None:
    old = XHTML.replace("utf-8", "windows-1251").format(f"<p>{RUSSIAN}</p>").encode("cp1251")
    changes = {"META-INF/encryption.xml": ENCRYPTION.format("OEBPS/font.otf"), "OEBPS/text/two.xhtml": old}
    found = added(tmp_path, source=epub(tmp_path / "it.epub", **changes))
    assert text_of(found, tmp_path).startswith(RUSSIAN.replace("\n", " ").strip())


@pytest.mark.usefixtures("resiliparse")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (page("<nav><a href='/'>Home</a></nav>"), "HTML without a main text"),
        (page("<div>" * 1_001 + "x"), "nested more than 1,000 deep"),
        (page("<p>" + "x" * (1 << 24)), "more than 16,777,216 characters"),
        (page("<p>a" * 500_001), "more than 500,000 tags"),
    ],
)
def test_a_page_that_no_text_can_be_taken_from_is_an_error(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "it.txt").write_text(text)
    with pytest.raises(CorpusError, match=rf"it\.txt .*{said}"):
        added(tmp_path)


def test_without_the_extra_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resiliparse", None)
    monkeypatch.setitem(sys.modules, "resiliparse.extract.html2text", None)
    (tmp_path / "it.txt").write_text(page(ARTICLE))
    with pytest.raises(CorpusError, match=r"it\.txt needs the resiliparse library: .*pip install .*\[html\]"):
        added(tmp_path)
    with pytest.raises(CorpusError, match=r"it\.epub.*needs the resiliparse library"):
        added(tmp_path, source=epub(tmp_path / "it.epub"))


def test_a_book_in_a_corpus_of_plain_text_is_an_error_that_names_the_format(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r'it\.epub is an EPUB book.*format = "epub"'):
        list(raw_texts(epub(tmp_path / "it.epub"), "it.epub"))


@pytest.mark.parametrize(
    "fields", [{"source": {"synthetic": 9}}, {"rows": {"format": "csv"}}, {"source": {"dataset": "d"}}]
)
def test_a_format_of_text_goes_with_files_and_not_with_rows(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r'format = "html" needs a source with files'):
        CorpusSpec.model_validate({"name": "it", "title": "It", "source": {"path": "x"}, "format": "html"} | fields)
