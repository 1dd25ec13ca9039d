"""Learning a vocabulary from a training set, and lossless conversion between text and token ids."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteFallback, Fuse
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import Sequence as DecoderSequence
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizerSequence
from tokenizers.trainers import BpeTrainer

from bardflow.errors import BardError

TOKENIZER_FILE = "tokenizer.json"
LISTING_FILE = "vocabulary.txt"

_BYTES = 256
_BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(_BYTES))  # the names in the library's byte fallback

# The longest run of letters, marks or spaces in one BPE word; the limit bounds memory on text without spaces.
# Characters per token of the last tenth, learned on the first nine tenths:
#   longest run                4      8     16     32     64
#   Shakespeare, 2,048 bpe  2.417  2.564  2.617  2.617  2.617
#   Three Kingdoms, 16,384
#     bpe                   1.319  1.365  1.375  1.375  1.375
#     bpe-char              1.327  1.376  1.385  1.385  1.385
# The smallest limit without a loss was chosen.
_LONGEST = 16

# GPT-2's words (Radford et al. 2019), with three changes. Runs are limited (digits to three). Marks stay with their
# letters. White space up to and including its last line break is one word, so text after a line break never changes how
# the break is split: a text cut after a newline that a non-space follows has the same tokens as its pieces. Letters,
# digits and signs never share a word, so no merge can spell a byte token such as <0x41>.
_WORDS = (
    r"'(?:[sdmt]|ll|ve|re)"
    rf"| ?[\p{{L}}\p{{M}}]{{1,{_LONGEST}}}"
    r"| ?\p{N}{1,3}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]{{1,{_LONGEST}}}"
    rf"|\s{{0,{_LONGEST}}}[\r\n]{{1,{_LONGEST}}}"
    rf"|\s{{1,{_LONGEST}}}(?!\S)"
    rf"|\s{{1,{_LONGEST}}}"
)
# A word depends on at most this many characters: white space and line breaks, and one character after them.
_LOOK_AHEAD = 2 * _LONGEST + 1

# Text is encoded in pages of at most _PAGE characters, in batches of pages with about _BATCH characters. An encoding
# takes about 90 bytes for each character while in memory, and 64 pages keep the cores busy.
_PAGE = 1 << 14
_BATCH = 1 << 20
# A text longer than `learn_from` is sampled in stretches of this many characters.
_STRETCH = 1 << 12

TokenIds = npt.NDArray[np.unsignedinteger]
TokenType = np.dtype[np.unsignedinteger]


class VocabularyError(BardError):
    """A vocabulary cannot be learned, opened or applied."""


class UnknownCharacter(VocabularyError):
    """A character of the text is not in the vocabulary, which has no byte fallback.

    `character` is the character, `offset` its position in the piece in characters, `piece` the piece's number from 0.
    """

    def __init__(self, character: str, offset: int, piece: int) -> None:
        self.character, self.offset, self.piece = character, offset, piece
        super().__init__(
            f"the character {character!r} (U+{ord(character):04X}), at offset {offset} of piece {piece}, is not in "
            "this vocabulary, which has no bytes to spell it with. Learn the vocabulary with byte_fallback='always' or "
            "'auto', or take the character out of the text."
        )


class NotText(VocabularyError):
    """The text has half of a surrogate pair, which is not a character; Python makes it from bytes it cannot decode.

    `offset` is its position in the piece in characters, `piece` the piece's number from 0.
    """

    def __init__(self, half: str, offset: int, piece: int) -> None:
        self.offset, self.piece = offset, piece
        super().__init__(
            f"at offset {offset} of piece {piece} stands U+{ord(half):04X}, which is no character: most likely a byte "
            "that is not UTF-8. Give the text in UTF-8 (a terminal's encoding is shown by `locale`)."
        )


class VocabularySpec(BaseModel):
    """The kind and size of a vocabulary, and how it is learned.

    `kind`
        "char" has one token for each character. "bpe" merges bytes, as GPT-2 does. "bpe-char" merges characters, and
        spells unseen characters as bytes; it suits scripts with many characters, such as Chinese.
    `size`
        The number of tokens, for the two bpe kinds only. A text with too few repetitions gives fewer.
    `byte_fallback`
        For "char": whether the 256 bytes are tokens too, to spell unseen characters. "auto" adds them only if the
        validation set has characters that are not in the training set. This one bit is all that a vocabulary uses of
        the validation set; "always" and "never" use nothing. "bpe" and "bpe-char" always have the bytes.
    `learn_from`
        Merges are learned from at most this many characters, evenly spread over the training set. This limits memory:
        2.4 GB (bpe) and 1.5 GB (bpe-char) by default, measured on random Chinese, where no words repeat.
        The alphabet always comes from the whole training set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["char", "bpe", "bpe-char"] = "char"
    size: int | None = None
    byte_fallback: Literal["auto", "always", "never"] = "auto"
    learn_from: Annotated[int, Field(ge=1)] = 10_000_000

    @model_validator(mode="after")
    def _size_belongs_to_bpe(self) -> Self:
        if self.kind == "char":
            if self.size is not None:
                raise ValueError(
                    f"size={self.size} was given for kind='char', whose size is the number of distinct characters. "
                    "Leave size out, or choose kind='bpe' or 'bpe-char'."
                )
        elif self.size is None:
            raise ValueError(f"kind={self.kind!r} needs a size: the number of tokens wanted, for example 2048.")
        elif self.size < _BYTES:
            raise ValueError(
                f"size={self.size} is smaller than the alphabet of kind={self.kind!r}: the least is {_BYTES}."
            )
        return self


