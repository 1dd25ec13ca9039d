"""Decoding of UTF-8 files, with errors that name the file, the byte and the likely encoding."""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bardflow.sources.spec import CorpusError

_BLOCK_BYTES = 1 << 18
_GUESS_BYTES = 1 << 16

# The first bytes of formats that are not text.
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a zip archive (or a file built as one: docx, epub, xlsx)", "unpack it and give the text inside"),
    (b"PK\x05\x06", "an empty zip archive", "give a text file"),
    (b"\x1f\x8b", "gzip-compressed data", "unpack it with `gzip -d`"),
    (b"BZh", "bzip2-compressed data", "unpack it with `bzip2 -d`"),
    (b"\xfd7zXZ\x00", "xz-compressed data", "unpack it with `xz -d`"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data", "unpack it with `zstd -d`"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and give the text inside"),
    (b"%PDF-", "a PDF file", "turn it into text first, for example with `pdftotext`"),
    (b"PAR1", "a Parquet file", 'read it as a dataset: dataset = "parquet", data_files = "…"'),
    (b"\x89PNG", "a PNG image", "give a text file"),
    (b"\xff\xd8\xff", "a JPEG image", "give a text file"),
    (b"\x7fELF", "a program", "give a text file"),
    (b"SQLite format 3\x00", "an SQLite database", "export the text first"),
    (b"{\\rtf", "an RTF document", "save it as plain text"),
)

# Byte-order marks, longest first: UTF-32's little-endian one starts with UTF-16's.
_MARKS: tuple[tuple[bytes, str], ...] = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def decoded(path: Path, name: str) -> Iterator[str]:
    """The text of a UTF-8 file in blocks, unchanged (with a byte-order mark and line ends).

    `name` is the file's name in errors. Raises CorpusError for an archive, a binary file or another encoding.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0  # of the block's first byte in the file
    with path.open("rb") as file:
        block = file.read(_BLOCK_BYTES)
        _refuse_signatures(block, name)
        while block:
            carried = len(decoder.getstate()[0])  # the first bytes of a character that the last block ended in
            following = file.read(_BLOCK_BYTES)
            nul = block.find(b"\0")
            try:
                # Text before a NUL is decoded first, so that the error names the first wrong byte.
                text = decoder.decode(block if nul < 0 else block[:nul], final=nul >= 0 or not following)
            except UnicodeDecodeError as error:
                raise CorpusError(_encoding_message(name, offset - carried + error.start, path)) from error
            if nul >= 0:
                raise CorpusError(_nul_message(name, offset + nul, path))
            if text:
                yield text
            offset += len(block)
            block = following


def guessed_encoding(data: bytes) -> str | None:
    """The likely encoding of bytes that are not UTF-8 (a name that iconv knows), or None if nothing fits."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    if data.count(0) > len(data) // 5:
        # ASCII in UTF-16 has zero bytes at even or at odd offsets only.
        return "UTF-16LE" if data[1::2].count(0) > data[0::2].count(0) else "UTF-16BE"
    scores = {encoding: _likeness(data, encoding) for encoding in _COMMON_LEADS}
    best = max(scores, key=lambda encoding: scores[encoding])
    # Below this share, none of these encodings is likely.
    if scores[best] >= 2 / 3:
        return best
    high = sum(byte >= 0x80 for byte in data)
    return "WINDOWS-1252" if high < len(data) // 4 and b"\0" not in data else None


# Lead bytes of the most common characters: level 1 of GB 2312, Big5 and JIS X 0208 (with kana and punctuation), and the
# Hangul syllables of KS X 1001. Narrower ranges come first, because they are stronger evidence.
_COMMON_LEADS: dict[str, tuple[str, tuple[tuple[int, int], ...]]] = {
    "EUC-KR": ("euc_kr", ((0xA1, 0xA3), (0xB0, 0xC8))),
    "EUC-JP": ("euc_jp", ((0xA1, 0xA5), (0xB0, 0xCF))),
    "SHIFT_JIS": ("shift_jis", ((0x81, 0x83), (0x88, 0x98))),
    "BIG5": ("big5", ((0xA1, 0xA2), (0xA4, 0xC6))),
    "GB18030": ("gb2312", ((0xA1, 0xA3), (0xB0, 0xD7))),
}


def _likeness(data: bytes, encoding: str) -> float:
    """The share of the non-ASCII characters that would be common ones if `data` were written in `encoding`."""
    codec, common = _COMMON_LEADS[encoding]
    text = data.decode(codec, errors="replace")
    foreign = [character for character in text if character >= "\x80"]
    if not foreign:
        return 0.0
    leads = (character.encode(codec, errors="replace")[0] for character in foreign)
    return sum(any(low <= lead <= high for low, high in common) for lead in leads) / len(foreign)


def _refuse_signatures(head: bytes, name: str) -> None:
    for signature, what, remedy in _SIGNATURES:
        if head.startswith(signature):
            raise CorpusError(f"{name} is {what}, not text (bytes 0 to {len(signature) - 1}); {remedy}.")


def _nul_message(name: str, offset: int, path: Path) -> str:
    with path.open("rb") as file:
        guess = guessed_encoding(file.read(_GUESS_BYTES))
    if guess is not None and guess.startswith("UTF"):
        return f"{name} is not UTF-8: byte {offset:,} is NUL. {_conversion(guess, name)}"
    return f"{name} is a binary file: byte {offset:,} is NUL, which no text holds. Give a UTF-8 text file."


def _encoding_message(name: str, offset: int, path: Path) -> str:
    with path.open("rb") as file:
        value = _read_at(file, offset, 1)
        sample = _read_at(file, 0, _GUESS_BYTES)
        if offset > _GUESS_BYTES // 2:
            # Around the bad byte, from the start of a line, so that no character is cut.
            sample = _read_at(file, offset - _GUESS_BYTES // 2, _GUESS_BYTES)
            sample = sample[sample.find(b"\n") + 1 :]
    guess = guessed_encoding(sample)
    advice = _conversion(guess, name) if guess else "It fits no encoding known here; it may be damaged or binary."
    return f"{name} is not UTF-8: byte {offset:,} (0x{value.hex()}) does not belong there. {advice}"


def _read_at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _conversion(guess: str, name: str) -> str:
    return f"It looks like {guess}; convert it with `iconv -f {guess} -t UTF-8 {name} > utf8.txt`."
