"""Names in the remote: two homes cannot both move one, and each sees the moves of the other."""

import json
import shutil
from collections.abc import Callable

import pytest

from bardflow.errors import BardError
from bardflow.storage.refs import Diverged, RefMoved, Refs
from bardflow.storage.remote import RemoteError, RemoteUnreachable
from bardflow.storage.remote.contents import key_of
from bardflow.storage.remote.names import RemoteNames
from bardflow.storage.remote.syncing import pull, push, repair_remote, verify_remote
from bardflow.storage.store import Store
from tests.artifacts import content, keep, origin
from tests.object_storage import (
    Answer,
    Asked,
    Proxy,
    Storage,
    answer_lost,
    denied,
    stale_list,
    unconditional,
)
from tests.remote.conftest import NAME, Homes, damaged, key_path, there


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
    [moved] = RemoteNames(Refs(b.root), b.remote).replace(NAME)
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


def test_a_damaged_entry_of_the_remote_is_named_and_sent_again(home: Homes, storage: Storage) -> None:
    a, b = home("a"), home("b")
    a.point(keep(a.store))
    damaged(key_path(storage, a, f"refs/{NAME}/000001.json"))
    with pytest.raises(RemoteError, match=r"refs/own/champion/000001\.json is damaged"):
        b.refs.head(NAME)
    harms = list(verify_remote(a.root, a.remote))
    assert list(repair_remote(a.root, a.remote, harms)) == [f"refs/{NAME}/000001.json: sent again"]
    assert b.refs.history(NAME) == a.refs.history(NAME)


def test_a_newer_layout_and_a_folder_of_something_else_are_refused(home: Homes, storage: Storage) -> None:
    a = home("a")
    keep(a.store)
    marker = key_path(storage, a, "layout.json")
    for content_, words in ((b'{"layout": 2, "id": "x"}', "reads layout 1"), (b"<html>", "not a remote of bardflow")):
        marker.write_bytes(content_)
        with pytest.raises(BardError, match=words):
            home("b").refs.head(NAME)


def test_another_remote_at_the_same_address_is_believed_nothing_of(home: Homes, storage: Storage) -> None:
    a = home("a")
    a.point(keep(a.store))
    shutil.rmtree(key_path(storage, a, ""))
    a = home("a")
    a.point(keep(a.store, {"x": b"2"}))
    assert home("b").refs.history(NAME) == a.refs.history(NAME)
    assert len(a.refs.history(NAME)) == 2
