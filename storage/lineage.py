"""Lineage: what an artifact was made from, back to the source."""

from dataclasses import dataclass

from bardflow.storage.handles import KINDS, Handle
from bardflow.storage.manifests import Manifest, Origin, StoreError
from bardflow.storage.store import Store


@dataclass(frozen=True)
class Ancestor:
    """An artifact of a lineage, with its manifest and its origin."""

    handle: Handle
    manifest: Manifest
    origin: Origin


def lineage(store: Store, handle: Handle) -> list[Ancestor]:
    """Return the artifact and all its direct and indirect inputs, each once, sources first.

    Raises:
        storage.manifests.ObjectMissing: one of them is missing.
    """
    found: list[Ancestor] = []
    met: set[Handle] = set()
    # Depth first with an explicit stack, because a chain of hundreds of legs could exceed the recursion limit.
    stack: list[tuple[Handle, Origin | None]] = [(handle, None)]
    while stack:
        current, origin = stack.pop()
        if origin is not None:
            found.append(Ancestor(current, store.manifest(current), origin))
        # This also ends cycles: two artifacts may be inputs of each other if each was made again after damage.
        elif current not in met:
            met.add(current)
            origin = store.origin(current)
            stack.append((current, origin))
            stack.extend((handle_of(text), None) for text in origin.inputs.values())
    return found


def handle_of(text: str) -> Handle:
    """The handle in a text such as `token-shards/<digest>`.

    Raises:
        StoreError: there is no such kind of artifact.
    """
    kind, _, digest = text.partition("/")
    if kind not in KINDS:
        raise StoreError(f"{text!r} names no object: its kind should be one of {', '.join(KINDS)}")
    return KINDS[kind](digest=digest)


def source_address(origin: Origin) -> str:
    """The address in the corpus file, or else the one that was used; the download may have come from a mirror."""
    declared = origin.spec["corpus"]["source"]
    return str(declared.get("url") or origin.measured["address"])
