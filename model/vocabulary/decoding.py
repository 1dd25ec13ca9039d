"""From token ids to text, and the bytes that each token spells."""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from bardflow.model.vocabulary.spec import BYTES, VocabularyError

MOST_IDS = 1 << 24  # there is a list of all ids
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(BYTES))  # the names in the library's byte fallback


class Spelling(NamedTuple):
    """What the tokens of a tokenizer spell.

    `tokens` has the UTF-8 bytes of each token by id, empty where an id has no token. `byte_level` tokens are bytes, and
    bytes of neighbours form characters. `fallback` has the ids of the tokens `<0x00>` to `<0xFF>` of a byte fallback.
    """

    tokens: tuple[bytes, ...]
    byte_level: bool
    fallback: frozenset[int]


@lru_cache(maxsize=8)
def spelling(tokenizer: Tokenizer) -> Spelling:
    """Return what each token spells alone, from the tokenizer's decoder. The tokenizer must not change afterwards."""
    vocab = tokenizer.get_vocab()
    if (largest := max(vocab.values(), default=-1)) >= MOST_IDS:
        raise VocabularyError(f"a token has the id {largest:,}, and ids below {MOST_IDS:,} are read; number them anew")
    tokens = [b""] * (largest + 1)
    steps = decoder_steps(tokenizer)
    kinds = [step["type"] for step in steps]
    if "ByteLevel" in kinds:
        byte_of = _byte_of_sign()
        for token, i in vocab.items():
            tokens[i] = _bytes_of(_replaced(token, steps[: kinds.index("ByteLevel")]), byte_of)
        return Spelling(tuple(tokens), True, frozenset())
    byte_of_name = {name: byte for byte, name in enumerate(BYTE_TOKENS if "ByteFallback" in kinds else ())}
    ids = list(vocab.values())
    for i, text in zip(ids, tokenizer.decode_batch([[i] for i in ids], skip_special_tokens=False), strict=True):
        tokens[i] = text.encode()
    fallback = {vocab[name]: byte for name, byte in byte_of_name.items() if name in vocab}
    for i, byte in fallback.items():
        tokens[i] = bytes([byte])
    return Spelling(tuple(tokens), False, frozenset(fallback))


def decoder_steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return the steps of the tokenizer's decoder as in `tokenizer.json`; none if it has no decoder."""
    if tokenizer.decoder is None:
        return []
    found: list[dict[str, Any]] = [json.loads(tokenizer.decoder.__getstate__())]
    while any(step["type"] == "Sequence" for step in found):
        found = [one for step in found for one in (step["decoders"] if step["type"] == "Sequence" else [step])]
    return found


def _replaced(token: str, steps: list[dict[str, Any]]) -> str:
    for step in steps:
        if step["type"] == "Replace" and "String" in step["pattern"]:
            token = token.replace(step["pattern"]["String"], step["content"])
    return token


def _bytes_of(token: str, byte_of: dict[str, int]) -> bytes:
    # As the library does: a token with a character that stands for no byte is text, such as an added token.
    try:
        return bytes(byte_of[sign] for sign in token)
    except KeyError:
        return token.encode()


def _byte_of_sign() -> dict[str, int]:
    """Return GPT-2's characters for bytes: a printable Latin-1 character for itself, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(BYTES + n): byte for n, byte in enumerate(others)}


def spellings(tokenizer: Tokenizer) -> list[bytes]:
    """Return the UTF-8 bytes of each token, by id; a token may begin or end within a character.

    An id without a token has no bytes.
    """
    return list(spelling(tokenizer).tokens)


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Return the number of ids: the largest id and one. A tokenizer of another program may have ids without a token."""
    return len(spelling(tokenizer).tokens)


def decode(tokenizer: Tokenizer, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
    """Decode token ids, shape [T]. Bytes that are not a whole character (cut off or generated) become U+FFFD.

    Raises:
        VocabularyError: an id is not in the vocabulary.
    """
    array = np.asarray(ids, np.int64)
    size = vocabulary_size(tokenizer)
    if array.size and not (array.min() >= 0 and array.max() < size):
        raise _no_such_id(tokenizer, int(array[(array < 0) | (array >= size)][0]))
    return tokenizer.decode(array.tolist(), skip_special_tokens=False)


def _no_such_id(tokenizer: Tokenizer, token: int) -> VocabularyError:
    return VocabularyError(
        f"token id {token} was given; this vocabulary's ids are 0 to {vocabulary_size(tokenizer) - 1}."
    )


class TextStream:
    """A streaming decoder: it returns text as soon as no later token can change it. In all, it equals `decode`.

    Pending is the beginning of a character or, in a vocabulary with byte tokens, a run of these. The library decodes
    such a run as a whole: unless all its bytes form whole characters, each becomes U+FFFD. (Its `DecodeStream`
    returns the first characters of a run too early, and raises an error if the rest are not characters.)
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._spelling = spelling(tokenizer)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._run: list[int] = []

    @property
    def at_least(self) -> int:
        """The least number of characters that the pending tokens will become."""
        return -(-len(self._run) // 4)

    def take(self, token: int) -> str:
        """Add a token and return the text that became final; often empty.

        Raises:
            VocabularyError: the id is not in the vocabulary.
        """
        if not 0 <= token < len(self._spelling.tokens):
            raise _no_such_id(self._tokenizer, token)
        spelled = self._spelling.tokens[token]
        if self._spelling.byte_level:
            return self._utf8.decode(spelled)
        if not spelled:
            return ""  # an id without a token, or a token that spells nothing
        self._run.append(token)
        if token in self._spelling.fallback:
            return ""
        return self._decode_run()

    def end(self) -> str:
        """Return the text of the pending tokens, and reset the stream."""
        return self._utf8.decode(b"", final=True) + self._decode_run()

    def _decode_run(self) -> str:
        run, self._run = self._run, []
        return decode(self._tokenizer, run)
