"""Servers that lie: each is a clear error, in bounded time, and the store stays as it was."""

import gzip
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bardflow.errors import BardError
from bardflow.sources.fetch import HttpSpec, fetch
from bardflow.sources.spec import CorpusSpec, UrlSource
from bardflow.storage.store import Store
from tests.hostile import refused
from tests.site import SHA, TEXT, Site

GZIPPED = gzip.compress(TEXT)
OK = b"HTTP/1.1 200 OK\r\n"
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\nonly this"
ANSWERS: dict[str, bytes] = {
    "nothing": b"",
    "another protocol": b"SSH-2.0-OpenSSH_9.9\r\n",
    "half a status line": b"HTTP/1.1 2",
    "an unknown version": b"HTTP/9.9 200 OK\r\n\r\n",
    "a status in letters": b"HTTP/1.1 two OK\r\n\r\n",
    "a status of five digits": b"HTTP/1.1 20000 OK\r\n\r\n",
    "status 0": b"HTTP/1.1 000 Nought\r\n\r\n",
    "a header without a colon": OK + b"Content-Length 5\r\n\r\n",
    "a header with a NUL": OK + b"ETag: \0\r\n\r\n",
    "a header of a megabyte": OK + b"X: " + b"x" * (1 << 20) + b"\r\n\r\n",
    "100,000 headers": OK + b"X: x\r\n" * 100_000 + b"\r\n",
    "20,000 answers before the answer": b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
    "a negative length": OK + b"Content-Length: -5\r\n\r\n",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
    "a length of 5,000 digits": OK + b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\n12345",
    "a length as a float": OK + b"Content-Length: 1e3\r\n\r\n12345",
    "a length that is too great": CUT,
    "a length and chunks": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n",
    "an unknown transfer": OK + b"Transfer-Encoding: gzip\r\n\r\n12345",
    "a chunk without a size": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n12345\r\n",
    "a chunk of 2^80 bytes": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\n12345",
    "chunks without an end": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
    "another protocol by agreement": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: it\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "a part that nobody asked for": b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-4/5\r\n\r\n12345",
    "a range of 5,000 digits": b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-4/"
    + b"9" * 5000
    + b"\r\n\r\n12345",
    "not modified since never": b"HTTP/1.1 304 Not Modified\r\n\r\n",
    "an empty file": OK + b"Content-Length: 0\r\n\r\n",
    "a page to log in": OK + b"Content-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
    "no gzip though it says so": OK + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\n12345",
    "half of a gzip": OK + b"Content-Encoding: gzip\r\nContent-Length: 50\r\n\r\n" + GZIPPED[:50],
    "an unknown encoding": OK + b"Content-Encoding: it\r\nContent-Length: 5\r\n\r\n12345",
    "brotli": OK + b"Content-Encoding: br\r\nContent-Length: 5\r\n\r\n12345",
    "zstd": OK + b"Content-Encoding: zstd\r\nContent-Length: 5\r\n\r\n12345",
    "gzip within gzip": OK + b"Content-Encoding: gzip, gzip\r\n\r\n" + gzip.compress(GZIPPED),
    "a gzip of a gigabyte": OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"a" * (1 << 20)) * 1_024,
    "a redirect to nowhere": b"HTTP/1.1 302 Found\r\n\r\n",
    **{
        f"a redirect to {to[:30]!r}": b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + to + b"\r\n\r\n"
        for to in (
            *(
                b"ftp://127.0.0.1/a",
                b"file:///etc/passwd",
                b"data:,text",
                b"javascript:alert(1)",
                b"http://[::1",
                b"//",
            ),
            *(
                b"http:///a",
                b"http://a..b/",
                b"http://" + b"a" * 64 + b".invalid/",
                b"http://127.0.0.1:99999/",
                b"\xff\xfe",
            ),
            *(
                b"http://me:secret@127.0.0.1:1/",
                b"http://127.0.0.1:1/",
                b"/" + b"a" * 60_000,
                b"https:",
                b"http://%00/",
                b"?",
            ),
            *(
                b"http://169.254.169.254:1/latest/meta-data/",
                b"unix:///run/docker.sock",
                b"http://localhost:1/",
                b"http://.../",
            ),
        )
    },
    **{
        f"busy until {until[:20]!r}": b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nRetry-After: " + until + b"\r\n\r\n"
        for until in (
            *(b"9" * 400, b"-1", b"nan", b"inf", b"Thu, 01 Jan 99999999999999 00:00:00 GMT", b"\xb2", b"soon", b","),
            *(b"Fri, 31 Dec 9999 23:59:59 -2359", b"Mon, 99 Foo 0 99:99:99 GMT", b"Mon, 01 Jan 0001 00:00:00 +2359"),
        )
    },
    **{
        f"status {status}": b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status
        for status in (300, 400, 401, 403, 404, 407, 410, 418, 429, 451, 500, 502, 504, 599, 999)
    },
}
IMPATIENT = HttpSpec(
    connect_seconds=20,
    read_seconds=1,
    answer_seconds=1,
    total_seconds=60,
    least_bytes=1_000,
    attempts=2,
    first_wait_seconds=0.01,
    longest_wait_seconds=0.02,
)


