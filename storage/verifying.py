"""Verification of a home: finds damaged, missing and foreign files of every kind, and repairs what has a copy."""

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bardflow.storage.checking import FOREIGN, RECORD
from bardflow.storage.copies import Copies
from bardflow.storage.disk import DRAFTS, make_read_only, read_or_none, set_aside, unsealed, write_whole
from bardflow.storage.garbage import delete, needing, size, stale_drafts
from bardflow.storage.handles import KINDS, Handle, text_of
from bardflow.storage.layout import (
    HOME_LAYOUT,
    HOME_NAMES,
    LAYOUT_FILE,
    STAMPS,
    layout_content,
    note_layout,
    require_layout,
)
from bardflow.storage.lineage import handle_of
from bardflow.storage.manifests import MANIFEST, ORIGIN, ObjectMissing, StoreError
from bardflow.storage.refs import NAME, Refs, entry_names, read_entry
from bardflow.storage.store import DIGEST, Store

RESULTS = Path("prefect") / "results"
# Cached results have the key as name; other results, such as those of flows, have a random name and no copy.
CACHE_KEY = re.compile(r"-[0-9a-f]{64}$")
DATABASE = Path("prefect") / "prefect.db"
# How a finding is repaired: from the copy; the copy from the file; by making the artifact again; by moving the file to
# `set-aside/`; by deleting it; or not at all.
Repair = Literal["from its copy", "copy again", "make again", "set aside", "delete", "none"]


@dataclass(frozen=True)
class Finding:
    """A file that is not as it should be: its path in the home, what is wrong, and how that is repaired.

    `harmful` is false for superfluous files, and for missing ones that lose nothing, such as copies. `needed_by` are
    the names that lead to the artifact.
    """

    path: Path
    what: str
    repair: Repair
    harmful: bool = True
    handle: Handle | None = None
    needed_by: tuple[str, ...] = ()


def bring_up_to_date(root: Path) -> None:
    """Write the copies and the layout number into a home of an older version; one of this version is left alone.

    Raises:
        storage.layout.LayoutError: a newer version wrote the home.
    """
    if require_layout(root) == HOME_LAYOUT:
        return
    store, refs = Store(root), Refs(root)
    for handle in store.handles():
        with suppress(ObjectMissing):  # a damaged one has nothing to copy
            store.copy(handle)
    for path in (path for name in refs.names() for path in refs.entry_files(name)):
        with suppress(StoreError):
            read_entry(path)
            store.copies.write(path, path.read_bytes())
    for path in results(root):
        if _is_result(content := path.read_bytes()):
            store.copies.write(path, content)
    note_layout(root)


def results(root: Path) -> list[Path]:
    """The files of Prefect's results; tests have them in another folder of the home."""
    return sorted(path for path in (root / RESULTS).glob("*") if path.is_file())


def verify(
    root: Path, only: Handle | None = None, *, checked: Callable[[int], object] = lambda count: None
) -> Iterator[Finding]:
    """Yield all that is wrong in a home, or with one artifact and all that it was made from (`only`).

    All files of artifacts are hashed, whatever their stamps say; `checked` is called with numbers of bytes.

    Raises:
        storage.layout.LayoutError: a newer version wrote the home.
    """
    with suppress(OSError):  # a full or read-only disk can be verified too
        bring_up_to_date(root)
    store = Store(root)
    needed = needing(store)
    if only is not None:
        wanted, left = set[Handle](), [only]
        while left:
            if (one := left.pop()) not in wanted:
                wanted.add(one)
                left += [handle_of(text) for text in store.inputs(one)]
        yield from _artifacts(store, needed, sorted(wanted, key=text_of), checked)
        return
    if require_layout(root) == HOME_LAYOUT and read_or_none(root / LAYOUT_FILE) != layout_content():
        yield Finding(Path(LAYOUT_FILE), "is missing or damaged", "from its copy")
    heads = {head for name in Refs(root).names() for head in _head(Refs(root), name)}
    yield from _artifacts(store, needed, sorted({*store.handles(), *store.copied(), *heads}, key=text_of), checked)
    yield from _entries(root)
    yield from _results(root)
    yield from _copies(store)
    yield from _stamps(store)
    yield from _downloads(root)
    yield from _searches(root)
    yield from _database(root)
    yield from _foreign(store)


