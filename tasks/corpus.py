"""Fetching a corpus, cleaning it, cutting it into documents and splitting it; and mixing several."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict

from bardflow.engine.reading import UnitsOn
from bardflow.sources.documents import Part, Piece, Units, cleaned_units, extent, read, split
from bardflow.sources.duplicates import treated
from bardflow.sources.mixing import ReadSet, mix
from bardflow.sources.spec import CorpusSpec, MixtureSpec
from bardflow.sources.survey import survey
from bardflow.storage.disk import fsync_all, write_whole
from bardflow.storage.documents import SPLITS, read_documents, write_documents
from bardflow.storage.handles import Corpus, Source
from bardflow.storage.layout import RAW
from bardflow.tasks.caching import CACHE_BY_INPUTS
from bardflow.tasks.cluster import cluster_of_run, folder_of
from bardflow.tasks.fetching import fetch_into
from bardflow.tasks.run import origin, store
from bardflow.tasks.saying import say, watched

FINISHED = "finished.json"  # in the folder of a corpus that is being cleaned
# A smaller corpus is read sooner than it is sent to other machines.
SPREAD_BYTES = 2**26
# The packages that read a format, beside those that every artifact names.
READERS = {"html": ("resiliparse",), "epub": ("resiliparse",), "markdown": ("markdown-it-py", "resiliparse")}


@task(version="1", cache_policy=NO_CACHE)
def fetch_source(corpus: CorpusSpec) -> Source:
    """Fetch the raw files. The result is never cached, because only the source knows whether it changed."""
    with store().draft() as draft:
        fetched = fetch_into(draft, corpus)
        say(f"{corpus.name}: {fetched.why}")
        return store().keep(draft, Source, {}, origin(address=fetched.address, why=fetched.why))


@task(version="4", cache_policy=CACHE_BY_INPUTS)
def clean_corpus(source: Source, corpus: CorpusSpec) -> Corpus:
    """Decode and clean a text, cut it into documents and split it. The counts become the artifact's facts.

    The text is read three times: to count it, to write it cleaned, and to survey what was written. An interrupted task
    resumes after the last of these that it finished. The files of a large corpus are read by all nodes of the run's
    cluster, if it has several; the artifact is the same.
    """
    key = CACHE_BY_INPUTS.key_of(clean_corpus, {"source": source, "corpus": corpus})
    with store().draft(key) as draft:
        note = draft.folder / FINISHED
        finished = _Finished.model_validate_json(note.read_bytes()) if note.is_file() else _Finished()
        if finished != _Finished():
            say(f"{corpus.name}: an interrupted run has {'written' if finished.facts else 'counted'} the text already")

        def counted(parts: Iterable[tuple[Part, Piece]], doing: str) -> Iterator[tuple[Part, Piece]]:
            doing, total = f"{doing} {corpus.name}", finished.characters
            return watched(parts, doing=doing, unit="character", total=total, size=lambda part: len(part[1].text))

        def finish(**values: Any) -> None:
            nonlocal finished
            finished = finished.model_copy(update=values)
            write_whole(note, finished.model_dump_json().encode(), store().drafts)

        if finished.facts is None:
            for path in draft.folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
            reading = read(corpus, store().folder(source) / RAW, _units(source))
            if not finished.characters:
                pieces = watched(
                    reading, doing=f"reading {corpus.name}", unit="character", size=lambda piece: len(piece.text)
                )
                characters, documents = extent(pieces)
                finish(characters=characters, documents=documents)
            parts = split(reading, corpus.split, finished.characters, finished.documents)
            labelled, duplicates = treated(lambda: counted(parts, "cleaning"), corpus.duplicates)
            written = write_documents(draft.folder, ((part, piece.document, piece.text) for part, piece in labelled))
            fsync_all(sorted(draft.folder.rglob("*"), reverse=True))
            rows = reading.rows
            facts = {
                "name": corpus.name,
                "title": corpus.title,
                "language": corpus.language,
                "licence": corpus.licence,
                "published": [figure.model_dump() for figure in corpus.published],
                "cleaned": [step.model_dump() for step in reading.cleaned],
                "text": written.model_dump(),
                # Facts are part of the digest, so a short corpus of plain text has none of these.
                **({} if rows is None else {"rows": asdict(rows)}),
                **({} if corpus.format == "text" else {"format": corpus.format}),
                **({} if parts.kept is None else {"validation_kept": parts.kept._asdict()}),
                **({} if duplicates is None else {"duplicates": duplicates.model_dump()}),
            }
            finish(facts=facts)

        assert finished.facts is not None
        if (counts := finished.facts.get("rows")) and counts["without_value"]:
            say(f"{corpus.name}: {counts['without_value']:,} of {counts['rows']:,} rows have no value and are left out")
        surveyed = survey(counted(_stored(draft.folder), "surveying"))
        note.unlink()
        facts = finished.facts | {"survey": surveyed.model_dump(mode="json")}
        return store().keep(draft, Corpus, facts, origin(*READERS.get(corpus.format, ())))


def _units(source: Source) -> Units:
    """The function that reads the files: on the nodes of the run's cluster, if it has several and they are large."""
    cluster = cluster_of_run()
    if cluster is None or cluster.nodes() == 1:
        return cleaned_units
    files = store().manifest(source).files.values()
    if len(files) == 1 or sum(facts.bytes for facts in files) < SPREAD_BYTES:
        return cleaned_units
    return UnitsOn(cluster, folder_of(cluster, source), RAW)


