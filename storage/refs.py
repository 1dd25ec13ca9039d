"""Names: each is an append-only history of handles, and refers to the handle of its last entry."""

import errno
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkstemp
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from bardflow.storage.copies import Copies
from bardflow.storage.disk import DRAFTS, fsync, make_folder, make_read_only, read_or_none
from bardflow.storage.handles import KINDS, Digest, Evaluation, Handle, Model, Report
from bardflow.storage.layout import require_layout
from bardflow.storage.manifests import StoreError, canonical_json
from bardflow.storage.store import Store

if TYPE_CHECKING:
    from bardflow.storage.remote import Remote

LOGGER = logging.getLogger("bardflow")
NAME = re.compile(r"[a-z0-9][a-z0-9-]*(?:/[a-z0-9][a-z0-9-]*)+")
ENTRY = re.compile(r"[0-9].*\.json")
RESTORED = "`bard verify --repair` restores it"
# Errors of file systems without hard links: FAT and exFAT, some FUSE and network mounts, Android.
NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


# The keys of an entry's notes that have a digest as value, with the kinds of the artifacts.
NOTED: dict[str, type[Handle]] = {"model": Model, "report": Report, "evaluation": Evaluation, "rival": Evaluation}


class RefMoved(StoreError):
    """Another process added an entry to the name after the caller read it."""


class Diverged(StoreError):
    """The name has an entry here, and another one with the same number in the remote."""


def _known_kind(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError("there is no such kind of artifact")
    return kind


class Entry(BaseModel):
    """An entry of a name's history: artifact, time, author, reason, and `notes` with any further values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    kind: Annotated[str, AfterValidator(_known_kind)]
    digest: Digest
    at: str
    by: str
    why: str
    notes: dict[str, Any]

    @property
    def handle(self) -> Handle:
        """The handle of this entry."""
        return KINDS[self.kind](digest=self.digest)


class Pointed(NamedTuple):
    """The last entry of a name, and whether the call added it."""

    entry: Entry
    moved: bool


def noted(entry: Entry) -> Iterator[Handle]:
    """Yield the handles in an entry's notes."""
    for key, kind in NOTED.items():
        if entry.notes.get(key):
            yield kind(digest=entry.notes[key])


class Refs:
    """Names under `<root>/refs/<name>/000001.json`, `000002.json`, …

    With a remote, an entry is created there first, and only then in the home; entries of other homes are brought here
    when the name is read.
    """

    def __init__(self, root: Path, remote: "Remote | None" = None) -> None:
        require_layout(root)
        self.root = root
        self.remote_names = None
        if remote is not None:
            from bardflow.storage.remote.names import RemoteNames  # it imports this module

            self.remote_names = RemoteNames(self, remote)
        self.folder = root / "refs"
        self.drafts = root / DRAFTS
        self.copies = Copies(root)

    def history(self, name: str) -> list[Entry]:
        """All entries of the name, oldest first; empty if there is no such name.

        Raises:
            StoreError: it is not a name, or an entry is missing, damaged or cannot be read.
        """
        return [self.checked_entry(path) for path in self._moves(name)]

    def head(self, name: str) -> Entry | None:
        """The last entry of the name, or None.

        Raises:
            StoreError: as `history`.
        """
        moves = self._moves(name)
        return self.checked_entry(moves[-1]) if moves else None

    def move(
        self, name: str, handle: Handle, *, after: Entry | None, by: str, why: str, notes: dict[str, Any] | None = None
    ) -> Entry:
        """Append an entry if `after` is still the last entry of the name (None: the name has no entries).

        Raises:
            RefMoved: another process has added an entry.
            StoreError: it is not a name, or a number in the notes is not finite.
            storage.remote.RemoteError: the remote cannot be written. The name was not moved, unless the message says
                that this is not known.
        """
        folder = self.folder / checked(name)
        entry = Entry(
            number=(after.number if after else 0) + 1,
            kind=handle.kind,
            digest=handle.digest,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            by=by,
            why=why,
            notes=notes or {},
        )
        content = canonical_json(entry.model_dump())
        place = folder / f"{entry.number:06}.json"
        moved = RefMoved(f"{name} was changed by another run in the meantime; nothing was stored, so run it again")
        if os.path.lexists(place):  # this takes less time than an fsync and `_create`, which decides
            raise moved
        if self.remote_names is not None and not self.remote_names.move(name, entry, content, after):
            raise moved
        try:
            self.write(place, content)
        except FileExistsError:
            # A move in the remote is brought here by whichever process reads it first.
            if self.remote_names is None or read_or_none(place) != content:
                raise moved from None
        return entry

    def write(self, place: Path, content: bytes) -> None:
        """Write an entry to its place, with its copy.

        Raises:
            FileExistsError: something is there.
        """
        make_folder(place.parent)
        make_folder(self.drafts)
        number, draft = mkstemp(dir=self.drafts, prefix=f"{os.getpid()}-moving-")
        try:
            with os.fdopen(number, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            make_read_only(Path(draft))
            self._create(Path(draft), place)
        finally:
            with suppress(FileNotFoundError):
                Path(draft).unlink()
        fsync(place.parent)
        self.copies.write(place, content)

    def point(
        self,
        name: str,
        handle: Handle,
        *,
        by: str,
        why: Callable[[Entry | None], str],
        notes: dict[str, Any] | None = None,
    ) -> Pointed:
        """Make the name refer to the handle, with retries if others change it; adds no entry if it already does.

        `why` gets the last entry and returns the reason.

        Raises:
            StoreError: as `move`.
        """
        while True:
            head = self.head(name)
            if head is not None and head.handle == handle:
                return Pointed(head, False)
            with suppress(RefMoved):
                return Pointed(self.move(name, handle, after=head, by=by, why=why(head), notes=notes), True)

    def _create(self, draft: Path, place: Path) -> None:
        """Move a written file to its place atomically, if nothing is there.

        Raises:
            FileExistsError: something is there.
            StoreError: the file system has neither hard links nor locks.
        """
        try:
            # A hard link is created or refused as a whole: one of two writers with the same number wins.
            os.link(draft, place)
            return
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
        from filelock import FileLock  # 70 ms to import, and only a file system without hard links needs it

        # All writers use the same file system, so without hard links all of them use this lock.
        lock = FileLock(self.folder / "moving.lock", fallback_to_soft=False)
        try:
            lock.acquire()
        except (NotImplementedError, OSError) as error:
            raise StoreError(
                f"the file system of {self.folder} has neither hard links nor file locks ({error}), so two runs could "
                "move one name at once and one of them be lost; set BARDFLOW_HOME to a folder on another disk"
            ) from error
        try:
            if os.path.lexists(place):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place))
            draft.rename(place)
        finally:
            lock.release()

    def last(self, name: str) -> int:
        """The number of the last entry in this home, or 0."""
        copied = entry_names(self.copies.place(self.folder / checked(name)))
        return max((int(Path(file).stem) for file in copied | entry_names(self.folder / name)), default=0)

    def content(self, name: str, number: int) -> bytes | None:
        """The content of an entry of this home, from its copy if there is one."""
        path = self.folder / name / f"{number:06}.json"
        return self.copies.read(path) or read_or_none(path)

    def names(self) -> list[str]:
        """All names, sorted; also those whose entries are all missing, but have copies.

        With a remote, its entries are brought here first.
        """
        if self.remote_names is not None:
            self.remote_names.bring_all()
        return self.here()

    def here(self) -> list[str]:
        """All names that have entries in this home, sorted."""
        copied = self.copies.place(self.folder)
        return sorted(
            {
                path.parent.relative_to(folder).as_posix()
                for folder in (self.folder, copied)
                for path in folder.rglob("*.json")
                if ENTRY.fullmatch(path.name)
            }
        )

    def entry_files(self, name: str) -> list[Path]:
        """The files of the name's entries, oldest first; they may be damaged."""
        folder = self.folder / checked(name)
        return [folder / file for file in sorted(entry_names(folder))]

    def _moves(self, name: str) -> list[Path]:
        folder = self.folder / checked(name)
        if self.remote_names is not None:
            self.remote_names.bring(name)
        # Copies are listed first: a new entry gets its copy after it.
        copied = entry_names(self.copies.place(folder))
        moves = self.entry_files(name)
        if missing := copied - {path.name for path in moves}:
            raise StoreError(f"{folder / min(missing)} is missing, an entry of the name {name}; {RESTORED}")
        return moves

    def checked_entry(self, path: Path) -> Entry:
        if self.copies.differs(path, path.read_bytes()):
            raise StoreError(f"{path} is damaged (it does not match its copy), an entry of a name; {RESTORED}")
        return read_entry(path)


