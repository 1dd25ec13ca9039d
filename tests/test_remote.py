"""The remote: what one home sent another receives, two homes cannot both move a name, and faults lose nothing."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bardflow.errors import BardError
from bardflow.storage import remote as remotes
from bardflow.storage.disk import sealed
from bardflow.storage.garbage import collect_garbage
from bardflow.storage.handles import Handle, Vocabulary
from bardflow.storage.lineage import lineage
from bardflow.storage.manifests import ObjectMissing
from bardflow.storage.refs import Diverged, RefMoved, Refs
from bardflow.storage.remote import (
    PART,
    Remote,
    RemoteError,
    RemoteUnreachable,
    checked_address,
    is_plain_result,
    key_of,
)
from bardflow.storage.store import Store
from bardflow.storage.syncing import pull, push, repair_remote, verify_remote
from bardflow.storage.verifying import verify
from tests.artifacts import FILES, content, keep, origin, writable
from tests.object_storage import (
    BUCKET,
    CREDENTIALS,
    Answer,
    Asked,
    Proxy,
    Storage,
    answer_lost,
    cut_half_way,
    denied,
    proxy_before,
    running_storage,
    slow,
    stale_list,
    unavailable,
    unconditional,
)

NAME = "own/champion"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    with running_storage(tmp_path_factory.mktemp("storage") / "served") as running:
        yield running


@pytest.fixture(scope="module")
def shared_proxy(storage: Storage) -> Iterator[Proxy]:
    with proxy_before(storage) as proxy:
        yield proxy


@pytest.fixture
def proxy(shared_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The proxy without a fault; requests are repeated once, at once."""
    for name, value in (CREDENTIALS | {"AWS_ENDPOINT": shared_proxy.url}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remotes, "RETRIES", 1)
    monkeypatch.setattr(remotes, "FIRST_PAUSE", 0.01)
    shared_proxy.fault = None
    shared_proxy.asked.clear()
    yield shared_proxy
    shared_proxy.fault = None


class Home(NamedTuple):
    """A home with a remote, as one process sees it."""

    root: Path
    remote: Remote
    store: Store
    refs: Refs

    def point(self, handle: Handle, name: str = NAME, by: str = "me", **notes: object) -> None:
        self.refs.point(name, handle, by=by, why=lambda before: "", notes=notes)


Homes = Callable[[str], Home]


@pytest.fixture
def home(tmp_path: Path, proxy: Proxy) -> Homes:
    """Homes by their names, all with the same remote of this test; each call is a new process's view."""

    def opened(name: str, prefix: str = tmp_path.name) -> Home:
        root = tmp_path / name
        remote = Remote(root, f"s3://{BUCKET}/{prefix}", proxy.url, True)
        return Home(root, remote, Store(root, remote), Refs(root, remote))

    return opened


def key_path(storage: Storage, home: Home, key: str) -> Path:
    """The file of a key in the bucket."""
    return storage.bucket / home.remote.address.rpartition("/")[2] / key


def there(storage: Storage, home: Home) -> list[str]:
    """All keys in the remote."""
    folder = key_path(storage, home, "")
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


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


def test_a_damaged_file_of_the_home_comes_from_the_remote(home: Homes) -> None:
    a = home("a")
    handle = keep(a.store)
    writable(a.store.place(handle) / "tokenizer.json").write_bytes(b"{'a': 2}")
    assert content(home("a").store.folder(handle))["tokenizer.json"] == FILES["tokenizer.json"]


# Names


def test_of_two_homes_that_move_a_name_one_wins_and_the_other_sees_it(home: Homes) -> None:
    a, b = home("a"), home("b")
    one, two = keep(a.store), keep(b.store, {"x": b"2"})
    assert a.refs.head(NAME) is b.refs.head(NAME) is None
    first = a.refs.move(NAME, one, after=None, by="a", why="")
    with pytest.raises(RefMoved):
        b.refs.move(NAME, two, after=None, by="b", why="")
    assert b.refs.head(NAME) == first
    b.refs.move(NAME, two, after=first, by="b", why="")
    assert [entry.by for entry in a.refs.history(NAME)] == ["a", "b"]
    assert content(a.store.folder(two)) == content(b.store.folder(two))