def raw(data: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        with suppress(OSError):
            request.wfile.write(data)

    return answer


def endless(data: bytes, start: bytes = b"") -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        try:
            request.wfile.write(start)
            while True:
                request.wfile.write(data * 1_000)
        except OSError:
            pass

    return answer


def reset(data: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """Sends some bytes and ends the connection with a reset."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        request.wfile.write(data)
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.connection.close()

    return answer


LIARS: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {
    **{name: raw(data) for name, data in ANSWERS.items()},
    "an endless body": endless(b"text" * 1_000, OK + b"\r\n"),
    "endless chunks": endless(b"5\r\n12345\r\n", OK + b"Transfer-Encoding: chunked\r\n\r\n"),
    "an endless header": endless(b"x", OK + b"X: "),
    "endless headers": endless(b"X: x\r\n", OK),
    "endless answers before the answer": endless(b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "a reset at once": reset(b""),
    "a reset within the headers": reset(OK),
    "a reset within the body": reset(CUT),
}


@pytest.mark.parametrize("name", LIARS)
def test_a_server_that_lies(name: str, site: Site, store: Store) -> None:
    site.answers = [LIARS[name]]
    source = UrlSource(url=site.url, sha256=SHA, max_bytes=100_000)
    spec = CorpusSpec(name="it", title="It", source=source)
    with refused(), store.draft() as draft:
        fetch(spec, draft.folder / "raw", downloads=store.root / "downloads", mirror=None, http=IMPATIENT)
    assert not any(store.handles()) and not any(store.drafts.iterdir())
    assert len(site.asked) <= 22


def test_redirects_that_never_repeat_end(site: Site, tmp_path: Path) -> None:
    def further(request: BaseHTTPRequestHandler) -> None:
        start = b"HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\nLocation: "
        raw(start + request.path.encode() + b"0\r\n\r\n")(request)

    site.answers = [further]
    with refused("redirects more than 10 times"):
        fetch_from(site, tmp_path, IMPATIENT)
    assert len(site.asked) == 11


def fetch_from(site: Site, folder: Path, http: HttpSpec) -> None:
    spec = CorpusSpec(name="it", title="It", source=UrlSource(url=site.url, max_bytes=100_000))
    into = folder / f"into-{len(site.asked)}"
    fetch(spec, into, downloads=folder / "downloads", mirror=None, http=http)


HEADERS = st.dictionaries(
    st.sampled_from(
        ["ETag", "Last-Modified", "Content-Range", "Content-Type", "Retry-After", "Location", "Set-Cookie"]
    ),
    st.binary(max_size=12).filter(lambda value: not set(value) & set(b"\r\n\0")),
)


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([200, 206, 302, 304, 416, 503]), HEADERS, st.binary(max_size=20), st.booleans())
def test_any_answer_gives_a_file_or_an_error(status: int, headers: dict[str, bytes], body: bytes, whole: bool) -> None:
    """Twice, because the second request repeats what the first answer said of the file."""
    import tempfile

    lines = [b"HTTP/1.1 %d It" % status, *(name.encode() + b": " + value for name, value in headers.items())]
    lines.append(b"Content-Length: %d" % (len(body) + (not whole)))
    site = Site()
    site.answers = [raw(b"\r\n".join(lines) + b"\r\n\r\n" + body)]
    with tempfile.TemporaryDirectory() as folder:
        try:
            for _ in range(2):
                with suppress(BardError):
                    fetch_from(site, Path(folder), IMPATIENT.model_copy(update={"attempts": 1}))
        finally:
            site.close()
