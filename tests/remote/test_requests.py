"""Requests to object storage: faults of network and storage lose nothing, and what is said when it cannot work."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bardflow.storage.handles import Vocabulary
from bardflow.storage.manifests import ObjectMissing
from bardflow.storage.refs import RefMoved, Refs
from bardflow.storage.remote import Remote, RemoteError, RemoteUnreachable
from bardflow.storage.remote.object_storage import PART, checked_address
from bardflow.storage.remote.syncing import push
from bardflow.storage.store import Store
from tests.artifacts import content, keep
from tests.object_storage import (
    BUCKET,
    Proxy,
    cut_half_way,
    denied,
    slow,
    unavailable,
)
from tests.remote.conftest import NAME, Homes


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
