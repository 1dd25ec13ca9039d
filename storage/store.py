"""Directory in, digest out: objects are kept whole or not at all, and found again by their digest."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from bard.errors import BardError
from storage.handles import KINDS, Handle, kind_of

LAYOUT = 1
MANIFEST = "manifest.json"
ORIGIN = "origin.json"

H = TypeVar("H", bound=Handle)


class StoreError(BardError):
    """The store was asked for something that it does not hold, or holds damaged."""


class ObjectMissing(StoreError):
    """No intact object stands behind a handle."""


class FileFacts(BaseModel):
    """One data file of an object: its size in bytes and its sha256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What an object is. The digest of an object is the sha256 of this, written as canonical JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    layout: int
    facts: dict[str, Any]
    files: dict[str, FileFacts]


class Origin(BaseModel):
    """How an object came to be. It stands beside the digest and not in it: two ways to the same bytes agree."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    inputs: dict[str, str]
    spec: dict[str, Any]
    run: str | None
    commit: str | None
    packages: dict[str, str]
    at: str
    measured: dict[str, Any]


class Draft:
    """An object while it is written: a folder of its own that nobody else can see."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept = False


class Store:
    """Objects under `<root>/objects/<kind>/<digest>/`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = root / "objects"
        self.drafts = root / "drafts"

    @contextmanager
    def draft(self) -> Iterator[Draft]:
        """A folder to write an object's files into. What is not handed to `keep` by the end is deleted."""
        self.drafts.mkdir(parents=True, exist_ok=True)
        draft = Draft(Path(mkdtemp(prefix=f"{os.getpid()}-", dir=self.drafts)))
        try:
            yield draft
        finally:
            if not draft.kept:
                shutil.rmtree(draft.folder)

    def keep(self, draft: Draft, kind: type[H], facts: dict[str, Any], origin: Origin) -> H:
        """Turn a draft into an object by one atomic rename and return its handle.

        If the same object is already kept and intact, that one stays, with its origin; a damaged one is replaced.
        """
        names = sorted(p.relative_to(draft.folder).as_posix() for p in draft.folder.rglob("*") if p.is_file())
        files = {name: file_facts(draft.folder / name) for name in names}
        manifest = Manifest(kind=kind_of(kind), layout=LAYOUT, facts=facts, files=files)
        content = canonical_json(manifest.model_dump(mode="json"))
        handle = kind(digest=hashlib.sha256(content).hexdigest())

        (draft.folder / ORIGIN).write_bytes(canonical_json(origin.model_dump(mode="json")))
        (draft.folder / MANIFEST).write_bytes(content)
        for path in sorted(draft.folder.rglob("*"), reverse=True):
            if path.is_file():
                path.chmod(0o444)
            fsync(path)
        draft.folder.chmod(0o755)
        fsync(draft.folder)

        place = self._place(handle)
        place.parent.mkdir(parents=True, exist_ok=True)
        while not draft.kept:
            try:
                draft.folder.rename(place)
                draft.kept = True
            except OSError:
                if not place.exists():
                    raise
                if self.damage(handle) is None:
                    return handle
                self.discard(handle)
        fsync(place.parent)
        return handle

    def discard(self, handle: Handle) -> None:
        """Take an object out of sight in one rename, then delete it; it is no error if another process was faster."""
        self.drafts.mkdir(parents=True, exist_ok=True)
        grave = Path(mkdtemp(prefix=f"{os.getpid()}-discarded-", dir=self.drafts))
        with suppress(FileNotFoundError):
            self._place(handle).rename(grave / handle.digest)
        shutil.rmtree(grave)

    def folder(self, handle: Handle) -> Path:
        """Where the object's files lie.

        Raises:
            ObjectMissing: nothing is kept under this handle.
        """
        place = self._place(handle)
        if not (place / MANIFEST).is_file():
            raise ObjectMissing(f"{handle} is not in the store {self.root}; run the flow that makes it again")
        return place

    def damage(self, handle: Handle) -> str | None:
        """What is wrong with the object, in words, or None when every byte is what its digest says.

        Reads and hashes everything: about 1.5 GB/s where the processor has SHA instructions.
        """
        place = self._place(handle)
        try:
            content = (place / MANIFEST).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return "missing"
        if hashlib.sha256(content).hexdigest() != handle.digest:
            return f"damaged ({MANIFEST} is not what its digest says)"
        if not (place / ORIGIN).is_file():
            return f"damaged ({ORIGIN} is gone)"
        for name, facts in Manifest.model_validate_json(content).files.items():
            path = place / name
            if not path.is_file():
                return f"damaged ({name} is gone)"
            if file_facts(path) != facts:
                return f"damaged ({name} is not what the manifest says)"
        return None

    def manifest(self, handle: Handle) -> Manifest:
        """The object's manifest."""
        return Manifest.model_validate_json((self.folder(handle) / MANIFEST).read_bytes())

    def facts(self, handle: Handle) -> dict[str, Any]:
        """The facts in the object's manifest."""
        return self.manifest(handle).facts

    def origin(self, handle: Handle) -> Origin:
        """How the object was first made."""
        return Origin.model_validate_json((self.folder(handle) / ORIGIN).read_bytes())

    def find(self, prefix: str) -> Handle:
        """The one object whose digest begins with `prefix` (at least four characters).

        Raises:
            StoreError: none does, or several do (they are named).
        """
        found = [h for h in self.handles() if len(prefix) >= 4 and h.digest.startswith(prefix)]
        if len(found) == 1:
            return found[0]
        if not found:
            raise StoreError(
                f"no object's digest begins with {prefix!r}; give at least the first 4 characters of one, "
                "or a name such as tiny-shakespeare/champion"
            )
        raise StoreError(f"{prefix!r} begins several digests; give more of it: {', '.join(map(str, found))}")

    def handles(self) -> Iterator[Handle]:
        """Every object in the store."""
        for kind, handle_class in KINDS.items():
            folder = self.objects / kind
            if folder.is_dir():
                for place in sorted(folder.iterdir()):
                    yield handle_class(digest=place.name)

    def _place(self, handle: Handle) -> Path:
        return self.objects / handle.kind / handle.digest


def canonical_json(value: Any) -> bytes:
    """One spelling for one value: sorted keys, two spaces, UTF-8, a newline at the end; NaN is refused."""
    return (json.dumps(value, ensure_ascii=False, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()


def file_facts(path: Path) -> FileFacts:
    """Size and sha256 of a file, read as a stream."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileFacts(bytes=path.stat().st_size, sha256=digest)


def fsync(path: Path) -> None:
    """Ask the disk to have written a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
