"""The short form of `tests.faults.remote`: moves of one name from two homes, and a killed push and pull."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from bardflow.errors import DiskError, disk_error
from bardflow.storage.refs import Refs
from bardflow.storage.remote import Remote
from bardflow.storage.remote.syncing import pull
from bardflow.storage.store import Store
from bardflow.storage.verifying import verify
from tests.artifacts import content, keep
from tests.disk_faults import fill, mountable, small_disk
from tests.faults.remote import kills, moves
from tests.object_storage import BUCKET, CREDENTIALS, Storage, running_storage

cannot = mountable()


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    with running_storage(tmp_path / "served") as running:
        for name, value in (CREDENTIALS | {"AWS_ENDPOINT": running.url}).items():
            monkeypatch.setenv(name, value)
        yield running


def test_moves_from_two_homes_are_not_lost_and_a_killed_push_or_pull_leaves_nothing_half(
    tmp_path: Path, storage: Storage
) -> None:
    moves(tmp_path, storage, 80)
    kills(tmp_path, storage, 4, random.Random(7))


@pytest.mark.skipif(cannot is not None, reason=f"needs a small disk: {cannot}")
@pytest.mark.parametrize("leave", [40_000, 2_000_000], ids=["no room for names", "no room for files"])
def test_a_disk_that_is_full_while_pulling_is_named_and_nothing_is_half(
    tmp_path: Path, storage: Storage, leave: int
) -> None:
    def remote(root: Path) -> Remote:
        return Remote(root, f"s3://{BUCKET}/full", storage.url, True)

    a = tmp_path / "a"
    handle = keep(Store(a, remote(a)), {f"file{n}": os.urandom(700_000) for n in range(4)})
    for number in range(20):
        Refs(a, remote(a)).point(f"own/name{number}", handle, by="a", why=lambda before: "")
    with small_disk(tmp_path / "disk") as disk:
        b = disk / "b"
        filler = fill(disk, leave)
        with pytest.raises((DiskError, OSError), match=r"free|No space") as raised:
            pull(b, remote(b))
        assert isinstance(raised.value, DiskError) or disk_error(raised.value, b) is not None
        filler.unlink()
        assert not [finding for finding in verify(b) if finding.harmful]
        assert pull(b, remote(b)).problems == ()
        assert content(Store(b).folder(handle)) == content(Store(a).folder(handle))