def repaired(root: Path, findings: list[Finding]) -> Iterator[str]:
    """Repair all findings that need no task, move damaged artifacts out of the way, and say what was done.

    Nothing but drafts of dead processes, stamps and damaged copies is deleted; the rest is moved to `set-aside/`.
    """
    store = Store(root)
    for finding in findings:
        path = root / finding.path
        match finding.repair:
            case "from its copy":
                content = store.copies.read(path) or (layout_content() if path.name == LAYOUT_FILE else None)
                assert content is not None
                write_whole(path, content, store.drafts)
                if finding.path.parts[0] in ("objects", "refs"):  # others are written again
                    make_read_only(path)
                yield f"{finding.path}: restored from its copy"
            case "copy again":
                original = root / finding.path.relative_to("copies")
                store.copies.remove(original)
                if (content := read_or_none(original)) is not None:
                    store.copies.write(original, content)
                yield f"{finding.path}: copied again"
            case "set aside" if os.path.lexists(path):
                yield f"{finding.path}: moved to {set_aside(root, path).relative_to(root)}"
            case "delete" if os.path.lexists(path):
                delete(path)
                yield f"{finding.path}: deleted"
    for handle in dict.fromkeys(f.handle for f in findings if f.repair == "make again" and f.handle is not None):
        place = store.place(handle)
        if place.is_dir() or place.is_file():
            yield f"{handle}: the damaged one was moved to {set_aside(root, place).relative_to(root)}"


def to_make(root: Path, findings: list[Finding]) -> list[Handle]:
    """The artifacts to make again, each after its inputs."""
    store = Store(root)
    wanted = {finding.handle for finding in findings if finding.repair == "make again" and finding.handle is not None}
    ordered: dict[Handle, None] = {}
    stack = [(handle, False) for handle in sorted(wanted, key=text_of, reverse=True)]
    met: set[Handle] = set()
    while stack:
        handle, done = stack.pop()
        if done:
            ordered[handle] = None
        elif handle not in met:
            met.add(handle)
            stack.append((handle, True))
            stack += [(handle_of(text), False) for text in store.inputs(handle)]
    return [handle for handle in ordered if handle in wanted]


def forget(root: Path, handle: Handle) -> None:
    """Move the copies of an artifact that no name needs and nothing can make again aside."""
    copies = Copies(root)
    place = copies.place(Store(root).place(handle))
    if place.is_dir():
        set_aside(root, place)


def _head(refs: Refs, name: str) -> list[Handle]:
    with suppress(StoreError):
        head = refs.head(name)
        return [head.handle] if head is not None else []
    return []


def _artifacts(
    store: Store, needed: dict[Handle, list[str]], handles: list[Handle], checked: Callable[[int], object]
) -> Iterator[Finding]:
    for handle in handles:
        place, names = store.place(handle), tuple(needed.get(handle, ()))
        where = place.relative_to(store.root)
        if not place.is_dir():
            yield Finding(where, "is missing", "make again", handle=handle, needed_by=names)
            continue
        for name, words in store.checks.harms(handle):
            if words == RECORD:
                continue
            repair: Repair = "make again"
            if words == FOREIGN:
                repair = "set aside"
            elif name in (MANIFEST, ORIGIN) and store.copies.read(place / name) is not None:
                repair = "from its copy"
            yield Finding(where / name, words, repair, handle=handle, needed_by=names)
        for name in (MANIFEST, ORIGIN):
            copy = store.copies.place(place / name)
            if not copy.is_file() and (place / name).is_file():
                yield Finding(copy.relative_to(store.root), "is missing", "copy again", False, handle, names)
        checked(size(place))


