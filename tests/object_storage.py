"""A real server of the S3 protocol on loopback, and a proxy before it that fails as networks and storages do."""

import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# What the library reads; the server asks for no credentials, and the library signs every request.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
    "AWS_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}
BUCKET = "bard"


@dataclass
class Storage:
    """The server: its address, and the folder of the bucket, where each object is a file."""

    url: str
    bucket: Path

    def environment(self, prefix: str, url: str | None = None) -> dict[str, str]:
        """The variables of a process whose home has a remote here."""
        return CREDENTIALS | {"BARDFLOW_REMOTE": f"s3://{BUCKET}/{prefix}", "AWS_ENDPOINT": url or self.url}


@contextmanager
def running_storage(folder: Path) -> Iterator[Storage]:
    """Start localbucket, which honours `If-None-Match: *` by a hard link."""
    bucket = folder / BUCKET
    bucket.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("localbucket")
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        process = subprocess.Popen([program, str(folder), "--port", str(port)], stdout=log, stderr=log)
    try:
        while True:
            assert process.poll() is None, "the server ended"
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        yield Storage(f"http://127.0.0.1:{port}", bucket)
    finally:
        process.terminate()
        process.wait()


@dataclass
class Asked:
    """A request as it came to the proxy: the key is the path without the bucket."""

    method: str
    key: str
    query: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """What the proxy answers; `cut` closes the connection after so many bytes of the body, `pause` waits."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    cut: int | None = None
    pause: float = 0.0


# Gets a request and what passes it on to the server; None closes the connection without an answer.
Fault = Callable[[Asked, Callable[[], Answer]], Answer | None]


@dataclass
class Proxy:
    """A proxy before the server, with a fault that may be changed; counts requests, and bytes of their bodies."""

    url: str
    fault: Fault | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def requests(self) -> int:
        """The number of requests so far."""
        return len(self.asked)


@contextmanager
def proxy_before(storage: Storage) -> Iterator[Proxy]:
    """Run a proxy before the server, on a port of its own."""
    host = storage.url.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def handle_any(self) -> None:
            path, _, query = self.path.partition("?")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            key = path.removeprefix(f"/{BUCKET}").lstrip("/")
            asked = Asked(self.command, key, query, dict(self.headers), body)
            kind = "LIST" if "list-type" in query else self.command
            with lock:
                proxy.asked.append((kind, key))
                proxy.counts[kind] += 1
                proxy.counts["sent"] += len(body)

            def passed_on() -> Answer:
                connection = http.client.HTTPConnection(host, timeout=60)
                connection.request(self.command, self.path, asked.body, asked.headers)
                there = connection.getresponse()
                content = there.read()
                kept = [(n, v) for n, v in there.getheaders() if n.lower() not in ("transfer-encoding", "connection")]
                connection.close()
                return Answer(there.status, kept, content)

            answer = passed_on() if proxy.fault is None else proxy.fault(asked, passed_on)
            if answer is None:
                self.close_connection = True
                return
            with lock:
                proxy.counts["received"] += len(answer.body)
            self.send_response_only(answer.status)
            length = any(name.lower() == "content-length" for name, _ in answer.headers)
            for name, value in answer.headers:
                self.send_header(name, value)
            if not length:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            content = answer.body if answer.cut is None else answer.body[: answer.cut]
            if answer.pause:
                for start in range(0, len(content), 1 + len(content) // 8):
                    self.wfile.write(content[start : start + 1 + len(content) // 8])
                    self.wfile.flush()
                    time.sleep(answer.pause)
            else:
                self.wfile.write(content)
            if answer.cut is not None:
                self.close_connection = True

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    lock = threading.Lock()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *args: None  # type: ignore[method-assign]  # clients close connections
    proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def unavailable(times: int) -> Fault:
    """503 for the first requests."""
    left = [times]

    def fault(asked: Asked, passed_on: Callable[[], Answer]) -> Answer | None:
        if left[0] > 0:
            left[0] -= 1
            return Answer(503, [], b"<Error><Code>SlowDown</Code></Error>")
        return passed_on()

    return fault


def first_few(method: str, pattern: str, times: int) -> Callable[[Asked], bool]:
    """Whether a request is one of the first with this method and a key that matches."""
    left = [times]

    def met(asked: Asked) -> bool:
        matches = asked.method == method and re.search(pattern, asked.key) is not None and left[0] > 0
        left[0] -= matches
        return matches

    return met


def cut_half_way(pattern: str, times: int) -> Fault:
    """The connection ends in the middle of the first answers for keys that match."""
    met = first_few("GET", pattern, times)

    def fault(asked: Asked, passed_on: Callable[[], Answer]) -> Answer | None:
        answer = passed_on()
        if met(asked):
            answer.cut = len(answer.body) // 2
        return answer

    return fault


def answer_lost(pattern: str, times: int) -> Fault:
    """The server does what it is told, and the connection ends before the answer, for the first matching writes."""
    met = first_few("PUT", pattern, times)

    def fault(asked: Asked, passed_on: Callable[[], Answer]) -> Answer | None:
        answer = passed_on()
        return None if met(asked) else answer

    return fault


def unconditional(asked: Asked, passed_on: Callable[[], Answer]) -> Answer | None:
    """A storage that ignores conditions, as `rclone serve s3` 1.75 does."""
    asked.headers = {name: value for name, value in asked.headers.items() if name.lower() != "if-none-match"}
    return passed_on()


def stale_list(hidden: str) -> Fault:
    """A list that lacks the keys that match."""

    def fault(asked: Asked, passed_on: Callable[[], Answer]) -> Answer | None:
        answer = passed_on()
        if "list-type" in asked.query:
            entries = re.findall(rb"<Contents>.*?</Contents>", answer.body, re.DOTALL)
            for entry in entries:
                if re.search(hidden.encode(), entry):
                    answer.body = answer.body.replace(entry, b"")
            answer.headers = [(n, v) for n, v in answer.headers if n.lower() != "content-length"]
        return answer

    return fault


def denied(asked: Asked, passed_on: Callable[[], Answer]) -> Answer | None:
    """A storage that refuses the credentials."""
    return Answer(403, [], b"<Error><Code>AccessDenied</Code></Error>")


def slow(seconds: float) -> Fault:
    """Answers that come in pieces, with a pause after each."""

    def fault(asked: Asked, passed_on: Callable[[], Answer]) -> Answer | None:
        answer = passed_on()
        answer.pause = seconds
        return answer

    return fault


def with_remote(monkeypatch: Any, storage: Storage, prefix: str, url: str | None = None) -> None:
    """Set the variables of this process."""
    for name, value in storage.environment(prefix, url).items():
        monkeypatch.setenv(name, value)
    os.environ.pop("AWS_ENDPOINT_URL", None)
