"""Garbage collection, which deletes artifacts that no name refers to, and drafts of dead processes."""

import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bardflow.storage.handles import Evaluation, Handle, Model, Report
from bardflow.storage.lineage import handle_of
from bardflow.storage.refs import Entry, Refs
from bardflow.storage.store import Store

# Under which keys a name's mover may leave digests in its notes, and of what kind.
NOTED: dict[str, type[Handle]] = {"model": Model, "report": Report, "evaluation": Evaluation, "rival": Evaluation}


@dataclass(frozen=True)
class Collected:
    """What was removed, or would be: objects, drafts, and the bytes of both."""

    objects: tuple[Handle, ...]
    bytes: int
    drafts: tuple[Path, ...]


def collect_garbage(store: Store, refs: Refs, *, keep: Collection[Handle] = (), dry_run: bool) -> Collected:
    """Remove what nothing reaches; with `dry_run`, only say what that would be.

    Reached is where each name points now, where each `<corpus>/champion` ever pointed (so that a rollback finds it
    whole), the objects in the notes of those moves, `keep`, and all that these were made from. A run that is under way
    reaches its objects by no name yet: let none run meanwhile, or name its handles in `keep`. What comes into the store
    meanwhile stays.

    Raises:
        StoreError: a move or an origin cannot be read, so that what it reaches is not known; nothing was removed.
    """
    # First the objects, then the names: whoever keeps an object and then points at it is not overtaken.
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
    """The handles in the moves that count: each name's last one, and all of a champion's."""
    for name in refs.names():
        history = refs.history(name)
        for entry in history if name.endswith("/champion") else history[-1:]:
            yield entry.handle
            yield from noted(entry)


def noted(entry: Entry) -> Iterator[Handle]:
    """The handles in a move's notes."""
    for key, kind in NOTED.items():
        if entry.notes.get(key):
            yield kind(digest=entry.notes[key])


def reached(store: Store, roots: Iterable[Handle], held: Collection[Handle]) -> set[Handle]:
    """The roots and all that they were made from, as far as it is among `held`."""
    found: set[Handle] = set()
    left = list(roots)
    while left:
        handle = left.pop()
        if handle in held and handle not in found:
            found.add(handle)
            left.extend(handle_of(text) for text in store.origin(handle).inputs.values())
    return found


def stale_drafts(folder: Path) -> list[Path]:
    """Drafts of processes that are no more; a draft's name begins with its writer's number and a hyphen."""
    if not folder.is_dir():
        return []
    owners = ((draft, re.match(r"(\d{1,9})-", draft.name)) for draft in sorted(folder.iterdir()))
    return [draft for draft, owner in owners if owner and not is_alive(int(owner[1]))]


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine, whoever owns it."""
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
