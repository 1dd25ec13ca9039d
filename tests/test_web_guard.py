"""The sites and Prefect's API answer no requests that pages of others make, and need a password beyond this machine."""

import base64
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from bardflow.commands.prefect_api import api, make_pool
from bardflow.commands.processes import UpError, require_password
from bardflow.commands.up import server
from bardflow.commands.web import reports_app, writing_app
from bardflow.commands.web_guard import SECURE, guarded
from bardflow.storage.handles import Model
from bardflow.tasks.run import refs
from tests.conftest import serving
from tests.hostile import files_of
from tests.quick import run

SECRET = "correct-horse-battery"
HERE = "http://127.0.0.1:4300"


@pytest.fixture(autouse=True)
def no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)


def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse("done")


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    await socket.close()


ECHO = Starlette(routes=[Route("/", echo, methods=["GET", "POST", "PUT", "DELETE"]), WebSocketRoute("/talk", talk)])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": HERE}, 200),
        ({"Origin": HERE, "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Origin": HERE, "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "anything"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://127.0.0.1:4301"}, 403),
        ({"Origin": "http://localhost:4300"}, 403),
        ({"Origin": "http://127.0.0.1:4300.evil.example"}, 403),
        ({"Origin": "http://evil.example/http://127.0.0.1:4300"}, 403),
        ({"Origin": "127.0.0.1:4300"}, 403),
        ({"Host": "evil.example"}, 400),
        ({"Host": "evil.example:4300", "Origin": "http://evil.example:4300"}, 400),
        ({"Host": "127.0.0.1.evil.example"}, 400),
        ({"Host": ""}, 400),
        ({"Host": "10.0.0.1"}, 400),
        ({"Host": "localhost@evil.example"}, 400),
    ],
)
def test_a_write_comes_from_this_site_or_from_no_page(headers: dict[str, str], status: int) -> None:
    with TestClient(guarded(ECHO, "127.0.0.1"), base_url=HERE) as client:
        for method in ("POST", "PUT", "DELETE"):
            assert client.request(method, "/", headers=headers).status_code == status
        assert client.get("/", headers=headers).status_code == (400 if status == 400 else 200)


@pytest.mark.parametrize("host", ["127.0.0.1:4300", "localhost", "LOCALHOST:1", "[::1]:4300"])
def test_names_of_this_machine_are_served(host: str) -> None:
    with TestClient(guarded(ECHO, "localhost"), base_url=HERE) as client:
        assert client.get("/", headers={"Host": host}).status_code == 200


def test_a_web_socket_is_no_way_around(monkeypatch: pytest.MonkeyPatch) -> None:
    with TestClient(guarded(ECHO, "127.0.0.1"), base_url=HERE) as client:
        with client.websocket_connect("/talk", headers={"Host": "127.0.0.1:4300"}):
            pass
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect("/talk", headers={"Host": "127.0.0.1:4300", "Origin": "http://evil.example"}),
        ):
            pass


@pytest.mark.parametrize(
    "header", ["", "Basic", "Basic bWU6eA==", f"Bearer {SECRET}", "Basic \udcff", SECRET, "basic x"]
)
def test_where_a_password_is_set_each_request_needs_it(header: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", f"me:{SECRET}")
    with TestClient(guarded(ECHO, "0.0.0.0"), base_url="http://machine.example") as client:
        for method in ("GET", "POST", "HEAD", "OPTIONS"):
            given = [("Authorization", header.encode("latin-1", "replace"))] if header else []
            refused = client.request(method, "/", headers=given)
            assert refused.status_code == 401 and "Basic" in refused.headers["WWW-Authenticate"]
            assert "done" not in refused.text
        assert client.get("/", auth=("me", SECRET)).text == "done"
        evil = client.post("/", auth=("me", SECRET), headers={"Origin": "http://evil.example"})
        assert evil.status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "machine.example", "127.0.0.2"])