def entry_names(folder: Path) -> set[str]:
    """The names of the files in a folder that are entries by their names; a history has thousands of them."""
    try:
        return {path.name for path in folder.iterdir() if ENTRY.fullmatch(path.name)}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def checked(name: str) -> str:
    """Check a name and return it.

    Raises:
        StoreError: it is not two or more words of a-z, 0-9 and - with slashes between them.
    """
    if not NAME.fullmatch(name):
        raise StoreError(f"{name!r} is not a name; a name looks like three-kingdoms/champion")
    return name


def read_entry(path: Path) -> Entry:
    """Read an entry.

    Raises:
        StoreError: the file is not an entry.
    """
    try:
        return Entry.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise StoreError(
            f"{path} is not an entry of a name's history (JSON); if it is the last file of its folder, deleting it "
            "points the name where it pointed before"
        ) from error


def resolve(store: Store, refs: Refs, ref: str) -> Handle:
    """The handle of a name (`three-kingdoms/champion`) or of the first characters of a digest.

    Raises:
        StoreError: there is no such name or digest; the message lists the names.
    """
    try:
        if "/" not in ref:
            return store.find(ref)
        if entry := refs.head(ref):
            return entry.handle
        raise StoreError(f"there is no {ref!r}")
    except StoreError as error:
        known = ", ".join(refs.names()) or "none yet; `make train` makes the first"
        raise StoreError(f"{error}. Names in this store: {known}") from error
