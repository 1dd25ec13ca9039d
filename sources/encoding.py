"""Decoding of text files in the encoding that their corpus declares, and detection of an encoding for a new corpus."""

import codecs
import re
from collections.abc import Iterator
from functools import cache
from typing import BinaryIO, NamedTuple

from bardflow.sources.markup import declared_encoding
from bardflow.sources.spec import CorpusError, encoding_name
from bardflow.sources.unpack import BZIP2, GZIP, XZ, ZIP, ZSTD, RawText

_BLOCK_BYTES = 1 << 18
_SAMPLE_BYTES = 1 << 16

# Formats that are not text, by their first bytes. Text may begin with BZh, or have "mustard" where a tar archive has
# "ustar", so these two are recognised by more bytes.
_SIGNATURES: tuple[tuple[re.Pattern[bytes], str, str], ...] = (
    (ZIP, "a zip archive", "unpack it and give the text inside"),
    (re.compile(rb"PK\x05\x06"), "an empty zip archive", "give a text file"),
    (GZIP, "gzip-compressed data within other compressed data", "unpack it once"),
    (BZIP2, "bzip2-compressed data within other compressed data", "unpack it once"),
    (XZ, "xz-compressed data within other compressed data", "unpack it once"),
    (ZSTD, "zstd-compressed data within other compressed data", "unpack it once"),
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), "a 7z archive", "unpack it and give the text inside"),
    (re.compile(rb"%PDF-"), "a PDF file", "turn it into text first, for example with `pdftotext`"),
    (re.compile(rb"PAR1"), "a Parquet file", 'set format = "parquet" and the column under [rows]'),
    (re.compile(rb"\x89PNG"), "a PNG image", "give a text file"),
    (re.compile(rb"\xff\xd8\xff"), "a JPEG image", "give a text file"),
    (re.compile(rb"\x7fELF"), "a program", "give a text file"),
    (re.compile(rb"SQLite format 3\x00"), "an SQLite database", "export the text first"),
    (re.compile(rb"{\\rtf"), "an RTF document", "save it as plain text"),
    (re.compile(rb"(?s:.{257})(ustar(?:\x00|  \x00))"), "a tar archive", "unpack it and give the folder"),
)

# Byte-order marks, longest first: UTF-32's little-endian one starts with UTF-16's.
_MARKS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8"),
)

# The encodings that are detected. If several give the same text, the first of them is named.
_COMMON = (
    *("windows-1252", "windows-1251", "windows-1250", "gb18030", "big5", "shift_jis", "cp932", "euc-jp", "euc-kr"),
    *("cp949", "koi8-r", "koi8-u", "iso-8859-1", "iso-8859-2", "iso-8859-5", "iso-8859-7", "iso-8859-15"),
    *("windows-1253", "windows-1254", "windows-1255", "windows-1256", "windows-1257", "windows-1258", "cp866"),
    *("cp437", "cp850", "mac-roman", "iso2022-jp", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "tis-620"),
)


class Detected(NamedTuple):
    """A detected encoding, other encodings in which the bytes are also plausible text, and a sample line in it.

    `certain` means that no other encoding is possible: the bytes are UTF-8, or start with a byte-order mark.
    """

    encoding: str
    certain: bool
    others: tuple[str, ...]
    line: str


class _WrongByte(Exception):
    """A byte that does not belong there in an encoding, by its offset in the file; `nul` says that it is NUL."""

    def __init__(self, offset: int, *, nul: bool) -> None:
        self.offset, self.nul = offset, nul


def decoded(file: RawText, encoding: str = "utf-8") -> Iterator[str]:
    """The text of a file in blocks, unchanged (with a byte-order mark in UTF-8, and with line ends).

    Raises CorpusError for an archive, a binary file, or bytes that are not in this encoding.
    """
    try:
        yield from _blocks(file, encoding)
    except _WrongByte as wrong:
        message = _nul_message if wrong.nul else _encoding_message
        raise CorpusError(message(file, encoding, wrong.offset)) from wrong


def _blocks(file: RawText, encoding: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)()
    # In UTF-16 and UTF-32, characters contain NUL bytes.
    nul_is_binary = not encoding_name(encoding).startswith(("utf-16", "utf-32"))
    offset = 0  # of the block's first byte in the file
    with file.open() as stream:
        block = stream.read(_BLOCK_BYTES)
        _refuse_signatures(block, file.name)
        while block:
            carried = len(decoder.getstate()[0])  # the first bytes of a character that the last block ended in
            following = stream.read(_BLOCK_BYTES)
            nul = block.find(b"\0") if nul_is_binary else -1
            try:
                # Text before a NUL is decoded first, so that the error names the first wrong byte.
                text = decoder.decode(block if nul < 0 else block[:nul], final=nul >= 0 or not following)
            except UnicodeDecodeError as error:
                raise _WrongByte(offset - carried + error.start, nul=False) from error
            if nul >= 0:
                raise _WrongByte(offset + nul, nul=True)
            if "\0" in text:
                before = len(text[: text.index("\0")].encode(encoding))
                raise _WrongByte(offset - carried + before, nul=True)
            if text:
                yield text
            offset += len(block)
            block = following


