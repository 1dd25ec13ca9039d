"""Homes with a remote: a real server of the S3 protocol, with a proxy before it that makes faults."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bardflow.storage.handles import Handle
from bardflow.storage.refs import Refs
from bardflow.storage.remote import Remote, object_storage
from bardflow.storage.store import Store
from tests.object_storage import (
    BUCKET,
    CREDENTIALS,
    Proxy,
    Storage,
    proxy_before,
    running_storage,
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
    monkeypatch.setattr(object_storage, "RETRIES", 1)
    monkeypatch.setattr(object_storage, "FIRST_PAUSE", 0.01)
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


def damaged(path: Path) -> bytes:
    """Change a byte in the middle of a file, and return what it was."""
    before = path.read_bytes()
    path.write_bytes(
        before[: len(before) // 2] + bytes([before[len(before) // 2] ^ 1]) + before[len(before) // 2 + 1 :]
    )
    return before
