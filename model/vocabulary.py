"""A vocabulary is learned from the training text, and turns any text into token ids and back without loss."""

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
_BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(_BYTES))  # as the library's byte fallback spells them

# The longest run of letters, marks or spaces that may become one word for BPE; it bounds memory on text without spaces.
# Characters per token of the last tenth, learned on the first nine:
#   longest run                4      8     16     32     64
#   Shakespeare, 2,048 bpe  2.417  2.564  2.617  2.617  2.617
#   Three Kingdoms, 16,384
#     bpe                   1.319  1.365  1.375  1.375  1.375
#     bpe-char              1.327  1.376  1.385  1.385  1.385
# The least that loses nothing is taken.
_LONGEST = 16

# GPT-2's words (Radford et al. 2019), with three changes. Runs are bounded (digits to three). Marks stay with their
# letters. White space up to and with its last line break is one word, so what follows a line break never changes how
# the break is cut: a text cut after a newline that stands before a non-space encodes as its pieces do. Letters, digits
# and signs never share a word, so no merge can spell a byte token such as <0x41>.
_WORDS = (
    r"'(?:[sdmt]|ll|ve|re)"
    rf"| ?[\p{{L}}\p{{M}}]{{1,{_LONGEST}}}"
    r"| ?\p{N}{1,3}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]{{1,{_LONGEST}}}"
    rf"|\s{{0,{_LONGEST}}}[\r\n]{{1,{_LONGEST}}}"
    rf"|\s{{1,{_LONGEST}}}(?!\S)"
    rf"|\s{{1,{_LONGEST}}}"
)
# Deciding a word looks at no more characters than this: white space and line breaks, and the one character after them.
_LOOK_AHEAD = 2 * _LONGEST + 1

# Text goes to the tokenizer in pages of at most so many characters, and in batches of pages that together hold about
# so many: an encoding costs about 90 bytes a character while it lives, and 64 pages keep the cores busy.
_PAGE = 1 << 14
_BATCH = 1 << 20
# A text longer than `learn_from` is sampled in stretches of this many characters.
_STRETCH = 1 << 12

TokenIds = npt.NDArray[np.unsignedinteger]
TokenType = np.dtype[np.unsignedinteger]


class VocabularyError(BardError):
    """A vocabulary cannot be learned, opened or applied."""


class UnknownCharacter(VocabularyError):
    """A text has a character that the vocabulary lacks, and the vocabulary has no bytes to spell it with.

    `character` is that character, `offset` its place (in characters) in the piece, `piece` the piece's number from 0.
    """

    def __init__(self, character: str, offset: int, piece: int) -> None:
        self.character, self.offset, self.piece = character, offset, piece
        super().__init__(
            f"the character {character!r} (U+{ord(character):04X}), at offset {offset} of piece {piece}, is not in "
            "this vocabulary, which has no bytes to spell it with. Learn the vocabulary with byte_fallback='always' or "
            "'auto', or take the character out of the text."
        )


class NotText(VocabularyError):
    """A text holds half of a surrogate pair, which is no character: what Python makes of bytes that it cannot decode.

    `offset` is its place (in characters) in the piece, `piece` the piece's number from 0.
    """

    def __init__(self, half: str, offset: int, piece: int) -> None:
        self.offset, self.piece = offset, piece
        super().__init__(
            f"at offset {offset} of piece {piece} stands U+{ord(half):04X}, which is no character: most likely a byte "
            "that is not UTF-8. Give the text in UTF-8 (a terminal's encoding is shown by `locale`)."
        )


