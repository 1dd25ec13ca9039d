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
from uuid import uuid4

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from bardflow.storage.copies import Copies
from bardflow.storage.disk import DRAFTS, fsync, make_folder, make_read_only, read_or_none, sealed, set_aside
from bardflow.storage.handles import KINDS, Digest, Evaluation, Handle, Model, Report
from bardflow.storage.layout import require_layout
from bardflow.storage.manifests import ObjectMissing, StoreError, canonical_json
from bardflow.storage.store import Store

if TYPE_CHECKING:
    from bardflow.storage.remote import Counted, Remote

LOGGER = logging.getLogger("bardflow")
NAME = re.compile(r"[a-z0-9][a-z0-9-]*(?:/[a-z0-9][a-z0-9-]*)+")
ENTRY = re.compile(r"[0-9].*\.json")
ENTRY_KEY = re.compile(rf"refs/({NAME.pattern})/([0-9]{{6,}})\.json")
# So many entries are in memory at once when a history is brought from the remote.
TOGETHER = 256
# Stands before entries that were made in a home without a remote.
NO_TOKEN = b"0" * 32
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
        self.root, self.remote = root, remote
        # Names that were read from the remote when all were listed.
        self._fresh: set[str] = set()
        self.folder = root / "refs"
        self.drafts = root / DRAFTS
        self.copies = Copies(root)

    def history(self, name: str) -> list[Entry]:
        """All entries of the name, oldest first; empty if there is no such name.

        Raises:
            StoreError: it is not a name, or an entry is missing, damaged or cannot be read.
        """
        return [self._checked_entry(path) for path in self._moves(name)]

    def head(self, name: str) -> Entry | None:
        """The last entry of the name, or None.

        Raises:
            StoreError: as `history`.
        """
        moves = self._moves(name)
        return self._checked_entry(moves[-1]) if moves else None

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
        if self.remote is not None and not self._move_remote(name, entry, content, after):
            self._fresh.discard(name)
            raise moved
        try:
            self._write(place, content)
        except FileExistsError:
            # A move in the remote is brought here by whichever process reads it first.
            if self.remote is None or read_or_none(place) != content:
                raise moved from None
        return entry

    def _write(self, place: Path, content: bytes) -> None:
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

    # The remote

    def _move_remote(self, name: str, entry: Entry, content: bytes, after: Entry | None) -> bool:
        """Create an entry in the remote, after all that it refers to; return whether this call did."""
        from bardflow.storage.remote import RemoteError, RemoteUnreachable

        assert self.remote is not None
        self.remote.ask_again()
        known = self.remote.writable()
        if after is not None and not known.has(entry_key(name, after.number)):
            self.send(name)
        wanted = [entry.handle, *noted(entry)]
        _, nowhere = Store(self.root, self.remote).send_all(wanted)
        if lost := [handle for handle in nowhere if handle == entry.handle]:
            raise ObjectMissing(f"{name} cannot be moved: neither this home nor the remote has {lost[0]}")
        # Says whose entry it is, if the answer to a successful request is lost and the request is sent again.
        token, key = uuid4().hex.encode(), entry_key(name, entry.number)
        try:
            if not self.remote.create(key, sealed(token + b"\n" + content)):
                there = self.remote.unsealed(key)
                if there is None or there.partition(b"\n")[0] != token:
                    return False
        except RemoteUnreachable as error:
            self.remote.ask_again()
            try:
                there = self.remote.unsealed(key)
            except RemoteError:
                raise RemoteUnreachable(
                    f"{error}. So it is not known whether {name} was moved: `bard show {name}` says so once the remote "
                    "can be reached"
                ) from error
            if there is None:
                raise RemoteUnreachable(f"{error}. {name} was not moved; run it again") from error
            if there.partition(b"\n")[0] != token:
                return False
        known.add(key)
        return True

    def _received(self, name: str, number: int) -> bytes | None:
        """The content of an entry in the remote; None if there is none."""
        from bardflow.storage.remote import RemoteDamaged

        assert self.remote is not None
        found = self.remote.unsealed(key := entry_key(name, number))
        if found is None:
            return None
        content = found.partition(b"\n")[2]
        try:
            if Entry.model_validate_json(content).number == number:
                return content
        except ValidationError:
            pass
        raise RemoteDamaged(f"{self.remote.where}: {key} is not an entry of a name")

    def _bring(self, name: str) -> None:
        """Write the entries that only the remote has into the home; if it cannot be reached, say so once.

        The list of a storage may lack the newest files, so it only saves time: the next number is asked for until there
        is none.

        Raises:
            Diverged: both have entries that the other lacks.
        """
        if self.remote is None or checked(name) in self._fresh:
            return
        with self.remote.tolerated(f"reading the name {name}"):
            known = self.remote.known()
            if known is None:
                return
            last = self._last(name)
            if last and not known.has(entry_key(name, last)):
                theirs = self._received(name, last)
                if theirs is None:
                    self._common(name)
                    return
                if theirs != self._own(name, last):
                    raise self._diverged(name)
                known.add(entry_key(name, last))
            if (content := self._received(name, last + 1)) is None:
                return
            self._take(name, last + 1, content)
            self._take_listed(name, last + 2)
            last = self._last(name)
            while (content := self._received(name, last + 1)) is not None:
                last += 1
                self._take(name, last, content)
            known.add(entry_key(name, last))

    def _take(self, name: str, number: int, content: bytes) -> None:
        """Write an entry of the remote into the home, after the record of its artifact, if there is one."""
        Store(self.root, self.remote).take_record(Entry.model_validate_json(content).handle)
        try:
            self._write(self.folder / name / f"{number:06}.json", content)
        except FileExistsError:  # another process of this home brought it
            if read_or_none(self.folder / name / f"{number:06}.json") != content:
                raise self._diverged(name) from None

    def _take_listed(self, name: str, first: int) -> None:
        """Bring the listed entries from a number on, several at once."""
        from bardflow.storage.remote import at_once

        assert self.remote is not None
        listed = self._listed(name, after=first - 1)
        run = [number for at, number in enumerate(sorted(listed)) if number == first + at]
        for start in range(0, len(run), TOGETHER):
            numbers = run[start : start + TOGETHER]
            for number, content in zip(numbers, at_once(lambda n: self._received(name, n), numbers), strict=True):
                if content is None:
                    return
                self._take(name, number, content)

    def _listed(self, name: str, after: int = 0) -> list[int]:
        assert self.remote is not None
        found = self.remote.keys(f"refs/{name}", after=entry_key(name, after) if after else None)
        return [int(entry[2]) for key, _ in found if (entry := ENTRY_KEY.fullmatch(key)) and entry[1] == name]

    def _last(self, name: str) -> int:
        """The number of the last entry in this home, or 0."""
        copied = entry_names(self.copies.place(self.folder / checked(name)))
        return max((int(Path(file).stem) for file in copied | entry_names(self.folder / name)), default=0)

    def _own(self, name: str, number: int) -> bytes | None:
        """The content of an entry of this home, from its copy if there is one."""
        path = self.folder / name / f"{number:06}.json"
        return self.copies.read(path) or read_or_none(path)

    def _common(self, name: str) -> int:
        """The number of entries that home and remote have in common. Equal entries have equal ones before them.

        Raises:
            Diverged: the next entry of the remote is not that of the home.
        """
        last = self._last(name)
        common = max((number for number in self._listed(name) if number <= last), default=0)
        if common and self._received(name, common) != self._own(name, common):
            raise self._diverged(name)
        while common < last and (theirs := self._received(name, common + 1)) is not None:
            common += 1
            if theirs != self._own(name, common):
                raise self._diverged(name)
        return common

    def _first_different(self, name: str) -> int:
        """The number of the first entry of the home that the remote has not, or has another."""
        for number in range(1, self._last(name) + 1):
            if self._received(name, number) != self._own(name, number):
                return number
        return self._last(name) + 1

    def _diverged(self, name: str) -> Diverged:
        assert self.remote is not None
        return Diverged(
            f"the name {name} has another history in this home than in {self.remote.where}: entry "
            f"{self._first_different(name)} is the first that differs. `bard pull {name} --replace` takes that of the "
            "remote, and moves the entries of this home to set-aside/"
        )

    def send(self, name: str, progress: Callable[[int], object] = lambda count: None) -> "tuple[Counted, int]":
        """Send the entries of a name that the remote lacks, with their artifacts; return what was sent.

        Artifacts of earlier entries that this home lacks are passed over.

        Raises:
            Diverged: the remote has other entries.
            ObjectMissing: an artifact of the last entry is neither here nor in the remote.
            storage.remote.RemoteError: the remote cannot be written.
        """
        from bardflow.storage.remote import Counted

        assert self.remote is not None
        known, store = self.remote.writable(), Store(self.root, self.remote)
        sent, entries = Counted(), 0
        paths = self.entry_files(name)
        common = self._common(name)
        for path in paths[common:]:
            entry = self._checked_entry(path)
            counted, nowhere = store.send_all([entry.handle, *noted(entry)], progress)
            sent = sent.plus(*counted)
            if entry.handle in nowhere and path == paths[-1]:
                raise ObjectMissing(f"{name} cannot be sent: neither this home nor the remote has {entry.handle}")
            content = path.read_bytes()
            if not self.remote.create(key := entry_key(name, entry.number), sealed(NO_TOKEN + b"\n" + content)):
                theirs = self._received(name, entry.number)
                if theirs != content:
                    raise self._diverged(name)
            known.add(key)
            entries += 1
        return sent, entries

    def replace(self, name: str) -> list[Path]:
        """Take the history of a name from the remote; return where the entries of this home that differ were moved to.

        Raises:
            StoreError: the remote has no such name.
        """
        assert self.remote is not None
        if self._received(name, 1) is None:
            raise StoreError(f"{self.remote.where} has no name {name}, so nothing was replaced")
        first = self._first_different(name)
        moved = []
        # The last one first, and the copy before the entry: a history without its end is one.
        for path in reversed([path for path in self.entry_files(name) if int(path.stem) >= first]):
            self.copies.remove(path)
            moved.append(set_aside(self.root, path))
        self._fresh.discard(name)
        self._bring(name)
        return moved

    def update(self) -> list[str]:
        """Bring the new entries of all names into the home, from one list of the remote; return the names."""
        if self.remote is not None:
            from bardflow.storage.remote import RemoteDamaged

            with self.remote.tolerated("reading names"):
                if self.remote.known() is not None:
                    last: dict[str, int] = {}
                    for key, _ in self.remote.keys("refs"):
                        if entry := ENTRY_KEY.fullmatch(key):
                            last[entry[1]] = max(last.get(entry[1], 0), int(entry[2]))
                    for name, number in sorted(last.items()):
                        if number > self._last(name):
                            try:
                                self._bring(name)
                            except (Diverged, RemoteDamaged) as error:  # one name hides no others
                                LOGGER.warning("%s", error)
                    self._fresh = set(self._here())
        return self._here()

    def names(self) -> list[str]:
        """All names, sorted; also those whose entries are all missing, but have copies.

        With a remote, its entries are brought here first (`update`).
        """
        return self.update() if self.remote is not None else self._here()

    def _here(self) -> list[str]:
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
        self._bring(name)
        # Copies are listed first: a new entry gets its copy after it.
        copied = entry_names(self.copies.place(folder))
        moves = self.entry_files(name)
        if missing := copied - {path.name for path in moves}:
            raise StoreError(f"{folder / min(missing)} is missing, an entry of the name {name}; {RESTORED}")
        return moves

    def _checked_entry(self, path: Path) -> Entry:
        if self.copies.differs(path, path.read_bytes()):
            raise StoreError(f"{path} is damaged (it does not match its copy), an entry of a name; {RESTORED}")
        return read_entry(path)


def entry_key(name: str, number: int) -> str:
    """The key of an entry in a remote."""
    return f"refs/{name}/{number:06}.json"


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
