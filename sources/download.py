"""Downloads over HTTP: streamed, retried, resumed, with conditional requests and a check of the sha256."""

import netrc
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

import httpx
from pydantic import BaseModel, ConfigDict, Field
from tenacity import RetryCallState, Retrying, retry_if_exception_type

from bardflow.sources.addresses import Connections, http_address, masked, without_password
from bardflow.sources.download_folder import DownloadFolder, Record, Validators, sha256_of, write_atomically
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


class _Later(Exception):
    """A failed attempt that may be retried."""

    def __init__(self, cause: str, *, wait_seconds: float | None, gained: bool) -> None:
        super().__init__(cause)
        self.wait_seconds = wait_seconds
        self.gained = gained


def kept_download(url: str, target: Path, downloads: Path, sha256: str) -> Download | None:
    """Copy the file with this sha256 to `target` if it was downloaded before, without a network request."""
    folder = DownloadFolder(downloads, url)
    if not folder.path.is_dir():
        return None
    with folder.held():
        return _kept(folder, target, sha256)


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
    folder = DownloadFolder(downloads, url)
    with folder.held():
        if sha256 is not None and (kept := _kept(folder, target, sha256)) is not None:
            return kept
        # A file whose sha256 is not the pinned one is downloaded again, with an unconditional request.
        known = folder.record() if sha256 is None else None
        transfer = _Transfer(url, folder, known, max_bytes, http, progress, password, own)
        arrived = transfer.run()
        if known is not None and not arrived:
            return _given(folder, known, target, transferred=False, why=_not_modified(known))
        got = sha256_of(folder.part)
        if sha256 is not None and got != sha256 and transfer.resumed:
            # The partial file may be the start of another version.
            folder.drop_part()
            transfer.run()
            got = sha256_of(folder.part)
        if sha256 is not None and got != sha256:
            size = folder.part_bytes()
            folder.drop_part()
            raise ChecksumError.of(url, pinned=sha256, got=got, size=size)
        record = folder.keep(url, got)
        again = ", the same as before" if known is not None and known.sha256 == got else ""
        return _given(folder, record, target, transferred=True, why=f"fetched {record.bytes:,} bytes{again}")


def _kept(folder: DownloadFolder, target: Path, sha256: str) -> Download | None:
    record = folder.record()
    if record is None or record.sha256 != sha256:
        return None
    return _given(folder, record, target, transferred=False, why="the pinned sha256 is already here")


def _given(folder: DownloadFolder, record: Record, target: Path, *, transferred: bool, why: str) -> Download:
    # A copy, not a hard link: damage to one must not damage the other.
    shutil.copyfile(folder.body(record.sha256), target)
    return Download(record.url, record.bytes, record.sha256, transferred, why)


class _Transfer:
    """A download with retries; afterwards the partial file is complete, unless the server answers "not modified"."""

    def __init__(
        self,
        url: str,
        folder: DownloadFolder,
        known: Record | None,
        max_bytes: int,
        http: HttpSpec,
        progress: Progress | None,
        password: tuple[str, str] | None,
        own: bool,
    ) -> None:
        self._url = url
        self._folder = folder
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
        start = self._folder.part_bytes()
        validator = self._folder.validators().strong
        if start and validator is None:
            self._folder.drop_part()
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
            gained = self._folder.part_bytes() > before and self._folder.validators().strong is not None
            cause = "the server did not answer in time" if connections.was_cut else _cause(error)
            raise _Later(cause, wait_seconds=None, gained=gained) from error
        finally:
            late.cancel()

    def _accept(self, response: httpx.Response, start: int) -> int:
        """Return the file offset of the response's first byte. Raises an error if the response is not usable."""
        status = response.status_code
        if status == httpx.codes.OK:
            self._folder.drop_part()
            if (encoding := _encoding(response)) not in ("", "identity", *_BOUNDED_ENCODINGS):
                raise FetchError(f"{self._url}: the server sent the file compressed as {encoding[:40]!r}, unasked")
            if not _encoded(response):
                write_atomically(self._folder.validators_path, _named(response).model_dump_json())
            return 0
        if status == httpx.codes.PARTIAL_CONTENT and start:
            kept, named = self._folder.validators(), _named(response)
            changed = any(
                then is not None and now is not None and then != now
                for then, now in ((kept.etag, named.etag), (kept.last_modified, named.last_modified))
            )
            if changed or _encoded(response) or _content_range(response)[0] != start:
                self._folder.drop_part()
                raise _Later("the server went on with another file than it began with", wait_seconds=0, gained=False)
            self.resumed = True
            return start
        if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            self._folder.drop_part()
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
        with self._folder.part.open("ab" if start else "wb") as file:
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
            self._folder.drop_part()
            raise CorpusError(
                f"{self._url} has {size:,} bytes or more, and max_bytes = {self._max_bytes:,} allows fewer. "
                "Raise source.max_bytes if that is the file you want."
            )


def _conditional(known: Record | None) -> dict[str, str]:
    headers = {}
    if known is not None and known.etag is not None:
        headers["If-None-Match"] = known.etag
    if known is not None and known.last_modified is not None:
        headers["If-Modified-Since"] = known.last_modified
    return headers


def _resuming(start: int, validator: str) -> dict[str, str]:
    return {"Range": f"bytes={start}-", "If-Range": validator}


def _named(response: httpx.Response) -> Validators:
    """The validators of a response, without those that could not be sent back: with other characters than ASCII."""
    etag, modified = (value if (value := response.headers.get(name, "")).isascii() else "" for name in _VALIDATORS)
    return Validators(etag=etag or None, last_modified=modified or None)


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


def _not_modified(known: Record) -> str:
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