def expected_size(spec: VocabularySpec, *, distinct: int, unseen: bool) -> int:
    """Return the size of a vocabulary before it is learned: exact for "char", an upper limit for the bpe kinds.

    `distinct` is the number of distinct characters in the training set; `unseen` says if the validation set has others.
    """
    if spec.size is not None:
        return spec.size
    return distinct + (_BYTES if _spelled_in_bytes(spec, unseen) else 0)


def _spelled_in_bytes(spec: VocabularySpec, unseen: bool) -> bool:
    return spec.byte_fallback == "always" or (spec.byte_fallback == "auto" and unseen)


def learn(pieces: Callable[[], Iterable[str]], spec: VocabularySpec, *, characters: int, unseen: bool) -> Tokenizer:
    """Learn a vocabulary from the training set; the same text and spec give the same `tokenizer.json`, byte for byte.

    Each call of `pieces` returns the training set in pieces, from its start; `characters` is its length in characters;
    `unseen` says whether the validation set has other characters. Ids of characters are in the order of code points,
    after any byte tokens. The vocabulary can be smaller than `spec.size`; `get_vocab_size()` gives its size.

    Raises:
        VocabularyError: the text is empty, or the size is below that of the alphabet; the message gives the least size.
    """
    if characters == 0:
        raise VocabularyError("the training text is empty, so there is nothing to learn a vocabulary from.")
    if spec.kind == "bpe":
        return _learn_byte_level(pieces, spec, characters)
    distinct: set[str] = set()
    for piece in pieces():
        distinct.update(piece)
    alphabet = sorted(distinct)
    if spec.kind == "char":
        return _with_bytes(alphabet, []) if _spelled_in_bytes(spec, unseen) else _of_characters(alphabet)
    return _learn_characters(pieces, spec, characters, alphabet)


def _of_characters(alphabet: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.decoder = Fuse()
    return tokenizer


def _with_bytes(alphabet: Sequence[str], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    tokens = [*_BYTE_TOKENS, *alphabet, *(left + right for left, right in merges)]
    # If two merges give the same token, it keeps its first id.
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=list(merges), byte_fallback=True))
    tokenizer.decoder = DecoderSequence([ByteFallback(), Fuse()])
    return tokenizer


def _words() -> PreTokenizer:
    return Split(Regex(_WORDS), behavior="isolated")


def _trainer(size: int, alphabet: list[str]) -> BpeTrainer:
    # A pair that occurs once is no evidence about other text, so a merge needs two.
    return BpeTrainer(vocab_size=size, min_frequency=2, initial_alphabet=alphabet, show_progress=False)


