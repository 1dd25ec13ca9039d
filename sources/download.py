"""Downloads over HTTP: streamed, retried, resumed, with conditional requests and a check of the sha256."""

import hashlib
import netrc
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

import httpx
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tenacity import RetryCallState, Retrying, retry_if_exception_type

from bardflow.sources.addresses import Connections, http_address, masked, without_password
from bardflow.sources.spec import CorpusError

Progress = Callable[[int, int | None], None]

# HTTP statuses that are retried.
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
_MOST_REDIRECTS = 10
_VALIDATORS = ("ETag", "Last-Modified")
# Encodings of a body that expand a block of the network at most 1,032 times. A block of brotli or zstd, or of two
# encodings over each other, can expand to terabytes in memory. All are refused by Accept-Encoding.
_BOUNDED_ENCODINGS = ("gzip", "x-gzip", "deflate")


class FetchError(CorpusError):
    """The source cannot be reached or does not have the file."""


class ChecksumError(CorpusError):
    """The downloaded file does not have the pinned sha256."""

    @classmethod
    def of(cls, address: str, *, pinned: str, got: str, size: int) -> "ChecksumError":
        return cls(
            f"{address} does not hold the text that is pinned: its sha256 is {got} ({size:,} bytes), and the corpus "
            f"pins {pinned}. If the new text is wanted, put its sha256 into the corpus's file, or take the pin out."
        )


class HttpSpec(BaseModel):
    """Limits of time, in seconds, and retries of a download; `attempts` limits attempts in a row without new bytes.

    `connect_seconds` and `read_seconds` are for one operation on the network, `answer_seconds` for the head of the
    answer with all redirects, and `total_seconds` for the download with all attempts. A body has to bring
    `least_bytes` in each `read_seconds`, by default 1 kB a second.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    connect_seconds: float = Field(default=10, gt=0)
    read_seconds: float = Field(default=30, gt=0)
    answer_seconds: float = Field(default=120, gt=0)
    total_seconds: float = Field(default=24 * 3600, gt=0)
    least_bytes: int = Field(default=30_000, ge=0)
    attempts: int = Field(default=4, gt=0)
    first_wait_seconds: float = Field(default=0.5, ge=0)
    longest_wait_seconds: float = Field(default=60, ge=0)


class Download(NamedTuple):
    """A complete file, and how it was downloaded."""

    address: str
    bytes: int
    sha256: str
    transferred: bool
    why: str


class _Record(BaseModel):
    """The record of a complete file, written last: its address, size, sha256 and validators."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    bytes: int
    sha256: str
    etag: str | None
    last_modified: str | None
    fetched_at: str


