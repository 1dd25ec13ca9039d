"""Backup of a home to one file, and restoring it: names, the artifacts that they need, and cached results.

The file is a tar archive, compressed with zstandard. Its first member is an index with the sha256 of every other one.
"""

import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import BytesIO
from itertools import chain
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import IO, Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from bardflow.errors import BardError, disk_error
from bardflow.storage.copies import COPIES
from bardflow.storage.disk import DRAFTS, fsync, make_folder, make_read_only, set_aside
from bardflow.storage.garbage import KEEP_NAMED, named, reached
from bardflow.storage.handles import KINDS, Digest, text_of
from bardflow.storage.layout import HOME_LAYOUT, LAYOUT_FILE, LayoutError, require_layout
from bardflow.storage.manifests import FileFacts, file_facts
from bardflow.storage.refs import NAME, Refs
from bardflow.storage.store import DIGEST, Store
from bardflow.storage.verifying import RESULTS, bring_up_to_date, results, verify

INDEX = "bardflow-backup.json"
FORMAT = 1
# The index has about 250 bytes for each file.
MOST_INDEX_BYTES = 2**26
# Bytes that may stand between two files: tar's headers, and what is read ahead.
MOST_HEADER_BYTES = 2**18
CHUNK = 2**20
# The paths that a backup may have; the files of an artifact are checked against its manifest.
PATHS = re.compile(
    rf"(copies/)?(layout\.json|objects/({'|'.join(KINDS)})/{DIGEST.pattern}/.+|refs/{NAME.pattern}/\d{{6,}}\.json"
    r"|prefect/results/[\w.-]+|searches/\w+\.log)"
)


class BackupError(BardError):
    """A backup cannot be written, or a file is not an intact backup."""


class Stored(FileFacts):
    """A file of the backup, with a sha256 that is checked: a stranger may have written the index."""

    sha256: Digest


