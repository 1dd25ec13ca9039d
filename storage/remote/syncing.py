"""Sending a home to its remote, receiving it from there, and verifying what is there."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from bardflow.storage.copies import Copies
from bardflow.storage.disk import DRAFTS, make_folder, read_or_none, sealed, unsealed, write_whole
from bardflow.storage.garbage import KEEP_NAMED, named
from bardflow.storage.handles import KINDS, Handle
from bardflow.storage.layout import LAYOUT_FILE
from bardflow.storage.lineage import handle_of
from bardflow.storage.manifests import MANIFEST, ORIGIN, FileFacts, Manifest, Origin, StoreError, file_facts
from bardflow.storage.refs import Diverged, Entry, Refs
from bardflow.storage.remote.artifacts import Count, RemoteArtifacts
from bardflow.storage.remote.contents import RECORD_FILE, Counted, Remote, is_plain_result, key_of
from bardflow.storage.remote.names import ENTRY_KEY, NO_TOKEN, RemoteNames, entry_key
from bardflow.storage.remote.object_storage import RemoteDamaged, RemoteError, at_once
from bardflow.storage.store import DIGEST, Store
from bardflow.storage.verifying import CACHE_KEY, results


@dataclass(frozen=True)
class Synced:
    """What was sent or received: files of artifacts with their bytes, entries of names, and cached results.

    `problems` are what could not be; all else was.
    """

    files: int = 0
    bytes: int = 0
    entries: int = 0
    results: int = 0
    problems: tuple[str, ...] = ()

    def line(self, done: str) -> str:
        """Return a summary in one line; `done` is a word such as `sent`."""
        return (
            f"{done} {self.files:,} files of artifacts ({self.bytes:,} bytes), {self.entries:,} entries of names, "
            f"{self.results:,} cached results"
        )


def push(
    root: Path, remote: Remote, only: list[Handle] | None = None, *, progress: Count = lambda count: None
) -> Synced:
    """Send what names need and cached results to the remote, or only some artifacts with all that they were made from.

    The remote is listed first, so what was deleted there is sent again.

    Raises:
        RemoteError: the remote cannot be written.
    """
    here = Refs(root)
    artifacts, names = RemoteArtifacts(Store(root), remote), RemoteNames(here, remote)
    known = remote.writable()
    known.forget()
    for kind in KINDS:
        for key, _ in remote.keys(f"objects/{kind}"):
            folder, _, name = key.rpartition("/")
            if name == MANIFEST:
                known.add(folder)
    problems: list[str] = []
    if only is not None:
        counted, nowhere = artifacts.send_all(only, progress)
        problems += [f"{handle} is neither whole in this home nor in the remote" for handle in nowhere]
        return Synced(*counted, problems=tuple(problems))
    sent, entries = Counted(), 0
    recent, former = named(here, KEEP_NAMED, "")
    counted, _ = artifacts.send_all([*recent, *former], progress)
    sent = sent.plus(*counted)
    for name in here.names():
        try:
            counted, added = names.send(name, progress)
            sent, entries = sent.plus(*counted), entries + added
        except StoreError as error:
            problems.append(str(error))
    there = {key.partition("/")[2] for key, _ in remote.keys("results")}
    mine = [path for path in results(root) if CACHE_KEY.search(path.name) and path.name not in there]
    whole = [path for path in mine if not here.copies.differs(path, path.read_bytes())]
    at_once(lambda path: remote.put(f"results/{path.name}", sealed(path.read_bytes())), whole)
    return Synced(sent.files, sent.bytes, entries, len(whole), tuple(problems))


def pull(
    root: Path,
    remote: Remote,
    only: list[Handle] | None = None,
    *,
    records: bool = False,
    progress: Count = lambda count: None,
) -> Synced:
    """Receive all names, what they need, and cached results; or only some artifacts with all that they were made from.

    With `records`, artifacts are received as records: manifest and origin, without their files.

    Raises:
        RemoteError: the remote cannot be read.
    """
    store, here = Store(root), Refs(root)
    artifacts, brought = RemoteArtifacts(store, remote), RemoteNames(here, remote)
    problems: list[str] = []
    before = {name: len(here.entry_files(name)) for name in here.names()}
    if only is None:
        for name in {*before, *_listed_names(remote)}:
            try:
                brought.bring(name)
            except Diverged as error:
                problems.append(str(error))
        recent, former = named(here, KEEP_NAMED, "")
        wanted = [*recent, *former]
    else:
        wanted = only
    received = Counted()
    left, met = list(dict.fromkeys(wanted)), set[Handle]()
    while left:
        if (handle := left.pop()) in met:
            continue
        met.add(handle)
        try:
            if not artifacts.take_record(handle):
                if handle in wanted:
                    problems.append(f"{handle} is neither in this home nor in the remote")
                continue
            if not records:
                received = received.plus(*artifacts.fetch(handle, progress))
        except StoreError as error:
            if not (store.is_record(handle) and not remote.holds(handle)):
                problems.append(str(error))
        except RemoteDamaged as error:
            problems.append(str(error))
        left += [handle_of(text) for text in store.inputs(handle)]
    entries = sum(len(here.entry_files(name)) - before.get(name, 0) for name in here.names())
    taken = 0 if only is not None else _receive_results(root, remote)
    return Synced(received.files, received.bytes, entries, taken, tuple(problems))


def _listed_names(remote: Remote) -> set[str]:
    return {found[1] for key, _ in remote.keys("refs") if (found := ENTRY_KEY.fullmatch(key))}


def _receive_results(root: Path, remote: Remote) -> int:
    """Write the cached results that only the remote has; return their number."""
    copies, folder = Copies(root), root / "prefect" / "results"
    mine = {path.name for path in results(root)}
    names = [key.partition("/")[2] for key, _ in remote.keys("results")]
    lacking = [name for name in names if name not in mine and "/" not in name and CACHE_KEY.search(name)]
    taken = 0
    for name, content in zip(lacking, at_once(remote.result, lacking), strict=True):
        if content is not None:
            copies.write(folder / name, content)
            write_whole(folder / name, content, root / DRAFTS)
            taken += 1
    return taken


@dataclass(frozen=True)
class Harm:
    """A file of the remote that is not as it should be, and whether that loses something."""

    key: str
    what: str
    harmful: bool = True
    handle: Handle | None = None


@dataclass
class _Listed:
    """All keys of a remote with their sizes, sorted by what they are."""

    artifacts: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    entries: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


def verify_remote(root: Path, remote: Remote, *, checked: Count = lambda count: None) -> Iterator[Harm]:
    """Read and hash every file of the remote, and yield what is wrong.

    Raises:
        RemoteError: the remote cannot be read.
    """
    if remote.known() is None:
        return
    listed = _list(remote)
    make_folder(root / DRAFTS)
    for folder, sizes in sorted(listed.artifacts.items()):
        kind, digest = folder.split("/")[1:]
        yield from _artifact(root, remote, KINDS[kind](digest=digest), folder, sizes, checked)
    numbers: dict[str, list[int]] = defaultdict(list)
    for key in listed.entries:
        found = ENTRY_KEY.fullmatch(key)
        assert found
        numbers[found[1]].append(int(found[2]))
        content = unsealed(remote.get(key) or b"")
        try:
            sound = content is not None and Entry.model_validate_json(content.partition(b"\n")[2]).number == int(
                found[2]
            )
        except ValidationError:
            sound = False
        if not sound:
            yield Harm(key, "does not have its sha256, or is not an entry")
    for name, present in sorted(numbers.items()):
        # An entry may be missing from the list, and be there.
        for number in sorted(set(range(1, max(present) + 1)) - set(present)):
            if remote.size(key := entry_key(name, number)) is None:
                yield Harm(key, "is missing")
    for key, content in zip(listed.results, at_once(remote.get, listed.results), strict=True):
        plain = unsealed(content or b"")
        if plain is None or not is_plain_result(plain):
            yield Harm(key, "does not have its sha256, or is not a result; its task would run again")
    for key in listed.foreign:
        yield Harm(key, "is not part of a remote", harmful=False)


def _list(remote: Remote) -> _Listed:
    listed = _Listed()
    for key, size in remote.keys(""):
        parts = key.split("/")
        if parts[0] == "objects" and len(parts) > 3 and parts[1] in KINDS and DIGEST.fullmatch(parts[2]):
            listed.artifacts["/".join(parts[:3])][key] = size
        elif ENTRY_KEY.fullmatch(key):
            listed.entries.append(key)
        elif parts[0] == "results" and len(parts) == 2:
            listed.results.append(key)
        elif key != LAYOUT_FILE:
            listed.foreign.append(key)
    return listed


def _artifact(
    root: Path, remote: Remote, handle: Handle, folder: str, sizes: dict[str, int], checked: Count
) -> Iterator[Harm]:
    manifest_key = next((key for name in (MANIFEST, RECORD_FILE) if (key := f"{folder}/{name}") in sizes), None)
    if manifest_key is None:
        yield Harm(folder, "has no manifest: an upload did not end, or goes on", False, handle)
        return
    content = remote.get(manifest_key) or b""
    if hashlib.sha256(content).hexdigest() != handle.digest:
        yield Harm(manifest_key, "does not match its digest", handle=handle)
        return
    origin = unsealed(remote.get(f"{folder}/{ORIGIN}") or b"")
    try:
        Origin.model_validate_json(origin or b"")
    except ValidationError:
        yield Harm(f"{folder}/{ORIGIN}", "is missing, or does not have its sha256", handle=handle)
    files = Manifest.model_validate_json(content).files if manifest_key.endswith(MANIFEST) else {}

    def harm_of(item: tuple[str, FileFacts]) -> Harm | None:
        name, facts = item
        key = key_of(handle, name)
        there = sizes[key] if key in sizes else remote.size(key)  # a list may lack the newest files
        if there is None:
            return Harm(key, "is missing", handle=handle)
        if there != facts.bytes:
            return Harm(key, f"has {there:,} bytes, and its manifest says {facts.bytes:,}", handle=handle)
        with TemporaryDirectory(prefix=f"{os.getpid()}-verifying-", dir=root / DRAFTS) as draft:
            path = Path(draft) / "file"
            try:
                remote.download(key, facts.bytes, path)
            except RemoteDamaged:
                return Harm(key, "is missing, or shorter than listed", handle=handle)
            checked(facts.bytes)
            return None if file_facts(path) == facts else Harm(key, "does not have its sha256", handle=handle)

    yield from (harm for harm in at_once(harm_of, files.items()) if harm is not None)
    known = {key_of(handle, name) for name in files} | {f"{folder}/{n}" for n in (MANIFEST, RECORD_FILE, ORIGIN)}
    yield from (Harm(key, "is not in the manifest", False, handle) for key in sorted(sizes.keys() - known))


def repair_remote(root: Path, remote: Remote, harms: list[Harm]) -> Iterator[str]:
    """Write what is damaged in the remote again, where this home has it intact; yield what was done."""
    store, refs = Store(root), Refs(root)
    artifacts = RemoteArtifacts(store, remote)
    for handle in dict.fromkeys(harm.handle for harm in harms if harm.handle is not None and harm.harmful):
        if store.damage(handle) is not None:
            yield f"{handle}: not repaired, because this home does not have it intact"
            continue
        artifacts.send(handle, again=True)
        yield f"{handle}: sent again"
    for harm in harms:
        if harm.handle is not None or not harm.harmful:
            continue
        if entry := ENTRY_KEY.fullmatch(harm.key):
            path = refs.folder / entry[1] / f"{entry[2]}.json"
            content = refs.copies.read(path)
            content = None if content is None else NO_TOKEN + b"\n" + content
            again = ""
        else:
            again = "; its task runs again, and then sends it"
            path = root / "prefect" / "results" / harm.key.partition("/")[2]
            content = Copies(root).read(path) or read_or_none(path)
        if content is None:
            yield f"{harm.key}: not repaired, because this home does not have it intact{again}"
            continue
        remote.put(harm.key, sealed(content))
        yield f"{harm.key}: sent again"


def state_of(remote: Remote) -> str:
    """Say in a few words whether the remote answers, and whether it has anything."""
    try:
        return "answers" if remote.known() is not None else "answers, and is empty"
    except RemoteError as error:
        return str(error)
