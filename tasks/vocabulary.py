"""Learning a vocabulary or taking one from a file, and tokenizing both sets with it."""

import hashlib
from collections.abc import Iterator
from itertools import islice, tee
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import ValidationError

from bardflow.engine.tokens import encode_on
from bardflow.errors import BardError
from bardflow.home import project_folder
from bardflow.model.vocabulary import (
    TOKENIZER_FILE,
    NotLossless,
    VocabularyError,
    VocabularySpec,
    encode,
    expected_size,
    learn,
    load,
    save,
    token_dtype,
    vocabulary_from_file,
    vocabulary_size,
)
from bardflow.storage.documents import SPLITS, read_documents, read_text
from bardflow.storage.handles import Corpus, TokenShards, Vocabulary
from bardflow.storage.shards import ShardSpec, TokenIds, finished_shards, write_shards
from bardflow.tasks.caching import CACHE_BY_INPUTS
from bardflow.tasks.cluster import cluster_of_run
from bardflow.tasks.run import origin, store
from bardflow.tasks.saying import Progress, say, watched

# The characters of a text from which it is spread over the nodes of a cluster, where processes take seconds to start.
SPREAD_CHARACTERS = 20_000_000


class NoSuchVocabulary(BardError):
    """The name of a vocabulary is unknown."""


def vocabulary_named(name: str) -> VocabularySpec:
    """Return the spec of a vocabulary: `char`, `bytes`, a kind and a size such as `bpe-2048`, or the path of a .json.

    Raises:
        NoSuchVocabulary: the name has another form, or the size is not legal for the kind.
    """
    if name.endswith(".json"):
        return VocabularySpec(kind="file", file=name)
    if name == "char":
        return VocabularySpec(kind="char")
    if name == "bytes":
        return VocabularySpec(kind="bpe", size=256)
    kind, _, size = name.rpartition("-")
    try:
        return VocabularySpec.model_validate({"kind": kind, "size": int(size)})
    except (ValueError, ValidationError) as error:
        raise NoSuchVocabulary(
            f"{name!r} names no vocabulary; write char, bytes, bpe-SIZE, bpe-char-SIZE, unigram-SIZE, wordpiece-SIZE "
            "or the path of a tokenizer.json. A size is the number of tokens, such as bpe-2048: at least 256, and "
            "512 for wordpiece"
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


@task(version="1", cache_policy=NO_CACHE)
def import_vocabulary(file: str) -> Vocabulary:
    """Make a vocabulary of a `tokenizer.json`. It is never cached, because only the file knows whether it changed.

    The artifact has the file as the library writes it, without the settings that `vocabulary_from_file` drops. So its
    digest depends on the file's content, not on its path.

    Raises:
        VocabularyError: as `vocabulary_from_file`.
    """
    path = tokenizer_path(file)
    tokenizer = vocabulary_from_file(path)
    with store().draft() as draft:
        save(tokenizer, draft.folder)
        facts = {"kind": "file", "size": vocabulary_size(tokenizer)}
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return store().keep(draft, Vocabulary, facts, origin(file_sha256=digest))


def tokenizer_path(file: str) -> Path:
    """Return the path of a `tokenizer.json`, or of the one in a folder; relative to the project folder."""
    path = project_folder() / Path(file).expanduser()
    return path / TOKENIZER_FILE if path.is_dir() else path


def size_before_learning(spec: VocabularySpec, *, distinct: int, unseen: bool) -> int:
    """Return `expected_size`, also for a `tokenizer.json`.

    Raises:
        VocabularyError: as `vocabulary_from_file`.
    """
    if spec.file is not None:
        return vocabulary_size(vocabulary_from_file(tokenizer_path(spec.file)))
    return expected_size(spec, distinct=distinct, unseen=unseen)


def require_vocabulary(spec: VocabularySpec) -> None:
    """Check a `tokenizer.json` before a run starts; other kinds need no check.

    Raises:
        VocabularyError: as `vocabulary_from_file`.
    """
    if spec.file is not None:
        vocabulary_from_file(tokenizer_path(spec.file))


@task(version="1", cache_policy=CACHE_BY_INPUTS)
def tokenize_corpus(corpus: Corpus, vocabulary: Vocabulary, spec: ShardSpec) -> TokenShards:
    """Write both sets as token ids in shards, one document after another. If interrupted, it resumes after a shard.

    A large text is tokenized by all nodes of the run's cluster, if it has several; the files have the same bytes.

    Raises:
        VocabularyError: a tokenizer of another program changes or drops a part of the text; the message has the line.
    """
    tokenizer = load(store().folder(vocabulary) / TOKENIZER_FILE)
    folder, survey = store().folder(corpus), store().facts(corpus)["survey"]

    def encoded(texts: Iterator[str]) -> Iterator[TokenIds]:
        cluster = cluster_of_run()
        # One process uses all cores of its machine, and looks characters up faster than they are sent: 200 and 55 MB/s.
        alone = cluster is None or cluster.nodes() == 1 or store().facts(vocabulary)["kind"] == "char"
        if cluster is None or alone or survey["characters"] < SPREAD_CHARACTERS:
            return encode(tokenizer, texts)
        return encode_on(cluster, tokenizer, texts)

    def rows(finished: dict[str, int]) -> Iterator[tuple[str, int, TokenIds]]:
        with Progress("tokenizing", "character", survey["characters"]) as progress:
            for part in SPLITS:
                documents = read_documents(folder, part)
                for _, text in islice(documents, finished[part]):
                    progress.advance(len(text))
                pieces, ahead = tee(documents)
                try:
                    for (document, text), ids in zip(pieces, encoded(t for _, t in ahead), strict=True):
                        yield part, document, ids
                        progress.advance(len(text))
                except NotLossless as error:
                    line = line_of(read_text(folder, part), finished[part] + error.piece, error.offset)
                    name, part_of = store().facts(corpus)["name"], "training" if part == "train" else part
                    place = f"line {line:,} of the {part_of} set of {name}"
                    raise VocabularyError(error.at(place)) from error

    key = CACHE_BY_INPUTS.key_of(tokenize_corpus, {"corpus": corpus, "vocabulary": vocabulary, "spec": spec})
    with store().draft(key) as draft:
        finished = finished_shards(draft.folder)
        if any(finished.shards.values()):
            say(f"tokenizing: {sum(finished.tokens.values()):,} tokens are there from an interrupted run")
        dtype = token_dtype(vocabulary_size(tokenizer))
        tokens = write_shards(draft.folder, rows(finished.rows), spec, dtype=dtype, finished=finished)
        return store().keep(draft, TokenShards, {"tokens": tokens}, origin())


def line_of(pieces: Iterator[str], piece: int, offset: int) -> int:
    """Return the number of the line, from 1, of a place in a text: an offset in one of its pieces."""
    before = 1
    for number, text in enumerate(pieces):
        if number == piece:
            return before + text.count("\n", 0, offset)
        before += text.count("\n")
    raise ValueError(f"the text has no piece {piece}")