class Index(BaseModel):
    """The first member of a backup: its format, the layout of the home, and all files by their path in the home."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    layout: int
    files: dict[str, Stored]


def back_up(root: Path, archive: Path, *, progress: Callable[[int], object] = lambda count: None) -> Index:
    """Write a backup of a home to a new file, read it again, and only then give it its name.

    The backup has all names, all artifacts that garbage collection would keep, their copies, the journals of searches
    and Prefect's results. It has no downloads, drafts, logs and locks, and not Prefect's database. The caller holds the
    store lock.

    Raises:
        BackupError: the home has no names, something in it is damaged, or the file exists.
        errors.DiskError: the file cannot be written.
    """
    if os.path.lexists(archive):
        raise BackupError(f"{archive} exists, and nothing is overwritten; give a new file name")
    if not archive.parent.is_dir():
        raise BackupError(f"{archive.parent} is not a folder; create it, or give another path")
    bring_up_to_date(root)
    store, refs = Store(root), Refs(root)
    if not refs.names():
        raise BackupError(f"the home {root} has no names, so there is nothing to back up; train something first")
    harmful = [finding for finding in verify(root) if finding.harmful]
    if harmful:
        raise BackupError(
            f"{root} has {len(harmful)} damaged or missing files, such as {harmful[0].path}; a backup would keep the "
            "damage. Run `bard verify --repair` first"
        )
    artifacts: list[Path] = []
    # The small files are read at once: Prefect writes its results in place, and a run may go on.
    small = [root / LAYOUT_FILE, root / COPIES / LAYOUT_FILE, *results(root)]
    small += [path for path in _files(root / COPIES / RESULTS) if (root / RESULTS / path.name).is_file()]
    for folder in (refs.folder, store.copies.place(refs.folder), root / "searches", root / COPIES / "searches"):
        small += [path for path in _files(folder) if path.suffix in (".json", ".log")]
    for handle in sorted(reached(store, chain(*named(refs, KEEP_NAMED, "")), set(store.handles())), key=text_of):
        artifacts += _files(store.place(handle))
        small += _files(store.copies.place(store.place(handle)))
    contents = {path.relative_to(root).as_posix(): path.read_bytes() for path in small}
    described = {
        name: Stored(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in contents.items()
    }
    for path in artifacts:
        described[path.relative_to(root).as_posix()] = Stored.model_validate(file_facts(path).model_dump())
    index = Index(format=FORMAT, layout=HOME_LAYOUT, files=described)
    draft = archive.with_name(f".{archive.name}.{os.getpid()}.part")
    try:
        with (
            pa.CompressedOutputStream(pa.OSFile(str(draft), "wb"), "zstd") as sink,
            tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            content = index.model_dump_json().encode()
            tar.addfile(_member(INDEX, len(content)), BytesIO(content))
            for name, stored in described.items():
                with BytesIO(contents[name]) if name in contents else (root / name).open("rb") as file:
                    tar.addfile(_member(name, stored.bytes), file)
                progress(stored.bytes)
        read_back(draft)  # hashes what was written, as a restore does
        fsync(draft)
        draft.rename(archive)
        fsync(archive.parent)
    except OSError as error:
        raise (disk_error(error, archive) or error) from error
    finally:
        draft.unlink(missing_ok=True)
    return index


def restore(archive: Path, root: Path, *, progress: Callable[[int], object] = lambda count: None) -> Index:
    """Restore a backup into a home that has no names, and verify all of it before anything of it is visible.

    Everything is unpacked into a draft of the home; then folders are renamed into place, the names last. The caller
    holds the store lock alone. A restore that was killed can be started again.

    Raises:
        BackupError: the file is not an intact backup, or the home has names already.
        storage.layout.LayoutError: a newer version wrote the backup.
        errors.DiskError: the home cannot be written.
    """
    require_layout(root)
    if names := Refs(root).names():
        raise BackupError(
            f"the home {root} has names already, such as {names[0]}, and nothing is overwritten; restore into a new "
            "folder: BARDFLOW_HOME=/path/to/new `bard restore FILE`"
        )
    try:
        make_folder(root / DRAFTS)
        draft = Path(mkdtemp(prefix=f"{os.getpid()}-restoring-", dir=root / DRAFTS))
    except OSError as error:
        raise (disk_error(error, root) or error) from error
    try:
        index = _unpacked(archive, draft, progress)
        harmful = [finding for finding in verify(draft) if finding.harmful]
        if harmful:
            raise BackupError(f"{archive} is not an intact backup: {harmful[0].path} {harmful[0].what}")
        _put_in_place(draft, root, index)
    except OSError as error:
        raise (disk_error(error, root) or BackupError(f"{archive} cannot be restored: {error}")) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return index


def read_back(
    archive: Path,
    write: Callable[[str], AbstractContextManager[IO[bytes] | None]] = lambda name: nullcontext(),
    ready: Callable[[Index], object] = lambda index: None,
) -> Index:
    """Read a whole backup and check each file against the index; `write` gives a file to write it to.

    `ready` is called with the index before the first file.

    Raises:
        BackupError: the file is not an intact backup.
        storage.layout.LayoutError: a newer version wrote it.
    """
    with _opened(archive) as (tar, bounded):
        index = _index(archive, tar, bounded)
        ready(index)
        left = dict(index.files)
        while (member := tar.next()) is not None:
            stored = left.pop(member.name, None)
            # Links, devices and paths that leave the home are in no index; a second member of a name is refused too.
            if stored is None or not member.isreg() or member.size != stored.bytes:
                raise BackupError(f"{archive} is not an intact backup: {member.name!r} is not as its index says")
            source, digest = tar.extractfile(member), hashlib.sha256()
            assert source is not None
            bounded.allowed = stored.bytes + MOST_HEADER_BYTES
            with write(member.name) as target:
                while content := source.read(CHUNK):
                    digest.update(content)
                    if target is not None:
                        target.write(content)
            if digest.hexdigest() != stored.sha256:
                raise BackupError(f"{archive} is damaged: {member.name} does not have its sha256; use another backup")
    if left:
        raise BackupError(f"{archive} is not an intact backup: it lacks {len(left)} files, such as {min(left)}")
    return index


def _unpacked(archive: Path, draft: Path, progress: Callable[[int], object]) -> Index:
    def write(name: str) -> IO[bytes]:
        path = draft / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")

    def ready(index: Index) -> None:
        needed, free = sum(stored.bytes for stored in index.files.values()), shutil.disk_usage(draft).free
        if needed > free:
            raise BackupError(f"{archive} has {needed:,} bytes of files, but only {free:,} are free in {draft.parent}")

    index = read_back(archive, write, ready)
    for name, stored in index.files.items():
        if name.partition("/")[0] in ("objects", "refs"):
            make_read_only(draft / name)
        fsync(draft / name)
        progress(stored.bytes)
    return index


def _put_in_place(draft: Path, root: Path, index: Index) -> None:
    """Rename what was unpacked into the home: artifacts, copies and results, and then the names."""
    # Folders that are moved as a whole: an artifact, its copies, and last all names at once.
    depths = {"objects": 3, f"{COPIES}/objects": 4, "refs": 1, f"{COPIES}/refs": 2}
    units = dict[str, None]()
    for name in index.files:
        parts = PurePosixPath(name).parts
        depth = next((depth for top, depth in depths.items() if name.startswith(f"{top}/")), len(parts))
        units["/".join(parts[:depth])] = None
    for unit in sorted(units, key=["refs", f"{COPIES}/refs"].__contains__):
        place = root / unit
        make_folder(place.parent)
        if unit.startswith("objects/"):
            _, kind, digest = unit.split("/")
            if Store(root).damage(KINDS[kind](digest=digest)) is None:
                continue  # an artifact without a name, with the same bytes
        if place.is_dir():
            set_aside(root, place)
        (draft / unit).rename(place)
        fsync(place.parent)


class _Bounded:
    """A reader that refuses more bytes than are expected, so that no header can fill the memory."""

    def __init__(self, source: IO[bytes], archive: Path) -> None:
        self.source, self.archive, self.allowed = source, archive, MOST_HEADER_BYTES

    def read(self, count: int) -> bytes:
        content = self.source.read(count)
        self.allowed -= len(content)
        if self.allowed < 0:
            raise BackupError(f"{self.archive} is not an intact backup: it has more bytes than its index says")
        return content


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[tarfile.TarFile, _Bounded]]:
    """Open a backup as a stream; errors of the formats become a BackupError."""
    try:
        with pa.CompressedInputStream(pa.OSFile(str(archive), "rb"), "zstd") as source:
            bounded = _Bounded(source, archive)
            with tarfile.open(fileobj=bounded, mode="r|") as tar:  # type: ignore[call-overload]
                yield tar, bounded
    except FileNotFoundError:
        raise BackupError(f"there is no file {archive}; give a file that `bard backup` wrote") from None
    except IsADirectoryError:
        raise BackupError(f"{archive} is a folder; give a file that `bard backup` wrote") from None
    except (tarfile.TarError, pa.ArrowException, EOFError, OSError) as error:
        if (known := disk_error(error, archive)) is not None:
            raise known from error
        raise BackupError(f"{archive} is not an intact backup: {error}; use another backup") from error


def _index(archive: Path, tar: tarfile.TarFile, bounded: _Bounded) -> Index:
    first = tar.next()
    if first is None or first.name != INDEX or not first.isreg() or first.size > MOST_INDEX_BYTES:
        raise BackupError(
            f"{archive} is not a backup: it does not begin with {INDEX}; give one that `bard backup` wrote"
        )
    content = tar.extractfile(first)
    assert content is not None
    try:
        given: Any = json.loads(content.read())
        if isinstance(given, dict) and isinstance(given.get("format"), int) and given["format"] > FORMAT:
            raise LayoutError(
                f"{archive} has backup format {given['format']}, and this version of bardflow reads format {FORMAT}; "
                "install the newer version that wrote it"
            )
        index = Index.model_validate(given)
    except (ValueError, ValidationError, RecursionError) as error:
        raise BackupError(f"{archive} is not an intact backup: its index cannot be read") from error
    if index.layout != HOME_LAYOUT:
        raise LayoutError(
            f"{archive} is of a home of layout {index.layout}, and this version of bardflow restores layout "
            f"{HOME_LAYOUT}; install the version that wrote it"
        )
    for name in index.files:
        parts = PurePosixPath(name).parts
        if not PATHS.fullmatch(name) or "/".join(parts) != name or not {".", ".."}.isdisjoint(parts) or "\0" in name:
            raise BackupError(f"{archive} is not a backup: {name!r} is no path of a home")
    return index


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _member(name: str, size: int) -> tarfile.TarInfo:
    """A member without owner, time and mode of the file, so that equal homes give equal backups."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member
