"""The store: artifacts are folders, stored atomically and found by their digest."""

import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from bardflow.errors import disk_error
from bardflow.storage.checking import FOREIGN, REDUCED, Checks, UnlikeItsCopy
from bardflow.storage.copies import Copies
from bardflow.storage.disk import (
    DRAFTS,
    file_names,
    fsync,
    fsync_all,
    make_folder,
    make_read_only,
    read_or_none,
    restore,
    set_aside,
    set_mode,
)
from bardflow.storage.handles import KINDS, Handle, kind_of, text_of
from bardflow.storage.layout import OBJECTS, place_of, require_layout
from bardflow.storage.manifests import (
    LAYOUT,
    MANIFEST,
    ORIGIN,
    Manifest,
    ObjectMissing,
    Origin,
    StoreError,
    canonical_json,
    file_facts,
)

if TYPE_CHECKING:
    from bardflow.storage.remote import Remote

H = TypeVar("H", bound=Handle)

LOGGER = logging.getLogger("bardflow")
DIGEST = re.compile(r"[0-9a-f]{64}")
# Errors of a rename onto an existing artifact: a folder with files or (if damaged) a file.
OCCUPIED = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}


@dataclass(frozen=True)
class Draft:
    """The folder of an artifact that is being written."""

    folder: Path


