"""Add a corpus: fetch and survey a text for a new corpus file."""

import tempfile
from pathlib import Path
from typing import NamedTuple

from bardflow.sources.documents import extent, read, split
from bardflow.sources.download import Progress
from bardflow.sources.fetch import Fetched, fetch
from bardflow.sources.spec import CorpusError, CorpusSpec, DatasetSource, PathSource, UrlSource
from bardflow.sources.survey import Survey, survey


class Added(NamedTuple):
    """A new corpus: its spec (with the sha256 if pinned), its files and its survey."""

    spec: CorpusSpec
    fetched: Fetched
    survey: Survey


def source_at(address: str, project: Path) -> UrlSource | PathSource | DatasetSource:
    """The source of an address: `http(s)://…`, `dataset:NAME` for a Hugging Face dataset, else a path or a glob.

    A path inside the project folder becomes relative, so that it is valid on another machine.
    """
    if address.startswith(("http://", "https://")):
        return UrlSource(url=address)
    if address.startswith("dataset:"):
        return DatasetSource(dataset=address.removeprefix("dataset:"))
    path = Path(address).expanduser().absolute()
    return PathSource(path=str(path.relative_to(project) if path.is_relative_to(project) else path))


def look(
    spec: CorpusSpec, *, project: Path, downloads: Path, mirror: str | None, pin: bool, progress: Progress | None = None
) -> Added:
    """Fetch the corpus into a temporary folder and survey it; with `pin`, also set the sha256 of a URL or path.

    Raises:
        CorpusError, FetchError: it cannot be fetched, is not text, or is several files and cannot be pinned.
    """
    with tempfile.TemporaryDirectory() as folder:
        fetched = fetch(spec, Path(folder), downloads=downloads, mirror=mirror, progress=progress, project=project)
        reading = read(spec, Path(folder))
        characters, documents = extent(reading)
        found = survey(split(reading, spec.split, characters, documents))
    if pin and isinstance(spec.source, UrlSource | PathSource):
        if len(fetched.files) > 1:
            raise CorpusError(
                f"{fetched.address} is {len(fetched.files)} files, and only one file can be pinned by its sha256; "
                "leave --pin out: what came is recorded in the store all the same"
            )
        pinned = spec.source.model_copy(update={"sha256": fetched.files[0].sha256})
        spec = spec.model_copy(update={"source": pinned})
    return Added(spec, fetched, found)