class VocabularySpec(BaseModel):
    """What to learn.

    `kind`
        "char" is one token a character. "bpe" merges bytes, as GPT-2 does. "bpe-char" merges characters, and spells the
        characters it never saw in bytes; it suits scripts of many characters, such as Chinese.
    `size`
        Tokens wanted, for the two bpe kinds only. A text that repeats too little gives fewer.
    `byte_fallback`
        For "char": whether the 256 bytes are tokens too, which spell unseen characters. "auto" adds them exactly when
        the validation set has characters that the training set lacks. That one bit is all that a vocabulary ever
        takes from the validation set; "always" and "never" take none. "bpe" and "bpe-char" always have their bytes.
    `learn_from`
        Merges are learned from at most this many characters, evenly spread over the training set, which bounds memory:
        2.4 GB (bpe) and 1.5 GB (bpe-char) at the default, measured on random Chinese, where no words repeat.
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
    """The tokens of a vocabulary before it is learned, exactly for "char"; a bpe one has at most these.

    `distinct` counts the training set's distinct characters; `unseen` says whether the validation set has others.
    """
    if spec.size is not None:
        return spec.size
    return distinct + (_BYTES if _spelled_in_bytes(spec, unseen) else 0)


def _spelled_in_bytes(spec: VocabularySpec, unseen: bool) -> bool:
    return spec.byte_fallback == "always" or (spec.byte_fallback == "auto" and unseen)


def learn(pieces: Callable[[], Iterable[str]], spec: VocabularySpec, *, characters: int, unseen: bool) -> Tokenizer:
    """Learns a vocabulary from the training text; the same text and spec give the same `tokenizer.json`, byte for byte.

    `pieces` gives the training text in pieces, from its start, each time it is called; `characters` is its length in
    characters; `unseen` says whether the validation set has characters that the training set lacks. Characters get
    their ids in the order of their code points, after the byte tokens where there are any. A text that supports fewer
    tokens than `spec.size` gives fewer: `get_vocab_size()` of what comes back is what was learned.

    Raises `VocabularyError` on an empty text, or on a size below the alphabet's; the message says the least size.
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
    # Two merges may spell one token, which keeps its first id.
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=list(merges), byte_fallback=True))
    tokenizer.decoder = DecoderSequence([ByteFallback(), Fuse()])
    return tokenizer


def _words() -> PreTokenizer:
    return Split(Regex(_WORDS), behavior="isolated")


