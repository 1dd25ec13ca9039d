"""Which addresses are read, and that passwords in them are stored and shown nowhere."""

import base64
import contextlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bardflow.errors import BardError
from bardflow.sources.addresses import checked_address, is_private, masked
from bardflow.sources.download import FetchError, HttpSpec
from bardflow.sources.fetch import fetch
from bardflow.sources.spec import CorpusError, CorpusSpec, DatasetSource, UrlSource
from tests.site import QUICK, SHA, TEXT, Site, bring, corpus, head, refusing, serving

SECRET = "correct-horse-battery"


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.1.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.9.9", "192.168.1.1", "100.64.0.1"),
        *(
            "169.254.169.254",
            "169.254.1.1",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "224.0.0.1",
            "240.0.0.1",
        ),
        *("255.255.255.255", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
        *("2002:7f00:1::", "2002:a00:1::1", "ff02::1", "2001:db8::1", "64:ff9b:1::1", "fec0::1"),
    ],
)
def test_an_address_of_this_network_is_private(address: str) -> None:
    assert is_private(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "140.82.121.4", "::ffff:8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_an_address_of_the_internet_is_not_private(address: str) -> None:
    assert not is_private(address)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "localhost",
            "LOCALHOST",
            "localhost.",
            "127.1",
            "127.0.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
        ),
        *("017700000001", "0.0.0.0", "0", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "127.0.0.1."),
    ],
)
def test_a_spelling_or_a_name_of_this_machine_is_refused_before_a_byte_is_sent(
    host: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BARDFLOW_ALLOW_PRIVATE_ADDRESSES")
    site.answers = [serving(TEXT)]
    port = site.server.server_address[1]
    with pytest.raises(BardError) as caught:
        bring(tmp_path, corpus(f"http://{host}:{port}/text.txt"))
    assert site.asked == []
    # Some spellings are no host at all on some systems. The others are named as private.
    assert "private address" in str(caught.value) or "ConnectError" in str(caught.value), caught.value


def test_a_private_address_says_how_to_allow_it(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BARDFLOW_ALLOW_PRIVATE_ADDRESSES")
    site.answers = [serving(TEXT)]
    with pytest.raises(FetchError, match=r"BARDFLOW_ALLOW_PRIVATE_ADDRESSES=1.*CORPORA_MIRROR"):
        bring(tmp_path, corpus(site.url))
    monkeypatch.setenv("BARDFLOW_ALLOW_PRIVATE_ADDRESSES", "1")
    assert bring(tmp_path, corpus(site.url))[1] == TEXT


def test_the_mirror_may_be_private_and_what_it_redirects_to_may_not(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BARDFLOW_ALLOW_PRIVATE_ADDRESSES")
    port = site.server.server_address[1]
    spec, mirror = corpus("https://texts.invalid/a.txt"), f"http://127.0.0.1:{port}"
    site.answers = [refusing(302, Location="/moved.txt"), serving(TEXT)]
    assert bring(tmp_path, spec, mirror=mirror)[1] == TEXT
    site.answers, site.asked = [refusing(302, Location=f"http://localhost:{port}/secret"), serving(OTHER_SERVICE)], []
    with pytest.raises(FetchError, match=r"localhost is 127\.0\.0\.1, which is a private address"):
        bring(tmp_path, corpus("https://texts.invalid/b.txt"), mirror=mirror)
    assert [path for path, _ in site.asked] == ["/it/b.txt"]


OTHER_SERVICE = b"settings of this machine"


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "0x7f000001"])
def test_a_proxy_is_not_asked_for_a_private_address(
    name: str, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BARDFLOW_ALLOW_PRIVATE_ADDRESSES")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{site.server.server_address[1]}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    site.answers = [serving(TEXT)]
    with pytest.raises(FetchError, match="private address"):
        bring(tmp_path, corpus(f"http://{name}:9/text.txt"))
    assert site.asked == []
    # What the user's proxy says of a public address is taken.
    assert bring(tmp_path, corpus("http://1.1.1.1/text.txt"))[1] == TEXT


@pytest.mark.parametrize(
    "url",
    [
        *(
            "ftp://a.b/c",
            "file:///etc/passwd",
            "//a.b/c",
            "a.b/c",
            "http://",
            "http:///c",
            "https://",
            "",
            "javascript:1",
        ),
        *("http://a b/c", "http://a.b/c d", "http://a.b/\n", "http://[::1/c", "http://a.b:99999/", "http://a.b:x/"),
        *(
            "http://a..b/c",
            f"http://{'a' * 64}.org/",
            f"http://a.b/{'c' * 9000}",
            "http://\x00.b/",
            "http://xn--a/\ud800",
        ),
        *(
            "data:text/plain,a",
            "gopher://a.b/",
            "unix:///tmp/socket",
            "http://%zz/",
            "http://0177.0.0.1/",
            "http://１２７.0.0.1/",
            "http://.",
            "hf://a/b",
            "http://@/",
        ),
    ],
)
def test_what_is_not_an_http_address_is_refused(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        UrlSource(url=url)
    assert all(mistake["type"] == "value_error" for mistake in caught.value.errors())


@pytest.mark.parametrize(
    "url",
    [
        f"https://me:{SECRET}@a.b/c",
        f"https://{SECRET}@a.b/c",
        f"https://a.b/c?token={SECRET}",
        f"https://a.b/c?page=1&access_token={SECRET}",
        f"https://a.b/c?API-Key={SECRET}",
        f"https://a.b/c?X-Amz-Signature={SECRET}",
        f"https://a.b/c?X-Amz-Security-Token={SECRET}",
        f"https://a.b/c?sv=1&sig={SECRET}",
        f"https://a.b/c?password={SECRET}#part",
        f"https://me:{SECRET}@a..b/c",
        f"https://me:{SECRET}@[::1/c",
    ],
)
def test_an_address_with_a_password_is_refused_without_repeating_it(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as caught:
        UrlSource(url=url)
    assert SECRET not in str(caught.value)
    assert SECRET not in masked(url)
    with pytest.raises(CorpusError) as refused:
        fetch(
            CorpusSpec(name="it", title="It", source=DatasetSource(dataset="text", data_files=url)),
            tmp_path / "into",
            downloads=tmp_path / "downloads",
            mirror=None,
        )
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "file", ["s3://bucket/a", "file:///etc/passwd", "ftp://a.b/c", "zip://a::https://a.b/c", "http://127.0.0.1:1/a"]
)
def test_a_file_of_a_dataset_is_on_the_web_or_a_path(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BARDFLOW_ALLOW_PRIVATE_ADDRESSES")
    spec = CorpusSpec(name="it", title="It", source=DatasetSource(dataset="text", data_files=file))
    with pytest.raises(CorpusError, match=r"source\.data_files"):
        fetch(spec, tmp_path / "into", downloads=tmp_path / "downloads", mirror=None)


@given(st.text(max_size=40), st.sampled_from(["", "http://", "https://", "http://a.b/", "https://a.b?"]))
def test_any_text_is_an_address_or_a_value_error(text: str, start: str) -> None:
    with contextlib.suppress(ValueError):
        assert checked_address(start + text) == start + text


@given(st.from_regex(r"[a-z]{0,8}", fullmatch=True), st.from_regex(r"[^\s/?#@:]{12,20}", fullmatch=True))
def test_a_masked_text_has_no_password(user: str, password: str) -> None:
    assert password not in masked(f"see http://{user}:{password}@host/path?a=1 and https://{password}@host")


def test_a_password_of_netrc_is_used_and_sent_to_no_other_host(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    port = site.server.server_address[1]
    site.answers = [refusing(302, Location=f"http://localhost:{port}/there"), serving(TEXT)]
    assert bring(tmp_path, corpus(site.url))[1] == TEXT
    assert [headers.get("Authorization", "")[:6] for _, headers in site.asked] == ["Basic ", ""]
    netrc.write_text(f"machin 127.0.0.1 {SECRET}")
    with pytest.raises(FetchError, match="netrc, which has the passwords") as caught:
        bring(tmp_path, corpus(site.url))
    assert SECRET not in str(caught.value)


def guarded(request: BaseHTTPRequestHandler) -> None:
    """Asks for a password, repeats it in the answer's headers, and redirects once to a signed address."""
    if "Authorization" not in request.headers:
        head(request, 401, Content_Length="0")
    elif "sig=" not in request.path:
        head(request, 302, Location=f"{request.path}?sig={SECRET}", Content_Length="0")
    else:
        serving(TEXT)(request)


# Runs commands in turn in one process: each is its environment, its arguments and its exit status.
COMMANDS = """
import json, os, sys
from bardflow.commands.cli import main
for changes, arguments, status in json.loads(sys.argv[1]):
    os.environ.update(changes)
    sys.argv = ["bard", *arguments]
    try:
        main()
    except SystemExit as end:
        assert (end.code or 0) == status, (arguments[-1], end.code)
"""


@pytest.mark.slow
def test_a_password_is_in_no_file_and_no_output(project: Path, site: Site) -> None:
    """Those of a mirror, of ~/.netrc and of a refused corpus file, in the project, its home and what commands say."""
    port = site.server.server_address[1]
    netrc = project.parent / "netrc"  # outside the folder that is searched
    netrc.write_text(f"machine localhost login me password {SECRET}\n")
    netrc.chmod(0o600)
    site.answers = [guarded]
    mirror, gone = f"http://me:{SECRET}@127.0.0.1:{port}/texts", f"http://127.0.0.1:{port}"
    bad = project / "corpora" / "bad.toml"
    bad.write_text(f'title = "Bad"\n[source]\nurl = "http://me:{SECRET}@a.b/c"\n')
    added = [
        (mirror, "https://texts.invalid/a.txt", 0),
        ("", f"http://localhost:{port}/b.txt", 0),
        ("", f"http://me:{SECRET}@localhost:{port}/c.txt", 1),
        ("", f"http://127.0.0.1:{port}/d.txt", 1),
        (f"http://me:{SECRET}@127.0.0.1:1/texts", f"{gone}/e.txt", 1),
        (f"http://me:{SECRET}@127.0.0.1:x/texts", f"{gone}/f.txt", 1),
        (f"ftp://me:{SECRET}@127.0.0.1:1/texts", f"{gone}/g.txt", 1),
    ]
    commands = [
        ({"CORPORA_MIRROR": mirror}, ["corpus", "add", f"c{number}", "--from", address], status)
        for number, (mirror, address, status) in enumerate(added)
    ]
    commands.append(({}, ["corpus", "list"], 0))
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        env={**os.environ, "NETRC": str(netrc), "PREFECT_LOGGING_LEVEL": "DEBUG"},
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    bad.unlink()
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert said.count("could not be fetched") == 3, said
    spellings = (SECRET, base64.b64encode(f"me:{SECRET}".encode()).decode())
    assert not any(secret in said for secret in spellings)
    files = [path for path in project.rglob("*") if path.is_file()]
    assert len([path for path in files if path.name.startswith("body-")]) == 2
    assert [path for path in files if any(secret.encode() in path.read_bytes() for secret in spellings)] == []


def slowly(data: bytes, closing: threading.Event, after: bytes = b"") -> object:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(after)
        for n in range(len(data)):
            if closing.wait(0.05):
                return
            try:
                request.wfile.write(data[n : n + 1])
            except OSError:
                break
        request.close_connection = True

    return answer


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_trickle_is_no_answer(part: str, site: Site, tmp_path: Path) -> None:
    start = b"HTTP/1.1 200 OK\r\nContent-Length: 700000\r\n\r\n" if part == "body" else b""
    site.answers = [slowly(b"X" * 700_000, site.closing, start)]  # type: ignore[list-item]
    http = HttpSpec(
        connect_seconds=60, read_seconds=0.4, answer_seconds=0.4, attempts=2, first_wait_seconds=0, least_bytes=1_000
    )
    said = "only [0-9]+ bytes came" if part == "body" else "did not answer in time"
    with pytest.raises(FetchError, match=said):
        bring(tmp_path, corpus(site.url), http=http)
    assert len(site.asked) == 2


def test_a_download_ends_after_its_total_time(site: Site, tmp_path: Path) -> None:
    site.answers = [slowly(TEXT, site.closing, b'HTTP/1.1 200 OK\r\nETag: "one"\r\nContent-Length: 700000\r\n\r\n')]  # type: ignore[list-item]
    http = QUICK.model_copy(update={"total_seconds": 0.5})
    with pytest.raises(FetchError, match="took more than 0 s"):
        bring(tmp_path, corpus(site.url), http=http)
    # What came is kept, and the next download goes on from there.
    site.answers = [serving(TEXT)]
    assert bring(tmp_path, corpus(site.url, SHA))[1] == TEXT
    assert site.ranges()[-1] is not None
