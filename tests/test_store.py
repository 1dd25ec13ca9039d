"""Artifacts are stored whole or not at all, and found by their digest."""

import hashlib
import json
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count, takewhile
from pathlib import Path
from threading import Barrier
from time import sleep

import pytest
from pydantic import ValidationError

from bardflow.storage.checking import Stamp, stamp_of
from bardflow.storage.disk import file_names
from bardflow.storage.handles import KINDS, Corpus, Handle, TokenShards, Vocabulary, text_of
from bardflow.storage.lineage import handle_of
from bardflow.storage.manifests import (
    LAYOUT,
    MANIFEST,
    ORIGIN,
    Manifest,
    ObjectMissing,
    StoreError,
    canonical_json,
)
from bardflow.storage.store import Store
from tests.artifacts import FILES, content, keep, origin, writable


def test_what_was_kept_is_found_again(store: Store) -> None:
    handle = keep(store, facts={"size": 65, "kind": "char"})
    kept = content(store.folder(handle))
    assert {name: kept[name] for name in FILES} == FILES
    assert kept.keys() - FILES.keys() == {MANIFEST, ORIGIN}
    assert store.facts(handle) == {"size": 65, "kind": "char"}
    assert store.origin(handle) == origin()
    assert store.damage(handle) is None
    assert list(store.handles()) == [handle]
    assert list(store.drafts.iterdir()) == []


def test_a_digest_is_the_sha256_of_the_manifest(store: Store) -> None:
    handle = keep(store)
    assert handle.digest == hashlib.sha256((store.folder(handle) / MANIFEST).read_bytes()).hexdigest()
    listed = json.loads((store.folder(handle) / MANIFEST).read_text())["files"]
    sizes = {name: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for name, b in FILES.items()}
    assert listed == sizes


def test_same_bytes_are_the_same_artifact(store: Store, tmp_path: Path) -> None:
    backwards = dict(reversed(FILES.items()))
    assert keep(store) == keep(store, backwards) == keep(Store(tmp_path / "elsewhere"))
    assert len(list(store.handles())) == 1


@pytest.mark.parametrize(
    "other",
    [
        FILES | {"empty": b"\0"},
        {name: c for name, c in FILES.items() if name != "empty"},
        {name.replace("deep", "deeper"): c for name, c in FILES.items()},
    ],
    ids=["a byte", "a file less", "a name"],
)
def test_other_bytes_are_another_artifact(store: Store, other: dict[str, bytes]) -> None:
    assert keep(store) != keep(store, other)


def test_kind_and_facts_belong_to_the_digest(store: Store) -> None:
    with store.draft() as draft:
        corpus = store.keep(draft, Corpus, {}, origin())
    assert len({corpus.digest, keep(store, {}).digest, keep(store, {}, facts={"size": 1}).digest}) == 3
    assert len({corpus, Vocabulary(digest=corpus.digest)}) == 2


def test_two_origins_give_one_digest_and_the_first_stays(store: Store) -> None:
    first = keep(store, came=origin("one@1"))
    assert keep(store, came=origin("two@7")) == first
    assert store.origin(first).task == "one@1"


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failed_write_leaves_nothing_behind(store: Store, failure: type[BaseException]) -> None:
    def write() -> None:
        with store.draft() as draft:
            (draft.folder / "nested").mkdir()
            (draft.folder / "nested" / "half").write_bytes(b"half")
            raise failure

    with pytest.raises(failure):
        write()
    assert list(store.handles()) == []
    assert list(store.drafts.iterdir()) == []


def test_a_draft_that_is_not_handed_over_leaves_nothing_behind(store: Store) -> None:
    with store.draft() as draft:
        (draft.folder / "file").write_bytes(b"x")
    assert not draft.folder.exists()
    assert list(store.handles()) == []


