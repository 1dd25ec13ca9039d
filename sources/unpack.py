"""Compressed files and zip archives as streams of bytes, with limits on their unpacked size."""

import bz2
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from bardflow.sources.spec import CorpusError

# Text compresses to a tenth, repetitive logs to a fiftieth. A larger ratio is refused beyond the first megabytes.
MOST_RATIO = 200
FREE_BYTES = 16 << 20
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:")
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


class RawText(NamedTuple):
    """A file of a corpus: its name for messages, and a function that opens its unpacked bytes."""

    name: str
    open: Callable[[], AbstractContextManager[Any]]


def _zstd(path: Path) -> Any:
    import pyarrow as pa  # takes 0.1 s to import

    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


# The first bytes of archives and compressed data. In bzip2, a block or the end follows the level.
ZIP = re.compile(rb"PK\x03\x04")
GZIP = re.compile(rb"\x1f\x8b")
BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
XZ = re.compile(rb"\xfd7zXZ\x00")
ZSTD = re.compile(rb"\x28\xb5\x2f\xfd")
_COMPRESSIONS: tuple[tuple[re.Pattern[bytes], str, Callable[[Path], Any]], ...] = (
    (GZIP, ".gz", gzip.open),
    (BZIP2, ".bz2", bz2.open),
    (XZ, ".xz", lzma.open),
    (ZSTD, ".zst", _zstd),
)


def raw_texts(path: Path, name: str) -> Iterator[RawText]:
    """The file itself, its content if it is compressed, or the members of a zip archive in the order of their names.

    Formats are recognised by their first bytes.

    Raises:
        CorpusError: an archive is damaged, encrypted, no archive of texts, or has a member outside of it. Reading the
            streams raises it if the unpacked size exceeds 200 times the packed one, beyond 16 MiB.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if ZIP.match(head):
        yield from _members(path, name)
        return
    for signature, suffix, unpacked in _COMPRESSIONS:
        if signature.match(head):
            opened = partial(_limited, partial(unpacked, path), path.stat().st_size, name)
            yield RawText(name.removesuffix(suffix), opened)
            return
    yield RawText(name, partial(path.open, "rb"))


def archive_files(path: Path, name: str) -> dict[str, RawText]:
    """The files of a zip archive by their names, in the order of these.

    Raises CorpusError for an archive that is damaged, encrypted, or has a member outside of it.
    """
    try:
        with _unpacking(name), zipfile.ZipFile(path) as archive:
            members = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename)
    except NotImplementedError as error:  # a version of the format that zipfile does not know
        raise CorpusError(f"{name} cannot be unpacked: {error}. Unpack it and give the text inside.") from error
    files = {}
    for info in members:
        if ".." in _parts(info.filename) or _ABSOLUTE.match(info.filename):
            raise CorpusError(f"{name} has a member outside of the archive: {info.filename!r}. Do not use it.")
        if info.flag_bits & 0x41:
            raise CorpusError(f"{name} is encrypted ({info.filename}); unpack it and give the text inside.")
        if info.compress_type not in _PACKINGS or info.flag_bits & 0x20:
            raise CorpusError(f"{name} is compressed in an unusual way ({info.filename}); unpack it and give the text.")
        member = f"{name}/{info.filename}"
        opened = partial(_limited, partial(_member, path, info), info.compress_size, member)
        files[info.filename] = RawText(member, opened)
    return files


def _parts(member: str) -> tuple[str, ...]:
    return PurePosixPath(member.replace("\\", "/")).parts


def _members(path: Path, name: str) -> Iterator[RawText]:
    files = archive_files(path, name)
    if "META-INF/container.xml" in files:
        raise CorpusError(f'{name} is an EPUB book, not text; set format = "epub", and leave encoding and [rows] out.')
    if "[Content_Types].xml" in files or "mimetype" in files:
        what = "an Office document" if "[Content_Types].xml" in files else "an EPUB or OpenDocument file"
        raise CorpusError(f"{name} is {what}, not text; save it as plain text (UTF-8) first.")
    texts = [file for member, file in files.items() if not any(p.startswith((".", "__MACOSX")) for p in _parts(member))]
    if not texts:
        raise CorpusError(f"{name} is a zip archive without files.")
    yield from texts


def _member(path: Path, info: zipfile.ZipInfo) -> Any:
    with zipfile.ZipFile(path) as archive:
        return archive.open(info)  # it keeps the archive's file open until it is closed


class _Bounded(io.RawIOBase):
    """A stream that stops at a limit of unpacked bytes, with errors of its format as CorpusError."""

    def __init__(self, stream: Any, packed: int, name: str) -> None:
        self._stream, self._name, self._packed = stream, name, packed
        self._left = max(FREE_BYTES, MOST_RATIO * packed)

    def read(self, size: int = -1) -> bytes:
        with _unpacking(self._name):
            data: bytes = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise CorpusError(
                f"{self._name} unpacks to more than {MOST_RATIO} times its {self._packed:,} bytes, unlike text; if it "
                "is text, unpack it and give the unpacked file"
            )
        return data


@contextmanager
def _limited(opened: Callable[[], Any], packed: int, name: str) -> Iterator[_Bounded]:
    with _unpacking(name):
        stream = opened()
    with stream as unpacked:
        yield _Bounded(unpacked, packed, name)


@contextmanager
def _unpacking(name: str) -> Iterator[None]:
    """Turn errors of a format into CorpusError; errors of the disk, which have a number, stay as they are."""
    try:
        yield
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise CorpusError(f"{name} is damaged: {error}. Fetch or make it again.") from error
