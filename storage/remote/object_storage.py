"""Requests to object storage (S3, Google, Azure) or a shared folder, by way of the library obstore."""

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from bardflow.errors import BardError, installing
from bardflow.storage.disk import unsealed

T = TypeVar("T")
R = TypeVar("R")

LOGGER = logging.getLogger("bardflow")
SCHEMES = "s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, az://CONTAINER/FOLDER or file:///FOLDER"
VARIABLE = "BARDFLOW_REMOTE"
REPAIR = "`bard verify --remote --repair` in a home that has it intact writes it again"
# Files are sent and received in parts of this size, in bytes; S3 takes parts from 5 MiB on, at most 10,000 of them.
PART, MOST_PARTS = 5 * 2**20, 9_000
# Files, or parts of one file, at once: with parts of 5 MiB, at most 20 MiB are in memory.
AT_ONCE = 4
# Small files, such as manifests: a larger one is not of bardflow.
MOST_SMALL_BYTES = 2**26
# Object storage answers within seconds; a part on a line of 90 kB/s takes a minute.
CONNECT_SECONDS, SILENCE_SECONDS = 5, 90
RETRIES, FIRST_PAUSE, LONGEST_PAUSE = 4, 0.2, 5.0
# For so long, a remote that could not be reached is not asked again by readers, each of which can do without it.
QUIET_SECONDS = 60.0


class RemoteError(BardError):
    """The remote refused a request, or its address or credentials are wrong."""


class RemoteUnreachable(RemoteError):
    """The remote did not answer, or answered with an error of its own, after all retries."""


class _Missing(RemoteError):
    """There is no such file."""


class RemoteDamaged(RemoteError):
    """A file in the remote does not have its sha256, or is missing from an artifact that is there."""


