"""The chapters of an EPUB book, in the order in which they are read."""

import posixpath
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from bardflow.sources.encoding import decoded
from bardflow.sources.markup import declared_encoding, html_text
from bardflow.sources.spec import CorpusError
from bardflow.sources.unpack import RawText, archive_files

# A list of the book's files; real ones have at most some 100 kB.
_LARGEST_LIST = 8 << 20
_HEAD_BYTES = 1024
_PACKAGE = "{http://www.idpf.org/2007/opf}"


def is_epub(path: Path) -> bool:
    """Whether a file is an EPUB book: a zip archive with `META-INF/container.xml`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "META-INF/container.xml" in archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError):
        return False


def chapters(path: Path, name: str) -> Iterator[str]:
    """The text of each chapter of a book, in the order of its spine, without the table of contents and empty pages.

    Raises CorpusError for a file that is no EPUB, is damaged, encrypted or unpacks to too much, has a member outside of
    the archive or a chapter that is missing; and if resiliparse is not installed.
    """
    if not is_epub(path):
        raise CorpusError(f'{name} is not an EPUB, as format = "epub" in the corpus file says; leave the file out.')
    files = archive_files(path, name)
    container = _xml(files, "META-INF/container.xml", name)
    package = next((str(file.get("full-path")) for file in container.iter() if file.tag.endswith("}rootfile")), "")
    book = _xml(files, package, name)
    items = {item.get("id"): item for item in book.iter(f"{_PACKAGE}item")}
    locked = _locked(files, name)
    for reference in book.iter(f"{_PACKAGE}itemref"):
        item = items.get(reference.get("idref"))
        if item is None:
            raise CorpusError(f"{name} is damaged: its spine names {reference.get('idref')!r}, which is no file of it.")
        if reference.get("linear") == "no" or "nav" in (item.get("properties") or "").split():
            continue
        if item.get("media-type") not in ("application/xhtml+xml", "text/html"):
            continue
        place = posixpath.normpath(posixpath.join(posixpath.dirname(package), unquote(item.get("href") or "")))
        if place in locked:
            raise CorpusError(f"{name} is encrypted (DRM); give a book that is not.")
        file = _file(files, place, name)
        text = html_text(decoded(file, _encoding(file)), file.name, main=False)
        if text:
            yield text


def _file(files: dict[str, RawText], place: str, name: str) -> RawText:
    if place not in files:
        raise CorpusError(f"{name} is damaged: it has no file {place!r}.")
    return files[place]


def _xml(files: dict[str, RawText], place: str, name: str) -> ElementTree.Element:
    with _file(files, place, name).open() as stream:
        data = stream.read(_LARGEST_LIST + 1)
    if len(data) > _LARGEST_LIST or b"<!ENTITY" in data:
        raise CorpusError(f"{name} has a file {place!r} that is unlike that of a book; it is not read.")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise CorpusError(f"{name} is damaged: {place!r} is not XML: {error}.") from error


def _locked(files: dict[str, RawText], name: str) -> set[str]:
    """The encrypted files of the book. Fonts often are; chapters only with DRM."""
    if "META-INF/encryption.xml" not in files:
        return set()
    found = _xml(files, "META-INF/encryption.xml", name).iter()
    return {unquote(str(entry.get("URI"))) for entry in found if entry.tag.endswith("}CipherReference")}


def _encoding(file: RawText) -> str:
    """UTF-8 or UTF-16, as EPUB demands, or what an older book declares."""
    with file.open() as stream:
        head = stream.read(_HEAD_BYTES)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    return declared_encoding(head) or "utf-8"