def _trainer(size: int, alphabet: list[str]) -> BpeTrainer:
    # A pair seen once says nothing about other text, so a merge needs two.
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
    """The text, or stretches of it that are evenly spread and hold `at_most` characters together."""
    if characters <= at_most:
        # Words of its own: the tokenizer that is being trained is locked, and asking it here would wait for ever.
        words = _words()
        for piece in pieces:
            yield from (page for _, page in _pages(words, piece))
        return
    stretch = min(_STRETCH, at_most)
    stretches = at_most // stretch
    taken, seen = 0, 0
    for piece in pieces:
        # The n-th stretch starts at n / stretches of the text; a stretch that a piece's end cuts stays short.
        while taken < stretches and (start := taken * characters // stretches) < seen + len(piece):
            yield piece[start - seen : start - seen + stretch]
            taken += 1
        seen += len(piece)


def _pages(words: PreTokenizer | None, piece: str) -> Iterator[tuple[int, str]]:
    """The piece as (offset, page), cut where encoding the pages is the same as encoding the piece."""
    start = 0
    while len(piece) - start > _PAGE:
        page = piece[start : start + _PAGE]
        page = page[: _cut(words, page)]
        yield start, page
        start += len(page)
    yield start, piece[start:]


def _cut(words: PreTokenizer | None, window: str) -> int:
    """How much of a window of a longer text may be encoded by itself; at least one character."""
    if words is None:
        return len(window)
    newline = window.rfind("\n", 0, -1)
    while newline >= 0:
        if not window[newline + 1].isspace():
            return newline + 1
        newline = window.rfind("\n", 0, newline)
    # Without such a newline: the start of the last word that is decided by what the window shows.
    starts: list[int] = [start for _, (start, _) in words.pre_tokenize_str(window)]
    return max(start for start in starts if start <= len(window) - _LOOK_AHEAD)


def token_dtype(size: int) -> TokenType:
    """The smallest unsigned type, of 2 or 4 bytes, that holds the ids of a vocabulary of `size` tokens."""
    return np.dtype(np.uint16) if size <= 1 << 16 else np.dtype(np.uint32)


def encode(tokenizer: Tokenizer, pieces: Iterable[str]) -> Iterator[TokenIds]:
    """One array of token ids for each piece of text, in order; the type is `token_dtype` of the vocabulary's size.

    `tokenizer` is one that `learn` made. Pieces stream: what is in memory is a batch and the piece in hand. Encoding
    the pieces is encoding the whole text where each cut is just after a newline that stands before a non-space
    character (`str.isspace`); for "char" any cut will do.

    Raises `UnknownCharacter` where the vocabulary cannot spell a character, and `NotText` where the text holds one
    half of a surrogate pair.
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
        held += len(page[2]) + 64  # an empty piece has its cost too
        if held >= _BATCH:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _encode_batch(tokenizer: Tokenizer, batch: list[_Page], dtype: TokenType) -> Iterator[tuple[int, TokenIds]]:
    # Without words and without bytes a token is a character, and the tokenizer drops the ones it does not know.
    may_drop = tokenizer.pre_tokenizer is None and not tokenizer.model.byte_fallback
    encodings = tokenizer.encode_batch_fast([text for _, _, text in batch], add_special_tokens=False)
    for (number, offset, text), encoding in zip(batch, encodings, strict=True):
        ids = np.array(encoding.ids, dtype)
        if may_drop and len(ids) != len(text):
            place = next(i for i, character in enumerate(text) if tokenizer.token_to_id(character) is None)
            raise UnknownCharacter(text[place], offset + place, number)
        yield number, ids


def decode(tokenizer: Tokenizer, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
    """The text of these token ids, shape [T]. Bytes that are no whole character (a cut or a guess) become U+FFFD.

    Raises `VocabularyError` on an id that the vocabulary does not have.
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
    """Token ids in, one by one; text out as soon as no later token can change it. All of it is `decode` of all ids.

    What is held back is the beginning of a character, or, in a vocabulary with byte tokens, a run of these: the library
    decodes such a run as a whole, to a U+FFFD for each of its bytes where they are not all whole characters. (Its own
    `DecodeStream` gives the first characters of a run away, and raises where the rest turns out to be none.)
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._byte_of = _byte_of_sign() if isinstance(tokenizer.decoder, ByteLevelDecoder) else None
        self._byte_tokens = frozenset(_BYTE_TOKENS if tokenizer.model.byte_fallback else ())
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._run: list[int] = []

    @property
    def at_least(self) -> int:
        """Characters that what is held back will be, at the least, whatever follows."""
        return -(-len(self._run) // 4)

    def take(self, token: int) -> str:
        """The text that is certain now and was not before this token; often none.

        Raises `VocabularyError` on an id that the vocabulary does not have.
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
        """What was held back, now that nothing follows; the stream can begin anew."""
        return self._utf8.decode(b"", final=True) + self._decode_run()

    def _decode_run(self) -> str:
        run, self._run = self._run, []
        return decode(self._tokenizer, run)


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `tokenizer.json`, which `tokenizers.Tokenizer.from_file` opens, and `vocabulary.txt`, for eyes only.

    A line of the listing is an id, a tab, and the token's text in quotes, or its bytes where they are no whole text.
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
    """The UTF-8 bytes that each token adds to a text, by id; a token may begin or end within a character."""
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=itemgetter(1))]
    if isinstance(tokenizer.decoder, ByteLevelDecoder):
        byte_of = _byte_of_sign()
        return [bytes(byte_of[sign] for sign in token) for token in tokens]
    byte_of_token = dict(zip(_BYTE_TOKENS if tokenizer.model.byte_fallback else (), range(_BYTES), strict=False))
    return [bytes([byte_of_token[token]]) if token in byte_of_token else token.encode() for token in tokens]


def load(path: Path) -> Tokenizer:
    """Opens a `tokenizer.json`. Raises `VocabularyError` where there is none, or the file is not one."""
    if not path.is_file():
        raise VocabularyError(f"{path} is not a file; expected the {TOKENIZER_FILE} of a vocabulary.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise VocabularyError(
            f"{path} is not a {TOKENIZER_FILE} that the tokenizers library opens ({error}). Learn the vocabulary again."
        ) from error


def _byte_of_sign() -> dict[str, int]:
    """GPT-2's signs for bytes: a printable Latin-1 character is itself, the others take the code points from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(_BYTES) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(_BYTES + n): byte for n, byte in enumerate(others)}


def _readable_bytes(token: bytes) -> str:
    try:
        return _readable(token.decode())
    except UnicodeDecodeError:
        return f"bytes {token.hex(' ')}"


def _readable(token: str) -> str:
    # A fixed list and not `isprintable`, which changes with Python's Unicode tables: the file's bytes must not.
    invisible = [*range(0x7F, 0xA1), 0xAD, *range(0x2000, 0x2010), *range(0x2028, 0x2030), 0x3000, 0xFEFF]
    return json.dumps(token, ensure_ascii=False).translate({code: f"\\u{code:04x}" for code in invisible})
