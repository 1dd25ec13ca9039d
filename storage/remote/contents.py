"""What a remote has. Its layout is that of the home: `objects/<kind>/<digest>/` with `manifest.json` written last,
`refs/<name>/000001.json`, and `results/<cache key>`. Files without a digest of their own begin with their sha256, as
copies do.
"""

import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from uuid import uuid4

from pydantic import ValidationError

from bardflow.errors import DiskError, disk_error
from bardflow.storage.disk import DRAFTS, read_or_none, sealed, write_whole
from bardflow.storage.handles import KINDS, Handle, text_of
from bardflow.storage.layout import LAYOUT_FILE, REMOTE, LayoutError
from bardflow.storage.manifests import LAYOUT, MANIFEST, ORIGIN, FileFacts, Manifest, Origin, file_facts
from bardflow.storage.remote.object_storage import (
    PART,
    QUIET_SECONDS,
    REPAIR,
    VARIABLE,
    ObjectStorage,
    RemoteDamaged,
    RemoteError,
    at_once,
    checked_address,
)

LOGGER = logging.getLogger("bardflow")
REMOTE_LAYOUT = 1
# The manifest of an artifact whose files a clean-up deleted before it was sent.
RECORD_FILE = "record.json"
# Characters that obstore refuses in a key, or that have a meaning in one (`#` in a folder's).
UNUSUAL = re.compile(r"[\x00-\x1f\x7f#%]")
NEEDED = (
    "So two machines could both move a name, and one of the moves would be lost. Use storage that honours them, such "
    "as Amazon S3, Google Cloud Storage, Azure, Cloudflare R2 or MinIO"
)
CONDITIONS = "conditions"


class Counted(NamedTuple):
    """Files and their bytes that were sent or received."""

    files: int = 0
    bytes: int = 0

    def plus(self, files: int, count: int) -> "Counted":
        """Return the sum."""
        return Counted(self.files + files, self.bytes + count)


