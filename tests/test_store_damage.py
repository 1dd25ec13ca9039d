"""Damaged artifacts are found, never served, and replaced or restored."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from time import sleep

import pytest

from bardflow.storage.checking import stamp_of
from bardflow.storage.disk import sealed
from bardflow.storage.handles import Corpus, Handle
from bardflow.storage.layout import HOME_LAYOUT, LAYOUT_FILE, LayoutError, layout_content, note_layout, require_layout
from bardflow.storage.manifests import (
    LAYOUT,
    MANIFEST,
    ORIGIN,
    Manifest,
    ObjectMissing,
    canonical_json,
)
from bardflow.storage.refs import Refs
from bardflow.storage.store import Store
from tests.artifacts import content, keep, origin, writable


def change_a_byte(folder: Path) -> None:
    path = writable(folder / "tokenizer.json")
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))


def as_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"")


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "deleted": (shutil.rmtree, "missing"),
    "emptied": (empty, "missing"),
    "a file in its place": (as_a_file, "missing"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "missing"),
    "one byte": (change_a_byte, "tokenizer.json does not match the manifest"),
    "truncated": (lambda folder: os.truncate(writable(folder / "tokenizer.json"), 5), "tokenizer.json does not match"),
    "longer": (lambda folder: writable(folder / "empty").write_bytes(b"\n"), "empty does not match the manifest"),
    "a file gone": (lambda folder: (folder / "nested/deep/vocabulary.txt").unlink(), "vocabulary.txt is missing"),
    "a folder gone": (lambda folder: shutil.rmtree(folder / "nested"), "nested/deep/vocabulary.txt is missing"),
    "an extra file": (lambda folder: (folder / "nested/more").write_bytes(b""), "nested/more is not in the manifest"),
    "an extra link": (lambda folder: (folder / "link").symlink_to(folder), "link is not in the manifest"),
    "another manifest": (
        lambda f: writable(f / MANIFEST).write_bytes(b"{}"),
        "manifest.json does not match its digest",
    ),
    "no origin": (lambda folder: (folder / ORIGIN).unlink(), "origin.json is missing or cannot be read"),
    "half an origin": (lambda f: os.truncate(writable(f / ORIGIN), 9), "origin.json is missing or cannot be read"),
}
harmed = pytest.mark.parametrize(("harm", "words"), HARMS.values(), ids=HARMS.keys())


@harmed
def test_a_harmed_object_is_found_damaged_and_replaced(
    store: Store, harm: Callable[[Path], object], words: str
) -> None:
    handle = keep(store)
    whole = content(store.folder(handle))
    harm(store.folder(handle))
    assert words in (store.damage(handle) or "")
    assert keep(store) == handle
    assert store.damage(handle) is None
    assert content(store.folder(handle)) == whole
    assert list(store.drafts.iterdir()) == []


def test_an_object_of_another_layout_counts_as_damaged(store: Store) -> None:
    manifest = Manifest(kind="corpus", layout=LAYOUT + 1, facts={}, files={})
    for spelling in (canonical_json(manifest.model_dump()), b'{"layout": 0, "of": "before"}'):
        handle = Corpus(digest=hashlib.sha256(spelling).hexdigest())
        store.place(handle).mkdir(parents=True)
        (store.place(handle) / MANIFEST).write_bytes(spelling)
        assert f"layout {LAYOUT}" in (store.damage(handle) or "")


def test_facts_and_origins_are_never_read_from_a_damaged_object(store: Store) -> None:
    handle = keep(store)
    folder = store.folder(handle)
    writable(folder / MANIFEST).write_bytes(b"{}")
    os.truncate(writable(folder / ORIGIN), 9)
    with pytest.raises(ObjectMissing, match=f"Vocabulary {handle.short} is damaged"):
        store.facts(handle)
    with pytest.raises(ObjectMissing, match=r"origin\.json is missing or cannot be read.*bard verify .* --repair"):
        store.origin(handle)


def flip(path: Path, at: int | None = None) -> None:
    """Change one bit of a file, as a bad disk does."""
    content = bytearray(writable(path).read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    path.write_bytes(content)


def stamp_file(store: Store, handle: Handle) -> Path:
    return store.root / "stamps" / handle.kind / handle.digest


@harmed
def test_no_path_is_given_into_a_harmed_object(store: Store, harm: Callable[[Path], object], words: str) -> None:
    handle = keep(store)
    harm(store.folder(handle))
    with pytest.raises(ObjectMissing, match=f"`bard verify {handle.short} --repair`") as caught:
        store.folder(handle)
    assert words in str(caught.value) and str(handle) in str(caught.value)


def test_a_stamp_saves_the_second_hash_and_any_change_of_a_file_ends_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = keep(store)
    store.folder(handle)
    assert not stamp_file(store, handle).exists(), "the files were changed a moment ago"
    monkeypatch.setattr("bardflow.storage.checking.SETTLED_NS", 0)
    sleep(0.05)  # longer than a tick of the file system's clock
    folder = store.folder(handle)
    stamp = stamp_file(store, handle).read_bytes()
    times = (folder / "tokenizer.json").stat()
    flip(folder / "tokenizer.json")
    os.utime(folder / "tokenizer.json", ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ObjectMissing, match=r"tokenizer\.json does not match the manifest"):
        store.folder(handle)
    assert stamp_file(store, handle).read_bytes() == stamp
    # Only a stamp for exactly these files is believed: that is the hash it saves.
    stamp_file(store, handle).write_bytes(sealed(json.dumps(stamp_of(folder)).encode()))
    assert store.folder(handle) == folder
    flip(stamp_file(store, handle))
    with pytest.raises(ObjectMissing, match=r"tokenizer\.json does not match the manifest"):
        store.folder(handle)


def test_a_clock_that_was_set_back_gives_no_stamp(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = keep(store)
    monkeypatch.setattr("bardflow.storage.checking.SETTLED_NS", 0)
    os.utime(store.place(handle) / "empty", ns=(0, 2**62))  # changed in the far future, for today's clock
    store.folder(handle)
    assert not stamp_file(store, handle).exists()


def test_any_changed_bit_of_an_origin_is_found_and_the_copy_restores_it(store: Store) -> None:
    handle = keep(store, came=origin("one@1"))
    path = store.place(handle) / ORIGIN
    whole = path.read_bytes()
    flip(path, whole.index(b"one@1"))
    with pytest.raises(ObjectMissing, match=r"origin\.json does not match its copy"):
        store.origin(handle)
    store.mend(handle)
    assert path.read_bytes() == whole and store.damage(handle) is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_an_artifact_that_is_made_again_keeps_its_origin(store: Store) -> None:
    handle = keep(store, came=origin("one@1"))
    shutil.rmtree(store.place(handle))
    assert keep(store, came=origin("two@7")) == handle
    assert store.origin(handle).task == "one@1"
    store.discard(handle)  # garbage collection forgets it
    assert keep(store, came=origin("two@7")) == handle
    assert store.origin(handle).task == "two@7"


def test_a_home_of_a_newer_layout_is_refused_and_an_older_one_is_read(store: Store) -> None:
    handle = keep(store)
    assert require_layout(store.root) == 1
    note_layout(store.root)
    assert require_layout(store.root) == HOME_LAYOUT and Store(store.root).damage(handle) is None
    flip(store.root / LAYOUT_FILE, layout_content().index(b"2"))
    assert require_layout(store.root) == HOME_LAYOUT, "the copy is intact"
    (store.root / "copies" / LAYOUT_FILE).unlink()
    (store.root / LAYOUT_FILE).write_text('{"layout": 3}')
    with pytest.raises(LayoutError, match=r"has layout 3, and this version .* install the newer version"):
        Store(store.root)
    (store.root / LAYOUT_FILE).write_text('{"layout":')
    with pytest.raises(LayoutError, match="has no layout number"):
        Refs(store.root)