class Store:
    """Artifacts in `<root>/objects/<kind>/<digest>/`, on a local disk.

    With a remote, each new artifact is also sent there, and one that this home lacks is received from there when it is
    read.

    Raises:
        storage.layout.LayoutError: a newer version wrote the home.
    """

    def __init__(self, root: Path, remote: "Remote | None" = None) -> None:
        require_layout(root)
        self.root = root
        self.remote = remote
        self.remote_artifacts = None
        if remote is not None:
            from bardflow.storage.remote.artifacts import RemoteArtifacts  # it imports this module

            self.remote_artifacts = RemoteArtifacts(self, remote)
        self.objects = root / OBJECTS
        self.drafts = root / DRAFTS
        self.copies = Copies(root)
        self.checks = Checks(root, self.copies)

    @contextmanager
    def draft(self, key: str | None = None) -> Iterator[Draft]:
        """A folder for an artifact's files. It is deleted at the end unless `keep` was called.

        Its name starts with the process id, so that garbage collection can delete drafts of killed processes. With a
        `key`, of which the caller is the only user at a time, an interrupted draft is kept, and the next one with the
        same key has its files.

        Raises:
            errors.DiskError: a file could not be written in the draft.
        """
        make_folder(self.drafts)
        draft = Draft(Path(mkdtemp(prefix=f"{os.getpid()}-", dir=self.drafts)) if key is None else self._resumed(key))
        try:
            yield draft
        except Exception as error:
            _delete(draft)
            # Each library has its own error for a full disk.
            if (known := disk_error(error, self.root)) is not None:
                raise known from error
            raise
        except BaseException:
            if key is None:
                _delete(draft)
            raise
        _delete(draft)

    def _resumed(self, key: str) -> Path:
        """The folder of an interrupted draft with this key, renamed to be this process's, or a new one."""
        from bardflow.storage.garbage import stale_drafts  # it imports this module

        folder = self.drafts / f"{os.getpid()}-{key}"
        left = [draft for draft in stale_drafts(self.drafts) if draft.name.partition("-")[2] == key]
        if not folder.is_dir() and left:
            with suppress(FileNotFoundError):  # garbage collection was first
                left[0].rename(folder)
        folder.mkdir(exist_ok=True)
        return folder

    def keep(self, draft: Draft, kind: type[H], facts: dict[str, Any], origin: Origin) -> H:
        """Store a draft as an artifact with one atomic rename, and return its handle.

        If the artifact already exists and is intact, it is kept with its origin; a damaged one is replaced. An artifact
        that is made again gets the origin that it had.

        Raises:
            StoreError: a number in the facts or the origin is not finite.
            ValueError: the draft has a link, a device, or a file named manifest.json or origin.json.
        """
        handle, content = self.identify(draft, kind, facts)
        self.put_in_place(draft.folder, handle, content, canonical_json(origin.model_dump()))
        if self.remote_artifacts is not None:
            self.remote_artifacts.share(handle)
        return handle

    def identify(self, draft: Draft, kind: type[H], facts: dict[str, Any]) -> tuple[H, bytes]:
        """Hash a draft, and return the handle that it has as an artifact, and its manifest.

        Raises:
            StoreError, ValueError: as `keep`.
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
        return handle, content

    def put_in_place(self, folder: Path, handle: Handle, manifest: bytes, origin: bytes) -> None:
        """Rename a folder with an artifact's files to its place, unless the artifact is there and intact."""
        place = self.place(handle)
        (folder / ORIGIN).write_bytes(self.copies.read(place / ORIGIN) or origin)
        (folder / MANIFEST).write_bytes(manifest)
        paths = sorted(folder.rglob("*"), reverse=True)
        for path in paths:
            if path.is_file():
                make_read_only(path)
        fsync_all(paths)
        set_mode(folder, 0o755)
        fsync(folder)

        make_folder(place.parent)
        while True:
            try:
                folder.rename(place)
            except OSError as error:
                if error.errno not in OCCUPIED:
                    raise
            else:
                fsync(place.parent)
                self.copy(handle)
                return
            # A record never takes the place of an artifact, or of another record.
            if self.checks.harm(handle) is None or (folder / REDUCED).is_file():
                self.copy(handle)
                return
            if self.is_record(handle):
                self._complete(folder, place)
                if self.checks.harm(handle) is None:
                    self.copy(handle)
                    return
            self.discard_damaged(handle)

    def _complete(self, folder: Path, place: Path) -> None:
        """Move an artifact's files to its record, which is one until its mark is removed at last.

        So it is never away: what refers to it is whole, also if the process is killed.
        """
        for name in file_names(folder):
            if name not in (MANIFEST, ORIGIN):
                make_folder((place / name).parent)
                (folder / name).rename(place / name)
        fsync_all([path for path in (*place.rglob("*"), place) if path.is_dir()])
        (place / REDUCED).unlink(missing_ok=True)
        fsync(place)

    def copy(self, handle: Handle) -> None:
        """Write the missing copies of an artifact's manifest and origin.

        Raises:
            ObjectMissing: one of them is missing or damaged.
        """
        self.manifest(handle), self.origin(handle)
        for name in (MANIFEST, ORIGIN):
            path = self.place(handle) / name
            if self.copies.read(path) is None:
                self.copies.write(path, path.read_bytes())

    def mend(self, handle: Handle) -> None:
        """Restore a manifest and an origin from their copies, and move files that are not in the manifest away."""
        place = self.place(handle)
        if not place.is_dir():
            return
        for name in (MANIFEST, ORIGIN):
            content = self.copies.read(place / name)
            if content is not None and self.copies.differs(place / name, read_or_none(place / name) or b""):
                restore(place / name, content, self.drafts)
        for name in [name for name, words in self.checks.harms(handle) if words == FOREIGN]:
            set_aside(self.root, place / name)

    def discard_damaged(self, handle: Handle) -> None:
        """Remove an artifact from the store if it is damaged.

        Another process may have replaced it meanwhile, so it is checked again under the lock.
        """
        with self._removing():
            place = self.place(handle)
            # A rename replaces an empty folder; anything else must be removed first.
            occupied = os.path.lexists(place) and not (place.is_dir() and not any(place.iterdir()))
            if occupied and self.checks.harm(handle) is not None:
                self._remove(handle)

    def discard(self, handle: Handle) -> None:
        """Rename an artifact out of the store, then delete it; no error if it does not exist."""
        with self._removing():
            self.copies.remove(self.place(handle))
            self._remove(handle)

    def reduce(self, handle: Handle) -> None:
        """Reduce an artifact to its record: delete its files, and keep its manifest and origin, which explain it.

        A run that needs the artifact finds it damaged and makes it again, with the same digest.
        """
        with self._removing():
            place = self.place(handle)
            (place / REDUCED).touch()
            for path in sorted(place.rglob("*"), reverse=True):
                if path.is_dir():
                    path.rmdir()
                elif path.parent != place or path.name not in (MANIFEST, ORIGIN, REDUCED):
                    path.unlink()

    def is_record(self, handle: Handle) -> bool:
        """Whether the artifact was reduced to its record."""
        return (self.place(handle) / REDUCED).is_file()

    def places(self, handle: Handle) -> list[Path]:
        """All paths that belong to the artifact: its folder, the copies of its files, and its stamp."""
        place = self.place(handle)
        return [place, self.copies.place(place), self.checks.stamp_place(handle)]

    def record_bytes(self, handle: Handle) -> int:
        """The size of the artifact's manifest and origin, in bytes."""
        return sum((self.place(handle) / name).stat().st_size for name in (MANIFEST, ORIGIN))

    def folder(self, handle: Handle) -> Path:
        """The folder of the artifact's files, which were hashed since they last changed.

        A stamp of each file's size, times and inode saves hashing them again (`stamps/` in the home).

        Raises:
            ObjectMissing: there is no such artifact, or it is damaged; the message has the names that need it.
        """
        if harm := self.checks.harm(handle, again=False):
            if self.remote_artifacts is None:
                raise self.refused(handle, harm)
            self.remote_artifacts.fetch(handle)
        return self.place(handle)

    def damage(self, handle: Handle) -> str | None:
        """What is wrong with the artifact, or None if all bytes match the digest, or if only the remote has them.

        All files are hashed, at about 1.5 GB/s on a processor with SHA instructions. What only the remote has is
        received by `folder`, not here.
        """
        harm = self.checks.harm(handle)
        lacking = harm is not None and (harm == "missing" or harm.startswith("a record"))
        offered = lacking and self.remote_artifacts is not None and self.remote_artifacts.is_offered(handle)
        return None if offered else harm

    def manifest(self, handle: Handle) -> Manifest:
        """The artifact's manifest; its bytes are hashed, those of other files are not.

        Raises:
            ObjectMissing: there is no such artifact, or its manifest does not match the digest.
        """
        content = read_or_none(self.place(handle) / MANIFEST)
        if content is None and self.remote_artifacts is not None and self.remote_artifacts.is_known(handle):
            content = read_or_none(self.place(handle) / MANIFEST)
        if content is None:
            raise self.refused(handle, "missing")
        if hashlib.sha256(content).hexdigest() != handle.digest:
            raise self.refused(handle, f"damaged ({MANIFEST} does not match its digest)")
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
            ObjectMissing: there is no such artifact, or its origin cannot be read or differs from its copy.
        """
        try:
            if self.remote_artifacts is not None and not (self.place(handle) / MANIFEST).is_file():
                self.remote_artifacts.is_known(handle)
            return self.checks.origin(handle)
        except UnlikeItsCopy as error:
            raise self.refused(handle, f"damaged ({ORIGIN} does not match its copy)") from error
        except (FileNotFoundError, NotADirectoryError, ValidationError) as error:
            whole = (self.place(handle) / MANIFEST).is_file()
            harm = f"damaged ({ORIGIN} is missing or cannot be read)" if whole else "missing"
            raise self.refused(handle, harm) from error

    def inputs(self, handle: Handle) -> list[str]:
        """The inputs in the artifact's origin, as text; from the copy if the origin is damaged. Empty if both are."""
        path = self.place(handle) / ORIGIN
        for content in (self.copies.read(path), read_or_none(path)):
            with suppress(ValidationError):
                if content is not None:
                    return list(Origin.model_validate_json(content).inputs.values())
        return []

    def refused(self, handle: Handle, harm: str, remote: str = "") -> ObjectMissing:
        """The error that names a missing or damaged artifact, what needs it, and the command that repairs it."""
        from bardflow.storage.garbage import names_that_need  # it imports this module

        names = ", ".join(names_that_need(self, handle)) or "none"
        why = f"{remote}. " if remote else ""
        return ObjectMissing(
            f"{handle} is {harm} in the store {self.root}. {why}Names that need it: {names}. "
            f"`bard verify {handle.short} --repair` makes it again"
        )

    def find(self, prefix: str) -> Handle:
        """The artifact whose digest starts with `prefix` (at least four characters); it may be missing, with a copy.

        Raises:
            StoreError: there is none, or there are several (the message lists them).
        """
        held = sorted({*self.handles(), *self.copied()}, key=text_of) if len(prefix) >= 4 else []
        found = [handle for handle in held if handle.digest.startswith(prefix)]
        if not found and self.remote is not None and re.fullmatch("[0-9a-f]{4,64}", prefix):
            with self.remote.tolerated(f"looking for {prefix}"):
                found = list(self.remote.find(prefix))
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
        return _handles_in(self.objects)

    def copied(self) -> Iterator[Handle]:
        """All artifacts with copies of their manifest or origin; they should be in the store."""
        return _handles_in(self.copies.place(self.objects))

    def place(self, handle: Handle) -> Path:
        """The path of the artifact, whether or not it exists."""
        return place_of(self.root, handle)

    @contextmanager
    def _removing(self) -> Iterator[None]:
        """Hold the exclusive lock for removing artifacts; the kernel releases it when the process ends."""
        make_folder(self.root)
        with (self.root / "removing.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _remove(self, handle: Handle) -> None:
        self.checks.stamp_place(handle).unlink(missing_ok=True)
        make_folder(self.drafts)
        grave = Path(mkdtemp(prefix=f"{os.getpid()}-discarded-", dir=self.drafts))
        try:
            with suppress(FileNotFoundError):
                self.place(handle).rename(grave / handle.digest)
        finally:
            shutil.rmtree(grave)


def _delete(draft: Draft) -> None:
    if draft.folder.exists():  # `keep` moves it away
        shutil.rmtree(draft.folder)


def _handles_in(objects: Path) -> Iterator[Handle]:
    for kind, handle_class in KINDS.items():
        folder = objects / kind
        if folder.is_dir():
            for name in sorted(place.name for place in folder.iterdir()):
                if DIGEST.fullmatch(name):  # file managers add their own files to folders
                    yield handle_class(digest=name)
