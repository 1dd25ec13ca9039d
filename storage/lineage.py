"""Where an object comes from, read from the disk alone: origin by origin, back to the source."""

from dataclasses import dataclass

from storage.handles import KINDS, Handle
from storage.store import Manifest, Origin, Store


@dataclass(frozen=True)
class Ancestor:
    """One object on the way from a source to the object asked about."""

    handle: Handle
    manifest: Manifest
    origin: Origin


def lineage(store: Store, handle: Handle) -> list[Ancestor]:
    """The object and everything it was made from, each once, sources first."""
    found: dict[Handle, Ancestor] = {}
    # Depth first with an explicit stack: a training of hundreds of legs is a chain as long.
    stack = [(handle, False)]
    while stack:
        current, inputs_done = stack.pop()
        if current in found:
            continue
        origin = store.origin(current)
        if inputs_done:
            found[current] = Ancestor(current, store.manifest(current), origin)
            continue
        stack.append((current, True))
        stack.extend((spelled(text), False) for text in origin.inputs.values())
    return list(found.values())


def spelled(text: str) -> Handle:
    """Read a handle as an origin spells it: `token-shards/<digest>`."""
    kind, _, digest = text.partition("/")
    return KINDS[kind](digest=digest)


def spell(handle: Handle) -> str:
    """The way an origin spells a handle: `token-shards/<digest>`."""
    return f"{handle.kind}/{handle.digest}"