def test_an_entry_comes_after_its_artifacts_and_all_that_they_were_made_from(home: Homes, proxy: Proxy) -> None:
    a = home("a")
    proxy.fault = denied
    source = keep(a.store, {"source": b"s"})
    handle = keep(a.store, came=origin(source=source))
    proxy.fault = None
    proxy.asked.clear()
    a = home("a")  # a new process: nothing is left in memory
    a.point(handle)
    put = [key.partition("/")[2] for method, key in proxy.asked if method == "PUT"]
    order = [f"{key_of(source)}/manifest.json", f"{key_of(handle)}/manifest.json", f"refs/{NAME}/000001.json"]
    assert [key for key in put if key in order] == order


def test_an_entry_that_a_killed_process_made_only_in_the_remote_is_brought_by_the_next_read(home: Homes) -> None:
    a = home("a")
    a.point(keep(a.store))
    a.refs.copies.remove(entry := a.refs.folder / NAME / "000001.json")
    entry.unlink()
    assert Refs(a.root).history(NAME) == []
    assert [entry.number for entry in home("a").refs.history(NAME)] == [1]
    assert [entry.number for entry in Refs(a.root).history(NAME)] == [1]


def test_a_stale_list_hides_no_entry(home: Homes, proxy: Proxy) -> None:
    a = home("a")
    handles = [keep(a.store, {"x": str(number).encode()}) for number in range(4)]
    for handle in handles:
        a.point(handle)
    proxy.fault = stale_list(r"00000[34]\.json")
    assert len(home("b").refs.history(NAME)) == 4
    assert pull(home("c").root, home("c").remote).entries == 4
    proxy.fault = stale_list("refs/")
    assert len(home("d").refs.history(NAME)) == 4
    proxy.fault = stale_list("objects/")
    e = home("e")
    assert e.store.damage(handles[0]) is None
    assert content(e.store.folder(handles[0])) == content(a.store.folder(handles[0]))
    assert [harm for harm in verify_remote(e.root, e.remote) if harm.harmful] == []


@pytest.mark.parametrize("fault", [answer_lost("refs/", 1), answer_lost("refs/", 2)], ids=["once", "also again"])
def test_a_lost_answer_makes_neither_two_entries_nor_none(home: Homes, proxy: Proxy, fault: object) -> None:
    a = home("a")
    handle = keep(a.store)
    proxy.fault = fault  # type: ignore[assignment]
    a.refs.move(NAME, handle, after=None, by="a", why="")
    assert [entry.by for entry in home("b").refs.history(NAME)] == ["a"]


def test_a_move_whose_end_is_not_known_says_so_and_the_next_read_shows_it(home: Homes, proxy: Proxy) -> None:
    a = home("a")
    handle = keep(a.store)
    gone: list[str] = []

    def fault(asked: Asked, passed_on: Callable[[], Answer]) -> Answer | None:
        if gone or "refs/" in asked.key:
            if not gone:
                passed_on()
            gone.append(asked.key)
            return None
        return passed_on()

    proxy.fault = fault
    with pytest.raises(RemoteUnreachable, match="not known whether own/champion was moved"):
        a.refs.move(NAME, handle, after=None, by="a", why="")
    assert Refs(a.root).history(NAME) == []
    proxy.fault = None
    assert [entry.by for entry in home("a").refs.history(NAME)] == ["a"]


def test_a_history_that_began_without_a_remote_is_sent_before_the_next_move(home: Homes) -> None:
    a = home("a")
    alone, refs = Store(a.root), Refs(a.root)
    handles = [keep(alone, {"x": str(number).encode()}) for number in range(3)]
    for handle in handles:
        refs.point(NAME, handle, by="alone", why=lambda before: "")
    a.point(keep(a.store))
    b = home("b")
    assert b.refs.history(NAME) == a.refs.history(NAME)
    assert len(b.refs.history(NAME)) == 4
    assert [b.store.damage(handle) for handle in handles] == [None] * 3


def test_histories_that_grew_apart_are_named_and_the_remotes_can_be_taken(home: Homes) -> None:
    a, b = home("a"), home("b")
    shared, one, two = (keep(Store(a.root), {"x": bytes([n])}) for n in range(3))
    a.point(shared)
    assert b.refs.head(NAME) is not None
    a.point(one)
    keep(Store(b.root), {"x": bytes([2])})
    Refs(b.root).point(NAME, two, by="b alone", why=lambda before: "")
    b = home("b")
    for failing in (lambda: b.refs.head(NAME), lambda: b.point(shared)):
        with pytest.raises(Diverged, match=r"own/champion .* entry 2 is the first that differs.*--replace"):
            failing()
    a.point(shared, "own/text")
    assert b.refs.names() == [NAME, "own/text"], "one name hides no others"
    assert "entry 2" in push(b.root, b.remote).problems[0]
    [moved] = b.refs.replace(NAME)
    assert json.loads(moved.read_bytes())["by"] == "b alone"
    assert moved.is_relative_to(b.root / "set-aside")
    assert b.refs.history(NAME) == a.refs.history(NAME)


