"""The store: artifacts are folders, stored atomically and found by their digest."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from bardflow.errors import BardError
from bardflow.storage.handles import KINDS, Handle, kind_of

LAYOUT = 1
DRAFTS = "drafts"
MANIFEST = "manifest.json"
ORIGIN = "origin.json"

H = TypeVar("H", bound=Handle)

DIGEST = re.compile(r"[0-9a-f]{64}")
# Errors of a rename onto an existing artifact: a folder with files or (if damaged) a file.
OCCUPIED = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}
# Errors of file systems without modes.
NO_MODES = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class StoreError(BardError):
    """An artifact is not in the store, or is damaged."""


class ObjectMissing(StoreError):
    """The artifact of a handle is missing or damaged."""


class FileFacts(BaseModel):
    """A file of an artifact: its size in bytes and its sha256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """The content of an artifact. Its sha256, as canonical JSON, is the artifact's digest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    layout: int
    facts: dict[str, Any]
    files: dict[str, FileFacts]


class Origin(BaseModel):
    """How an artifact was made; not part of the digest, so that equal content has equal digests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    inputs: dict[str, str]
    spec: dict[str, Any]
    run: str | None
    commit: str | None
    packages: dict[str, str]
    at: str
    measured: dict[str, Any]


@dataclass(frozen=True)
class Draft:
    """The folder of an artifact that is being written."""

    folder: Path


