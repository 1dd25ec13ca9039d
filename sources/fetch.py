"""Fetch the files of a corpus from any kind of source."""

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, ConfigDict

from bardflow.sources.addresses import checked_address, http_address, masked, require_public
from bardflow.sources.download import (
    ChecksumError,
    FetchError,
    HttpSpec,
    Progress,
    download,
    kept_download,
)
from bardflow.sources.rows import cell
from bardflow.sources.spec import CorpusError, CorpusSpec, DatasetSource, PathSource, SyntheticSource, UrlSource
from bardflow.sources.synthetic import generate

__all__ = [
    "ChecksumError",
    "FetchError",
    "Fetched",
    "HttpSpec",
    "Progress",
    "RawFile",
    "dataset_rows",
    "fetch",
    "file_name",
]

_COPY_BYTES = 1 << 20
# Readers of the `datasets` library. With these, `data_files` are local paths, relative to the project folder.
_FILE_READERS = ("json", "csv", "parquet", "text", "arrow", "xml")


class RawFile(BaseModel):
    """A fetched file: its relative path, its size in bytes and its sha256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bytes: int
    sha256: str


class Fetched(BaseModel):
    """The result of a fetch: address, files, whether they were downloaded, and why.

    `pinned` means that the corpus file fixes the bytes: by a sha256, or because they are generated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str
    files: tuple[RawFile, ...]
    downloaded: bool
    pinned: bool
    why: str


def fetch(
    spec: CorpusSpec,
    into: Path,
    *,
    downloads: Path,
    mirror: str | None,
    progress: Progress | None = None,
    project: Path = Path(),
    http: HttpSpec = HttpSpec(),  # noqa: B008 - a frozen value
) -> Fetched:
    """Put the raw files of the corpus into the empty folder `into`.

    Downloads are kept in `downloads`, so that an unchanged file is not downloaded twice. `mirror` is a folder or a
    base URL with `<corpus>/<file name>` that is tried first. Relative paths start at `project`. `progress(bytes so far,
    total bytes or None)` is called repeatedly.
    Raises FetchError if the source cannot be reached, ChecksumError if the bytes do not have the pinned `sha256`, and
    CorpusError if there is nothing to fetch, or more than the limit.
    """
    into.mkdir(parents=True, exist_ok=True)
    if any(into.iterdir()):
        raise CorpusError(f"{into} is not empty; a corpus is fetched into an empty folder.")
    match spec.source:
        case UrlSource():
            return _from_url(spec.name, spec.source, into, downloads, mirror, progress, http)
        case PathSource():
            return _from_path(spec.source, into, project)
        case DatasetSource():
            return _from_dataset(spec.source, into, project, progress)
        case SyntheticSource():
            return _from_synthetic(spec.source, into)


def file_name(url: str) -> str:
    """The name of the downloaded file of `url`, which is also its name in a mirror."""
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    return name if name not in ("", ".", "..") and "\0" not in name else "corpus.txt"


def _from_url(
    corpus: str,
    source: UrlSource,
    into: Path,
    downloads: Path,
    mirror: str | None,
    progress: Progress | None,
    http: HttpSpec,
) -> Fetched:
    name = file_name(source.url)
    place = f"{corpus}/{name}"
    tried: list[str] = []
    target = into / name
    if mirror is not None and "://" in mirror and not _is_url(mirror):
        raise CorpusError("CORPORA_MIRROR should be a folder, or an address that begins with http:// or https://.")
    got = kept_download(source.url, target, downloads, source.sha256) if source.sha256 else None
    if got is None and mirror is not None and not _is_url(mirror):
        file = Path(mirror) / corpus / name
        if file.is_file():
            return _from_mirror_folder(source, file, name, into, progress)
        tried.append(f"the mirror folder has no {file}")
    if got is None and mirror is not None and _is_url(mirror):
        address = f"{mirror.rstrip('/')}/{quote(place)}"
        try:
            got = download(address, target, downloads, source.sha256, source.max_bytes, http, progress, own=True)
        except FetchError as error:
            tried.append(str(error))
    if got is None:
        try:
            got = download(source.url, target, downloads, source.sha256, source.max_bytes, http, progress)
        except FetchError as error:
            raise FetchError(
                f"The corpus {corpus!r} could not be fetched. "
                + " ".join(f"{reason}." for reason in (*tried, str(error)))
                + " What helps: set CORPORA_MIRROR to a folder or a base URL laid out <corpus>/<file name> "
                f"(here {place}), or use the built-in corpus 'synthetic', which needs no network."
            ) from error
    return Fetched(
        address=got.address,
        files=(RawFile(name=name, bytes=got.bytes, sha256=got.sha256),),
        downloaded=got.transferred,
        pinned=source.sha256 is not None,
        why=got.why,
    )