def _learn_byte_level(pieces: Callable[[], Iterable[str]], spec: VocabularySpec, characters: int) -> Tokenizer:
    assert spec.size is not None
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = PreTokenizerSequence([_words(), ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.train_from_iterator(
        _sample(pieces(), characters, spec.learn_from), _trainer(spec.size, ByteLevel.alphabet())
    )
    return tokenizer


def _learn_characters(
    pieces: Callable[[], Iterable[str]], spec: VocabularySpec, characters: int, alphabet: list[str]
) -> Tokenizer:
    assert spec.size is not None
    least = _BYTES + len(alphabet)
    if spec.size < least:
        raise VocabularyError(
            f"size={spec.size} is smaller than the alphabet of kind='bpe-char' on this text: {_BYTES} bytes and "
            f"{len(alphabet)} distinct characters. The least size is {least}; kind='bpe' can be as small as {_BYTES}."
        )
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = _words()
    learner.train_from_iterator(_sample(pieces(), characters, spec.learn_from), _trainer(spec.size - _BYTES, alphabet))
    merges = [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
    tokenizer = _with_bytes(alphabet, merges)
    tokenizer.pre_tokenizer = _words()
    return tokenizer


def _sample(pieces: Iterable[str], characters: int, at_most: int) -> Iterator[str]:
    """Yield the text, or evenly spread stretches of it with `at_most` characters in all."""
    if characters <= at_most:
        # A separate pre-tokenizer: the tokenizer is locked while it is trained, so using its own here would deadlock.
        words = _words()
        for piece in pieces:
            yield from (page for _, page in _pages(words, piece))
        return
    stretch = min(_STRETCH, at_most)
    stretches = at_most // stretch
    taken, seen = 0, 0
    for piece in pieces:
        # Stretch n starts at n / stretches of the text; it is shorter if the piece ends within it.
        while taken < stretches and (start := taken * characters // stretches) < seen + len(piece):
            yield piece[start - seen : start - seen + stretch]
            taken += 1
        seen += len(piece)


def _pages(words: PreTokenizer | None, piece: str) -> Iterator[tuple[int, str]]:
    """Split a piece into (offset, page) so that encoding the pages is the same as encoding the piece."""
    start = 0
    while len(piece) - start > _PAGE:
        page = piece[start : start + _PAGE]
        page = page[: _cut(words, page)]
        yield start, page
        start += len(page)
    yield start, piece[start:]


def _cut(words: PreTokenizer | None, window: str) -> int:
    """Return how many characters of a window of a longer text can be encoded separately; at least one."""
    if words is None:
        return len(window)
    newline = window.rfind("\n", 0, -1)
    while newline >= 0:
        if not window[newline + 1].isspace():
            return newline + 1
        newline = window.rfind("\n", 0, newline)
    # Without such a newline: the start of the last word that depends only on the window.
    starts: list[int] = [start for _, (start, _) in words.pre_tokenize_str(window)]
    return max(start for start in starts if start <= len(window) - _LOOK_AHEAD)


def token_dtype(size: int) -> TokenType:
    """Return the smallest unsigned type of 2 or 4 bytes for the ids of a vocabulary of `size` tokens."""
    return np.dtype(np.uint16) if size <= 1 << 16 else np.dtype(np.uint32)


def encode(tokenizer: Tokenizer, pieces: Iterable[str]) -> Iterator[TokenIds]:
    """Yield an array of token ids for each piece of text, in order, of type `token_dtype` for the vocabulary's size.

    `tokenizer` was made by `learn`. Only one batch and the current piece are in memory. The pieces have the same ids as
    the whole text if each cut is just after a newline that a non-space character follows (`str.isspace`); for "char",
    after any cut.

    Raises:
        UnknownCharacter: the vocabulary cannot spell a character.
        NotText: the text has half of a surrogate pair.
    """
    dtype = token_dtype(tokenizer.get_vocab_size())
    words = tokenizer.pre_tokenizer
    pages = ((number, *page) for number, piece in enumerate(pieces) for page in _pages(words, _text(piece, number)))
    encoded = (done for batch in _batches(pages) for done in _encode_batch(tokenizer, batch, dtype))
    for _, arrays in groupby(encoded, key=itemgetter(0)):
        yield np.concatenate([ids for _, ids in arrays])


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


def _encode_batch(tokenizer: Tokenizer, batch: list[_Page], dtype: TokenType) -> Iterator[tuple[int, TokenIds]]:
    # Without words and byte tokens, a token is a character, and the tokenizer drops unknown characters.
    may_drop = tokenizer.pre_tokenizer is None and not tokenizer.model.byte_fallback
    encodings = tokenizer.encode_batch_fast([text for _, _, text in batch], add_special_tokens=False)
    for (number, offset, text), encoding in zip(batch, encodings, strict=True):
        ids = np.array(encoding.ids, dtype)
        if may_drop and len(ids) != len(text):
            place = next(i for i, character in enumerate(text) if tokenizer.token_to_id(character) is None)
            raise UnknownCharacter(text[place], offset + place, number)
        yield number, ids


def decode(tokenizer: Tokenizer, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
    """Decode token ids, shape [T]. Bytes that are not a whole character (cut off or generated) become U+FFFD.

    Raises:
        VocabularyError: an id is not in the vocabulary.
    """
    array = np.asarray(ids, np.int64)
    size = tokenizer.get_vocab_size()
    if array.size and not (array.min() >= 0 and array.max() < size):
        raise _no_such_id(tokenizer, int(array[(array < 0) | (array >= size)][0]))
    return tokenizer.decode(array.tolist(), skip_special_tokens=False)


def _no_such_id(tokenizer: Tokenizer, token: int) -> VocabularyError:
    return VocabularyError(
        f"token id {token} was given; this vocabulary's ids are 0 to {tokenizer.get_vocab_size() - 1}."
    )


class TextStream:
    """A streaming decoder: it returns text as soon as no later token can change it. In all, it equals `decode`.

    Pending is the beginning of a character or, in a vocabulary with byte tokens, a run of these. The library decodes
    such a run as a whole: unless all its bytes form whole characters, each becomes U+FFFD. (Its `DecodeStream`
    returns the first characters of a run too early, and raises an error if the rest are not characters.)
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._byte_of = _byte_of_sign() if isinstance(tokenizer.decoder, ByteLevelDecoder) else None
        self._byte_tokens = frozenset(_BYTE_TOKENS if tokenizer.model.byte_fallback else ())
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
        spelled = self._tokenizer.id_to_token(token) if token >= 0 else None
        if spelled is None:
            raise _no_such_id(self._tokenizer, token)
        if self._byte_of is not None:
            return self._utf8.decode(bytes(self._byte_of[sign] for sign in spelled))
        self._run.append(token)
        if spelled in self._byte_tokens:
            return ""
        return self._decode_run()

    def end(self) -> str:
        """Return the text of the pending tokens, and reset the stream."""
        return self._utf8.decode(b"", final=True) + self._decode_run()

    def _decode_run(self) -> str:
        run, self._run = self._run, []
        return decode(self._tokenizer, run)


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json`, for `tokenizers.Tokenizer.from_file`, and `vocabulary.txt`, for people to read.

    A line of the listing is an id, a tab, and the token's text in quotes, or its bytes if they are not valid text.
    """
    tokenizer.save(str(folder / TOKENIZER_FILE))
    spelled = spellings(tokenizer)
    if isinstance(tokenizer.decoder, ByteLevelDecoder):
        shown = [_readable_bytes(token) for token in spelled]
    else:
        single = _BYTES if tokenizer.model.byte_fallback else 0
        shown = [f"bytes {token.hex()}" if i < single else _readable(token.decode()) for i, token in enumerate(spelled)]
    lines = (f"{i}\t{text}\n" for i, text in enumerate(shown))
    (folder / LISTING_FILE).write_text("".join(lines), encoding="utf-8", newline="")


def spellings(tokenizer: Tokenizer) -> list[bytes]:
    """Return the UTF-8 bytes of each token, by id; a token may begin or end within a character."""
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=itemgetter(1))]
    if isinstance(tokenizer.decoder, ByteLevelDecoder):
        byte_of = _byte_of_sign()
        return [bytes(byte_of[sign] for sign in token) for token in tokens]
    byte_of_token = dict(zip(_BYTE_TOKENS if tokenizer.model.byte_fallback else (), range(_BYTES), strict=False))
    return [bytes([byte_of_token[token]]) if token in byte_of_token else token.encode() for token in tokens]


def load(path: Path) -> Tokenizer:
    """Open a `tokenizer.json`.

    Raises:
        VocabularyError: there is no file, or it is not a tokenizer.
    """
    if not path.is_file():
        raise VocabularyError(f"{path} is not a file; expected the {TOKENIZER_FILE} of a vocabulary.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no more specific class
        raise VocabularyError(
            f"{path} is not a {TOKENIZER_FILE} that the tokenizers library opens ({error}). Learn the vocabulary again."
        ) from error


def _byte_of_sign() -> dict[str, int]:
    """Return GPT-2's characters for bytes: a printable Latin-1 character for itself, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(_BYTES) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(_BYTES + n): byte for n, byte in enumerate(others)}


def _readable_bytes(token: bytes) -> str:
    try:
        return _readable(token.decode())
    except UnicodeDecodeError:
        return f"bytes {token.hex(' ')}"


def _readable(token: str) -> str:
    # A fixed list: `isprintable` changes with Python's Unicode tables, but the file's bytes must not change.
    invisible = [*range(0x7F, 0xA1), 0xAD, *range(0x2000, 0x2010), *range(0x2028, 0x2030), 0x3000, 0xFEFF]
    return json.dumps(token, ensure_ascii=False).translate({code: f"\\u{code:04x}" for code in invisible})
