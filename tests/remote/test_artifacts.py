"""Artifacts and results in the remote: what one home sent another receives, and damage is found."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bardflow.storage.disk import sealed
from bardflow.storage.garbage import collect_garbage
from bardflow.storage.handles import Vocabulary
from bardflow.storage.lineage import lineage
from bardflow.storage.manifests import ObjectMissing
from bardflow.storage.refs import Refs
from bardflow.storage.remote import Remote
from bardflow.storage.remote.contents import is_plain_result, key_of
from bardflow.storage.remote.syncing import pull, push, repair_remote, verify_remote
from bardflow.storage.store import Store
from bardflow.storage.verifying import verify
from tests.artifacts import FILES, content, keep, origin, writable
from tests.object_storage import (
    BUCKET,
    Proxy,
    Storage,
    denied,
)
from tests.remote.conftest import NAME, Homes, damaged, key_path, there

# What was sent is what is received

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8)
PATHS = st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=2).map("/".join)
CONTENTS = st.dictionaries(
    PATHS.filter(lambda path: path.partition("/")[0] not in ("manifest.json", "origin.json", "record.json", "reduced")),
    st.binary(max_size=60),
    max_size=4,
).filter(lambda files: not any(one.startswith(f"{other}/") for one in files for other in files))


@pytest.mark.slow
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(artifacts=st.lists(CONTENTS, min_size=1, max_size=3), moves=st.lists(st.integers(0, 2), min_size=1, max_size=4))
def test_what_was_pushed_is_pulled_with_the_same_bytes_and_histories(
    tmp_path_factory: pytest.TempPathFactory, proxy: Proxy, artifacts: list[dict[str, bytes]], moves: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("pushed")
    address = (f"s3://{BUCKET}/{folder.name}", proxy.url, True)
    store, refs = Store(folder / "a"), Refs(folder / "a")
    handles = [keep(store, files) for files in artifacts]
    for number in moves:
        refs.point(NAME, handles[number % len(handles)], by="me", why=lambda before: "")
    push(folder / "a", Remote(folder / "a", *address))
    there = Remote(folder / "b", *address)
    assert not pull(folder / "b", there).problems
    assert Refs(folder / "b").history(NAME) == refs.history(NAME)
    for entry in refs.history(NAME):
        assert content(Store(folder / "b").folder(entry.handle)) == content(store.folder(entry.handle))
    assert not list(verify(folder / "b"))
    assert not list(verify_remote(folder / "b", there))


def test_a_second_push_sends_nothing_and_a_second_pull_receives_nothing(home: Homes, proxy: Proxy) -> None:
    a = home("a")
    a.point(keep(a.store, came=origin(corpus=keep(a.store, {"text": b"1"}))))
    assert push(a.root, home("a").remote).line("sent") == (
        "sent 0 files of artifacts (0 bytes), 0 entries of names, 0 cached results"
    )
    received = pull(home("b").root, home("b").remote)
    assert (received.files, received.bytes, received.entries) == (4, len(b"1" + b"".join(FILES.values())), 1)
    assert pull(home("b").root, home("b").remote).files == 0


def test_an_artifact_is_sent_as_it_is_made_and_received_as_it_is_read(home: Homes, storage: Storage) -> None:
    a, b = home("a"), home("b")
    handle = keep(a.store)
    assert f"{key_of(handle)}/manifest.json" in there(storage, a)
    assert b.store.damage(handle) is None, "what the remote has counts as there"
    assert Store(b.root).is_record(handle), "and only its record was received"
    assert content(b.store.folder(handle)) == content(a.store.folder(handle))
    assert Store(b.root).damage(handle) is None
    assert b.store.find(handle.digest[:6]) == home("c").store.find(handle.digest[:6]) == handle


def test_lineage_is_read_without_files(home: Homes) -> None:
    a, b = home("a"), home("b")
    source = keep(a.store, {"large": bytes(1000)})
    handle = keep(a.store, came=origin(source=source))
    a.point(handle)
    assert [one.handle for one in lineage(b.store, handle)] == [source, handle]
    assert Store(b.root).is_record(source)
    assert not [finding for finding in verify(b.root) if finding.harmful]


def test_lineage_is_whole_where_the_home_that_was_sent_had_only_a_record(home: Homes) -> None:
    a, alone = home("a"), Store(home("a").root)
    source = keep(alone, {"large": bytes(1000)})
    handle = keep(alone, came=origin(source=source))
    Refs(a.root).point(NAME, handle, by="a", why=lambda before: "")
    alone.reduce(source)
    assert push(a.root, a.remote).problems == ()
    b = home("b")
    assert [one.handle for one in lineage(b.store, handle)] == [source, handle]
    assert b.store.damage(source) == "a record (its files are not in this home)"
    assert pull(home("c").root, home("c").remote).problems == ()
    assert not list(verify_remote(b.root, b.remote))


def test_what_garbage_collection_deleted_here_comes_from_the_remote(home: Homes) -> None:
    a = home("a")
    handle = keep(a.store)
    collect_garbage(Store(a.root), Refs(a.root), dry_run=False)
    assert Store(a.root).damage(handle) == "missing"
    assert content(home("a").store.folder(handle))["empty"] == b""


def test_a_record_whose_files_are_received_is_never_away(home: Homes, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = home("a"), home("b")
    handle = keep(a.store)
    a.point(handle)
    assert b.refs.head(NAME) is not None and b.store.is_record(handle)
    changes = ("rename", "unlink", "rmdir", "mkdir")
    real = {name: getattr(Path, name) for name in changes}
    for number in range(1000):
        left = iter(range(number))

        def change(made: Callable[..., object], left: Iterator[int] = left) -> Callable[..., object]:
            def or_killed(*given: object, **more: object) -> object:
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return made(*given, **more)

            return or_killed

        with monkeypatch.context() as patch:
            for name in changes:
                patch.setattr(Path, name, change(real[name]))
            try:
                home("b").store.folder(handle)
                break
            except KeyboardInterrupt:
                pass
        assert not [finding for finding in verify(b.root) if finding.harmful], f"interrupted at change {number}"
    assert number > 5 and not b.store.is_record(handle)
    assert content(b.store.folder(handle)) == content(a.store.folder(handle))


def test_a_damaged_file_of_the_home_comes_from_the_remote(home: Homes) -> None:
    a = home("a")
    handle = keep(a.store)
    writable(a.store.place(handle) / "tokenizer.json").write_bytes(b"{'a': 2}")
    assert content(home("a").store.folder(handle))["tokenizer.json"] == FILES["tokenizer.json"]


def test_an_upload_that_did_not_end_is_no_artifact(home: Homes, proxy: Proxy, storage: Storage) -> None:
    a = home("a")
    proxy.fault = lambda asked, passed_on: (
        None if asked.method == "PUT" and asked.key.endswith("manifest.json") else passed_on()
    )
    handle = keep(a.store)
    proxy.fault = None
    assert f"{key_of(handle)}/tokenizer.json" in there(storage, a)
    b = home("b")
    assert b.store.damage(handle) == "missing"
    with pytest.raises(ObjectMissing, match="is missing"):
        b.store.folder(handle)
    assert [harm.harmful for harm in verify_remote(b.root, b.remote)] == [False]


@pytest.mark.parametrize("file", ["tokenizer.json", "nested/deep/vocabulary.txt", "manifest.json", "origin.json"])
def test_a_damaged_file_of_the_remote_is_named_never_stored_and_sent_again(
    home: Homes, storage: Storage, file: str
) -> None:
    a, b = home("a"), home("b")
    handle = keep(a.store)
    a.point(handle)
    path = key_path(storage, a, f"{key_of(handle)}/{file}")
    before = damaged(path)
    with pytest.raises(ObjectMissing, match=rf"{file}.*bard verify --remote --repair"):
        b.store.folder(handle)
    assert Store(b.root).damage(handle) != "damaged"
    assert not [path for path in b.root.glob("drafts/*") if path.is_dir()], "nothing is left"
    assert b.store.damage(handle) is not None, "the next run makes it again"
    assert [harm.key for harm in verify_remote(b.root, b.remote)] == [f"{key_of(handle)}/{file}"]
    b = home("b")
    harms = list(verify_remote(b.root, b.remote))
    assert "does not have it intact" in next(repair_remote(b.root, b.remote, harms))
    assert list(repair_remote(a.root, a.remote, harms)) == [f"{handle}: sent again"]
    assert path.read_bytes() == before
    assert not list(verify_remote(a.root, a.remote))
    c = home("c")
    assert content(c.store.folder(handle)) == content(a.store.folder(handle))


@pytest.mark.parametrize("how", ["shorter", "missing"])
def test_a_file_that_is_shorter_or_missing_in_the_remote_is_found_before_it_is_read(
    home: Homes, storage: Storage, how: str
) -> None:
    a, b = home("a"), home("b")
    handle = keep(a.store)
    path = key_path(storage, a, f"{key_of(handle)}/tokenizer.json")
    path.write_bytes(b"{") if how == "shorter" else path.unlink()
    assert b.store.damage(handle) is not None, "so the next run makes it again"
    c = home("c")
    with pytest.raises(ObjectMissing, match=rf"{key_of(handle)}/tokenizer\.json|tokenizer\.json does not have"):
        c.store.folder(handle)


def test_a_remote_that_names_files_outside_of_the_artifact_writes_none(home: Homes, storage: Storage) -> None:
    a, b = home("a"), home("b")
    keep(a.store)
    manifest = (
        b'{"kind": "vocabulary", "layout": 1, "facts": {}, "files": {"../../evil": {"bytes": 1, "sha256": "00"}}}'
    )
    import hashlib

    handle = Vocabulary(digest=hashlib.sha256(manifest).hexdigest())
    folder = key_path(storage, a, key_of(handle))
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(manifest)
    (folder / "origin.json").write_bytes(sealed(origin().model_dump_json().encode()))
    with pytest.raises(ObjectMissing, match="files outside"):
        b.store.folder(handle)
    assert not list(b.root.rglob("evil"))


RESULT = {"metadata": {"serializer": {"type": "json"}}, "result": '{"__class__": "bardflow.storage.handles.Model"}'}


def test_a_result_is_taken_only_if_it_is_plain_and_whole(home: Homes, storage: Storage) -> None:
    a, b = home("a"), home("b")
    good = json.dumps(RESULT).encode()
    a.remote.send_result("task-1-" + "0" * 64, good)
    assert b.remote.result("task-1-" + "0" * 64) == good
    assert b.remote.result("task-1-" + "1" * 64) is None
    damaged(key_path(storage, a, "results/task-1-" + "0" * 64))
    assert b.remote.result("task-1-" + "0" * 64) is None


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"serializer": {"type": "pickle"}}},
        {"metadata": {}},
        {"result": '{"__class__": "os.path"}'},
        {"result": '[{"a": [{"__class__": "subprocess.Popen", "data": {}}]}]'},
        {"result": '{"__exc_type__": "builtins.SystemExit", "message": ""}'},
        {"result": "not JSON"},
        {"result": None},
    ],
)
def test_a_result_that_could_run_code_is_not_taken(change: dict[str, object]) -> None:
    assert is_plain_result(json.dumps(RESULT).encode())
    assert not is_plain_result(json.dumps(RESULT | change).encode())


def test_a_result_that_was_not_sent_is_sent_with_the_next_one(home: Homes, proxy: Proxy) -> None:
    a, good = home("a"), json.dumps(RESULT).encode()
    proxy.fault = denied
    a.remote.send_result("task-1-" + "0" * 64, good)
    proxy.fault = None
    a.remote.send_result("task-1-" + "1" * 64, good)
    assert home("b").remote.result("task-1-" + "0" * 64) == good