def _from_mirror_folder(source: UrlSource, file: Path, name: str, into: Path, progress: Progress | None) -> Fetched:
    size = file.stat().st_size
    if size > source.max_bytes:
        raise CorpusError(f"{file} has {size:,} bytes, more than max_bytes = {source.max_bytes:,} allows.")
    raw = _copied(file, into, name)
    if source.sha256 is not None and raw.sha256 != source.sha256:
        (into / name).unlink()
        raise ChecksumError.of(str(file), pinned=source.sha256, got=raw.sha256, size=size)
    if progress is not None:
        progress(size, size)
    return Fetched(
        address=str(file),
        files=(raw,),
        downloaded=False,
        pinned=source.sha256 is not None,
        why=f"copied {size:,} bytes from the mirror folder",
    )


def _from_path(source: PathSource, into: Path, project: Path) -> Fetched:
    pattern = os.path.expanduser(source.path)  # noqa: PTH111 - Path drops a trailing slash, and this may be a glob
    given = project / pattern
    files = dict(sorted(_named_files(given)))
    if not files:
        raise CorpusError(
            f"source.path = {source.path!r} names no file: {given.absolute()} "
            + ("is an empty folder." if given.is_dir() else "matches nothing.")
            + " Give a file, a folder or a glob; a relative path starts from the project folder."
        )
    if source.sha256 is not None and len(files) > 1:
        raise CorpusError(f"source.sha256 pins a single file, and source.path = {source.path!r} names {len(files):,}.")
    copies = tuple(_copied(file, into, name) for name, file in files.items())
    if source.sha256 is not None and copies[0].sha256 != source.sha256:
        (into / copies[0].name).unlink()
        raise ChecksumError.of(str(given), pinned=source.sha256, got=copies[0].sha256, size=copies[0].bytes)
    size = sum(copy.bytes for copy in copies)
    return Fetched(
        address=str(given.absolute()),
        files=copies,
        downloaded=False,
        pinned=source.sha256 is not None,
        why=f"copied {len(copies):,} file{'' if len(copies) == 1 else 's'}, {size:,} bytes",
    )


def _named_files(given: Path) -> Iterator[tuple[str, Path]]:
    """The files of a path, a folder or a glob with their relative names, without hidden files."""
    if given.is_file():
        yield given.name, given
        return
    if given.is_dir():
        root, found = given, sorted(given.rglob("*"))
    else:
        parts = given.parts
        fixed = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
        root = Path(*parts[:fixed])
        found = sorted(root.glob(str(Path(*parts[fixed:])))) if root.is_dir() else []
    for file in found:
        below = file.relative_to(root)
        if file.is_file() and not any(part.startswith(".") for part in below.parts):
            yield below.as_posix(), file


def _copied(file: Path, into: Path, name: str) -> RawFile:
    target = into / name
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    size = 0
    with file.open("rb") as source, target.open("xb") as copy:
        while block := source.read(_COPY_BYTES):
            digest.update(block)
            size += copy.write(block)
    return RawFile(name=name, bytes=size, sha256=digest.hexdigest())


def _from_synthetic(source: SyntheticSource, into: Path) -> Fetched:
    chunks = (chunk.encode() for chunk in generate(source.synthetic, source.seed))
    raw = _written(chunks, into / "synthetic.txt")
    return Fetched(
        address=f"synthetic:{source.synthetic}?seed={source.seed}",
        files=(raw,),
        downloaded=False,
        pinned=True,
        why=f"generated {source.synthetic:,} characters from seed {source.seed}",
    )