def checked_address(address: str) -> str:
    """Return the address without a slash at its end.

    Raises:
        RemoteError: it is not one of a remote, or contains a password, which is not printed.
    """
    parts = urlsplit(address)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise RemoteError(
            f"{VARIABLE} has a user, a password or a query in it, and none of them belongs there; write {SCHEMES}. "
            "Credentials come from the variables of the storage, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    folder = parts.scheme == "file" and not parts.netloc and len(parts.path) > 1
    steps = PurePosixPath(parts.path).parts
    if not (folder or (parts.scheme in ("s3", "gs", "az") and parts.netloc)) or ".." in steps or "//" in parts.path:
        raise RemoteError(f"{VARIABLE} is {address!r}, but an address such as {SCHEMES} is expected")
    return address.rstrip("/")


class ObjectStorage:
    """The files at one address. All methods raise `RemoteError` and its subclasses; those say what to do.

    `endpoint` is the server behind the address, for messages; the library reads it itself. With `plain` it may be an
    http:// one: then names and bytes are not encrypted on their way. Nothing is sent or imported before the first
    request.
    """

    def __init__(self, address: str, endpoint: str | None = None, plain: bool = False) -> None:
        self.address, self.plain = address, plain
        self.where = f"{address} at {endpoint}" if endpoint else address
        self._quiet_until = 0.0
        self._reason = ""
        self._warned = False

    @cached_property
    def api(self) -> Any:
        """The library, imported only where there is a remote."""
        try:
            import obstore
        except ImportError as error:
            raise RemoteError(f"{VARIABLE} is set, and needs a package: {installing('remote')}") from error
        return obstore

    @cached_property
    def library(self) -> Any:
        """The library's store at the address."""
        retries = {
            "max_retries": RETRIES,
            "retry_timeout": timedelta(seconds=2 * SILENCE_SECONDS),
            "backoff": {
                "init_backoff": timedelta(seconds=FIRST_PAUSE),
                "max_backoff": timedelta(seconds=LONGEST_PAUSE),
                "base": 2,
            },
        }
        # These replace the library's own, which has 30 s for a whole request, and what it reads from the environment.
        options = {
            "allow_http": self.plain,
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=SILENCE_SECONDS),
            "timeout": timedelta(hours=1),
        }
        if self.address.startswith("file:"):
            folder = urlsplit(self.address).path
            if not Path(folder).is_dir():
                raise RemoteUnreachable(f"{self.where} is not a folder: mount the share, or create the folder")
            return self.api.store.from_url(self.address)
        return self.api.store.from_url(self.address, retry_config=retries, client_options=options)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Translate the library's errors."""
        if time.monotonic() < self._quiet_until:
            raise RemoteUnreachable(self._reason)
        try:
            library, base = self.library, self.api.exceptions.BaseError
        except RemoteUnreachable as error:
            self._be_quiet(error)
            raise
        except ValueError as error:
            raise RemoteError(f"{VARIABLE} is {self.address!r}, and obstore cannot read it: {_said(error)}") from error
        except Exception as error:
            if isinstance(error, BardError):
                raise
            raise self._translated(error) from error
        assert library is not None
        try:
            yield
        except (base, FileNotFoundError) as error:
            if isinstance(error, FileNotFoundError) and error.errno is not None:
                raise  # of a local file
            known = self._translated(error)
            if isinstance(known, RemoteUnreachable):
                self._be_quiet(known)
            raise known from error
        else:
            self._warned = False

    def _be_quiet(self, error: RemoteUnreachable) -> None:
        self._quiet_until, self._reason = time.monotonic() + QUIET_SECONDS, str(error)

    def ask_again(self) -> None:
        """Forget that the remote could not be reached a moment ago."""
        self._quiet_until = 0.0

    def _translated(self, error: Exception) -> RemoteError:
        said, kind = _said(error), type(error).__name__
        if re.search(r"NoSuchBucket|ContainerNotFound|bucket does not exist", said):
            return RemoteError(f"the bucket of {self.where} does not exist: create it, or correct {VARIABLE}")
        if re.search(r"169\.254\.169\.254|metadata\.google\.internal|Account must be specified", said):
            return RemoteError(
                f"there are no credentials for {self.where}: set those of the storage, such as AWS_ACCESS_KEY_ID and "
                f"AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS or AZURE_STORAGE_ACCOUNT_NAME ({said})"
            )
        if kind in ("PermissionDeniedError", "UnauthenticatedError") or re.search(
            r"\b40[13] [A-Z]|os error 13\b", said
        ):
            return RemoteError(
                f"access to {self.where} is denied: check the credentials, and that they may read, write and list "
                f"there ({said})"
            )
        if re.search(r"HTTP.{0,40}(URL scheme is not allowed|not allowed)|scheme is not allowed|builder error", said):
            return RemoteError(
                f"{self.where} is not encrypted, and obstore refuses http:// unless AWS_ALLOW_HTTP=true is set ({said})"
            )
        if isinstance(error, FileNotFoundError):
            return _Missing(f"{self.where} has no such file ({said})")
        if re.search(r"\b4\d\d [A-Z]|os error (28|30|122)\b|hardlink|os error (1|95|38)\b", said):
            return RemoteError(f"{self.where} refused a request: {said}")
        return RemoteUnreachable(f"{self.where} cannot be reached: {said}")

    def get(self, key: str) -> bytes | None:
        """Return the content of a small file, or None if there is none."""
        try:
            with self._asking():
                found = self.api.get(self.library, key)
                if found.meta["size"] > MOST_SMALL_BYTES:
                    raise RemoteDamaged(f"{self.where}: {key} has {found.meta['size']:,} bytes, and is not of bardflow")
                return bytes(found.bytes())
        except _Missing:
            return None

    def size(self, key: str) -> int | None:
        """Return the size of a file in bytes, or None if there is none."""
        try:
            with self._asking():
                return int(self.api.head(self.library, key)["size"])
        except _Missing:
            return None

    def put(self, key: str, content: bytes | Path) -> None:
        """Write a file, which is there as a whole or not at all; a large one is sent in parts."""
        chunk = PART
        if isinstance(content, Path):
            size = content.stat().st_size
            chunk = max(PART, -(-size // MOST_PARTS))
            if size <= PART:
                content = content.read_bytes()
        with self._asking():
            self.api.put(self.library, key, content, chunk_size=chunk, max_concurrency=AT_ONCE)

    def create(self, key: str, content: bytes) -> bool:
        """Write a file if there is none (`If-None-Match: *`); return whether this call did."""
        with self._asking():
            try:
                self.api.put(self.library, key, content, mode="create")
            except self.api.exceptions.AlreadyExistsError:
                return False
            return True

    def keys(self, folder: str, after: str | None = None) -> Iterator[tuple[str, int]]:
        """Yield all files below a folder with their sizes in bytes; the list may lack the newest."""
        # Without `chunk_size`, a page of the storage (1,000 files) is one of the iterator.
        with self._asking():
            for page in self.api.list(self.library, folder, offset=after, chunk_size=1000):
                for found in page:
                    yield found["path"], found["size"]

    def download(self, key: str, size: int, path: Path) -> None:
        """Write a file of known size to a path, part by part; each part has retries of its own."""
        with path.open("wb") as file:
            for start in range(0, size, PART):
                try:
                    with self._asking():
                        part = self.api.get_range(self.library, key, start=start, end=min(size, start + PART))
                except _Missing as error:
                    raise RemoteDamaged(f"{self.where}: {key} is missing") from error
                except RemoteError as error:
                    if re.search(r"\b416\b|range|out of bounds", str(error), re.IGNORECASE):
                        raise RemoteDamaged(f"{self.where}: {key} is shorter than its manifest says") from error
                    raise
                file.write(part)

    def unsealed(self, key: str) -> bytes | None:
        """Return the content of a file that begins with its sha256, or None if there is none.

        Raises:
            RemoteDamaged: it does not have its sha256.
        """
        content = self.get(key)
        if content is None:
            return None
        if (found := unsealed(content)) is None:
            raise RemoteDamaged(f"{self.where}: {key} is damaged: it does not have its sha256. {REPAIR}")
        return found

    @contextmanager
    def tolerated(self, doing: str) -> Iterator[None]:
        """Go on if the remote cannot be reached, and say so once."""
        try:
            yield
        except RemoteUnreachable as error:
            if not self._warned:
                LOGGER.warning("%s: %s. Going on with what this home has", doing, error)
            self._warned = True


def _said(error: Exception) -> str:
    """The first line of the library's message, without what may be a signature in an address."""
    first = str(error).partition("\n\nDebug source")[0]
    first = re.sub(r"(https?://[^\s?\"')]*)\?[^\s\"')]*", r"\1", first)
    answer = re.search(r"<\?xml.*?<Code>(.*?)</Code>\s*(?:<Message>(.*?)</Message>)?", first, re.DOTALL)
    if answer is not None:
        first = f"{first[: answer.start()]}{answer[1]} {answer[2] or ''}"
    return " ".join(first.split())[:500]


def at_once(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Call a function for each item in a few threads; the first error is raised after the others have ended."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(work, items))
