"""Fetching a corpus, cleaning it, cutting it into documents and splitting it."""

import os
from collections.abc import Iterable, Iterator

from prefect import task
from prefect.cache_policies import NO_CACHE

from bardflow.home import home, project_folder
from bardflow.sources.documents import Part, Piece, extent, read, split
from bardflow.sources.duplicates import treated
from bardflow.sources.fetch import fetch
from bardflow.sources.spec import CorpusSpec
from bardflow.sources.survey import survey
from bardflow.storage.documents import SPLITS, read_documents, write_documents
from bardflow.storage.handles import Corpus, Source
from bardflow.tasks.caching import CACHE_BY_INPUTS
from bardflow.tasks.run import origin, store
from bardflow.tasks.saying import Progress, say, watched

RAW = "raw"  # a subfolder, because a file of the source may be called manifest.json


@task(version="1", cache_policy=NO_CACHE)
def fetch_source(corpus: CorpusSpec) -> Source:
    """Fetch the raw files. The result is never cached, because only the source knows whether it changed."""
    with store().draft() as draft:
        (draft.folder / RAW).mkdir()
        with Progress(f"fetching {corpus.name}", "B") as progress:
            fetched = fetch(
                corpus,
                draft.folder / RAW,
                downloads=home() / "downloads",
                mirror=os.environ.get("CORPORA_MIRROR") or None,
                progress=progress,
                project=project_folder(),
            )
        say(f"{corpus.name}: {fetched.why}")
        return store().keep(draft, Source, {}, origin(address=fetched.address, why=fetched.why))


@task(version="3", cache_policy=CACHE_BY_INPUTS)
def clean_corpus(source: Source, corpus: CorpusSpec) -> Corpus:
    """Decode and clean a text, cut it into documents and split it. The counts become the artifact's facts."""
    with store().draft() as draft:
        reading = read(corpus, store().folder(source) / RAW)
        characters, documents = extent(
            watched(reading, doing=f"reading {corpus.name}", unit="character", size=lambda piece: len(piece.text))
        )

        def counted(parts: Iterable[tuple[Part, Piece]], doing: str) -> Iterator[tuple[Part, Piece]]:
            return watched(parts, doing=doing, unit="character", total=characters, size=lambda part: len(part[1].text))

        def parts() -> Iterator[tuple[Part, Piece]]:
            return counted(split(reading, corpus.split, characters, documents), f"cleaning {corpus.name}")

        labelled, duplicates = treated(parts, corpus.duplicates)
        written = write_documents(draft.folder, ((part, piece.document, piece.text) for part, piece in labelled))

        def again() -> Iterator[tuple[Part, Piece]]:
            for part in SPLITS:
                for document, text in read_documents(draft.folder, part):
                    yield part, Piece(document, text)

        facts = {
            "name": corpus.name,
            "title": corpus.title,
            "language": corpus.language,
            "licence": corpus.licence,
            "published": [figure.model_dump() for figure in corpus.published],
            "cleaned": [step.model_dump() for step in reading.cleaned],
            "survey": survey(counted(again(), f"surveying {corpus.name}")).model_dump(mode="json"),
            "text": written.model_dump(),
        }
        if duplicates is not None:
            facts["duplicates"] = duplicates.model_dump()
        return store().keep(draft, Corpus, facts, origin())
