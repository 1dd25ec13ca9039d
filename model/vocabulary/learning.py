"""Learning a vocabulary from a training set."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO

from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, Fuse, Replace
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import Sequence as DecoderSequence
from tokenizers.models import BPE, Unigram, WordPiece
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from bardflow.model.vocabulary.decoding import BYTE_TOKENS
from bardflow.model.vocabulary.spec import BYTES, VocabularyError, VocabularySpec, spelled_in_bytes
from bardflow.model.vocabulary.words import LOOK_AHEAD, byte_words, pages, words

# A text longer than `learn_from` is sampled in stretches of this many characters.
_STRETCH = 1 << 12

# The mark of a WordPiece token that continues a word. BERT's ## cannot be told from two signs of a text; this one is
# none of GPT-2's characters for bytes.
CONTINUES = "…"

# SentencePiece adds up by thread, so the number of threads is part of the result.
_THREADS = 4
# The log probability of a byte that the text lacks, below the least of the others.
_UNSEEN = 10.0

Pieces = Callable[[], Iterable[str]]


def learn(pieces: Pieces, spec: VocabularySpec, *, characters: int, unseen: bool) -> Tokenizer:
    """Learn a vocabulary from the training set; the same text and spec give the same `tokenizer.json`, byte for byte.

    Each call of `pieces` returns the training set in pieces, from its start; `characters` is its length in characters;
    `unseen` says whether the validation set has other characters. Ids of characters are in the order of code points,
    after any byte tokens. The vocabulary can be smaller than `spec.size`; `get_vocab_size()` gives its size.

    Raises:
        VocabularyError: the text is empty, or the size is below that of the alphabet; the message gives the least size.
        ValueError: the kind is "file"; use `vocabulary_from_file`.
    """
    if spec.kind == "file":
        raise ValueError("a vocabulary of kind='file' is not learned: open it with vocabulary_from_file")
    if characters == 0:
        raise VocabularyError("the training text is empty, so there is nothing to learn a vocabulary from.")
    over_bytes = {"bpe": _learn_byte_level, "unigram": _learn_unigram, "wordpiece": _learn_wordpiece}
    if spec.kind in over_bytes:
        return over_bytes[spec.kind](pieces, spec, characters)
    distinct: set[str] = set()
    for piece in pieces():
        distinct.update(piece)
    alphabet = sorted(distinct)
    if spec.kind == "char":
        return _with_bytes(alphabet, []) if spelled_in_bytes(spec, unseen) else _of_characters(alphabet)
    return _learn_characters(pieces, spec, characters, alphabet)


def _of_characters(alphabet: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    tokenizer.decoder = Fuse()
    return tokenizer


def _with_bytes(alphabet: Sequence[str], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    tokens = [*BYTE_TOKENS, *alphabet, *(left + right for left, right in merges)]
    # If two merges give the same token, it keeps its first id.
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=list(merges), byte_fallback=True))
    tokenizer.decoder = DecoderSequence([ByteFallback(), Fuse()])
    return tokenizer


def _trainer(size: int, alphabet: list[str]) -> BpeTrainer:
    # A pair that occurs once is no evidence about other text, so a merge needs two.
    return BpeTrainer(vocab_size=size, min_frequency=2, initial_alphabet=alphabet, show_progress=False)


def _learn_byte_level(pieces: Pieces, spec: VocabularySpec, characters: int) -> Tokenizer:
    assert spec.size is not None
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = byte_words()
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.train_from_iterator(
        _sample(pieces(), characters, spec.learn_from), _trainer(spec.size, ByteLevel.alphabet())
    )
    return tokenizer


def _learn_unigram(pieces: Pieces, spec: VocabularySpec, characters: int) -> Tokenizer:
    """Learn with SentencePiece's trainer from counted words.

    The trainer of `tokenizers` adds up in the order of a hash table with a random seed: each process has other scores.
    """
    assert spec.size is not None
    splitter, counted = byte_words(), Counter[str]()
    for page in _sample(pieces(), characters, spec.learn_from):
        counted.update(word for word, _ in splitter.pre_tokenize_str(page))
    alphabet = sorted(ByteLevel.alphabet())
    unseen = set(alphabet) - set("".join(counted))
    scored = _unigram_scores(counted, spec.size - len(unseen))
    # A byte that the text lacks is less probable than every other token.
    scored |= dict.fromkeys(unseen, min(scored.values()) - _UNSEEN)
    tokens = dict.fromkeys([*alphabet, *scored])
    tokenizer = Tokenizer(Unigram([(token, scored[token]) for token in tokens], unk_id=None, byte_fallback=False))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = ByteLevelDecoder()
    return tokenizer


def _unigram_scores(counted: Mapping[str, int], size: int) -> dict[str, float]:
    """Return at most `size` tokens with their log probabilities, the most probable first."""
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    learned = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=(f"{word}\t{count}" for word, count in sorted(counted.items())),
        model_writer=learned,
        input_format="tsv",
        model_type="unigram",
        vocab_size=size + 1,  # and <unk>
        hard_vocab_limit=False,
        # The words are split and spelled already: nothing is left out, changed or split again.
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_unicode_script=False,
        split_by_number=False,
        split_by_whitespace=False,
        max_sentence_length=1 << 20,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        num_threads=_THREADS,
        minloglevel=2,
    )
    model = SentencePieceProcessor(model_proto=learned.getvalue())
    return {model.id_to_piece(i): model.get_score(i) for i in range(1, model.get_piece_size())}


def _learn_wordpiece(pieces: Pieces, spec: VocabularySpec, characters: int) -> Tokenizer:
    assert spec.size is not None
    signs = sorted(ByteLevel.alphabet())
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = byte_words()
    # Without the alphabets as special tokens, the trainer numbers the signs that continue a word in the order of a hash
    # table, and ties between merges are decided by numbers.
    trainer = BpeTrainer(
        vocab_size=spec.size,
        min_frequency=2,
        special_tokens=[*signs, *(CONTINUES + sign for sign in signs)],
        continuing_subword_prefix=CONTINUES,
        show_progress=False,
    )
    learner.train_from_iterator(_sample(pieces(), characters, spec.learn_from), trainer)
    tokenizer = Tokenizer(
        WordPiece(
            vocab=learner.get_vocab(),
            unk_token="[UNK]",  # never used, and not in the vocabulary: both alphabets are whole
            continuing_subword_prefix=CONTINUES,
            max_input_chars_per_word=4 * LOOK_AHEAD,
        )
    )
    tokenizer.pre_tokenizer = byte_words()
    tokenizer.decoder = DecoderSequence([Replace(CONTINUES, ""), ByteLevelDecoder()])
    return tokenizer


def _learn_characters(pieces: Pieces, spec: VocabularySpec, characters: int, alphabet: list[str]) -> Tokenizer:
    assert spec.size is not None
    least = BYTES + len(alphabet)
    if spec.size < least:
        raise VocabularyError(
            f"size={spec.size} is smaller than the alphabet of kind='bpe-char' on this text: {BYTES} bytes and "
            f"{len(alphabet)} distinct characters. The least size is {least}; kind='bpe' can be as small as {BYTES}."
        )
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = words()
    learner.train_from_iterator(_sample(pieces(), characters, spec.learn_from), _trainer(spec.size - BYTES, alphabet))
    merges = [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
    tokenizer = _with_bytes(alphabet, merges)
    tokenizer.pre_tokenizer = words()
    return tokenizer


def _sample(pieces: Iterable[str], characters: int, at_most: int) -> Iterator[str]:
    """Yield the text, or evenly spread stretches of it with `at_most` characters in all."""
    if characters <= at_most:
        # A separate pre-tokenizer: the tokenizer is locked while it is trained, so using its own here would deadlock.
        splitter = words()
        for piece in pieces:
            yield from (page for _, page in pages(splitter, piece))
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
