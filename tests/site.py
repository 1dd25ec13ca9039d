"""A server on the loopback that answers as scripted, well or badly, and a fetch of its one text."""

import hashlib
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bardflow.sources.fetch import Fetched, HttpSpec, fetch
from bardflow.sources.spec import CorpusSpec, UrlSource

TEXT = b"".join(b"line %d of the text that is served\n" % n for n in range(20_000))
OTHER = TEXT.replace(b"served", b"SERVED")
SHA = hashlib.sha256(TEXT).hexdigest()
# Waits between tries are short. The server's answers are waited for as long as a busy machine may take.
QUICK = HttpSpec(connect_seconds=60, read_seconds=60, attempts=3, first_wait_seconds=0.01, longest_wait_seconds=0.3)

Answer = Callable[[BaseHTTPRequestHandler], None]


class Site:
    """A server that gives the scripted answers in order, and the last one for ever; it notes what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.times: list[float] = []
        self.closing = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.asked.append((self.path, dict(self.headers)))
                site.times.append(time.monotonic())
                answer = site.answers[min(len(site.asked), len(site.answers)) - 1]
                answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """Keep the test's output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/texts/the%20text.txt"

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.asked]


def serving(data: bytes, *, etag: str | None = '"one"', modified: str | None = None) -> Answer:
    """A well-behaved server of one file: conditional requests and ranges, as RFC 9110 has them."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked = request.headers
        if (etag and asked["If-None-Match"] == etag) or (modified and asked["If-Modified-Since"] == modified):
            request.send_response(304)
            request.end_headers()
            return
        start = 0
        if (given := asked["Range"]) and asked["If-Range"] in (etag, modified):
            start = int(given.removeprefix("bytes=").removesuffix("-"))
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            request.send_response(200)
        if etag:
            request.send_header("ETag", etag)
        if modified:
            request.send_header("Last-Modified", modified)
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        request.wfile.write(data[start:])

    return answer


def head(request: BaseHTTPRequestHandler, status: int, **headers: str) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()


def truncated(data: bytes, after: int, *, etag: str = '"one"') -> Answer:
    """Promises all of `data`, sends `after` bytes of it and hangs up."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        head(request, 200, Content_Length=str(len(data)), ETag=etag)
        request.wfile.write(data[:after])
        request.close_connection = True

    return answer


def refusing(status: int, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        head(request, status, Content_Length="0", **headers)

    return answer


def corpus(url: str, sha256: str | None = None, max_bytes: int = 2**31) -> CorpusSpec:
    return CorpusSpec(name="it", title="It", source=UrlSource(url=url, sha256=sha256, max_bytes=max_bytes))


def bring(
    tmp_path: Path,
    spec: CorpusSpec,
    *,
    mirror: str | None = None,
    http: HttpSpec = QUICK,
    progress: Callable[[int, int | None], None] | None = None,
) -> tuple[Fetched, bytes]:
    into = tmp_path / f"into-{time.monotonic_ns()}"
    fetched = fetch(spec, into, downloads=tmp_path / "downloads", mirror=mirror, http=http, progress=progress)
    (file,) = into.iterdir()
    data = file.read_bytes()
    assert [(raw.name, raw.bytes, raw.sha256) for raw in fetched.files] == [
        (file.name, len(data), hashlib.sha256(data).hexdigest())
    ]
    return fetched, data


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