class _Finished(BaseModel):
    """What is finished of cleaning a corpus: its counts, and the facts about the text once that is written."""

    model_config = ConfigDict(extra="forbid")

    characters: int = 0
    documents: int = 0
    facts: dict[str, Any] | None = None


@task(version="2", cache_policy=CACHE_BY_INPUTS)
def mix_corpora(corpora: list[Corpus], mixture: MixtureSpec) -> Corpus:
    """Mix the texts of cleaned corpora, one for each part of the mixture. What each part gives becomes a fact."""
    facts_of = [store().facts(corpus) for corpus in corpora]
    with store().draft() as draft:
        mixed = mix(mixture, [_sets(store().folder(corpus)) for corpus in corpora])
        total = sum(part.train_characters + part.validation_characters for part in mixed.parts)

        def counted(parts: Iterable[tuple[Part, Piece]], doing: str) -> Iterator[tuple[Part, Piece]]:
            doing = f"{doing} {mixture.name}"
            return watched(parts, doing=doing, unit="character", total=total, size=lambda part: len(part[1].text))

        rows = counted(mixed.read(), "mixing")
        written = write_documents(draft.folder, ((part, piece.document, piece.text) for part, piece in rows))
        languages = dict.fromkeys(facts["language"] for facts in facts_of)
        licences = dict.fromkeys(facts["licence"] for facts in facts_of)
        facts = {
            "name": mixture.name,
            "title": mixture.title,
            "language": mixture.language or (next(iter(languages)) if len(languages) == 1 else "mul"),
            "licence": mixture.licence or ", ".join(licences),
            "published": [],
            "cleaned": [],
            "survey": survey(counted(_stored(draft.folder), "surveying")).model_dump(mode="json"),
            "text": written.model_dump(),
            "mixture": [
                part.model_dump() | {"title": facts["title"], "digest": corpus.digest}
                for part, facts, corpus in zip(mixed.parts, facts_of, corpora, strict=True)
            ],
        }
        if mixed.duplicates is not None:
            facts["duplicates"] = mixed.duplicates.model_dump()
        return store().keep(draft, Corpus, facts, origin())


def _sets(folder: Path) -> ReadSet:
    """The pieces of each set of a stored corpus."""
    return lambda part: (Piece(document, text) for document, text in read_documents(folder, part))


def _stored(folder: Path) -> Iterator[tuple[Part, Piece]]:
    """The labelled pieces of a stored corpus."""
    for part in SPLITS:
        for piece in _sets(folder)(part):
            yield part, piece