def _written(chunks: Iterable[bytes], target: Path) -> RawFile:
    digest = hashlib.sha256()
    size = 0
    with target.open("xb") as file:
        for chunk in chunks:
            digest.update(chunk)
            size += file.write(chunk)
    return RawFile(name=target.name, bytes=size, sha256=digest.hexdigest())


def _from_dataset(source: DatasetSource, into: Path, project: Path, progress: Progress | None) -> Fetched:
    """Write the texts of the rows to `rows.jsonl`, one JSON string on each line."""
    address = f"dataset:{source.dataset}" + (f"/{source.config}" if source.config else "")
    address += f"@{source.revision}" if source.revision else ""
    counts = {"rows": 0, "empty": 0, "bytes": 0}

    def lines() -> Iterator[bytes]:
        for text in _row_texts(source, project):
            if text is None:
                counts["empty"] += 1
                continue
            line = json.dumps(text, ensure_ascii=False).encode() + b"\n"
            counts["rows"] += 1
            counts["bytes"] += len(line)
            yield line
            if progress is not None and counts["rows"] % 1_000 == 0:
                progress(counts["bytes"], None)

    raw = _written(lines(), into / "rows.jsonl")
    if not counts["rows"]:
        raise CorpusError(f"{address} gave no row with a text in split {source.split!r}, column {source.column!r}.")
    return Fetched(
        address=address,
        files=(raw,),
        downloaded=True,
        pinned=False,
        why=f"streamed {counts['rows']:,} rows"
        + (f", left out {counts['empty']:,} without a value" if counts["empty"] else ""),
    )


def dataset_rows(source: DatasetSource, project: Path) -> Iterator[dict[str, Any]]:
    """Stream the rows of a dataset. Raises FetchError if `datasets` cannot open or read it."""
    import datasets  # takes 0.6 s to import

    name, files = _on_this_machine(source, project)
    try:
        stream = datasets.load_dataset(
            name, source.config, split=source.split, revision=source.revision, data_files=files, streaming=True
        )
        yield from stream if source.rows is None else stream.take(source.rows)
    except Exception as error:
        # The library raises errors of its readers, fsspec, pyarrow and the Hub's client.
        raise FetchError(
            f"The dataset {source.dataset!r} (config {source.config}, split {source.split!r}) could not be read: "
            f"{type(error).__name__}: {error}. Check its name, config, split and data_files, and the network; "
            "the built-in corpus 'synthetic' needs none."
        ) from error


def _row_texts(source: DatasetSource, project: Path) -> Iterator[str | None]:
    for number, row in enumerate(dataset_rows(source, project)):
        if source.column not in row and source.column.split(".")[0] not in row:
            raise CorpusError(
                f"The dataset {source.dataset!r} has no column {source.column!r}; it has: {', '.join(row)}. "
                "Set source.column."
            )
        yield cell(row, source.column, f"The dataset {source.dataset!r}, row {number:,}")


def _on_this_machine(source: DatasetSource, project: Path) -> tuple[str, str | list[str] | None]:
    """The dataset's name and files, with absolute local paths."""
    local = source.dataset.startswith((".", "/"))
    name = str((project / source.dataset).absolute()) if local else source.dataset
    files = source.data_files
    if files is None:
        return name, None
    listed = [files] if isinstance(files, str) else list(files)
    for file in listed:
        _require_web_address(file)
    if source.dataset in _FILE_READERS:
        listed = [file if "://" in file else str((project / file).absolute()) for file in listed]
    return name, listed


def _require_web_address(file: str) -> None:
    """Check a file of a dataset that is not a local path: on the Hub, or at a public address without a password.

    The `datasets` library connects by itself, so the address is looked up before and not at the connection.
    """
    if "::" in file or ("://" in file and not file.startswith(("http://", "https://", "hf://"))):
        raise CorpusError(
            f"source.data_files: {masked(file)!r} is not a file at an address that begins with hf://, https:// or "
            "http://, nor a path. Download it and give its path."
        )
    if file.startswith(("http://", "https://")):
        try:
            require_public(http_address(checked_address(file)).host)
        except ValueError as error:
            raise CorpusError(f"source.data_files: {masked(file)!r} {error}.") from error


def _is_url(mirror: str) -> bool:
    return mirror.startswith(("http://", "https://"))
