"""Compressed files and zip archives as streams of bytes, with limits on their unpacked size."""

import bz2
import gzip
import io
import lzma
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
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError)


class RawText(NamedTuple):
    """A file of a corpus: its name for messages, and a function that opens its unpacked bytes."""

    name: str
    open: Callable[[], AbstractContextManager[Any]]


def _zstd(path: Path) -> Any:
    import pyarrow as pa  # takes 0.1 s to import

    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


_COMPRESSIONS: tuple[tuple[bytes, str, Callable[[Path], Any]], ...] = (
    (b"\x1f\x8b", ".gz", gzip.open),
    (b"BZh", ".bz2", bz2.open),
    (b"\xfd7zXZ\x00", ".xz", lzma.open),
    (b"\x28\xb5\x2f\xfd", ".zst", _zstd),
)


def raw_texts(path: Path, name: str) -> Iterator[RawText]:
    """The file itself, its content if it is compressed, or the members of a zip archive in the order of their names.

    Formats are recognised by their first bytes.

    Raises:
        CorpusError: an archive is damaged, encrypted, no archive of texts, or has a member outside of it. Reading the
            streams raises it if the unpacked size exceeds 200 times the packed one, beyond 16 MiB.
    """
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(b"PK\x03\x04"):
        yield from _members(path, name)
        return
    for signature, suffix, unpacked in _COMPRESSIONS:
        if head.startswith(signature):
            opened = partial(_limited, partial(unpacked, path), path.stat().st_size, name)
            yield RawText(name.removesuffix(suffix), opened)
            return
    yield RawText(name, partial(path.open, "rb"))


def _members(path: Path, name: str) -> Iterator[RawText]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename)
    except _DAMAGE as error:
        raise CorpusError(f"{name} is a damaged zip archive: {error}. Fetch or make it again.") from error
    names = {info.filename for info in members}
    if "[Content_Types].xml" in names or "mimetype" in names:
        what = "an Office document" if "[Content_Types].xml" in names else "an EPUB or OpenDocument file"
        raise CorpusError(f"{name} is {what}, not text; save it as plain text (UTF-8) first.")
    texts = 0
    for info in members:
        parts = PurePosixPath(info.filename.replace("\\", "/")).parts
        if ".." in parts or info.filename.startswith(("/", "\\")) or ":" in parts[0]:
            raise CorpusError(f"{name} has a member outside of the archive: {info.filename!r}. Do not use it.")
        if info.flag_bits & 1:
            raise CorpusError(f"{name} is encrypted ({info.filename}); unpack it and give the text inside.")
        if not any(part.startswith((".", "__MACOSX")) for part in parts):
            texts += 1
            member = f"{name}/{info.filename}"
            yield RawText(member, partial(_limited, partial(_member, path, info), info.compress_size, member))
    if not texts:
        raise CorpusError(f"{name} is a zip archive without files.")


@contextmanager
def _member(path: Path, info: zipfile.ZipInfo) -> Iterator[Any]:
    with zipfile.ZipFile(path) as archive, archive.open(info) as file:
        yield file


class _Bounded(io.RawIOBase):
    """A stream that stops at a limit of unpacked bytes, with errors of its format as CorpusError."""

    def __init__(self, stream: Any, packed: int, name: str) -> None:
        self._stream, self._name, self._packed = stream, name, packed
        self._left = max(FREE_BYTES, MOST_RATIO * packed)

    def read(self, size: int = -1) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except _DAMAGE as error:
            raise CorpusError(f"{self._name} is damaged: {error}. Fetch or make it again.") from error
        self._left -= len(data)
        if self._left < 0:
            raise CorpusError(
                f"{self._name} unpacks to more than {MOST_RATIO} times its {self._packed:,} bytes, unlike text; if it "
                "is text, unpack it and give the unpacked file"
            )
        return data


@contextmanager
def _limited(opened: Callable[[], Any], packed: int, name: str) -> Iterator[_Bounded]:
    try:
        with opened() as stream:
            yield _Bounded(stream, packed, name)
    except _DAMAGE as error:
        raise CorpusError(f"{name} is damaged: {error}. Fetch or make it again.") from error