class _Validators(BaseModel):
    """The server's validators of the file (RFC 9110, section 8.8)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    etag: str | None = None
    last_modified: str | None = None

    @property
    def strong(self) -> str | None:
        """The value for If-Range: a strong ETag, else the date. A weak ETag does not guarantee equal bytes."""
        if self.etag is not None and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified if self.etag is None else None


class _Later(Exception):
    """A failed attempt that may be retried."""

    def __init__(self, cause: str, *, wait_seconds: float | None, gained: bool) -> None:
        super().__init__(cause)
        self.wait_seconds = wait_seconds
        self.gained = gained


class _Cell:
    """The folder of one address in `downloads`: the complete file, its record, and a partial file."""

    def __init__(self, downloads: Path, url: str) -> None:
        self.folder = downloads / hashlib.sha256(url.encode()).hexdigest()[:32]
        self.part = self.folder / "part"
        self.record_path = self.folder / "record.json"
        self.validators_path = self.folder / "part.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder; the kernel releases the lock when the process ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock"):
            yield

    def body(self, sha256: str) -> Path:
        return self.folder / f"body-{sha256}"

    def record(self) -> _Record | None:
        """The record of the complete file, or None if there is none or its hash differs."""
        try:
            record = _Record.model_validate_json(self.record_path.read_bytes())
            return record if _sha256(self.body(record.sha256)) == record.sha256 else None
        except (FileNotFoundError, ValidationError):
            return None

    def part_bytes(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def validators(self) -> _Validators:
        try:
            return _Validators.model_validate_json(self.validators_path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return _Validators()

    def drop_part(self) -> None:
        self.validators_path.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)

    def keep(self, url: str, sha256: str) -> _Record:
        """Make the partial file the complete file: fsync, rename, then the record."""
        validators = self.validators()
        record = _Record(
            url=url,
            bytes=self.part_bytes(),
            sha256=sha256,
            etag=validators.etag,
            last_modified=validators.last_modified,
            fetched_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with self.part.open("rb+") as file:
            os.fsync(file.fileno())
        self.part.replace(self.body(sha256))
        _write(self.record_path, record.model_dump_json())
        self.validators_path.unlink(missing_ok=True)
        for old in self.folder.glob("body-*"):
            if old != self.body(sha256):
                old.unlink()
        return record


def kept_download(url: str, target: Path, downloads: Path, sha256: str) -> Download | None:
    """Copy the file with this sha256 to `target` if it was downloaded before, without a network request."""
    cell = _Cell(downloads, url)
    if not cell.folder.is_dir():
        return None
    with cell.held():
        return _kept(cell, target, sha256)


def download(
    url: str,
    target: Path,
    downloads: Path,
    sha256: str | None,
    max_bytes: int,
    http: HttpSpec,
    progress: Progress | None,
    *,
    own: bool = False,
) -> Download:
    """Download `url` into `downloads` and copy it to `target`.

    A file in `downloads` is downloaded again only if it changed; a partial file is resumed if the server has the same
    version. `own` says that the user chose the server, so it may have a private address. A user name and password are
    used and stored nowhere.
    Raises FetchError (unreachable, refused, gone, at a private address), ChecksumError (the sha256 differs, also after
    one fresh try if the download was resumed) and CorpusError (more than `max_bytes`).
    """
    try:
        url, password = without_password(url)
    except ValueError as error:
        raise FetchError(f"{masked(url)} {error}") from error
    cell = _Cell(downloads, url)
    with cell.held():
        if sha256 is not None and (kept := _kept(cell, target, sha256)) is not None:
            return kept
        # A file whose sha256 is not the pinned one is downloaded again, with an unconditional request.
        known = cell.record() if sha256 is None else None
        transfer = _Transfer(url, cell, known, max_bytes, http, progress, password, own)
        arrived = transfer.run()
        if known is not None and not arrived:
            return _given(cell, known, target, transferred=False, why=_not_modified(known))
        got = _sha256(cell.part)
        if sha256 is not None and got != sha256 and transfer.resumed:
            # The partial file may be the start of another version.
            cell.drop_part()
            transfer.run()
            got = _sha256(cell.part)
        if sha256 is not None and got != sha256:
            size = cell.part_bytes()
            cell.drop_part()
            raise ChecksumError.of(url, pinned=sha256, got=got, size=size)
        record = cell.keep(url, got)
        again = ", the same as before" if known is not None and known.sha256 == got else ""
        return _given(cell, record, target, transferred=True, why=f"fetched {record.bytes:,} bytes{again}")


def _kept(cell: _Cell, target: Path, sha256: str) -> Download | None:
    record = cell.record()
    if record is None or record.sha256 != sha256:
        return None
    return _given(cell, record, target, transferred=False, why="the pinned sha256 is already here")


def _given(cell: _Cell, record: _Record, target: Path, *, transferred: bool, why: str) -> Download:
    # A copy, not a hard link: damage to one must not damage the other.
    shutil.copyfile(cell.body(record.sha256), target)
    return Download(record.url, record.bytes, record.sha256, transferred, why)


class _Transfer:
    """A download with retries; afterwards the partial file is complete, unless the server answers "not modified"."""

    def __init__(
        self,
        url: str,
        cell: _Cell,
        known: _Record | None,
        max_bytes: int,
        http: HttpSpec,
        progress: Progress | None,
        password: tuple[str, str] | None,
        own: bool,
    ) -> None:
        self._url = url
        self._cell = cell
        self._known = known
        self._max_bytes = max_bytes
        self._http = http
        self._progress = progress
        self._password = password
        self._own = http_address(url).raw_host.decode("ascii") if own else None
        self._fruitless = 0
        self._deadline = 0.0
        self.resumed = False

    def run(self) -> bool:
        """Return True if the partial file is complete now, False if the known file is unchanged."""
        self.resumed = False
        self._fruitless = 0
        began = time.monotonic()
        self._deadline = began + self._http.total_seconds
        timeout = httpx.Timeout(self._http.read_seconds, connect=self._http.connect_seconds)
        # A compressed transfer cannot be resumed.
        headers = {"Accept-Encoding": "identity", "User-Agent": "bardflow"}
        retrying = Retrying(retry=retry_if_exception_type(_Later), stop=self._gives_up, wait=self._pause, reraise=True)
        try:
            with httpx.Client(
                auth=self._password or _passwords(),
                timeout=timeout,
                headers=headers,
                follow_redirects=True,
                max_redirects=_MOST_REDIRECTS,
            ) as client:
                return bool(retrying(self._attempt, client))
        except _Later as error:
            tries = self._http.attempts
            raise FetchError(
                f"{self._url}: {error} ({tries} {'try' if tries == 1 else 'tries in a row'} brought nothing, "
                f"{time.monotonic() - began:.0f} s)"
            ) from error

    def _gives_up(self, _: RetryCallState) -> bool:
        return self._fruitless >= self._http.attempts

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome and state.outcome.exception()
        asked = error.wait_seconds if isinstance(error, _Later) else None
        wait = self._http.first_wait_seconds * 2 ** max(0, self._fruitless - 1) if asked is None else asked
        return min(wait, self._http.longest_wait_seconds)

    def _attempt(self, client: httpx.Client) -> bool:
        try:
            self._check_time(time.monotonic())
            return self._try(client)
        except _Later as later:
            self._fruitless = 0 if later.gained else self._fruitless + 1
            raise

    def _try(self, client: httpx.Client) -> bool:
        start = self._cell.part_bytes()
        validator = self._cell.validators().strong
        if start and validator is None:
            self._cell.drop_part()
            start = 0
        headers = _resuming(start, validator) if start and validator else _conditional(self._known)
        before = start
        connections = Connections(self._own)
        client.event_hooks = {"request": [connections.check_request]}
        late = threading.Timer(self._http.answer_seconds, connections.cut)
        late.daemon = True
        late.start()
        try:
            with client.stream("GET", self._url, headers=headers, extensions={"trace": connections.trace}) as response:
                late.cancel()
                if response.status_code == httpx.codes.NOT_MODIFIED and self._known is not None:
                    return False
                start = self._accept(response, start)
                self._receive(response, start)
                return True
        except httpx.TooManyRedirects as error:
            raise FetchError(f"{self._url}: the server redirects more than {_MOST_REDIRECTS} times") from error
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, ValueError, OverflowError) as error:
            # ValueError: of `Connections`, or a host name that Python's socket refuses.
            raise FetchError(f"{self._url}: {_cause(error)}") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            gained = self._cell.part_bytes() > before and self._cell.validators().strong is not None
            cause = "the server did not answer in time" if connections.was_cut else _cause(error)
            raise _Later(cause, wait_seconds=None, gained=gained) from error
        finally:
            late.cancel()

    def _accept(self, response: httpx.Response, start: int) -> int:
        """Return the file offset of the response's first byte. Raises an error if the response is not usable."""
        status = response.status_code
        if status == httpx.codes.OK:
            self._cell.drop_part()
            if (encoding := _encoding(response)) not in ("", "identity", *_BOUNDED_ENCODINGS):
                raise FetchError(f"{self._url}: the server sent the file compressed as {encoding[:40]!r}, unasked")
            if not _encoded(response):
                _write(self._cell.validators_path, _named(response).model_dump_json())
            return 0
        if status == httpx.codes.PARTIAL_CONTENT and start:
            kept, named = self._cell.validators(), _named(response)
            changed = any(
                then is not None and now is not None and then != now
                for then, now in ((kept.etag, named.etag), (kept.last_modified, named.last_modified))
            )
            if changed or _encoded(response) or _content_range(response)[0] != start:
                self._cell.drop_part()
                raise _Later("the server went on with another file than it began with", wait_seconds=0, gained=False)
            self.resumed = True
            return start
        if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            self._cell.drop_part()
            raise _Later("the server refused to go on with the file", wait_seconds=0, gained=False)
        answer = f"the server answered {status} {response.reason_phrase}".rstrip()
        if status in _LATER:
            raise _Later(answer, wait_seconds=_retry_after(response), gained=False)
        raise FetchError(f"{self._url}: {answer}")

    def _receive(self, response: httpx.Response, start: int) -> None:
        """Write the response's bytes at `start`; raises _Later if they end too early."""
        encoded = _encoded(response)
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if re.fullmatch("[0-9]{1,18}", length) and not encoded else None
        if response.status_code == httpx.codes.PARTIAL_CONTENT:
            total = _content_range(response)[1] or total
        self._check_size(total or 0)
        size = counted = start
        since = time.monotonic()
        with self._cell.part.open("ab" if start else "wb") as file:
            for chunk in response.iter_bytes() if encoded else response.iter_raw():
                size += file.write(chunk)
                self._check_size(size)
                now = time.monotonic()
                self._check_time(now)
                if now - since >= self._http.read_seconds:
                    if size - counted < self._http.least_bytes:
                        raise _Later(
                            f"only {size - counted:,} bytes came in {now - since:.0f} s",
                            wait_seconds=None,
                            gained=False,
                        )
                    since, counted = now, size
                if self._progress is not None:
                    self._progress(size, total)
        if total is not None and size != total:
            raise _Later(f"{size:,} of {total:,} bytes came", wait_seconds=None, gained=size > start)

    def _check_time(self, now: float) -> None:
        if now > self._deadline:
            raise FetchError(
                f"{self._url}: the download took more than {self._http.total_seconds:,.0f} s. What came is kept, if "
                "the server can resume: run it again"
            )

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            self._cell.drop_part()
            raise CorpusError(
                f"{self._url} has {size:,} bytes or more, and max_bytes = {self._max_bytes:,} allows fewer. "
                "Raise source.max_bytes if that is the file you want."
            )


