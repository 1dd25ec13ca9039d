"""Fetching a corpus, cleaning it, cutting it into documents and splitting it; and mixing several."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict

from bardflow.engine.reading import UnitsOn
from bardflow.sources.documents import Part, Piece, Units, cleaned_units, extent, read, split
from bardflow.sources.duplicates import treated
from bardflow.sources.mixing import ReadSet, mix
from bardflow.sources.spec import CorpusSpec, MixtureSpec
from bardflow.sources.survey import Survey, SurveyThread
from bardflow.storage.disk import write_whole
from bardflow.storage.documents import DocumentsFacts, read_documents, write_documents
from bardflow.storage.handles import Corpus, Source
from bardflow.storage.layout import RAW
from bardflow.tasks.caching import CACHE_BY_INPUTS
from bardflow.tasks.cluster import cluster_of_run, folder_of
from bardflow.tasks.fetching import fetch_into
from bardflow.tasks.run import origin, store
from bardflow.tasks.saying import say, watched

COUNTED = "counted.json"  # in the folder of a corpus that is being cleaned
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

    The text is read twice: to count it, and to write it cleaned while a thread surveys what is written. An interrupted
    task that has counted the text does not count it again. The files of a large corpus are read by all nodes of the
    run's cluster, if it has several; the artifact is the same.
    """
    key = CACHE_BY_INPUTS.key_of(clean_corpus, {"source": source, "corpus": corpus})
    with store().draft(key) as draft:
        note = draft.folder / COUNTED
        for path in draft.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != note:
                path.unlink()
        reading = read(corpus, store().folder(source) / RAW, _units(source))
        if note.is_file():
            counted = _Extent.model_validate_json(note.read_bytes())
            say(f"{corpus.name}: an interrupted run has counted the text already")
        else:
            pieces = watched(
                reading, doing=f"reading {corpus.name}", unit="character", size=lambda piece: len(piece.text)
            )
            characters, documents = extent(pieces)
            counted = _Extent(characters=characters, documents=documents)
            write_whole(note, counted.model_dump_json().encode(), store().drafts)
        parts = split(reading, corpus.split, counted.characters, counted.documents)
        labelled, duplicates = treated(
            lambda: _watched(parts, f"cleaning {corpus.name}", counted.characters), corpus.duplicates
        )
        written, surveyed = _write_surveyed(draft.folder, labelled)
        rows = reading.rows
        if rows is not None and rows.without_value:
            say(f"{corpus.name}: {rows.without_value:,} of {rows.rows:,} rows have no value and are left out")
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
            "survey": surveyed.model_dump(mode="json"),
        }
        note.unlink()
        return store().keep(draft, Corpus, facts, origin(*READERS.get(corpus.format, ())))


def _watched(parts: Iterable[tuple[Part, Piece]], doing: str, characters: int) -> Iterator[tuple[Part, Piece]]:
    """Yield labelled pieces of so many characters in all, with a progress bar."""
    return watched(parts, doing=doing, unit="character", total=characters, size=lambda part: len(part[1].text))


def _write_surveyed(folder: Path, parts: Iterable[tuple[Part, Piece]]) -> tuple[DocumentsFacts, Survey]:
    """Write labelled pieces while a thread surveys them."""
    with SurveyThread() as surveying:
        rows = ((part, piece.document, piece.text) for part, piece in surveying.passing(parts))
        return write_documents(folder, rows), surveying.result()


def _units(source: Source) -> Units:
    """The function that reads the files: on the nodes of the run's cluster, if it has several and they are large."""
    cluster = cluster_of_run()
    if cluster is None or cluster.nodes() == 1:
        return cleaned_units
    files = store().manifest(source).files.values()
    if len(files) == 1 or sum(facts.bytes for facts in files) < SPREAD_BYTES:
        return cleaned_units
    return UnitsOn(cluster, folder_of(cluster, source), RAW)


class _Extent(BaseModel):
    """The size of a corpus that is being cleaned."""

    model_config = ConfigDict(extra="forbid")

    characters: int
    documents: int


@task(version="2", cache_policy=CACHE_BY_INPUTS)
def mix_corpora(corpora: list[Corpus], mixture: MixtureSpec) -> Corpus:
    """Mix the texts of cleaned corpora, one for each part of the mixture. What each part gives becomes a fact."""
    facts_of = [store().facts(corpus) for corpus in corpora]
    with store().draft() as draft:
        mixed = mix(mixture, [_sets(store().folder(corpus)) for corpus in corpora])
        total = sum(part.train_characters + part.validation_characters for part in mixed.parts)

        parts = _watched(mixed.read(), f"mixing {mixture.name}", total)
        written, surveyed = _write_surveyed(draft.folder, parts)
        languages = dict.fromkeys(facts["language"] for facts in facts_of)
        licences = dict.fromkeys(facts["licence"] for facts in facts_of)
        facts = {
            "name": mixture.name,
            "title": mixture.title,
            "language": mixture.language or (next(iter(languages)) if len(languages) == 1 else "mul"),
            "licence": mixture.licence or ", ".join(licences),
            "published": [],
            "cleaned": [],
            "survey": surveyed.model_dump(mode="json"),
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
