"""Laws of what an object was made from."""

import hashlib

import pytest

from bardflow.storage.handles import Checkpoint, Corpus, Handle, Source, TokenShards, Vocabulary
from bardflow.storage.lineage import handle_of, lineage
from bardflow.storage.manifests import LAYOUT, MANIFEST, ORIGIN, Manifest, ObjectMissing, canonical_json
from bardflow.storage.store import Store
from tests.artifacts import origin


def made(store: Store, kind: type[Handle], number: int, **inputs: Handle) -> Handle:
    with store.draft() as draft:
        return store.keep(draft, kind, {"number": number}, origin(f"make_{kind.__name__}@1", **inputs))


def test_lineage_lists_sources_first_and_each_object_once(store: Store) -> None:
    source = made(store, Source, 0)
    corpus = made(store, Corpus, 0, source=source)
    vocabulary = made(store, Vocabulary, 0, corpus=corpus)
    shards = made(store, TokenShards, 0, corpus=corpus, vocabulary=vocabulary)
    begun = made(store, Checkpoint, 0, vocabulary=vocabulary)
    leg = made(store, Checkpoint, 1, checkpoint=begun, shards=shards)
    made(store, Corpus, 9, source=source)  # a stranger

    # A Store of its own: all that it knows is on the disk.
    ancestors = lineage(Store(store.root), leg)
    order = [ancestor.handle for ancestor in ancestors]
    assert len(order) == 6
    assert set(order) == {source, corpus, vocabulary, shards, begun, leg}
    for ancestor in ancestors:
        for spelling in ancestor.origin.inputs.values():
            assert order.index(handle_of(spelling)) < order.index(ancestor.handle)
    assert [ancestors[0].handle, ancestors[-1].handle] == [source, leg]
    assert ancestors[0].origin.task == "make_Source@1"
    assert ancestors[-1].manifest == store.manifest(leg)


def test_lineage_follows_a_chain_of_2000_legs(store: Store) -> None:
    leg = made(store, Checkpoint, 0)
    chain = [leg]
    folder = store.folder(leg)
    # Written by hand: 2,000 calls of `keep` wait for the disk 8,000 times.
    for number in range(1, 2_000):
        manifest = Manifest(kind="checkpoint", layout=LAYOUT, facts={"number": number}, files={})
        spelling = canonical_json(manifest.model_dump())
        leg = Checkpoint(digest=hashlib.sha256(spelling).hexdigest())
        folder = store.place(leg)
        folder.mkdir()
        (folder / MANIFEST).write_bytes(spelling)
        (folder / ORIGIN).write_bytes(canonical_json(origin(checkpoint=chain[-1]).model_dump()))
        chain.append(leg)
    assert [ancestor.handle for ancestor in lineage(store, leg)] == chain
    assert store.damage(leg) is None


def test_lineage_ends_where_two_objects_were_made_from_one_another(store: Store) -> None:
    first = made(store, Checkpoint, 1)
    second = made(store, Checkpoint, 2, checkpoint=first)
    store.discard(first)
    assert made(store, Checkpoint, 1, checkpoint=second) == first  # rebuilt, on another way
    assert [ancestor.handle for ancestor in lineage(store, second)] == [first, second]


def test_lineage_names_the_object_that_is_gone(store: Store) -> None:
    source = made(store, Source, 0)
    corpus = made(store, Corpus, 0, source=source)
    store.discard(source)
    with pytest.raises(ObjectMissing, match=f"Source {source.short} is missing in the store"):
        lineage(store, corpus)
