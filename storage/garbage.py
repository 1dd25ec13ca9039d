"""Garbage collection, which deletes artifacts that a policy does not keep, and drafts of dead processes."""

import os
import re
import shutil
import stat
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bardflow.storage.handles import Handle
from bardflow.storage.lineage import handle_of
from bardflow.storage.manifests import StoreError
from bardflow.storage.refs import Refs, noted, read_entry
from bardflow.storage.store import Store


class Policy(BaseModel):
    """What a clean-up keeps. All champions are always kept, with what explains them.

    `keep_last` entries of each name and everything that is at most `keep_days` old are kept whole. Without a `budget`
    (bytes in the whole home), all else is deleted. With one, all else is deleted oldest first until the home fits. If
    that is not enough, what former champions were made from is reduced to records.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_last: int = Field(default=1, ge=1)
    keep_days: float = Field(default=0, ge=0, allow_inf_nan=False)
    budget: int | None = Field(default=None, ge=0)


KEEP_NAMED = Policy()


@dataclass(frozen=True)
class Collected:
    """The artifacts and drafts that were deleted (or would be, in a dry run), and the freed bytes.

    `records` are the artifacts that lost their files and kept their record. `left` is the size of the home afterwards
    in bytes; None without a budget.
    """

    objects: tuple[Handle, ...]
    bytes: int
    drafts: tuple[Path, ...]
    records: tuple[Handle, ...] = ()
    left: int | None = None


def collect_garbage(
    store: Store,
    refs: Refs,
    policy: Policy = KEEP_NAMED,
    *,
    keep: Collection[Handle] = (),
    now: datetime | None = None,
    dry_run: bool,
) -> Collected:
    """Delete what the policy does not keep; with `dry_run`, only list it.

    What an artifact to keep was made from is kept too, and so are the artifacts in the notes of names and those in
    `keep`. The artifacts of an active run have no name yet: no run may be active, or `keep` must have its handles.
    Artifacts added meanwhile are kept. `now` is the time that ages are measured at.

    Raises:
        StoreError: an entry or an origin cannot be read. Nothing is deleted then.
    """
    # Artifacts are listed before names: an artifact that gets its name in between is kept.
    held = {handle: made_at(store, handle) for handle in store.handles()}
    # All times in the home are UTC in this form, so they compare as texts.
    young = ((now or datetime.now(UTC)) - timedelta(days=policy.keep_days)).isoformat(timespec="seconds")
    recent, former = named(refs, policy, young)
    if policy.keep_days > 0:
        recent += [handle for handle, at in held.items() if at >= young]
    whole = reached(store, [*keep, *recent], held)
    needed = whole | reached(store, former, held)
    by_age = sorted(held, key=lambda handle: (held[handle], handle.kind, handle.digest))
    drafts = tuple(stale_drafts(store.drafts))
    freed = sum(size(draft) for draft in drafts)
    total = None if policy.budget is None else size(store.root)

    def fits() -> bool:
        return total is not None and policy.budget is not None and total - freed <= policy.budget

    objects: list[Handle] = []
    records: list[Handle] = []
    for handle in by_age:
        if handle not in needed and not fits():
            objects.append(handle)
            freed += sum(size(place) for place in store.places(handle))
    # What former champions were made from is most of their size: each checkpoint has the optimizer's state.
    reducible = needed - whole - set(former) if total is not None else set()
    for handle in by_age:
        if handle in reducible and not fits() and not store.is_record(handle):
            records.append(handle)
            freed += size(store.place(handle)) - store.record_bytes(handle)
    if not dry_run:
        for handle in objects:
            store.discard(handle)
        for handle in records:
            store.reduce(handle)
        for draft in drafts:
            delete(draft)
    return Collected(tuple(objects), freed, drafts, tuple(records), None if total is None else total - freed)


def made_at(store: Store, handle: Handle) -> str:
    """Return the time at which an artifact was made; an empty text, the oldest of all, if its origin is unreadable."""
    try:
        return store.origin(handle).at
    except StoreError:
        return ""


def named(refs: Refs, policy: Policy, young: str) -> tuple[list[Handle], list[Handle]]:
    """Return the handles of the entries to keep, with those in their notes: recent entries, and former champions."""
    recent: list[Handle] = []
    former: list[Handle] = []
    for name in refs.names():
        history = refs.history(name)
        for entry in history:
            handles = [entry.handle, *noted(entry)]
            if entry.number > history[-1].number - policy.keep_last or (policy.keep_days > 0 and entry.at >= young):
                recent += handles
            elif name.endswith("/champion"):
                former += handles
    return recent, former


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
    total = 0
    for file in [path] if path.is_file() else path.rglob("*"):
        with suppress(FileNotFoundError):  # Prefect's server and other processes write in the home meanwhile
            status = file.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def delete(path: Path) -> None:
    """Delete a file, or a folder and all in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