def test_beyond_this_machine_a_password_is_demanded(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UpError, match="export PREFECT_SERVER_API_AUTH_STRING='NAME:PASSWORD'"):
        require_password(host)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", f"me:{SECRET}")
    require_password(host)
    for wrong in (SECRET, ":x", "me:", "me:\u00e9", "me:a\nb"):
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", wrong)
        with pytest.raises(UpError, match="should be NAME:PASSWORD") as caught:
            require_password("127.0.0.1")
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("command", [["up"], ["report", "--serve"]], ids=" ".join)
def test_commands_do_not_listen_beyond_this_machine_without_a_password(command: list[str], project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bardflow", *command, "--host", "0.0.0.0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "a password is needed" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.faults
def test_prefects_api_has_the_password_and_answers_no_other_site(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real server, as `bard up` and the commands start it; the password is in no file of the home."""
    monkeypatch.setenv("BARDFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", f"me:{SECRET}")
    with server() as url, httpx.Client(base_url=url, trust_env=False, timeout=600) as client:
        port = httpx.URL(url).port

        def status(*, auth: bool = True, **headers: str) -> int:
            # A body without a type: a browser sends it from any page without asking before.
            given: Any = ("me", SECRET) if auth else None
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            return client.post(
                "/admin/database/clear", content=b'{"confirm": false}', headers=sent, auth=given
            ).status_code

        assert status() not in (400, 401, 403)
        assert status(Origin=f"http://localhost:{port}", Sec_Fetch_Site="cross-site") not in (400, 401, 403)
        assert status(auth=False) == 401
        for origin in ("http://evil.example", "null", "http://localhost:1"):
            assert status(Origin=origin) == 403
        assert status(Host="evil.example") == 400
        seen = client.get("/health", headers={"Origin": "http://evil.example"})
        assert "access-control-allow-origin" not in seen.headers
        with api(url) as ours:
            make_pool(ours)
    spellings = (SECRET.encode(), base64.b64encode(f"me:{SECRET}".encode()))
    assert [name for name, data in files_of(tmp_path / "home").items() if any(s in data for s in spellings)] == []


PATHS = [
    "/objects/report/../../../../etc/passwd",
    "/objects/report/%2e%2e%2f%2e%2e/report.html",
    "/objects/report/0/report.html",
    f"/objects/report/{'0' * 64}/report.html",
    f"/objects/report/{'a' * 9_000}/report.html",
    "/objects/report/%00/report.html",
    "/objects/report/*/report.html",
    f"/objects/model/{'0' * 64}/report.html",
    "/home/prefect/prefect.db",
    "/index.html",
    "/refs",
    "/write",
]


@pytest.mark.parametrize("path", PATHS)
def test_the_reports_site_serves_nothing_but_reports(path: str, project: Path) -> None:
    with TestClient(guarded(reports_app(), "127.0.0.1"), base_url=HERE) as client:
        answer = client.get(path)
        assert answer.status_code in (404, 405) and "root:" not in answer.text


BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"<html>",
    "bytes": bytes(range(256)),
    "a list": b"[]",
    "lists within lists": b"[" * 100_000,
    "tables within tables": b'{"prompt": ' + b'{"a": ' * 100_000,
    "a prompt of two megabytes": b'{"prompt": "' + b"a" * 2_000_000 + b'"}',
    "a prompt of 200,000 characters": b'{"prompt": "' + b"a" * 200_000 + b'"}',
    "half of a surrogate pair": b'{"prompt": "\\udcff"}',
    "a prompt that is a number": b'{"prompt": 1}',
    "a million characters": b'{"prompt": "V", "characters": 1000000}',
    "-1 characters": b'{"prompt": "V", "characters": -1}',
    "a temperature of infinity": b'{"prompt": "V", "temperature": 1e999}',
    "a temperature that is no number": b'{"prompt": "V", "temperature": NaN}',
    "a seed of 5,000 digits": b'{"prompt": "V", "seed": ' + b"9" * 5_000 + b"}",
    "no likely tokens": b'{"prompt": "V", "top_k": 0}',
    "2^63 likely tokens": b'{"prompt": "V", "characters": 0, "top_k": 9223372036854775808}',
    "a share of 2": b'{"prompt": "V", "top_p": 2}',
    "a further field": b'{"prompt": "V", "model": "../../x"}',
}


def test_no_request_breaks_the_page_to_write(project: Path, answers: None) -> None:
    run(steps=2)
    head = refs().head("own/champion")
    assert head is not None
    before = files_of(project / "home" / "objects")
    app = guarded(writing_app("own/champion", Model(digest=head.digest)), "127.0.0.1")
    with serving(app) as address, httpx.Client(base_url=address, trust_env=False, timeout=600) as client:
        for name, body in BODIES.items():
            answer = client.post("/write", content=body)
            assert answer.status_code == 422 and answer.json()["error"], name
            assert len(answer.text) < 3_000 and "Traceback" not in answer.text, name
        assert client.post("/write", content=b'{"prompt": "V"}', headers={"Origin": "http://evil"}).status_code == 403
        assert client.get("/write").status_code == 405
        page = client.get("/")
        assert all(page.headers[name] == value for name, value in SECURE.items())
        policy = page.text.split('Content-Security-Policy" content="')[1].split('"')[0]
        assert (
            "default-src 'none'" in policy
            and "base-uri 'none'" in policy
            and "'unsafe-inline'" not in policy.split("script-src")[1]
        )
        written = client.post("/write", json={"prompt": "V", "characters": 5}, headers={"Origin": address})
        assert written.status_code == 200 and len(written.text.splitlines()) >= 1
    assert files_of(project / "home" / "objects") == before
    assert os.environ.get("PREFECT_API_AUTH_STRING") is None