def killed_writer(script: str, root: Path, wait: Callable[[subprocess.Popen[str]], object]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", script, str(root)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as writer:
        wait(writer)
        writer.send_signal(signal.SIGKILL)
        writer.wait()


def reads_a_line(writer: subprocess.Popen[str]) -> None:
    assert writer.stdout and writer.stdout.readline()


def test_a_writer_killed_between_two_files_leaves_a_draft_and_no_object(store: Store) -> None:
    script = """if True:
        import sys
        from pathlib import Path
        from bardflow.storage.store import Store
        with Store(Path(sys.argv[1])).draft() as draft:
            (draft.folder / "first").write_bytes(b"1")
            print("written", flush=True)
            sys.stdin.read()
    """
    killed_writer(script, store.root, reads_a_line)
    assert list(store.handles()) == []
    (left,) = store.drafts.iterdir()
    assert file_names(left) == ["first"]
    assert store.damage(keep(store)) is None


def test_a_draft_with_a_key_goes_on_after_a_kill_and_only_the_one_with_this_key(store: Store) -> None:
    script = """if True:
        import sys
        from pathlib import Path
        from bardflow.storage.store import Store
        with Store(Path(sys.argv[1])).draft("one-key") as draft:
            (draft.folder / "first").write_bytes(b"1")
            print("written", flush=True)
            sys.stdin.read()
    """
    killed_writer(script, store.root, reads_a_line)
    for key in ("another-key", "key", None):
        with store.draft(key) as draft:
            assert file_names(draft.folder) == []
    with pytest.raises(KeyboardInterrupt), store.draft("one-key") as draft:
        assert file_names(draft.folder) == ["first"]
        raise KeyboardInterrupt
    with store.draft("one-key") as draft:
        assert file_names(draft.folder) == ["first"]
        kept = store.keep(draft, Vocabulary, {}, origin())
    assert store.damage(kept) is None and list(store.drafts.iterdir()) == []
    with pytest.raises(ZeroDivisionError), store.draft("one-key") as draft:
        assert file_names(draft.folder) == []
        raise ZeroDivisionError
    assert list(store.drafts.iterdir()) == [], "an error would come again"


def test_a_writer_killed_at_any_moment_leaves_no_half_object(store: Store) -> None:
    script = """if True:
        import itertools, sys
        from pathlib import Path
        from bardflow.storage.handles import Vocabulary
        from bardflow.storage.manifests import Origin
        from bardflow.storage.store import Store
        store = Store(Path(sys.argv[1]))
        came = Origin(task="", inputs={}, spec={}, run=None, commit=None, packages={}, at="", measured={})
        for number in itertools.count():
            with store.draft() as draft:
                for name in ("a", "b", "c"):
                    (draft.folder / name).write_bytes(b"%d" % number * 20_000)
                store.keep(draft, Vocabulary, {"number": number}, came)
            if number == 0:
                print("going", flush=True)
    """

    def goes_for(seconds: float) -> Callable[[subprocess.Popen[str]], None]:
        def wait(writer: subprocess.Popen[str]) -> None:
            reads_a_line(writer)
            sleep(seconds)

        return wait

    for round_ in range(4):
        killed_writer(script, store.root / str(round_), goes_for(0.003 + 0.017 * round_))
        there = Store(store.root / str(round_))
        handles = list(there.handles())
        assert handles
        assert [there.damage(handle) for handle in handles] == [None] * len(handles)
        assert len(list(there.drafts.iterdir())) <= 1


def test_two_threads_that_write_one_thing_agree(store: Store) -> None:
    together = Barrier(8)

    def write(_: int) -> tuple[Vocabulary, str | None]:
        together.wait()
        handle = keep(store)
        return handle, store.damage(handle)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(write, range(8)))
    assert answers == [(answers[0][0], None)] * 8
    assert list(store.drafts.iterdir()) == []


def test_threads_that_replace_one_damaged_thing_never_take_away_a_good_one(store: Store) -> None:
    large = {"weights": bytes(3_000_000), "last": b""}  # large, so that looking for damage takes a while
    handle = keep(store, large)
    together = Barrier(4)

    def write(_: int) -> int:
        together.wait()
        keep(store, large)
        return store.place(handle).stat().st_ino  # what `keep` has handed out must be there from then on

    with ThreadPoolExecutor(4) as threads:
        for _ in range(8):
            writable(store.folder(handle) / "last").write_bytes(b"x")
            seen = set(threads.map(write, range(4)))
            assert seen == {store.place(handle).stat().st_ino}
            assert store.damage(handle) is None
    assert list(store.drafts.iterdir()) == []