def test_a_storage_that_ignores_conditions_is_refused_before_anything_is_sent(
    home: Homes, proxy: Proxy, storage: Storage
) -> None:
    proxy.fault = unconditional
    a = home("a")
    handle = keep(a.store)
    with pytest.raises(RemoteError, match=rf"{proxy.url} ignores conditional writes .*MinIO"):
        a.point(handle)
    assert there(storage, a) == ["layout.json"]
    assert Refs(a.root).history(NAME) == []
    proxy.fault = None
    home("b").point(keep(home("b").store))
    proxy.fault = unconditional
    with pytest.raises(RemoteError, match="ignores conditional writes"):
        home("c").point(keep(home("c").store, {"x": b"another"}))


# Faults of network and storage


def test_a_connection_that_ends_half_way_is_taken_up_again(home: Homes, proxy: Proxy) -> None:
    a, b = home("a"), home("b")
    large = os.urandom(2 * PART + 1000)
    handle = keep(a.store, {"large": large, "small": b"s"})
    proxy.fault = cut_half_way("large", 1)
    assert (b.store.folder(handle) / "large").read_bytes() == large
    parts = [key for method, key in proxy.asked if method == "GET" and key.endswith("/large")]
    assert len(parts) == 3 + 1, "three parts, one of them again"


def test_an_answer_that_comes_slowly_is_waited_for(home: Homes, proxy: Proxy) -> None:
    a, b = home("a"), home("b")
    handle = keep(a.store)
    proxy.fault = slow(0.02)
    assert content(b.store.folder(handle)) == content(a.store.folder(handle))


def test_a_busy_storage_is_asked_again(home: Homes, proxy: Proxy) -> None:
    proxy.fault = unavailable(1)
    a = home("a")
    a.point(keep(a.store))
    assert home("b").refs.head(NAME) is not None


