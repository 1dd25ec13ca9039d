"""Add a corpus: fetch and survey a text for a new corpus file."""

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from bardflow.sources.cleaning import Cleaned
from bardflow.sources.documents import Reading, extent, raw_files, read, split
from bardflow.sources.download import Progress
from bardflow.sources.encoding import Detected, detect_file
from bardflow.sources.fetch import Fetched, fetch
from bardflow.sources.spec import CorpusError, CorpusSpec, DatasetSource, DocumentsSpec, PathSource, UrlSource
from bardflow.sources.survey import Survey, survey
from bardflow.sources.unpack import RawText, raw_texts

# The fields of a spec that can be proposed from the text, and the characters shown of it before and after cleaning.
PROPOSED = ("encoding", "cleaning", "documents")
SHOWN_CHARACTERS = 200


class Added(NamedTuple):
    """A new corpus: its spec (with the sha256 if pinned), its files and its survey.

    `detected` is the encoding, if it was detected; `cleaned` are the counts of each cleaning step; `before` and `after`
    are the start of the text without and with cleaning.
    """

    spec: CorpusSpec
    fetched: Fetched
    survey: Survey
    detected: Detected | None
    cleaned: tuple[Cleaned, ...]
    before: str
    after: str


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
    spec: CorpusSpec,
    *,
    project: Path,
    downloads: Path,
    mirror: str | None,
    pin: bool = False,
    propose: Collection[str] = (),
    progress: Progress | None = None,
) -> Added:
    """Fetch the corpus into a temporary folder and survey it; with `pin`, also set the sha256 of a URL or path.

    `propose` names fields of the spec that are set from the text: `encoding` is detected, `cleaning` becomes the steps
    that change the text, and `documents` one for each file if there are several.

    Raises:
        CorpusError, FetchError: it cannot be fetched, is not text, or is several files and cannot be pinned.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, detected = Path(name), None
        fetched = fetch(spec, folder, downloads=downloads, mirror=mirror, progress=progress, project=project)
        if not isinstance(spec.source, DatasetSource):
            texts = [text for path in raw_files(spec, folder) for text in raw_texts(path, path.name)]
            if "encoding" in propose and (detected := _encoding_of(texts)):
                spec = spec.model_copy(update={"encoding": detected.encoding})
            if "documents" in propose and len(texts) > 1:
                spec = spec.model_copy(update={"documents": DocumentsSpec(cut="file")})
        before = after = _start(read(spec, folder))
        reading, found = _surveyed(spec, folder)
        if "cleaning" in propose and found.cleaning:
            spec = spec.model_copy(update={"cleaning": found.cleaning})
            reading, found = _surveyed(spec, folder)
            after = _start(read(spec, folder))
        cleaned = reading.cleaned
    if pin and isinstance(spec.source, UrlSource | PathSource):
        if len(fetched.files) > 1:
            raise CorpusError(
                f"{fetched.address} is {len(fetched.files)} files, and only one file can be pinned by its sha256; "
                "leave --pin out: what came is recorded in the store all the same"
            )
        pinned = spec.source.model_copy(update={"sha256": fetched.files[0].sha256})
        spec = spec.model_copy(update={"source": pinned})
    return Added(spec, fetched, found, detected, cleaned, before, after)


def _encoding_of(texts: list[RawText]) -> Detected | None:
    """The encoding of the first file that has other characters than ASCII, else of the first file."""
    first = None
    for text in texts:
        found = detect_file(text)
        if found is not None and not found.line.isascii():
            return found
        first = first or found
    return first


def _surveyed(spec: CorpusSpec, folder: Path) -> tuple[Reading, Survey]:
    reading = read(spec, folder)
    characters, documents = extent(reading)
    return reading, survey(split(reading, spec.split, characters, documents))


def _start(reading: Reading) -> str:
    """The first characters of a text."""
    return next(iter(reading)).text[:SHOWN_CHARACTERS]