def test_an_artifact_that_was_away_for_a_moment_while_it_was_checked_is_good_and_gets_no_stamp(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread that replaces the artifact renames its folder twice; what came back is what is checked."""
    handle = keep(store)

    def taken_between(folder: Path) -> Stamp:
        folder.rename(store.root / "away")
        try:
            return stamp_of(folder)
        finally:
            (store.root / "away").rename(folder)

    monkeypatch.setattr("bardflow.storage.checking.stamp_of", taken_between)
    assert store.checks.harm(handle) is None
    assert not store.checks.stamp_place(handle).exists()


def test_two_processes_that_write_one_thing_agree(store: Store) -> None:
    script = """if True:
        import sys
        from pathlib import Path
        from bardflow.storage.handles import Vocabulary
        from bardflow.storage.manifests import Origin
        from bardflow.storage.store import Store
        store = Store(Path(sys.argv[1]))
        came = Origin(task="", inputs={}, spec={}, run=None, commit=None, packages={}, at="", measured={})
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(30):
            with store.draft() as draft:
                (draft.folder / "file").write_bytes(b"%d" % number * 50_000)
                print(store.keep(draft, Vocabulary, {}, came).digest)
    """
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for writer in writers:
        reads_a_line(writer)
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("go\n")
        writer.stdin.flush()
    first, second = (writer.communicate()[0].split() for writer in writers)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert first == second
    assert sorted(handle.digest for handle in store.handles()) == sorted(first)
    assert all(store.damage(handle) is None for handle in store.handles())
    assert list(store.drafts.iterdir()) == []


def test_a_kept_objects_files_are_read_only(store: Store) -> None:
    folder = store.folder(keep(store))
    modes = {name: stat.S_IMODE((folder / name).stat().st_mode) for name in file_names(folder)}
    assert modes == dict.fromkeys([*FILES, MANIFEST, ORIGIN], 0o444)


def test_bytes_that_are_no_text_are_refused_as_such() -> None:
    with pytest.raises(StoreError, match=r"ann \\udcff.* has other bytes"):
        canonical_json({"by": "ann \udcff"})


def test_what_is_not_finite_is_refused_and_not_kept_as_a_hole(store: Store) -> None:
    for loss in (float("nan"), float("inf")):
        with pytest.raises(StoreError, match="only finite numbers"):
            keep(store, facts={"nats_per_token": loss})
    with pytest.raises(StoreError, match="only finite numbers"):
        keep(store, came=origin().model_copy(update={"measured": {"seconds": float("nan")}}))
    assert list(store.handles()) == []
    assert list(store.drafts.iterdir()) == []


def test_a_draft_may_not_hold_links_or_our_own_names(store: Store, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"elsewhere")
    with store.draft() as draft:
        (draft.folder / "link").symlink_to(tmp_path / "outside")
        with pytest.raises(ValueError, match="this one holds link"):
            store.keep(draft, Vocabulary, {}, origin())
    for name in (MANIFEST, ORIGIN):
        with pytest.raises(ValueError, match=f"this one holds {name}"):
            keep(store, {name: b"{}"})
    assert keep(store, {f"raw/{MANIFEST}": b"{}"}) in store.handles()


def test_a_missing_object_is_an_error_that_says_what_to_do(store: Store) -> None:
    handle = Corpus(digest="0" * 64)
    assert store.damage(handle) == "missing"
    with pytest.raises(ObjectMissing, match=r"Corpus 00000000 is missing .*`bard verify 00000000 --repair`"):
        store.folder(handle)


def test_discarding_what_is_not_there_is_no_error(store: Store) -> None:
    handle = keep(store)
    store.discard(handle)
    store.discard(handle)
    assert store.damage(handle) == "missing"
    assert list(store.drafts.iterdir()) == []


def colliding_facts() -> tuple[dict[str, object], dict[str, object]]:
    """Two sets of facts of an object without files whose digests share their first four characters."""
    seen: dict[str, dict[str, object]] = {}
    for number in count():
        facts: dict[str, object] = {"number": number}
        manifest = Manifest(kind="vocabulary", layout=LAYOUT, facts=facts, files={})
        start = hashlib.sha256(canonical_json(manifest.model_dump())).hexdigest()[:4]
        if start in seen:
            return seen[start], facts
        seen[start] = facts
    raise AssertionError


def test_a_prefix_finds_an_object_and_an_ambiguous_one_names_all(store: Store) -> None:
    one, other = (keep(store, {}, facts=facts) for facts in colliding_facts())
    shared = "".join(
        a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one.digest, other.digest, strict=True))
    )
    assert store.find(one.digest) == one
    assert store.find(one.digest[: len(shared) + 1]) == one
    assert store.find(other.digest[: len(shared) + 1]) == other
    with pytest.raises(StoreError, match="is the start of several digests; give more characters") as caught:
        store.find(shared)
    assert f"vocabulary {one.digest[:12]}" in str(caught.value)
    assert f"vocabulary {other.digest[:12]}" in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "abc", "zzzz", "0" * 65])
def test_a_prefix_that_finds_nothing_is_a_clear_error(store: Store, prefix: str) -> None:
    with pytest.raises(StoreError, match="at least the first 4 characters"):
        store.find(prefix)  # where there is no store at all
    handle = keep(store)
    with pytest.raises(StoreError, match="no artifact's digest starts with"):
        store.find(prefix or handle.digest[:3])


def test_what_others_leave_in_the_folders_is_no_object(store: Store) -> None:
    handle = keep(store)
    (store.objects / "vocabulary" / ".DS_Store").write_bytes(b"")
    (store.objects / "vocabulary" / "copy of it").mkdir()
    (store.objects / "notes.txt").write_bytes(b"")
    assert list(store.handles()) == [handle]
    assert store.find(handle.short) == handle


def test_a_handle_is_a_digest_and_nothing_else() -> None:
    for wrong in ("", "abc", "A" * 64, "g" * 64, "0" * 64 + "\n"):
        with pytest.raises(ValidationError):
            Handle(digest=wrong)
    with pytest.raises(ValidationError):
        Corpus.model_validate({"digest": "0" * 64, "path": "/tmp"})
    assert Corpus.model_fields.keys() == {"digest"}
    assert [TokenShards(digest="0" * 64).kind, str(Corpus(digest="ab" * 32))] == ["token-shards", "Corpus abababab"]


def test_a_handle_survives_its_spelling() -> None:
    for handle_class in KINDS.values():
        assert handle_of(text_of(handle_class(digest="ab" * 32))) == handle_class(digest="ab" * 32)
    with pytest.raises(StoreError, match="its kind should be one of source, corpus"):
        handle_of(f"picture/{'ab' * 32}")