def _entries(root: Path) -> Iterator[Finding]:
    refs = Refs(root)
    for name in refs.names():
        folder, names = refs.folder / name, (name,)
        files = {path.name for path in refs.entry_files(name)}
        copied = entry_names(refs.copies.place(folder))
        for file in sorted(files | copied):
            path = folder / file
            where, content = path.relative_to(root), read_or_none(path)
            intact = refs.copies.read(path)
            if content is None:
                repair: Repair = "none" if intact is None else "from its copy"
                yield Finding(where, "is missing", repair, needed_by=names)
            elif intact is not None:
                if content != intact:
                    yield Finding(where, "does not match its copy", "from its copy", needed_by=names)
            else:
                try:
                    sound = f"{read_entry(path).number:06}.json" == file
                except StoreError:
                    sound = False
                if not sound:
                    yield Finding(where, "is not an entry, and has no intact copy", "none", needed_by=names)
                elif file not in copied:
                    copy = refs.copies.place(path).relative_to(root)
                    yield Finding(copy, "is missing", "copy again", harmful=False, needed_by=names)
        numbers = [int(file.partition(".")[0]) for file in sorted(files | copied)]
        if lost := sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers)):
            what = "is missing, and has no copy"
            yield Finding((folder / f"{lost[0]:06}.json").relative_to(root), what, "none", needed_by=names)


def _results(root: Path) -> Iterator[Finding]:
    copies = Copies(root)
    known = {root / path.relative_to(copies.folder) for path in (copies.folder / RESULTS).glob("*")}
    for path in sorted({*results(root), *known}):
        where, content, intact = path.relative_to(root), read_or_none(path), copies.read(path)
        if content is None:
            if intact is not None:
                yield Finding(where, "is missing; its task would run again", "from its copy", harmful=False)
        elif intact is not None:
            if content != intact:
                yield Finding(where, "does not match its copy; its task would run again", "from its copy")
        elif not _is_result(content):
            yield Finding(where, "cannot be read, and has no copy; its task would run again", "set aside", False)
        elif CACHE_KEY.search(path.name) and not copies.place(path).is_file():
            yield Finding(copies.place(path).relative_to(root), "is missing", "copy again", harmful=False)


def line(finding: Finding) -> str:
    """Describe a finding in one line."""
    of = "" if finding.handle is None else f": {finding.handle}"
    names = ", ".join(finding.needed_by)
    needed = f", needed by {names}" if names else ", which no name needs" if finding.handle is not None else ""
    return f"{finding.path.as_posix()} {finding.what}{of}{needed}"


def _is_result(content: bytes) -> bool:
    """Whether the content is a result that Prefect stored as JSON; that of a flow has no metadata."""
    try:
        stored = json.loads(content)
        if isinstance(stored, dict) and "metadata" in stored:
            json.loads(stored["result"])
    except (ValueError, LookupError, TypeError):
        return False
    return True


def _copies(store: Store) -> Iterator[Finding]:
    for path in sorted(path for path in store.copies.folder.rglob("*") if path.is_file()):
        where = path.relative_to(store.root)
        original = store.root / path.relative_to(store.copies.folder)
        if unsealed(path.read_bytes()) is None:
            yield Finding(where, "is damaged", "copy again" if original.is_file() else "set aside")


def _stamps(store: Store) -> Iterator[Finding]:
    for path in sorted(path for path in (store.root / STAMPS).rglob("*") if path.is_file()):
        where = path.relative_to(store.root)
        kind, digest = path.parent.name, path.name
        if kind not in KINDS or not DIGEST.fullmatch(digest):
            yield Finding(where, "is not a stamp", "set aside", harmful=False)
        elif unsealed(path.read_bytes()) is None:
            yield Finding(where, "is damaged; the artifact is hashed again", "delete")