class Store:
    """Artifacts in `<root>/objects/<kind>/<digest>/`, on a local disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = root / "objects"
        self.drafts = root / DRAFTS

    @contextmanager
    def draft(self) -> Iterator[Draft]:
        """A folder for an artifact's files. It is deleted at the end unless `keep` was called.

        Its name starts with the process id, so that garbage collection can delete drafts of killed processes.
        """
        make_folder(self.drafts)
        draft = Draft(Path(mkdtemp(prefix=f"{os.getpid()}-", dir=self.drafts)))
        try:
            yield draft
        finally:
            if draft.folder.exists():  # `keep` moves it away
                shutil.rmtree(draft.folder)

    def keep(self, draft: Draft, kind: type[H], facts: dict[str, Any], origin: Origin) -> H:
        """Store a draft as an artifact with one atomic rename, and return its handle.

        If the artifact already exists and is intact, it is kept with its origin; a damaged one is replaced.

        Raises:
            StoreError: a number in the facts or the origin is not finite.
            ValueError: the draft has a link, a device, or a file named manifest.json or origin.json.
        """
        names = file_names(draft.folder)
        for name in names:
            if name in (MANIFEST, ORIGIN) or not stat.S_ISREG((draft.folder / name).lstat().st_mode):
                raise ValueError(
                    f"a draft holds plain files, none of them called {MANIFEST} or {ORIGIN}, and this one holds {name}"
                )
        files = {name: file_facts(draft.folder / name) for name in names}
        manifest = Manifest(kind=kind_of(kind), layout=LAYOUT, facts=facts, files=files)
        # Not `mode="json"`: pydantic would write NaN as null without an error.
        content = canonical_json(manifest.model_dump())
        handle = kind(digest=hashlib.sha256(content).hexdigest())

        (draft.folder / ORIGIN).write_bytes(canonical_json(origin.model_dump()))
        (draft.folder / MANIFEST).write_bytes(content)
        for path in sorted(draft.folder.rglob("*"), reverse=True):
            if path.is_file():
                make_read_only(path)
            fsync(path)
        set_mode(draft.folder, 0o755)
        fsync(draft.folder)

        place = self.place(handle)
        make_folder(place.parent)
        while True:
            try:
                draft.folder.rename(place)
            except OSError as error:
                if error.errno not in OCCUPIED:
                    raise
            else:
                fsync(place.parent)
                return handle
            if self.damage(handle) is None:
                return handle
            self.discard_damaged(handle)

    def discard_damaged(self, handle: Handle) -> None:
        """Remove an artifact from the store if it is damaged.

        Another process may have replaced it meanwhile, so it is checked again under the lock.
        """
        with self._removing():
            place = self.place(handle)
            # A rename replaces an empty folder; anything else must be removed first.
            occupied = os.path.lexists(place) and not (place.is_dir() and not any(place.iterdir()))
            if occupied and self.damage(handle) is not None:
                self._remove(handle)

    def discard(self, handle: Handle) -> None:
        """Rename an artifact out of the store, then delete it; no error if it does not exist."""
        with self._removing():
            self._remove(handle)

    def folder(self, handle: Handle) -> Path:
        """The folder of the artifact's files.

        Raises:
            ObjectMissing: there is no such artifact. (`damage` checks its bytes.)
        """
        place = self.place(handle)
        if not (place / MANIFEST).is_file():
            raise ObjectMissing(f"{handle} is not in the store {self.root}; run the flow that makes it again")
        return place

    def damage(self, handle: Handle) -> str | None:
        """What is wrong with the artifact, or None if all bytes match the digest.

        All files are hashed, at about 1.5 GB/s on a processor with SHA instructions.
        """
        place = self.place(handle)
        try:
            content = (place / MANIFEST).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return "missing"
        if hashlib.sha256(content).hexdigest() != handle.digest:
            return f"damaged ({MANIFEST} does not match its digest)"
        try:
            manifest = Manifest.model_validate_json(content)
        except ValidationError:
            return f"of another layout, and layout {LAYOUT} is the one read here"
        if manifest.layout != LAYOUT:
            return f"of layout {manifest.layout}, and layout {LAYOUT} is the one read here"
        try:
            return self._harm(place, manifest)
        except (FileNotFoundError, NotADirectoryError) as error:
            return f"damaged ({error.filename} disappeared while it was checked)"

    def manifest(self, handle: Handle) -> Manifest:
        """The artifact's manifest.

        Raises:
            ObjectMissing: there is no such artifact, or its manifest does not match the digest.
        """
        content = (self.folder(handle) / MANIFEST).read_bytes()
        if hashlib.sha256(content).hexdigest() != handle.digest:
            raise ObjectMissing(
                f"{handle} is damaged ({MANIFEST} does not match its digest); run the flow that makes it again"
            )
        try:
            return Manifest.model_validate_json(content)
        except ValidationError as error:
            raise ObjectMissing(f"{handle} is of another layout, and layout {LAYOUT} is the one read here") from error

    def facts(self, handle: Handle) -> dict[str, Any]:
        """The facts in the artifact's manifest."""
        return self.manifest(handle).facts

    def origin(self, handle: Handle) -> Origin:
        """The origin of the artifact.

        Raises:
            ObjectMissing: there is no such artifact, or its origin cannot be read.
        """
        path = self.folder(handle) / ORIGIN
        try:
            return Origin.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError) as error:
            raise ObjectMissing(
                f"{ORIGIN} of {handle} is missing or cannot be read; run the flow that makes it again"
            ) from error

    def find(self, prefix: str) -> Handle:
        """The artifact whose digest starts with `prefix` (at least four characters).

        Raises:
            StoreError: there is none, or there are several (the message lists them).
        """
        found = [h for h in self.handles() if len(prefix) >= 4 and h.digest.startswith(prefix)]
        if len(found) == 1:
            return found[0]
        if not found:
            raise StoreError(
                f"no artifact's digest starts with {prefix!r}; give at least the first 4 characters of one, "
                "or a name such as tiny-shakespeare/champion"
            )
        several = ", ".join(f"{h.kind} {h.digest[: len(prefix) + 8]}" for h in found)
        raise StoreError(f"{prefix!r} is the start of several digests; give more characters: {several}")

    def handles(self) -> Iterator[Handle]:
        """All artifacts in the store."""
        for kind, handle_class in KINDS.items():
            folder = self.objects / kind
            if folder.is_dir():
                for name in sorted(place.name for place in folder.iterdir()):
                    if DIGEST.fullmatch(name):  # file managers add their own files to folders
                        yield handle_class(digest=name)

    def place(self, handle: Handle) -> Path:
        """The path of the artifact, whether or not it exists."""
        return self.objects / handle.kind / handle.digest

    def _harm(self, place: Path, manifest: Manifest) -> str | None:
        try:
            Origin.model_validate_json((place / ORIGIN).read_bytes())
        except (FileNotFoundError, ValidationError):
            return f"damaged ({ORIGIN} is missing or cannot be read)"
        names = set(file_names(place)) - {MANIFEST, ORIGIN}
        if gone := manifest.files.keys() - names:
            return f"damaged ({min(gone)} is missing)"
        if extra := names - manifest.files.keys():
            return f"damaged ({min(extra)} is not in the manifest)"
        for name, facts in manifest.files.items():
            if file_facts(place / name) != facts:
                return f"damaged ({name} does not match the manifest)"
        return None

    @contextmanager
    def _removing(self) -> Iterator[None]:
        """Hold the exclusive lock for removing artifacts; the kernel releases it when the process ends."""
        make_folder(self.root)
        with (self.root / "removing.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _remove(self, handle: Handle) -> None:
        make_folder(self.drafts)
        grave = Path(mkdtemp(prefix=f"{os.getpid()}-discarded-", dir=self.drafts))
        try:
            with suppress(FileNotFoundError):
                self.place(handle).rename(grave / handle.digest)
        finally:
            shutil.rmtree(grave)


def canonical_json(value: Any) -> bytes:
    """Encode a value as canonical JSON: sorted keys, indented by two spaces, UTF-8, with a final line end.

    Raises:
        StoreError: a number is NaN or infinite, or a text has undecodable bytes.
    """
    try:
        return (json.dumps(value, ensure_ascii=False, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 40) : error.end + 40]
        raise StoreError(f"only UTF-8 text can be stored, but {around!r} has other bytes") from error
    except ValueError as error:
        raise StoreError(f"only finite numbers can be stored, not {str(value)[:300]}") from error


def file_names(folder: Path) -> list[str]:
    """The relative paths of all files below a folder, sorted."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, and fsync each."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync(folder.parent)


def make_read_only(path: Path) -> None:
    """Make a file read-only, if the file system supports it."""
    set_mode(path, 0o444)


def set_mode(path: Path, mode: int) -> None:
    """Set the mode of a file or folder, if the file system has modes (FAT and some network mounts do not)."""
    try:
        path.chmod(mode)
    except OSError as error:
        if error.errno not in NO_MODES:
            raise


def file_facts(path: Path) -> FileFacts:
    """Size and sha256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileFacts(bytes=path.stat().st_size, sha256=digest)


def fsync(path: Path) -> None:
    """Call fsync on a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
