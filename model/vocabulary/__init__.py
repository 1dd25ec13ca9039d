"""Learning a vocabulary from a training set, and lossless conversion between text and token ids."""

from bardflow.model.vocabulary.decoding import TextStream, decode, spellings, vocabulary_size
from bardflow.model.vocabulary.encoding import TokenIds, encode, token_dtype
from bardflow.model.vocabulary.files import LISTING_FILE, TOKENIZER_FILE, load, save, vocabulary_from_file
from bardflow.model.vocabulary.learning import learn
from bardflow.model.vocabulary.spec import (
    NotLossless,
    NotText,
    UnknownCharacter,
    VocabularyError,
    VocabularySpec,
    expected_size,
)

__all__ = [
    "LISTING_FILE",
    "TOKENIZER_FILE",
    "NotLossless",
    "NotText",
    "TextStream",
    "TokenIds",
    "UnknownCharacter",
    "VocabularyError",
    "VocabularySpec",
    "decode",
    "encode",
    "expected_size",
    "learn",
    "load",
    "save",
    "spellings",
    "token_dtype",
    "vocabulary_from_file",
    "vocabulary_size",
]
