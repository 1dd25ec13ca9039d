"""The kind and size of a vocabulary, and the errors of vocabularies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bardflow.errors import BardError
from bardflow.identity import AsBefore

BYTES = 256
# The kinds that have a size, and the least size: the alphabet that spells any text.
LEAST = {"bpe": BYTES, "bpe-char": BYTES, "unigram": BYTES, "wordpiece": 2 * BYTES}


class VocabularyError(BardError):
    """A vocabulary cannot be learned, opened or applied."""


@contextmanager
def library_errors(said: str) -> Iterator[None]:
    """Raise each error of the tokenizers library as VocabularyError; in `said`, `{}` stands for its message."""
    try:
        yield
    except VocabularyError:
        raise
    except BaseException as error:  # the library raises no more specific class
        # A panic of its Rust code is no Exception, and has a class without a public name.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise VocabularyError(said.format(error)) from error


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

    `half` is the half, `offset` its position in the piece in characters, `piece` the piece's number from 0.
    """

    def __init__(self, half: str, offset: int, piece: int) -> None:
        self.half, self.offset, self.piece = half, offset, piece
        super().__init__(
            f"at offset {offset} of piece {piece} stands U+{ord(half):04X}, which is no character: most likely a byte "
            "that is not UTF-8. Give the text in UTF-8 (a terminal's encoding is shown by `locale`)."
        )


class NotLossless(VocabularyError):
    """The tokens of a text spell another text: the tokenizer changes or drops a part of it.

    `text` is the text from the first place that does not come back, `came_back` what the tokens spell there. `offset`
    is the place in the piece in characters, `piece` the piece's number from 0, `why` the cause and what to do.
    """

    def __init__(self, text: str, came_back: str, offset: int, piece: int, why: str) -> None:
        self.text, self.came_back, self.offset, self.piece, self.why = text, came_back, offset, piece, why
        super().__init__(self.at(f"offset {offset} of piece {piece}"))

    def at(self, place: str) -> str:
        """Return the message for another name of the place."""
        return f"at {place}, the text {self.text!r} comes back from its tokens as {self.came_back!r}. {self.why}"


class VocabularySpec(BaseModel):
    """The kind and size of a vocabulary, and how it is made.

    Every kind gives a text back byte for byte, or refuses it.

    `kind`
        "char" has one token for each character. "bpe" merges bytes, as GPT-2 does. "bpe-char" merges characters, and
        spells unseen characters as bytes; it suits scripts with many characters, such as Chinese. "unigram" chooses
        the tokens, and the cut of each word into them, that make the text most probable (Kudo 2018), over bytes.
        "wordpiece" cuts the longest token off the start of a word again and again, over bytes; a token that continues
        a word is another token than the one that begins it. "file" is a `tokenizer.json` of yours.
    `size`
        The number of tokens, for all kinds but "char" and "file". A text with too few repetitions gives fewer.
    `byte_fallback`
        For "char": whether the 256 bytes are tokens too, to spell unseen characters. "auto" adds them only if the
        validation set has characters that are not in the training set. This one bit is all that a vocabulary uses of
        the validation set; "always" and "never" use nothing. The other learned kinds always have the bytes.
    `learn_from`
        Tokens are learned from at most this many characters, evenly spread over the training set. This limits memory:
        2.4 GB (bpe) and 1.5 GB (bpe-char) by default, measured on random Chinese, where no words repeat.
        The alphabet always comes from the whole training set.
    `file`
        For "file": a `tokenizer.json` of the tokenizers library, or a folder that has one. The path is relative to the
        project folder. Cache keys contain the file's content, not its path.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["char", "bpe", "bpe-char", "unigram", "wordpiece", "file"] = "char"
    size: int | None = None
    byte_fallback: Literal["auto", "always", "never"] = "auto"
    learn_from: Annotated[int, Field(ge=1)] = 10_000_000
    file: Annotated[str | None, AsBefore(None), Field(min_length=1)] = None

    @model_validator(mode="after")
    def _fields_belong_to_the_kind(self) -> Self:
        least = LEAST.get(self.kind)
        if least is None and self.size is not None:
            size_of = "the number of distinct characters" if self.kind == "char" else "given by the file"
            sized = ", ".join(map(repr, LEAST))
            raise ValueError(
                f"size={self.size} was given for kind={self.kind!r}, whose size is {size_of}. "
                f"Leave size out, or choose one of the kinds {sized}."
            )
        if least is not None and self.size is None:
            raise ValueError(f"kind={self.kind!r} needs a size: the number of tokens wanted, for example 2048.")
        if least is not None and self.size is not None and self.size < least:
            raise ValueError(
                f"size={self.size} is smaller than the alphabet of kind={self.kind!r}: the least is {least}."
            )
        if self.kind == "file" and self.file is None:
            raise ValueError("kind='file' needs a file: the path of a tokenizer.json, from the project folder.")
        if self.kind != "file" and self.file is not None:
            raise ValueError(
                f"file={self.file!r} was given for kind={self.kind!r}. Leave file out, or write kind='file'."
            )
        return self


def expected_size(spec: VocabularySpec, *, distinct: int, unseen: bool) -> int:
    """Return the size of a vocabulary before it is learned: exact for "char", an upper limit for the other kinds.

    `distinct` is the number of distinct characters in the training set; `unseen` says if the validation set has others.

    Raises:
        ValueError: the kind is "file", whose size only the file says.
    """
    if spec.kind == "file":
        raise ValueError("the size of a tokenizer.json is in the file: open it with vocabulary_from_file")
    if spec.size is not None:
        return spec.size
    return distinct + (BYTES if spelled_in_bytes(spec, unseen) else 0)


def spelled_in_bytes(spec: VocabularySpec, unseen: bool) -> bool:
    """Return whether a vocabulary of characters has the 256 bytes too."""
    return spec.byte_fallback == "always" or (spec.byte_fallback == "auto" and unseen)