def _conditional(known: _Record | None) -> dict[str, str]:
    headers = {}
    if known is not None and known.etag is not None:
        headers["If-None-Match"] = known.etag
    if known is not None and known.last_modified is not None:
        headers["If-Modified-Since"] = known.last_modified
    return headers


def _resuming(start: int, validator: str) -> dict[str, str]:
    return {"Range": f"bytes={start}-", "If-Range": validator}


def _named(response: httpx.Response) -> _Validators:
    """The validators of a response, without those that could not be sent back: with other characters than ASCII."""
    etag, modified = (value if (value := response.headers.get(name, "")).isascii() else "" for name in _VALIDATORS)
    return _Validators(etag=etag or None, last_modified=modified or None)


def _encoding(response: httpx.Response) -> str:
    return str(response.headers.get("Content-Encoding", "")).strip().lower()


def _encoded(response: httpx.Response) -> bool:
    return _encoding(response) not in ("", "identity")


def _content_range(response: httpx.Response) -> tuple[int | None, int | None]:
    """First byte and total length from `Content-Range: bytes 5-9/10`; None if missing."""
    match = re.fullmatch(
        r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", response.headers.get("Content-Range", "").strip()
    )
    if match is None:
        return None, None
    first, whole = match.groups()
    return int(first), None if whole == "*" else int(whole)


