"""Learning a vocabulary from the training set, and tokenizing both sets with it."""

from collections.abc import Iterator

from prefect import task
from pydantic import ValidationError

from bardflow.errors import BardError
from bardflow.model.vocabulary import TOKENIZER_FILE, VocabularySpec, encode, learn, load, save, token_dtype
from bardflow.storage.documents import SPLITS, read_documents, read_text
from bardflow.storage.handles import Corpus, TokenShards, Vocabulary
from bardflow.storage.shards import ShardSpec, TokenIds, write_shards
from bardflow.tasks.caching import CACHE_BY_INPUTS
from bardflow.tasks.run import origin, store
from bardflow.tasks.saying import Progress, watched


class NoSuchVocabulary(BardError):
    """The name of a vocabulary is unknown."""


def vocabulary_named(name: str) -> VocabularySpec:
    """Return the spec of a vocabulary: `char`, `bytes`, or a name such as `bpe-2048` and `bpe-char-8192`.

    Raises:
        NoSuchVocabulary: the name has another form, or the size is not legal for the kind.
    """
    if name == "char":
        return VocabularySpec(kind="char")
    if name == "bytes":
        return VocabularySpec(kind="bpe", size=256)
    kind, _, size = name.rpartition("-")
    try:
        return VocabularySpec.model_validate({"kind": kind, "size": int(size)})
    except (ValueError, ValidationError) as error:
        raise NoSuchVocabulary(
            f"{name!r} names no vocabulary; write char, bytes, bpe-SIZE or bpe-char-SIZE, such as bpe-2048 "
            "(a size is the number of tokens, at least 256)"
        ) from error


@task(version="1", cache_policy=CACHE_BY_INPUTS)
def learn_vocabulary(corpus: Corpus, spec: VocabularySpec) -> Vocabulary:
    """Learn a vocabulary from the training set; see also `byte_fallback` in its spec."""
    survey = store().facts(corpus)["survey"]
    with store().draft() as draft:
        tokenizer = learn(
            lambda: watched(
                read_text(store().folder(corpus), "train"),
                doing="reading the training set",
                unit="character",
                total=survey["train_characters"],
                size=len,
            ),
            spec,
            characters=survey["train_characters"],
            unseen=survey["unseen_distinct"] > 0,
        )
        save(tokenizer, draft.folder)
        return store().keep(draft, Vocabulary, {"kind": spec.kind, "size": tokenizer.get_vocab_size()}, origin())


@task(version="1", cache_policy=CACHE_BY_INPUTS)
def tokenize_corpus(corpus: Corpus, vocabulary: Vocabulary, spec: ShardSpec) -> TokenShards:
    """Write both sets as token ids in shards, one document after another."""
    tokenizer = load(store().folder(vocabulary) / TOKENIZER_FILE)
    folder, survey = store().folder(corpus), store().facts(corpus)["survey"]

    def rows() -> Iterator[tuple[str, int, TokenIds]]:
        with Progress("tokenizing", "character", survey["characters"]) as progress:
            for part in SPLITS:
                pieces = read_documents(folder, part)
                for (document, text), ids in zip(pieces, encode(tokenizer, read_text(folder, part)), strict=True):
                    yield part, document, ids
                    progress.advance(len(text))

    with store().draft() as draft:
        tokens = write_shards(draft.folder, rows(), spec, dtype=token_dtype(tokenizer.get_vocab_size()))
        return store().keep(draft, TokenShards, {"tokens": tokens}, origin())
