"""Vocabularies as files: `tokenizer.json`, and a listing for people."""

from __future__ import annotations

import base64
import json
from contextlib import AbstractContextManager
from pathlib import Path

from tokenizers import Tokenizer

from bardflow.files import read_json
from bardflow.model.vocabulary.decoding import spelling
from bardflow.model.vocabulary.spec import VocabularyError, library_errors

TOKENIZER_FILE = "tokenizer.json"
LISTING_FILE = "vocabulary.txt"
LARGEST_TOKENIZER = 1 << 28  # Gemma 3's has 33 MB


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json`, for `tokenizers.Tokenizer.from_file`, and `vocabulary.txt`, for people to read.

    A line of the listing is an id, a tab, and the token's text in quotes, or its bytes if they are not valid text. A
    WordPiece token that continues a word has a third column. The line of an id without a token has the word unused.
    """
    tokenizer.save(str(folder / TOKENIZER_FILE))
    spelled, named = spelling(tokenizer), {i: token for token, i in tokenizer.get_vocab().items()}
    continues = getattr(tokenizer.model, "continuing_subword_prefix", None) or "\0"
    lines = []
    for i, token in enumerate(spelled.tokens):
        shown = f"bytes {token.hex()}" if i in spelled.fallback else _readable_bytes(token)
        after = "\tcontinues a word" if named.get(i, "").startswith(continues) else ""
        lines.append(f"{i}\t{shown}{after}\n" if i in named else f"{i}\tunused\n")
    (folder / LISTING_FILE).write_text("".join(lines), encoding="utf-8", newline="")


def load(path: Path) -> Tokenizer:
    """Open a `tokenizer.json`.

    Raises:
        VocabularyError: there is no file, or it is not a tokenizer.
    """
    if not path.is_file():
        raise VocabularyError(f"{path} is not a file; expected the {TOKENIZER_FILE} of a vocabulary.")
    with _library(path):
        if path.stat().st_size > LARGEST_TOKENIZER:
            raise ValueError(f"it has more than {LARGEST_TOKENIZER:,} bytes")
        return Tokenizer.from_file(str(path))


def _library(path: Path) -> AbstractContextManager[None]:
    shown = str(path).replace("{", "{{").replace("}", "}}")
    return library_errors(
        f"{shown} is not a {TOKENIZER_FILE} that the tokenizers library opens ({{}}). Learn the vocabulary again, or "
        "give a file that this library or transformers wrote."
    )


def vocabulary_from_file(path: Path) -> Tokenizer:
    """Open a `tokenizer.json` of another program as a vocabulary: a text becomes its tokens and nothing else.

    Three settings of the file are dropped, because each would add tokens to a text or take some away: truncation,
    padding, and a post-processor that adds tokens such as [CLS] or <s>. All else stays, so the ids stay too.
    `encode` checks each text that it is given.

    Raises:
        VocabularyError: the file is not a tokenizer, it has no tokens, it draws its tokens at random (dropout), its
            added tokens have other ids than the library gives them, or its decoder joins tokens so that a token's text
            depends on its neighbours.
    """
    if path.is_file():
        _require_whole_tables(path)
    tokenizer = load(path)
    if not tokenizer.get_vocab():
        raise VocabularyError(f"{path} has no tokens. Give a tokenizer that was trained.")
    if getattr(tokenizer.model, "dropout", None):
        raise VocabularyError(
            f"{path} has dropout = {tokenizer.model.dropout:.3g}, so the same text has other tokens each time. Set "
            "dropout in its model to null."
        )
    with _library(path):
        _require_the_ids_of_the_file(tokenizer, path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokenizer.num_special_tokens_to_add(is_pair=False):
        tokenizer.post_processor = None
    with _library(path):
        _require_plain_joining(tokenizer, path)
    return tokenizer


def _require_whole_tables(path: Path) -> None:
    """Check the tables of SentencePiece's normalizer, because the library ends the process for one that is too short.

    A table begins with the size of its first part: 4 bytes, the lowest first.
    """
    with _library(path):
        ahead = [read_json(path, LARGEST_TOKENIZER)]
        while ahead:
            value = ahead.pop()
            if isinstance(value, dict) and isinstance(table := value.get("precompiled_charsmap"), str):
                data = base64.b64decode(table)
                if len(data) < 4 or int.from_bytes(data[:4], "little") > len(data) - 4:
                    raise ValueError("its precompiled_charsmap is too short")
            ahead.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())


def _require_the_ids_of_the_file(tokenizer: Tokenizer, path: Path) -> None:
    """Check the ids of added tokens: the library counts on from the number of tokens of the model."""
    for added in json.loads(path.read_bytes()).get("added_tokens", []):
        given, meant = tokenizer.token_to_id(added["content"]), added["id"]
        if given != meant:
            raise VocabularyError(
                f"{path} gives the added token {added['content']!r} the id {meant}, but the tokenizers library gives "
                f"it {given}. Number the added tokens in their order, from the number of tokens of the model: "
                f"{tokenizer.get_vocab_size(with_added_tokens=False)}."
            )
    vocab = tokenizer.get_vocab()
    named: dict[int, str] = {}
    for token, i in vocab.items():
        if named.setdefault(i, token) != token:
            raise VocabularyError(
                f"{path} gives the id {i} to two tokens, {named[i]!r} and {token!r}. Give each its own id."
            )


def _require_plain_joining(tokenizer: Tokenizer, path: Path) -> None:
    """Check that the library decodes all tokens in a row to the same text as each alone."""
    spelled = spelling(tokenizer)
    ids = sorted(set(tokenizer.get_vocab().values()) - spelled.fallback)
    whole = b"".join(spelled.tokens[i] for i in ids).decode(errors="replace")
    if tokenizer.decode(ids, skip_special_tokens=False) == whole:
        return
    decoder = "no decoder" if tokenizer.decoder is None else f"the decoder {type(tokenizer.decoder).__name__}"
    raise VocabularyError(
        f"{path} has {decoder}, with which a token's text depends on its neighbours: blanks are added between "
        "tokens or removed at the start. So a text does not come back byte for byte. Use a tokenizer with a "
        "byte-level decoder, such as GPT-2's, or a vocabulary that bardflow learns, such as kind = 'bpe'."
    )


def _readable_bytes(token: bytes) -> str:
    try:
        return _readable(token.decode())
    except UnicodeDecodeError:
        return f"bytes {token.hex(' ')}"


def _readable(token: str) -> str:
    # A fixed list: `isprintable` changes with Python's Unicode tables, but the file's bytes must not change.
    invisible = [*range(0x7F, 0xA1), 0xAD, *range(0x2000, 0x2010), *range(0x2028, 0x2030), 0x3000, 0xFEFF]
    return json.dumps(token, ensure_ascii=False).translate({code: f"\\u{code:04x}" for code in invisible})