def detect(data: bytes) -> Detected | None:
    """The likely encoding of a sample of bytes, by charset-normalizer; None if nothing fits."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return Detected(encoding, True, (), _telling_line(data.decode(encoding, "replace")))
    if b"\0" not in data and b"\x1b$" not in data:  # ISO-2022-JP is ASCII with escape sequences
        try:
            return Detected("utf-8", True, (), _telling_line(codecs.getincrementaldecoder("utf-8")().decode(data)))
        except UnicodeDecodeError:
            text = codecs.getincrementaldecoder("utf-8")("replace").decode(data)
        # Text in another encoding has many bytes that are wrong in UTF-8; damaged UTF-8 has few of them.
        wrong = text.count("\ufffd")
        if 10 * wrong < sum(character > "\x7f" for character in text):
            return Detected("utf-8", False, (), _telling_line(text))
    from charset_normalizer import from_bytes  # takes 70 ms to import

    sample = data
    if b"\0" not in data:
        # A sample that ends within a character is not valid in multi-byte encodings; a header in ASCII tells nothing.
        end = data.rfind(b"\n") + 1
        lines = (data[:end] if end > len(data) // 2 else data).splitlines(keepends=True)
        first = next((at for at, line in enumerate(lines) if not line.isascii()), 0)
        sample = b"".join(lines[first:])
    found = from_bytes(sample, cp_isolation=[codecs.lookup(name).name for name in _COMMON])
    best = found.best()
    if best is None:
        return None
    text = str(best)
    others = dict.fromkeys(_most_common(sample, str(match), match.encoding) for match in found if str(match) != text)
    encoding = _most_common(sample, text, best.encoding)
    return Detected(encoding, False, tuple(other for other in others if other != encoding)[:3], _telling_line(text))


def detect_file(file: RawText) -> Detected | None:
    """The likely encoding of a file: of its start, or of the first place that is not UTF-8.

    An HTML file that is not UTF-8 has the encoding that it declares, if its bytes are in it.

    Raises CorpusError for an archive or a binary file.
    """
    with file.open() as stream:
        head = stream.read(_SAMPLE_BYTES)
    found = detect(head)
    wrong = _first_wrong(file, "utf-8") if found is not None and found.certain and found.encoding == "utf-8" else None
    if found is not None and found.certain and wrong is None:
        return found
    declared = declared_encoding(head)
    if declared is not None and _is_encoding(declared) and _first_wrong(file, declared) is None:
        return Detected(encoding_name(declared), False, (), _telling_line(head.decode(declared, "ignore")))
    if wrong is None:
        return found
    with file.open() as stream:
        return detect(_around(stream, wrong)[1])


def _first_wrong(file: RawText, encoding: str) -> int | None:
    """The offset of the first byte that does not belong there in an encoding; None if there is none."""
    try:
        for _ in _blocks(file, encoding):
            pass
    except _WrongByte as wrong:
        return wrong.offset
    return None


def _is_encoding(name: str) -> bool:
    try:
        return bool(encoding_name(name))
    except LookupError:
        return False


def _most_common(data: bytes, text: str, encoding: str) -> str:
    """The most common encoding in which the bytes are the same text."""
    for name in _COMMON:
        try:
            if data.decode(name) == text:
                return encoding_name(name)
        except UnicodeDecodeError:
            continue
    return encoding_name(encoding)


def _telling_line(text: str) -> str:
    """The first line with characters outside ASCII, else the first line with text, at most 60 characters."""
    lines = [line.strip("\ufeff \t\r") for line in text.split("\n")]
    return next((line for line in lines if not line.isascii()), next((line for line in lines if line), ""))[:60]


def _refuse_signatures(head: bytes, name: str) -> None:
    for signature, what, remedy in _SIGNATURES:
        if found := signature.match(head):
            first, after = found.span(found.lastindex or 0)
            raise CorpusError(f"{name} is {what}, not text (bytes {first} to {after - 1}); {remedy}.")


def _nul_message(file: RawText, encoding: str, offset: int) -> str:
    with file.open() as stream:
        found = detect(stream.read(_SAMPLE_BYTES))
    if found is not None and found.encoding.startswith(("utf-16", "utf-32")) and found.encoding != encoding:
        return f"{file.name} is not {_shown(encoding)}: byte {offset:,} is NUL. {_advice(found)}"
    return f"{file.name} is a binary file: byte {offset:,} is NUL, which no text holds. Give a text file."


def _encoding_message(file: RawText, encoding: str, offset: int) -> str:
    with file.open() as stream:
        value, sample = _around(stream, offset)
    found = detect(sample)
    advice = "It fits no known encoding; it may be damaged or binary."
    if found is not None and found.encoding != encoding_name(encoding):
        advice = _advice(found)
    return f"{file.name} is not {_shown(encoding)}: byte {offset:,} (0x{value.hex()}) does not belong there. {advice}"


def _around(stream: BinaryIO, offset: int) -> tuple[bytes, bytes]:
    """The byte at an offset, and a sample of bytes around it from the start of a line."""
    start = max(0, offset - _SAMPLE_BYTES // 2)
    passed = 0
    while passed < start:  # compressed streams cannot seek
        passed += len(stream.read(min(_BLOCK_BYTES, start - passed)))
    sample = stream.read(_SAMPLE_BYTES)
    value = sample[offset - start : offset - start + 1]
    return value, sample if not start else sample[sample.find(b"\n") + 1 :]


@cache
def _shown(encoding: str) -> str:
    return encoding_name(encoding).upper() if encoding_name(encoding).startswith("utf") else encoding_name(encoding)


def _advice(found: Detected) -> str:
    return f'It looks like {found.encoding}: set encoding = "{found.encoding}" in the corpus file.'
