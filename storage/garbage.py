"""Garbage collection, which deletes artifacts that no name refers to, and drafts of dead processes."""

import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bardflow.storage.handles import Evaluation, Handle, Model, Report
from bardflow.storage.lineage import handle_of
from bardflow.storage.refs import Entry, Refs, read_entry
from bardflow.storage.store import Store, StoreError

# The keys of an entry's notes that have a digest as value, with the kinds of the artifacts.
NOTED: dict[str, type[Handle]] = {"model": Model, "report": Report, "evaluation": Evaluation, "rival": Evaluation}


@dataclass(frozen=True)
class Collected:
    """The artifacts and drafts that were deleted (or would be, in a dry run), and their size in bytes."""

    objects: tuple[Handle, ...]
    bytes: int
    drafts: tuple[Path, ...]


def collect_garbage(store: Store, refs: Refs, *, keep: Collection[Handle] = (), dry_run: bool) -> Collected:
    """Delete artifacts that no name refers to; with `dry_run`, only list them.

    The artifacts of each name's last entry and of all entries of `<corpus>/champion` (for rollbacks) are kept, also
    those in the notes of these entries, those in `keep`, and all inputs of these. The artifacts of an active run have
    no name yet: no run may be active, or `keep` must have its handles. Artifacts added meanwhile are kept.

    Raises:
        StoreError: an entry or an origin cannot be read. Nothing is deleted then.
    """
    # Artifacts are listed before names: an artifact that gets its name in between is kept.
    held = list(store.handles())
    needed = reached(store, [*keep, *named(refs)], set(held))
    unreached = tuple(handle for handle in held if handle not in needed)
    drafts = tuple(stale_drafts(store.drafts))
    removed = sum(size(store.place(handle)) for handle in unreached) + sum(size(draft) for draft in drafts)
    if not dry_run:
        for handle in unreached:
            store.discard(handle)
        for draft in drafts:
            delete(draft)
    return Collected(unreached, removed, drafts)


def named(refs: Refs) -> Iterator[Handle]:
    """Yield the handles in each name's last entry and in all entries of champions, with those in their notes."""
    for name in refs.names():
        history = refs.history(name)
        for entry in history if name.endswith("/champion") else history[-1:]:
            yield entry.handle
            yield from noted(entry)


def noted(entry: Entry) -> Iterator[Handle]:
    """Yield the handles in an entry's notes."""
    for key, kind in NOTED.items():
        if entry.notes.get(key):
            yield kind(digest=entry.notes[key])


def reached(store: Store, roots: Iterable[Handle], held: Collection[Handle]) -> set[Handle]:
    """Return the roots and all their direct and indirect inputs, limited to the artifacts in `held`."""
    found: set[Handle] = set()
    left = list(roots)
    while left:
        handle = left.pop()
        if handle in held and handle not in found:
            found.add(handle)
            left.extend(handle_of(text) for text in store.origin(handle).inputs.values())
    return found


def names_that_need(store: Store, handle: Handle) -> list[str]:
    """The names whose history leads to an artifact: as artifact, in the notes, or as an input of these.

    Entries and origins that cannot be read are passed over.
    """
    return needing(store).get(handle, [])


def needing(store: Store) -> dict[Handle, list[str]]:
    """The names that lead to each artifact, as `names_that_need`."""
    refs, found, inputs = Refs(store.root), dict[Handle, list[str]](), dict[Handle, list[Handle]]()
    for name in refs.names():
        left: list[Handle] = []
        for path in refs.entry_files(name):
            with suppress(StoreError, KeyError, ValidationError):
                entry = read_entry(path)
                left += [entry.handle, *noted(entry)]
        met: set[Handle] = set()
        while left:
            one = left.pop()
            if one in met:
                continue
            met.add(one)
            found.setdefault(one, []).append(name)
            if one not in inputs:
                inputs[one] = [handle_of(text) for text in store.inputs(one)]
            left += inputs[one]
    return found


def stale_drafts(folder: Path) -> list[Path]:
    """Drafts of dead processes; a draft's name starts with its writer's process id and a hyphen."""
    if not folder.is_dir():
        return []
    owners = ((draft, re.match(r"(\d{1,9})-", draft.name)) for draft in sorted(folder.iterdir()))
    return [draft for draft, owner in owners if owner and not is_alive(int(owner[1]))]


def is_alive(pid: int) -> bool:
    """Whether a process with this id runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def size(path: Path) -> int:
    """Bytes in a file, or in all files under a folder."""
    files = [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]
    return sum(file.stat().st_size for file in files)


def delete(path: Path) -> None:
    """Delete a file, or a folder and all in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
