"""Names for people: each name is an append-only history of handles, and its last entry is where it points."""

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from pydantic import BaseModel, ConfigDict

from storage.handles import KINDS, Handle
from storage.store import Store, StoreError, canonical_json

NAME = re.compile(r"[a-z0-9][a-z0-9-]*(/[a-z0-9][a-z0-9-]*)+")


class RefMoved(StoreError):
    """Somebody else moved the name between our look and our move."""


class Entry(BaseModel):
    """One move of a name: where to, when, by what, and why; `notes` is whatever the mover wants to find again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    kind: str
    digest: str
    at: str
    by: str
    why: str
    notes: dict[str, Any]

    @property
    def handle(self) -> Handle:
        """The handle that the name pointed at."""
        return KINDS[self.kind](digest=self.digest)


class Refs:
    """Names under `<root>/refs/<name>/000001.json`, `000002.json`, …"""

    def __init__(self, root: Path) -> None:
        self.folder = root / "refs"

    def history(self, name: str) -> list[Entry]:
        """Every move of the name, oldest first; empty when there is no such name."""
        folder = self.folder / self._checked(name)
        return [Entry.model_validate_json(path.read_bytes()) for path in sorted(folder.glob("[0-9]*.json"))]

    def head(self, name: str) -> Entry | None:
        """Where the name points now, or None."""
        history = self.history(name)
        return history[-1] if history else None

    def move(
        self, name: str, handle: Handle, *, after: Entry | None, by: str, why: str, notes: dict[str, Any] | None = None
    ) -> Entry:
        """Append a move. `after` is the head that the mover saw (None: the name was free).

        Raises:
            RefMoved: the head is no longer that one; look again and decide again.
        """
        folder = self.folder / self._checked(name)
        folder.mkdir(parents=True, exist_ok=True)
        entry = Entry(
            number=(after.number if after else 0) + 1,
            kind=handle.kind,
            digest=handle.digest,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            by=by,
            why=why,
            notes=notes or {},
        )
        with NamedTemporaryFile(dir=folder, prefix=".moving-") as file:
            file.write(canonical_json(entry.model_dump(mode="json")))
            file.flush()
            os.fsync(file.fileno())
            try:
                # A link is created whole or refused: of two movers with the same number one wins.
                os.link(file.name, folder / f"{entry.number:06}.json")
            except FileExistsError:
                raise RefMoved(f"{name} was moved by another run at the same moment; nothing was changed") from None
        return entry

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({path.parent.relative_to(self.folder).as_posix() for path in self.folder.rglob("[0-9]*.json")})

    def _checked(self, name: str) -> str:
        if not NAME.fullmatch(name):
            raise StoreError(f"{name!r} is not a name; a name looks like three-kingdoms/champion")
        return name


def resolve(store: Store, refs: Refs, ref: str) -> Handle:
    """The handle behind a name (`three-kingdoms/champion`) or behind the first characters of a digest.

    Raises:
        StoreError: there is no such name or digest; the message lists the names there are.
    """
    if "/" not in ref:
        return store.find(ref)
    entry = refs.head(ref)
    if entry is None:
        known = ", ".join(refs.names()) or "none yet; `make train` makes the first"
        raise StoreError(f"there is no {ref!r}; names in this store: {known}")
    return entry.handle
