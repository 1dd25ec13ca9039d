"""From text to token ids, in bounded memory; every encoding is checked to spell the text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import chain, groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from bardflow.code_points import code_points
from bardflow.model.vocabulary.decoding import Spelling, decoder_steps, spelling, vocabulary_size
from bardflow.model.vocabulary.spec import NotLossless, NotText, UnknownCharacter, VocabularyError, library_errors
from bardflow.model.vocabulary.words import pages

# Text is encoded in batches of pages with about _BATCH characters. An encoding takes about 90 bytes for each character
# while in memory, and 64 pages keep the cores busy.
_BATCH = 1 << 20
# An error about a text shows this many characters of it.
_SHOWN = 40

TokenIds = npt.NDArray[np.unsignedinteger]
TokenType = np.dtype[np.unsignedinteger]


def token_dtype(size: int) -> TokenType:
    """Return the smallest unsigned type of 2 or 4 bytes for the ids of a vocabulary of `size` tokens."""
    return np.dtype(np.uint16) if size <= 1 << 16 else np.dtype(np.uint32)


def encode(tokenizer: Tokenizer, pieces: Iterable[str]) -> Iterator[TokenIds]:
    """Yield an array of token ids for each piece of text, in order, of type `token_dtype` for the vocabulary's size.

    The ids spell the text: joined, the bytes of their tokens (`spellings`) are the text's. Only two batches and the
    current piece are in memory. If the tokenizer was made by `learn`, the pieces have the same ids as the whole text
    if each cut is just after a newline that a non-space character follows (`str.isspace`); for "char", after any cut.
    A `tokenizer.json` of another program may have other ids near a cut.

    Raises:
        UnknownCharacter: the vocabulary cannot spell a character.
        NotLossless: the tokenizer changes or drops a part of the text.
        NotText: the text has half of a surrogate pair.
    """
    table = _character_ids(tokenizer)
    if table is not None:
        yield from _look_up(tokenizer, table, pieces)
        return
    for _, arrays in groupby(_encoded(tokenizer, enumerate(pieces)), key=itemgetter(0)):
        yield np.concatenate([ids for _, ids in arrays])


def _encoded(tokenizer: Tokenizer, pieces: Iterable[tuple[int, str]]) -> Iterator[tuple[int, TokenIds]]:
    """Encode numbered pieces with the library, which uses all cores: the next batch while the last one is checked."""
    dtype, spelled = token_dtype(vocabulary_size(tokenizer)), spelling(tokenizer)
    words = tokenizer.pre_tokenizer
    read = ((number, *page) for number, piece in pieces for page in pages(words, _text(piece, number)))

    def encodings(batch: list[_Page]) -> list[Encoding]:
        with library_errors("the tokenizers library cannot encode a text with this tokenizer: {}"):
            return tokenizer.encode_batch_fast([text for _, _, text in batch], add_special_tokens=False)

    with ThreadPoolExecutor(1) as thread:
        ahead: tuple[list[_Page], Future[list[Encoding]]] | None = None
        for batch in chain(_batches(read), [None]):
            last = ahead
            ahead = None if batch is None else (batch, thread.submit(encodings, batch))
            if last is not None:
                yield from _checked(tokenizer, last[0], last[1].result(), dtype, spelled)


@lru_cache(maxsize=8)
def _character_ids(tokenizer: Tokenizer) -> npt.NDArray[np.int32] | None:
    """Return the id of each code point, -1 for those without a token, if the tokenizer takes each character alone.

    None for all other tokenizers, and for settings with which the library might do something else.
    """
    if tokenizer.pre_tokenizer is not None:
        return None  # nearly all others, of which some are large
    whole = json.loads(tokenizer.to_str())
    steps = [step["type"] for step in decoder_steps(tokenizer)]
    nothing_else = ("normalizer", "post_processor", "truncation", "padding", "added_tokens")
    settings = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges", "merges")
    model = whole["model"]
    if model["type"] != "BPE" or any(whole[part] for part in nothing_else) or any(model[name] for name in settings):
        return None
    if steps not in (["Fuse"], ["ByteFallback", "Fuse"]):
        return None
    table = np.full(sys.maxunicode + 1, -1, np.int32)
    for token, i in model["vocab"].items():
        if len(token) == 1:
            table[ord(token)] = i
    return table


def _look_up(tokenizer: Tokenizer, table: npt.NDArray[np.int32], pieces: Iterable[str]) -> Iterator[TokenIds]:
    """Encode pieces by the table; a piece that has a character without a token by the library."""
    dtype = token_dtype(vocabulary_size(tokenizer))
    for number, piece in enumerate(pieces):
        ids = table[code_points(_text(piece, number))]
        if ids.size and ids.min() < 0:
            ids = np.concatenate([page for _, page in _encoded(tokenizer, [(number, piece)])])
        yield ids.astype(dtype)


def _text(piece: str, number: int) -> str:
    try:
        piece.encode()
    except UnicodeEncodeError as error:
        raise NotText(piece[error.start], error.start, number) from error
    return piece


_Page = tuple[int, int, str]  # the piece's number, the page's offset in it, the page


def _batches(pages: Iterable[_Page]) -> Iterator[list[_Page]]:
    batch: list[_Page] = []
    held = 0
    for page in pages:
        batch.append(page)
        held += len(page[2]) + 64  # an empty piece takes memory too
        if held >= _BATCH:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _checked(
    tokenizer: Tokenizer, batch: list[_Page], encodings: list[Encoding], dtype: TokenType, spelled: Spelling
) -> Iterator[tuple[int, TokenIds]]:
    """Yield the ids of each page.

    Raises:
        UnknownCharacter, NotLossless: they do not spell the page.
    """
    for (number, offset, text), encoding in zip(batch, encodings, strict=True):
        ids = encoding.ids
        came_back = b"".join([spelled.tokens[i] for i in ids])
        if came_back != text.encode():
            raise _not_spelled(tokenizer, text, came_back, offset, number)
        yield number, np.array(ids, dtype)


def _not_spelled(tokenizer: Tokenizer, text: str, came_back: bytes, offset: int, number: int) -> VocabularyError:
    """Return the error for a page whose tokens do not spell it."""
    whole = text.encode()
    shorter = min(len(whole), len(came_back))
    same = next((i for i, (a, b) in enumerate(zip(whole, came_back, strict=False)) if a != b), shorter)
    place = len(whole[:same].decode(errors="ignore"))
    only_characters = tokenizer.pre_tokenizer is None and tokenizer.normalizer is None
    unknown = text[place : place + 1]
    if unknown and only_characters and not spelled_as_bytes(tokenizer) and tokenizer.token_to_id(unknown) is None:
        return UnknownCharacter(unknown, offset + place, number)
    begun = len(text[:place].encode())
    rest = came_back[begun:].decode(errors="replace")[:_SHOWN]
    return NotLossless(text[place:][:_SHOWN], rest, offset + place, number, _why(tokenizer, text[place:][:_SHOWN]))


def spelled_as_bytes(tokenizer: Tokenizer) -> bool:
    """Return whether the tokenizer spells unknown characters as bytes."""
    spelled = spelling(tokenizer)
    return spelled.byte_level or bool(spelled.fallback)


def _why(tokenizer: Tokenizer, text: str) -> str:
    """Return the cause of a text that does not come back from its start, as far as it can be told, and what to do."""
    for step in decoder_steps(tokenizer):
        replaced = step["pattern"].get("String") if step["type"] == "Replace" else None
        if replaced and text.startswith(replaced):
            return (
                f"The tokenizer's decoder replaces {replaced!r} by {step['content']!r}, also where the text has it. "
                "Take it out of the corpus, or use another tokenizer."
            )
    normalizer = tokenizer.normalizer
    if normalizer is not None and normalizer.normalize_str(text) != text:
        return (
            f"The tokenizer's normalizer ({type(normalizer).__name__}) changes the text. Take the normalizer out of "
            "tokenizer.json, or change the corpus so that the normalizer leaves it as it is."
        )
    if any(token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values()):
        return (
            "An added token of the tokenizer removes the blanks beside it (lstrip or rstrip in its added_tokens). Set "
            "both to false, or take the token's text out of the corpus."
        )
    return (
        "The tokenizer has no tokens for this text, or its pre-tokenizer changes blanks (add_prefix_space). Use a "
        "tokenizer with a byte-level alphabet or byte fallback, or a vocabulary that bardflow learns, such as "
        "kind = 'bpe'."
    )