def _retry_after(response: httpx.Response) -> float | None:
    """The seconds in the Retry-After header (RFC 9110, section 10.2.3: a number or a date), or None."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]{1,18}", value):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _passwords() -> httpx.Auth | None:
    """The user names and passwords in the file that NETRC names, else in ~/.netrc, by host.

    Raises FetchError if the file cannot be read; the message repeats no line of it.
    """
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    if not file.is_file():
        return None
    try:
        return httpx.NetRCAuth(str(file))
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError):
        raise FetchError(
            f"{file}, which has the passwords of web servers, cannot be read; correct or rename it"
        ) from None


def _not_modified(known: _Record) -> str:
    by = "ETag" if known.etag is not None else "Last-Modified"
    return f"not modified since {known.fetched_at} ({by})"


def _cause(error: Exception) -> str:
    kinds: dict[type[Exception], str] = {
        httpx.ConnectTimeout: "no connection in time",
        httpx.ReadTimeout: "the server fell silent",
        httpx.RemoteProtocolError: "the connection broke off",
    }
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        return str(error)
    kind = kinds.get(type(error), type(error).__name__)
    return f"{kind}: {error}" if str(error) else kind


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, text: str) -> None:
    """Write a small file atomically."""
    draft = path.with_suffix(".draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