def _downloads(root: Path) -> Iterator[Finding]:
    """Damaged downloads; a file and its record belong together, and what is moved away is downloaded again."""
    for folder in sorted(path for path in (root / "downloads").glob("*") if path.is_dir()):
        record, bodies = folder / "record.json", {body.name: body for body in sorted(folder.glob("body-*"))}
        sound = set()
        for name, body in bodies.items():
            with body.open("rb") as file:
                if name == f"body-{hashlib.file_digest(file, 'sha256').hexdigest()}":
                    sound.add(name)
                else:
                    yield Finding(body.relative_to(root), "does not have its sha256", "set aside")
        where, content = record.relative_to(root), read_or_none(record)
        if content is None:
            for name in sorted(bodies):
                yield Finding(where, "is missing", "none", harmful=False)
                if name in sound:
                    yield Finding(bodies[name].relative_to(root), "has no record", "set aside", harmful=False)
            continue
        try:
            named = f"body-{json.loads(content)['sha256']}"
        except (ValueError, LookupError, TypeError):
            yield Finding(where, "cannot be read", "set aside")
            continue
        if named not in sound:
            if named not in bodies:
                yield Finding((folder / named).relative_to(root), "is missing", "none", harmful=False)
            yield Finding(where, "is of a file that is missing or damaged", "set aside")


def _searches(root: Path) -> Iterator[Finding]:
    """Journals of searches; a journal only grows, so it begins with its copy."""
    copies, known = Copies(root), set[Path]()
    for copy in sorted((copies.folder / "searches").glob("*.log")):
        path = root / copy.relative_to(copies.folder)
        known.add(path)
        intact = copies.read(path)
        content = read_or_none(path)
        if intact is not None and content is None:
            yield Finding(path.relative_to(root), "is missing", "from its copy", harmful=False)
        elif intact is not None and content is not None and not content.startswith(intact):
            yield Finding(path.relative_to(root), "does not begin with its copy", "from its copy")
    for path in sorted({*(root / "searches").glob("*.log")} - known):
        try:
            for entry in path.read_bytes().split(b"\n")[:-1]:  # the last line may just be written
                json.loads(entry)
        except ValueError:
            what = "has a line that is not JSON; the search starts again, with its finished trainings from the cache"
            yield Finding(path.relative_to(root), what, "set aside")


def _database(root: Path) -> Iterator[Finding]:
    if not (path := root / DATABASE).is_file():
        return
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=60)) as database:
            (answer,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.Error as error:
        answer = str(error)
    if answer != "ok":
        what = (
            f"is damaged ({answer}): Prefect's history of runs and its automations. Artifacts and names do not need "
            "it. Stop `bard up` and move the file away; Prefect makes a new one"
        )
        yield Finding(DATABASE, what, "none")


def _foreign(store: Store) -> Iterator[Finding]:
    """Files and folders that no version of bardflow makes, and drafts of dead processes."""
    root, refs = store.root, Refs(store.root)
    stray: list[Path] = [path for path in root.iterdir() if path.name not in HOME_NAMES]
    for kind in store.objects.glob("*"):
        if kind.name not in KINDS or not kind.is_dir():
            stray.append(kind)
        else:
            stray += [path for path in kind.iterdir() if not DIGEST.fullmatch(path.name)]
    for path in refs.folder.rglob("*"):
        entry = re.fullmatch(r"\d{6,}\.json", path.name) and NAME.fullmatch(_name(refs, path.parent))
        if not path.is_dir() and not entry and path != refs.folder / "moving.lock":
            stray.append(path)
    left = stale_drafts(root / DRAFTS)
    if (root / DRAFTS).is_dir():
        stray += [path for path in (root / DRAFTS).iterdir() if not re.match(r"\d{1,9}-", path.name)]
    for path in sorted(stray):
        yield Finding(path.relative_to(root), "is not part of a home", "set aside", harmful=False)
    for path in left:
        yield Finding(path.relative_to(root), "is a draft of a process that ended", "delete", harmful=False)


def _name(refs: Refs, folder: Path) -> str:
    return folder.relative_to(refs.folder).as_posix()