def test_while_the_remote_is_away_work_goes_on_and_is_sent_before_the_next_move(
    home: Homes, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    a = home("a")
    first = keep(a.store, {"x": b"1"})
    a.point(first)
    before = a.refs.history(NAME)
    b = home("b")
    assert b.refs.history(NAME) == before
    proxy.fault = unavailable(10**6)
    with caplog.at_level(logging.WARNING):
        second, third = keep(a.store, {"x": b"2"}), keep(a.store, {"x": b"3"})
        assert a.refs.history(NAME) == before
    assert [record.message for record in caplog.records if "cannot be reached" in record.message] == [
        caplog.records[0].message
    ], "it is said once"
    assert a.store.damage(third) is None
    with pytest.raises(ObjectMissing, match=r"cannot be reached.*bard verify"):
        b.store.folder(first)
    with pytest.raises(RemoteUnreachable, match="cannot be reached"):
        a.point(third)
    assert Refs(a.root).history(NAME) == before
    proxy.fault = None
    a.point(third)
    assert home("b").store.damage(third) is None
    push(a.root, a.remote, [second])
    assert home("b").store.damage(second) is None


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


# Damage in the remote


def damaged(path: Path) -> bytes:
    """Change a byte in the middle of a file, and return what it was."""
    before = path.read_bytes()
    path.write_bytes(
        before[: len(before) // 2] + bytes([before[len(before) // 2] ^ 1]) + before[len(before) // 2 + 1 :]
    )
    return before


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


def test_a_damaged_entry_of_the_remote_is_named_and_sent_again(home: Homes, storage: Storage) -> None:
    a, b = home("a"), home("b")
    a.point(keep(a.store))
    damaged(key_path(storage, a, f"refs/{NAME}/000001.json"))
    with pytest.raises(RemoteError, match=r"refs/own/champion/000001\.json is damaged"):
        b.refs.head(NAME)
    harms = list(verify_remote(a.root, a.remote))
    assert list(repair_remote(a.root, a.remote, harms)) == [f"refs/{NAME}/000001.json: sent again"]
    assert b.refs.history(NAME) == a.refs.history(NAME)


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


# Cached results

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


# What is said when it cannot work


@pytest.mark.parametrize(
    "address",
    [
        "s3://", "bucket", "/folder", "http://example.org/bucket", "ftp://host/x", "file://", "file:///", "s3://b/../c",
        "file://host/folder", "memory:///", "s3:bucket",
    ],
)  # fmt: skip
def test_a_wrong_address_is_named_with_an_example(address: str) -> None:
    with pytest.raises(RemoteError, match="s3://BUCKET/FOLDER"):
        checked_address(address)


@pytest.mark.parametrize(
    "address", ["s3://key:hunter2@bucket/x", "az://c/x?sig=hunter2", "s3://hunter2@b", "s3://b/x#hunter2"]
)
def test_a_password_in_the_address_is_refused_and_not_printed(address: str) -> None:
    with pytest.raises(RemoteError) as raised:
        checked_address(address)
    assert "hunter2" not in str(raised.value)


def test_a_missing_bucket_a_refused_key_and_a_dead_server_are_told_apart(
    home: Homes, proxy: Proxy, tmp_path: Path
) -> None:
    no_bucket = Remote(tmp_path / "x", "s3://no-such-bucket/x", proxy.url, True)
    for asking in (lambda: no_bucket.get("x"), lambda: list(no_bucket.keys("x"))):
        with pytest.raises(RemoteError, match=r"bucket of s3://no-such-bucket/x .* does not exist: create it"):
            asking()
    proxy.fault = denied
    for asking in (lambda: home("a").remote.get("x"), lambda: list(home("a").remote.keys("x"))):
        with pytest.raises(RemoteError, match=r"access to .* is denied: check the credentials"):
            asking()
    with pytest.raises(RemoteError, match="is denied"):
        home("a").point(Vocabulary(digest="0" * 64))
    proxy.fault = lambda asked, passed_on: None
    with pytest.raises(RemoteUnreachable, match="cannot be reached"):
        home("a").remote.get("x")
    proxy.fault = None
    with pytest.raises(RemoteError, match="AWS_ALLOW_HTTP=true"):
        Remote(tmp_path / "x", f"s3://{BUCKET}/x", proxy.url).get("x")


def test_a_folder_is_a_remote_too_and_must_be_there(tmp_path: Path) -> None:
    share = tmp_path / "share"
    with pytest.raises(RemoteUnreachable, match="mount the share, or create the folder"):
        Remote(tmp_path / "a", f"file://{share}").get("x")
    share.mkdir()
    a = Remote(tmp_path / "a", f"file://{share}")
    handle = keep(Store(tmp_path / "a", a))
    Refs(tmp_path / "a", a).point(NAME, handle, by="a", why=lambda before: "")
    b = Remote(tmp_path / "b", f"file://{share}")
    assert Refs(tmp_path / "b", b).head(NAME) == Refs(tmp_path / "a").head(NAME)
    with pytest.raises(RefMoved):
        Refs(tmp_path / "b", b).move(NAME, handle, after=None, by="b", why="")
    assert content(Store(tmp_path / "b", b).folder(handle))["empty"] == b""


def test_a_newer_layout_and_a_folder_of_something_else_are_refused(home: Homes, storage: Storage) -> None:
    a = home("a")
    keep(a.store)
    marker = key_path(storage, a, "layout.json")
    for content_, words in ((b'{"layout": 2, "id": "x"}', "reads layout 1"), (b"<html>", "not a remote of bardflow")):
        marker.write_bytes(content_)
        with pytest.raises(BardError, match=words):
            home("b").refs.head(NAME)


def test_another_remote_at_the_same_address_is_believed_nothing_of(home: Homes, storage: Storage) -> None:
    import shutil

    a = home("a")
    a.point(keep(a.store))
    shutil.rmtree(key_path(storage, a, ""))
    a = home("a")
    a.point(keep(a.store, {"x": b"2"}))
    assert home("b").refs.history(NAME) == a.refs.history(NAME)
    assert len(a.refs.history(NAME)) == 2


WITHOUT = """
import sys
{before}
from pathlib import Path
from bardflow.commands.console import opened
store, refs = opened()
print(refs.names(), store.remote is None, "obstore" in sys.modules)
"""


def run_without(tmp_path: Path, before: str, **more: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "BARDFLOW_REMOTE"}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(before=before)], capture_output=True, text=True,
        env=kept | {"BARDFLOW_HOME": str(tmp_path / "home")} | more,
    )  # fmt: skip


def test_without_a_remote_the_library_is_not_imported_and_with_one_it_is_asked_for(tmp_path: Path) -> None:
    assert run_without(tmp_path, "").stdout == "[] True False\n"
    said = run_without(tmp_path, "sys.modules['obstore'] = None", BARDFLOW_REMOTE=f"file://{tmp_path}").stderr
    assert "BARDFLOW_REMOTE is set, and needs a package" in said and "[remote]" in said