class Remote(ObjectStorage):
    """The remote of one home."""

    def __init__(self, root: Path, address: str, endpoint: str | None = None, plain: bool = False) -> None:
        super().__init__(address, endpoint, plain)
        self.root = root
        self._known: Known | None = None
        # When an artifact was looked for and not found.
        self._absent: dict[str, float] = {}
        # Results that could not be sent; they are sent with the next one.
        self._unsent: dict[str, bytes] = {}

    def known(self, *, write: bool = False) -> "Known | None":
        """Return what this home remembers of the remote; None if the remote is empty.

        With `write`, an empty remote is set up, after a check that it refuses to create a file twice.

        Raises:
            LayoutError: a newer version wrote the remote.
            RemoteError: it ignores the condition of a write, so two machines could both move a name.
        """
        if self._known is None:
            content = self.get(LAYOUT_FILE)
            if content is None:
                if not write:
                    return None
                self.create(LAYOUT_FILE, _marker())
                content = self.get(LAYOUT_FILE) or b""
            self._known = self._read_known(content)
        if write and not self._known.has(CONDITIONS):
            self._require_conditions()
            self._known.add(CONDITIONS)
        return self._known

    def writable(self) -> "Known":
        """As `known` with `write`."""
        known = self.known(write=True)
        assert known is not None
        return known

    def _read_known(self, content: bytes) -> "Known":
        try:
            found = json.loads(content)
            number, identity = int(found["layout"]), str(found["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise LayoutError(
                f"{self.where}: {LAYOUT_FILE} has no layout number, so this is not a remote of bardflow; give another "
                "folder, or delete that file if bardflow wrote it, and `bard push` writes it again"
            ) from error
        if number > REMOTE_LAYOUT:
            raise LayoutError(
                f"{self.where} has layout {number}, and this version of bardflow reads layout {REMOTE_LAYOUT}; install "
                f"the newer version that wrote it, or name another folder with {VARIABLE}"
            )
        name = hashlib.sha256(self.where.encode()).hexdigest()[:16]
        return Known(self.root / REMOTE / f"{name}.txt", identity, self.root / DRAFTS)

    def _require_conditions(self) -> None:
        """Check that a file cannot be created twice, with the same content, so that nothing is lost if it can.

        Raises:
            RemoteError: it can: two machines could both move a name.
        """
        content = self.get(LAYOUT_FILE) or b""
        try:
            if not self.create(LAYOUT_FILE, content):
                return
        except RemoteError as error:
            if re.search(r"\b501 |[Nn]ot ?[Ii]mplemented|refused a request", str(error)):
                self.ask_again()
                raise RemoteError(f"{self.where} refuses conditional writes. {NEEDED} ({error})") from error
            raise
        raise RemoteError(f"{self.where} ignores conditional writes (If-None-Match). {NEEDED}")

    # Artifacts

    def holds(self, handle: Handle) -> bool:
        """Return whether the remote has the artifact as a whole, by its manifest; a remembered one is not asked for."""
        known = self.known()
        if known is None or known.is_bad(key_of(handle)):
            return False
        if known.has(key := key_of(handle)):
            return True
        lately = time.monotonic() - QUIET_SECONDS
        if self._absent.get(key, lately) > lately:
            return False
        if self.size(key_of(handle, MANIFEST)) is None:
            self._absent[key] = time.monotonic()
            return False
        known.add(key)
        return True

    def record(self, handle: Handle) -> tuple[bytes, bytes] | None:
        """Return manifest and origin of an artifact, as bytes; None if the remote has neither files nor record of it.

        Raises:
            RemoteDamaged: one of them does not have its sha256.
        """
        lately = time.monotonic() - QUIET_SECONDS
        if self.known() is None or self._absent.get(record := key_of(handle, RECORD_FILE), lately) > lately:
            return None
        for name in (MANIFEST, RECORD_FILE):
            content = self.get(key := key_of(handle, name))
            if content is not None:
                break
        else:
            self._absent[record] = time.monotonic()
            return None
        if hashlib.sha256(content).hexdigest() != handle.digest:
            raise self.damaged(handle, f"{key} does not match its digest")
        origin = self.unsealed(key_of(handle, ORIGIN))
        try:
            Origin.model_validate_json(origin or b"")
            manifest = Manifest.model_validate_json(content)
        except ValidationError as error:
            raise self.damaged(handle, f"{ORIGIN} or {MANIFEST} is missing or of another layout") from error
        assert origin is not None
        if manifest.layout != LAYOUT or not all(map(_is_inside, manifest.files)):
            raise self.damaged(handle, f"{key} is of layout {manifest.layout}, or names files outside of its folder")
        return content, origin

    def damaged(self, handle: Handle, what: str) -> "RemoteDamaged":
        """Return the error for a damaged artifact. From now on the remote counts as not having it."""
        if (known := self.known()) is not None:
            known.mark_bad(key_of(handle))
        return RemoteDamaged(f"{self.where}: {handle} is damaged: {what}. {REPAIR}")

    def find(self, prefix: str) -> Iterator[Handle]:
        """Yield the artifacts whose digest starts with `prefix`: one request for each kind, if there are few."""
        for kind, handle_class in KINDS.items():
            for key, _ in self.keys(f"objects/{kind}", after=f"objects/{kind}/{prefix}"):
                digest, name = key.split("/")[2:4]
                if not digest.startswith(prefix):
                    break
                if name == MANIFEST:
                    yield handle_class(digest=digest)

    def sizes(self, handle: Handle) -> dict[str, int]:
        """Return the files of an artifact in the remote, by key, with their sizes in bytes."""
        return dict(self.keys(key_of(handle)))

    def receive(
        self, handle: Handle, manifest: Manifest, folder: Path, progress: Callable[[int], object] = lambda count: None
    ) -> Counted:
        """Write the files of an artifact into a folder, and check them against the manifest.

        Raises:
            RemoteDamaged: a file does not match.
            DiskError: they do not fit on the disk.
        """
        needed = sum(facts.bytes for facts in manifest.files.values())
        if needed > (free := shutil.disk_usage(folder).free):
            raise DiskError(
                f"{handle} has {needed:,} bytes, and only {free:,} are free for {folder.parent}: free some space "
                "(`bard gc` deletes what no name refers to), and run it again. Nothing was stored"
            )

        def one(item: tuple[str, FileFacts]) -> str | None:
            name, facts = item
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.download(key_of(handle, name), facts.bytes, path)
            except RemoteDamaged as error:
                return str(error)
            progress(facts.bytes)
            return None if file_facts(path) == facts else f"{key_of(handle, name)} does not have its sha256"

        try:
            harms = [harm for harm in at_once(one, manifest.files.items()) if harm]
        except OSError as error:
            raise (disk_error(error, folder) or error) from error
        if harms:
            raise self.damaged(handle, harms[0])
        return Counted(len(manifest.files), needed)

    def send(
        self,
        handle: Handle,
        place: Path,
        manifest: Manifest,
        *,
        again: bool = False,
        progress: Callable[[int], object] = lambda count: None,
    ) -> Counted:
        """Send an intact artifact: its files, its origin, and its manifest last; nothing if the remote has it.

        With `again`, everything is sent, in place of what is there.
        """
        known = self.writable()
        again = again or known.is_bad(key_of(handle))
        if not again and self.holds(handle):
            return Counted()
        large = {name for name, facts in manifest.files.items() if facts.bytes > PART}

        def one(name: str) -> None:
            self.put(key_of(handle, name), place / name)
            progress(manifest.files[name].bytes)

        for name in sorted(large):
            one(name)
        for _ in at_once(one, sorted(manifest.files.keys() - large)):
            pass
        origin = sealed((place / ORIGIN).read_bytes())
        if again:
            self.put(key_of(handle, ORIGIN), origin)
        else:
            self.create(key_of(handle, ORIGIN), origin)  # an artifact keeps the origin that it had
        self.put(key_of(handle, MANIFEST), (place / MANIFEST).read_bytes())
        known.add(key_of(handle))
        return Counted(len(manifest.files), sum(facts.bytes for facts in manifest.files.values()))

    def send_record(self, handle: Handle, place: Path) -> None:
        """Send manifest and origin of an artifact whose files this home lacks, so that others can read lineage."""
        known = self.writable()
        if known.has(key := key_of(handle, RECORD_FILE)) or self.holds(handle):
            return
        self.create(key_of(handle, ORIGIN), sealed((place / ORIGIN).read_bytes()))
        self.create(key, (place / MANIFEST).read_bytes())
        known.add(key)

    # Cached results of tasks

    def result(self, name: str) -> bytes | None:
        """Return a cached result by its cache key; None if there is none, or if it is damaged or not such a file."""
        with self.tolerated(f"looking for the result {name[:60]}"):
            if self.known() is None:
                return None
            try:
                content = self.unsealed(f"results/{name}")
            except RemoteDamaged as error:
                LOGGER.warning("%s. The task runs again", error)
                return None
            return content if content is not None and is_plain_result(content) else None
        return None

    def send_result(self, name: str, content: bytes) -> None:
        """Send a cached result; if that fails, it is sent with the next one, or by `bard push`."""
        self._unsent[name] = content
        try:
            with self.tolerated("sending a result"):
                self.writable()
                for one in list(self._unsent):
                    self.put(f"results/{one}", sealed(self._unsent[one]))
                    del self._unsent[one]
        except RemoteError as error:
            LOGGER.warning("the result %s was not sent: %s. `bard push` sends it", name[:60], error)


@lru_cache
def remote_of(root: Path, address: str | None, endpoint: str | None = None, plain: bool = False) -> "Remote | None":
    """Return the remote of the home `root`; None without an address. Nothing is sent or imported yet.

    `endpoint` is the server behind the address, for messages; the library reads it itself. With `plain` it may be an
    http:// one: then names and bytes are not encrypted on their way.

    Raises:
        RemoteError: the address is not one of a remote, or contains a password.
    """
    return Remote(root, checked_address(address), endpoint, plain) if address else None


class Known:
    """What a home remembers of a remote, which saves requests: keys that are there, and those found damaged.

    A file with one line for each key; `!` before a key says that it is damaged, and the last line of a key counts. The
    first line is the identity of the remote, so that nothing is believed of another one at the same address.
    """

    def __init__(self, path: Path, identity: str, drafts: Path) -> None:
        self.path, self.identity, self.drafts = path, identity, drafts
        lines = (read_or_none(path) or b"").decode(errors="replace").splitlines()
        if not lines or lines[0] != identity:
            write_whole(path, f"{identity}\n".encode(), drafts)
            lines = [identity]
        self.lines = {line.lstrip("!"): not line.startswith("!") for line in lines[1:]}

    def has(self, key: str) -> bool:
        return self.lines.get(key, False)

    def is_bad(self, key: str) -> bool:
        return not self.lines.get(key, True)

    def add(self, key: str) -> None:
        self._note(key, key)

    def mark_bad(self, key: str) -> None:
        self._note(f"!{key}", key)

    def forget(self) -> None:
        """Forget all but that conditions are honoured."""
        lines = [self.identity, CONDITIONS] if self.has(CONDITIONS) else [self.identity]
        write_whole(self.path, "".join(f"{line}\n" for line in lines).encode(), self.drafts)
        self.lines = dict.fromkeys(lines[1:], True)

    def _note(self, line: str, key: str) -> None:
        good = not line.startswith("!")
        if self.lines.get(key) is not good:
            self.lines[key] = good
            with self.path.open("a", encoding="utf-8") as file:  # one small write, so lines of two processes do not mix
                file.write(f"{line}\n")


def _marker() -> bytes:
    """The content of `layout.json` for a new remote, with an identity of its own."""
    return json.dumps({"layout": REMOTE_LAYOUT, "id": uuid4().hex}).encode() + b"\n"


def key_of(handle: Handle, name: str = "") -> str:
    """The key of an artifact in a remote, or of one of its files."""
    folder = f"objects/{text_of(handle)}"
    return f"{folder}/{UNUSUAL.sub(lambda found: f'%{ord(found[0]):02X}', name)}" if name else folder


def is_plain_result(content: bytes) -> bool:
    """Whether the content is a cached result that is JSON and has only handles and values of bardflow.

    Prefect takes the serializer and the classes from the file, and pickle can run code.
    """
    try:
        stored = json.loads(content)
        if stored["metadata"]["serializer"]["type"] != "json":
            return False
        left = [json.loads(stored["result"])]
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if "__exc_type__" in value or not str(value.get("__class__", "bardflow.")).startswith(OWN):
                return False
            left += value.values()
        elif isinstance(value, list):
            left += value
    return True


# The modules of classes in results; `storage.handles` is that of version 0.1.
OWN = ("bardflow.", "storage.handles.")


def _is_inside(name: str) -> bool:
    """Whether the name of a file stays in its folder, and is not one of the store's own."""
    parts = PurePosixPath(name).parts
    reserved = name in (MANIFEST, ORIGIN, RECORD_FILE, "reduced")
    return bool(parts) and "/".join(parts) == name and ".." not in parts and "\0" not in name and not reserved
