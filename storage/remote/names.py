"""The names of a home that are also in its remote: two homes cannot both move one, and each sees the other's moves."""

import logging
import re
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError

from bardflow.storage.disk import read_or_none, sealed, set_aside
from bardflow.storage.manifests import ObjectMissing, StoreError
from bardflow.storage.refs import NAME, Diverged, Entry, Refs, checked, noted
from bardflow.storage.remote.artifacts import Count, RemoteArtifacts
from bardflow.storage.remote.contents import Counted, Remote
from bardflow.storage.remote.object_storage import RemoteDamaged, RemoteError, RemoteUnreachable, at_once
from bardflow.storage.store import Store

LOGGER = logging.getLogger("bardflow")
ENTRY_KEY = re.compile(rf"refs/({NAME.pattern})/([0-9]{{6,}})\.json")
# So many entries are in memory at once when a history is brought from the remote.
TOGETHER = 256
# Stands before entries that were made in a home without a remote.
NO_TOKEN = b"0" * 32


class RemoteNames:
    """Creates entries in the remote before they are in the home, and brings those of other homes here."""

    def __init__(self, refs: Refs, remote: Remote) -> None:
        self.refs, self.remote = refs, remote
        self.artifacts = RemoteArtifacts(Store(refs.root), remote)
        # Names that were read from the remote when all were listed.
        self._fresh: set[str] = set()

    def move(self, name: str, entry: Entry, content: bytes, after: Entry | None) -> bool:
        """Create an entry in the remote, after all that it refers to; return whether this call did."""
        if not self._create(name, entry, content, after):
            self._fresh.discard(name)
            return False
        self.remote.writable().add(entry_key(name, entry.number))
        return True

    def _create(self, name: str, entry: Entry, content: bytes, after: Entry | None) -> bool:
        self.remote.ask_again()
        known = self.remote.writable()
        if after is not None and not known.has(entry_key(name, after.number)):
            self.send(name)
        wanted = [entry.handle, *noted(entry)]
        _, nowhere = self.artifacts.send_all(wanted)
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
            return there.partition(b"\n")[0] == token
        return True

    def _received(self, name: str, number: int) -> bytes | None:
        """The content of an entry in the remote; None if there is none."""
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

    def bring(self, name: str) -> None:
        """Write the entries that only the remote has into the home; if it cannot be reached, say so once.

        The list of a storage may lack the newest files, so it only saves time: the next number is asked for until there
        is none.

        Raises:
            Diverged: both have entries that the other lacks.
        """
        if checked(name) in self._fresh:
            return
        with self.remote.tolerated(f"reading the name {name}"):
            known = self.remote.known()
            if known is None:
                return
            last = self.refs.last(name)
            if last and not known.has(entry_key(name, last)):
                theirs = self._received(name, last)
                if theirs is None:
                    self._common(name)
                    return
                if theirs != self.refs.content(name, last):
                    raise self._diverged(name)
                known.add(entry_key(name, last))
            if (content := self._received(name, last + 1)) is None:
                return
            self._take(name, last + 1, content)
            self._take_listed(name, last + 2)
            last = self.refs.last(name)
            while (content := self._received(name, last + 1)) is not None:
                last += 1
                self._take(name, last, content)
            known.add(entry_key(name, last))

    def _take(self, name: str, number: int, content: bytes) -> None:
        """Write an entry of the remote into the home, after the record of its artifact, if there is one."""
        self.artifacts.take_record(Entry.model_validate_json(content).handle)
        try:
            self.refs.write(self.refs.folder / name / f"{number:06}.json", content)
        except FileExistsError:  # another process of this home brought it
            if read_or_none(self.refs.folder / name / f"{number:06}.json") != content:
                raise self._diverged(name) from None

    def _take_listed(self, name: str, first: int) -> None:
        """Bring the listed entries from a number on, several at once."""
        listed = self._listed(name, after=first - 1)
        run = [number for at, number in enumerate(sorted(listed)) if number == first + at]
        for start in range(0, len(run), TOGETHER):
            numbers = run[start : start + TOGETHER]
            for number, content in zip(numbers, at_once(lambda n: self._received(name, n), numbers), strict=True):
                if content is None:
                    return
                self._take(name, number, content)

    def _listed(self, name: str, after: int = 0) -> list[int]:
        found = self.remote.keys(f"refs/{name}", after=entry_key(name, after) if after else None)
        return [int(entry[2]) for key, _ in found if (entry := ENTRY_KEY.fullmatch(key)) and entry[1] == name]

    def _common(self, name: str) -> int:
        """The number of entries that home and remote have in common. Equal entries have equal ones before them.

        Raises:
            Diverged: the next entry of the remote is not that of the home.
        """
        last = self.refs.last(name)
        common = max((number for number in self._listed(name) if number <= last), default=0)
        if common and self._received(name, common) != self.refs.content(name, common):
            raise self._diverged(name)
        while common < last and (theirs := self._received(name, common + 1)) is not None:
            common += 1
            if theirs != self.refs.content(name, common):
                raise self._diverged(name)
        return common

    def _first_different(self, name: str) -> int:
        """The number of the first entry of the home that the remote has not, or has another."""
        for number in range(1, self.refs.last(name) + 1):
            if self._received(name, number) != self.refs.content(name, number):
                return number
        return self.refs.last(name) + 1

    def _diverged(self, name: str) -> Diverged:
        return Diverged(
            f"the name {name} has another history in this home than in {self.remote.where}: entry "
            f"{self._first_different(name)} is the first that differs. `bard pull {name} --replace` takes that of the "
            "remote, and moves the entries of this home to set-aside/"
        )

    def send(self, name: str, progress: Count = lambda count: None) -> tuple[Counted, int]:
        """Send the entries of a name that the remote lacks, with their artifacts; return what was sent.

        Artifacts of earlier entries that this home lacks are passed over.

        Raises:
            Diverged: the remote has other entries.
            ObjectMissing: an artifact of the last entry is neither here nor in the remote.
            storage.remote.RemoteError: the remote cannot be written.
        """
        known = self.remote.writable()
        sent, entries = Counted(), 0
        paths = self.refs.entry_files(name)
        common = self._common(name)
        for path in paths[common:]:
            entry = self.refs.checked_entry(path)
            counted, nowhere = self.artifacts.send_all([entry.handle, *noted(entry)], progress)
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
        if self._received(name, 1) is None:
            raise StoreError(f"{self.remote.where} has no name {name}, so nothing was replaced")
        first = self._first_different(name)
        moved = []
        # The last one first, and the copy before the entry: a history without its end is one.
        for path in reversed([path for path in self.refs.entry_files(name) if int(path.stem) >= first]):
            self.refs.copies.remove(path)
            moved.append(set_aside(self.refs.root, path))
        self._fresh.discard(name)
        self.bring(name)
        return moved

    def bring_all(self) -> None:
        """Write the new entries of all names into the home, from one list of the remote."""
        with self.remote.tolerated("reading names"):
            if self.remote.known() is None:
                return
            last: dict[str, int] = {}
            for key, _ in self.remote.keys("refs"):
                if entry := ENTRY_KEY.fullmatch(key):
                    last[entry[1]] = max(last.get(entry[1], 0), int(entry[2]))
            for name, number in sorted(last.items()):
                if number > self.refs.last(name):
                    try:
                        self.bring(name)
                    except (Diverged, RemoteDamaged) as error:  # one name hides no others
                        LOGGER.warning("%s", error)
            self._fresh = set(self.refs.here())


def entry_key(name: str, number: int) -> str:
    """The key of an entry in a remote."""
    return f"refs/{name}/{number:06}.json"
