"""Where an object comes from, read from the disk alone: origin by origin, back to the source."""

from dataclasses import dataclass

from bardflow.storage.handles import KINDS, Handle
from bardflow.storage.store import Manifest, Origin, Store, StoreError


@dataclass(frozen=True)
class Ancestor:
    """One artifact between a source and the given artifact."""

    handle: Handle
    manifest: Manifest
    origin: Origin


def lineage(store: Store, handle: Handle) -> list[Ancestor]:
    """The object and everything it was made from, each once, sources first.

    Raises:
        storage.store.ObjectMissing: one of them is no longer in the store.
    """
    found: list[Ancestor] = []
    met: set[Handle] = set()
    # Depth first with an explicit stack: a training of hundreds of legs is a chain as long.
    stack: list[tuple[Handle, Origin | None]] = [(handle, None)]
    while stack:
        current, origin = stack.pop()
        if origin is not None:
            found.append(Ancestor(current, store.manifest(current), origin))
        # Met and not yet found: two objects made from one another, as when each was rebuilt after damage to it.
        elif current not in met:
            met.add(current)
            origin = store.origin(current)
            stack.append((current, origin))
            stack.extend((handle_of(text), None) for text in origin.inputs.values())
    return found


def handle_of(text: str) -> Handle:
    """Read a handle as an origin spells it: `token-shards/<digest>`.

    Raises:
        StoreError: there is no such kind.
    """
    kind, _, digest = text.partition("/")
    if kind not in KINDS:
        raise StoreError(f"{text!r} names no object: its kind should be one of {', '.join(KINDS)}")
    return KINDS[kind](digest=digest)


def text_of(handle: Handle) -> str:
    """The way an origin spells a handle: `token-shards/<digest>`."""
    return f"{handle.kind}/{handle.digest}"


def source_address(origin: Origin) -> str:
    """The address that a source's description names; a mirror may have stood in for it when it was fetched."""
    declared = origin.spec["corpus"]["source"]
    return str(declared.get("url") or origin.measured["address"])
