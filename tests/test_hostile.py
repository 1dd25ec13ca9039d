"""Input made to do harm: each is a clear error, in bounded time, and the store stays as it was."""

import base64
import gzip
import hashlib
import io
import json
import signal
import socket
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bardflow.commands.cli import assignment
from bardflow.errors import BardError
from bardflow.model.networks import build
from bardflow.model.training import load_model, save_model
from bardflow.model.training.pretrained import load_pretrained
from bardflow.model.vocabulary import encode, vocabulary_from_file
from bardflow.sources.adding import PROPOSED, look
from bardflow.sources.corpora import load_corpus
from bardflow.sources.fetch import HttpSpec, fetch
from bardflow.sources.spec import CorpusSpec, PathSource, UrlSource
from bardflow.storage.handles import Corpus
from bardflow.storage.refs import Refs
from bardflow.storage.store import Store
from bardflow.tasks.recipes import load_recipe
from tests.conftest import SMALL_NETWORKS
from tests.site import SHA, TEXT, Site

SECONDS = 10


@contextmanager
def refused(said: str = ".") -> Iterator[None]:
    """What is done within raises an error for users, and takes less than 10 seconds of the processor."""

    def late(*_: object) -> None:
        raise AssertionError(f"this takes more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with pytest.raises(BardError, match=said) as caught:
            yield
        assert 10 < len(str(caught.value)) < 3_000, "an error is read by people"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Servers

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


# TOML

SYNTHETIC = "[source]\nsynthetic = 10\n"
CORPORA: dict[str, bytes] = {
    name: text.encode() if isinstance(text, str) else text
    for name, text in {
        "nothing": "",
        "no TOML": "<html>",
        "bytes": bytes(range(256)),
        "UTF-16": 'title = "It"\n'.encode("utf-16"),
        "a NUL": 'title = "It\0"\n' + SYNTHETIC,
        "half of a surrogate pair": 'title = "\\ud800"\n' + SYNTHETIC,
        "lists within lists": "title = " + "[" * 9_000 + "]" * 900,
        "tables within tables": "title = " + "{a=" * 2_000 + "1" + "}" * 2_000,
        "a key of 4,000 parts": ".".join(["a"] * 4_000) + " = 1",
        "a table of 4,000 parts": "[" + ".".join(["a"] * 4_000) + "]",
        "lines of dotted keys": "\n".join(f"{'a.' * 2_400}b{n} = 1" for n in range(18)),
        "a number of 5,000 digits": "title = " + "9" * 5_000,
        "a number of 9,000 hexadecimal digits": f'title = "It"\n[source]\nsynthetic = 1\nseed = -0x{"f" * 9_000}',
        "a megabyte": "#" * 1_000_000,
        "a long line": 'title = "' + "x" * 20_000 + '"\n' + SYNTHETIC,
        "100 kB of tables": "[[a]]\n" * 16_000,
        "a key of control characters": '"\\u001b[2J" = 1\n' + SYNTHETIC,
        "a field twice": 'title = "a"\ntitle = "b"\n',
        "a source of two kinds": 'title = "a"\n[source]\nsynthetic = 1\npath = "a"\n',
        "a source that is a list": 'title = "a"\nsource = [1]\n',
        "a source that is a date": 'title = "a"\nsource = 1979-05-27\n',
        "a size that is infinite": 'title = "a"\n[source]\nsynthetic = inf\n',
        "a size that is no number": 'title = "a"\n[source]\nsynthetic = nan\n',
        "a negative size": 'title = "a"\n[source]\nsynthetic = -1\n',
        "a name of its own": 'name = "../../etc/passwd"\ntitle = "a"\n' + SYNTHETIC,
        "a file address": 'title = "a"\n[source]\nurl = "file:///etc/passwd"\n',
        "an address with a password": 'title = "a"\n[source]\nurl = "http://a:b@c.d/e"\n',
        "an address with a line end": 'title = "a"\n[source]\nurl = "http://a.b/\\r\\nHost: c"\n',
        "an unknown step": 'title = "a"\ncleaning = ["__import__"]\n' + SYNTHETIC,
        "steps that are tables": 'title = "a"\ncleaning = [{a = 1}]\n' + SYNTHETIC,
        "an encoding that is a path": 'title = "a"\nencoding = "../../x"\n' + SYNTHETIC,
        "an encoding with a NUL": 'title = "a"\nencoding = "a\\u0000b"\n' + SYNTHETIC,
        "an encoding that runs a codec": 'title = "a"\nencoding = "zlib"\n' + SYNTHETIC,
        "a language in prose": 'title = "a"\nlanguage = "en\\n# title"\n' + SYNTHETIC,
        "a heading that is none": 'title = "a"\n[documents]\ncut = "heading"\nheading = "("\n' + SYNTHETIC,
        "a heading that fills the memory": (
            'title = "a"\n[documents]\ncut = "heading"\nheading = "((a{999}){999}){999}"\n' + SYNTHETIC
        ),
        "a heading of 9,000 characters": (
            f'title = "a"\n[documents]\ncut = "heading"\nheading = "{"a" * 9_000}"\n' + SYNTHETIC
        ),
        "a delimiter of two characters": (
            'title = "a"\n[source]\npath = "a"\n[rows]\nformat = "csv"\ndelimiter = "ab"\n'
        ),
        "rows of code": 'title = "a"\n[source]\npath = "a"\n[rows]\nformat = "pickle"\n',
        "a share of 2": 'title = "a"\n[split]\nvalidation = 2\n' + SYNTHETIC,
        "a share as text": 'title = "a"\n[split]\nvalidation = "__class__"\n' + SYNTHETIC,
        "a mixture of itself": 'title = "a"\n[[mixture]]\ncorpus = "it"\n',
        "a mixture of a path": 'title = "a"\n[[mixture]]\ncorpus = "../../it"\n',
        "a mixture without end": 'title = "a"\n[[mixture]]\ncorpus = "a"\nweight = inf\n',
        "a mixture of 2,000 unknown corpora": 'title = "a"\n'
        + "".join(f'[[mixture]]\ncorpus = "a{n}"\n' for n in range(2_000)),
        "fields in fields": 'title = "a"\n[rows.format]\na = 1\n[split.by]\nb = 1\n' + SYNTHETIC,
        "a published score of nothing": 'title = "a"\n[[published]]\nname = ""\nbits_per_character = nan\n' + SYNTHETIC,
    }.items()
}


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_file_made_to_do_harm(name: str, tmp_path: Path) -> None:
    (tmp_path / "it.toml").write_bytes(CORPORA[name])
    with refused(r"it\.toml"):
        load_corpus("it", tmp_path)


RECIPES = {
    "no TOML": "{}",
    "lists within lists": "layers = " + "[" * 5_000,
    "a number of 5,000 digits": "[gpt]\nlayers = " + "9" * 5_000,
    "a million layers": "[gpt]\nlayers = 1000000\n",
    "a width of 2^60": "[gpt]\nwidth = 1152921504606846976\n",
    "a context that is infinite": "[gpt]\ncontext = inf\n",
    "no steps": "[training]\nsteps = 0\n",
    "a rate that is no number": "[training]\nlearning_rate = nan\n",
    "an unknown section": "[__class__]\na = 1\n",
    "an unknown field": "[gpt]\n__init__ = 1\n",
    "a section that is a text": 'gpt = "modern"\n',
    "a description that is a list": "description = [1]\n",
    "a vocabulary of no kind": "[vocabulary]\nkind = 'pickle'\n",
    "a megabyte": "#" * 1_000_000,
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_made_to_do_harm(name: str, project: Path) -> None:
    (project / "recipes").mkdir()
    (project / "recipes" / "it.toml").write_text(RECIPES[name])
    with refused(r"it\.toml"):
        load_recipe("it")


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "it.toml")
    with refused("not a regular file"):
        load_corpus("it", tmp_path)


@given(
    st.text(max_size=60), st.sampled_from(["", 'title = "a"\n', 'title = "a"\n[source]\n', "[source]\nsynthetic = "])
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_corpus_file_or_an_error(tmp_path: Path, text: str, start: str) -> None:
    (tmp_path / "it.toml").write_bytes((start + text).encode(errors="replace"))
    with suppress(BardError):
        load_corpus("it", tmp_path)


@pytest.mark.parametrize("value", ["9" * 5_000, "[" * 100_000, "{" * 9, "nan", "\ud800", "1e999", ""])
def test_a_field_on_the_command_line_is_json_or_text(value: str) -> None:
    assert assignment(f"steps={value}")[0] == "steps"


# Texts


def zipped(members: dict[str, bytes], **more: Any) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for field, value in more.items():
                setattr(info, field, value)
            archive.writestr(info, data)
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("a.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return out.getvalue()


DEEP = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
LONG = b'{"text": "a", "n": ' + b"9" * 5_000 + b"}"
TEXTS: dict[str, tuple[bytes, str | None]] = {
    "a member above the archive": (zipped({"../../evil.txt": b"text"}), None),
    "a member at the root": (zipped({"/etc/evil.txt": b"text"}), None),
    "a member on a drive": (zipped({"C:\\evil.txt": b"text"}), None),
    "a member above by backslashes": (zipped({"a\\..\\..\\evil.txt": b"text"}), None),
    "an archive without files": (zipped({"a/": b""}), None),
    "a tar with a link": (tarred(), None),
    "an archive with its end cut off": (zipped({"a.txt": b"text" * 999})[:-30], None),
    "an archive of an archive": (zipped({"a.zip": zipped({"b.txt": b"text"})}), None),
    "a bomb": (zipped({"a.txt": b"a" * (40 << 20)}), None),
    "a bomb of a gzip": (gzip.compress(b"a" * (1 << 20), mtime=0) * 64, None),
    "a gzip that is cut": (gzip.compress(TEXT)[:-9], None),
    "a gzip with another sum": (gzip.compress(TEXT)[:-8] + b"\0" * 8, None),
    "an xz of nothing": (b"\xfd7zXZ\x00" + b"\0" * 99, None),
    "a bzip2 of nothing": (b"BZh9" + b"\0" * 99, None),
    "a zstd of nothing": (b"\x28\xb5\x2f\xfd" + b"\xff" * 99, None),
    "a program": (b"\x7fELF" + bytes(range(256)) * 9, None),
    "NUL characters": (b"text\0text\n" * 9, None),
    "nothing": (b"", None),
    "blanks": (b" \n" * 999, None),
    "JSON within JSON": (DEEP, "json"),
    "a list within lists": (b"[" * 100_000, "json"),
    "a number of 5,000 digits": (b"[" + LONG + b"]", "json"),
    "half of a surrogate pair": (b'[{"text": "\\ud800"}]', "json"),
    "two lists": (b'{"a": [{"text": "x"}], "b": [{"text": "y"}]}', "json"),
    "no rows of objects": (b"[1, 2, 3]", "json"),
    "text after the end": (b'[{"text": "x"}] and more', "json"),
    "a line within lines": (DEEP + b"\n", "jsonl"),
    "a line with a number of 5,000 digits": (LONG + b"\n", "jsonl"),
    "a column that is a number": (b'{"text": 1}\n', "jsonl"),
    "a Parquet file of nothing": (b"PAR1" + b"\0" * 99 + b"PAR1", "parquet"),
    "a Parquet file with a footer of 2 GB": (b"PAR1" + b"\0" * 9 + b"\xff\xff\xff\x7fPAR1", "parquet"),
    "columns of one name": (b"text,text\na,b\n", "csv"),
    "an open quotation mark": (b'n,text\n1,"' + b"a\n" * 99, "csv"),
    "a page within pages": (b"<!DOCTYPE html><html>" + b"<div>" * 600_000, "html"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_made_to_do_harm(name: str, tmp_path: Path) -> None:
    data, form = TEXTS[name]
    (tmp_path / "it.txt").write_bytes(data)
    spec = CorpusSpec(name="it", title="It", source=PathSource(path="it.txt"))
    with refused():
        look(spec, project=tmp_path, downloads=tmp_path / "d", mirror=None, propose=PROPOSED, form=form)
    assert [path.name for path in tmp_path.iterdir()] == ["it.txt"]
    assert not list(tmp_path.parent.rglob("evil*"))


# Tokenizers and models


def bpe() -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    return document


def changed(document: dict[str, Any], place: str, value: Any) -> str:
    *path, last = place.split(".")
    within = document
    for name in path:
        within = within[name]
    within[last] = value
    return json.dumps(document)


SHORT_TABLE = base64.b64encode(b"\xff\xff\xff\xffshort").decode()
ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
TOKENIZERS: dict[str, str] = {
    "nothing": "",
    "no JSON": "<html>",
    "a list": "[]",
    "lists within lists": "[" * 100_000,
    "tables within tables": '{"a":' * 100_000,
    "an unknown version": changed(bpe(), "version", "9.9"),
    "an id of 2^32 - 1": changed(bpe(), "model.vocab.a", 2**32 - 1),
    "an id of 2^24": changed(bpe(), "model.vocab.a", 2**24),
    "an id of 31 digits": changed(bpe(), "model.vocab.a", 10**30),
    "an id of 5,000 digits": changed(bpe(), "model.vocab.a", 0).replace('"a": 0', '"a": ' + "9" * 5_000),
    "a negative id": changed(bpe(), "model.vocab.a", -1),
    "an id as a text": changed(bpe(), "model.vocab.a", "__class__"),
    "one id for two tokens": changed(bpe(), "model.vocab.a", 1),
    "no tokens": changed(bpe(), "model", {"type": "BPE", "vocab": {}, "merges": []}),
    "a merge of unknown tokens": changed(bpe(), "model.merges", [["a", "zz"]]),
    "an unknown model": changed(bpe(), "model.type", "Pickle"),
    "tokens drawn at random": changed(bpe(), "model.dropout", 0.5),
    "added tokens that are none": changed(bpe(), "added_tokens", None),
    "an added token of id 2^32 - 1": changed(bpe(), "added_tokens", [{"id": 2**32 - 1, "content": "x", **ADDED}]),
    "an expression that is none": changed(
        bpe(), "pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}
    ),
    "a table that is empty": changed(bpe(), "normalizer", {"type": "Precompiled", "precompiled_charsmap": ""}),
    "a table that is too short": changed(
        bpe(), "normalizer", {"type": "Precompiled", "precompiled_charsmap": SHORT_TABLE}
    ),
    "a short table within a sequence": changed(
        bpe(),
        "normalizer",
        {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": SHORT_TABLE}]},
    ),
    "a decoder that cuts beyond the end": changed(
        bpe(), "decoder", {"type": "Strip", "content": "a", "start": 10**18, "stop": 10**18}
    ),
    "a decoder that joins": changed(bpe(), "decoder", {"type": "Metaspace", "replacement": "a", "split": True}),
    "an unknown token that is none": changed(bpe(), "model.unk_token", "[gone]"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_made_to_do_harm(name: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(TOKENIZERS[name])
    with refused():
        list(encode(vocabulary_from_file(tmp_path / "tokenizer.json"), ["abc é\n"]))


CONFIGS: dict[str, dict[str, Any] | str] = {
    "nothing": "",
    "a list": "[]",
    "lists within lists": "[" * 100_000,
    "a number of 5,000 digits": '{"model_type": "nanochat", "vocab_size": ' + "9" * 5_000 + "}",
    "an unknown kind": {"model_type": "__import__"},
    "a kind that is a list": {"model_type": []},
    "2^40 layers": {"num_hidden_layers": 2**40},
    "2^24 layers": {"num_hidden_layers": 2**24},
    "200 layers of width 16,384": {"num_hidden_layers": 200, "hidden_size": 16_384, "intermediate_size": 65_536},
    "no layers": {"num_hidden_layers": 0},
    "2^24 tokens": {"vocab_size": 2**24},
    "2^60 tokens": {"vocab_size": 2**60},
    "no tokens": {"vocab_size": 0},
    "-1 tokens": {"vocab_size": -1},
    "a text of tokens": {"vocab_size": "many"},
    "a list of tokens": {"vocab_size": [1]},
    "tokens without end": {"vocab_size": float("inf")},
    "heads of no width": {"num_attention_heads": 1_000},
    "a context of 2^40": {"max_position_embeddings": 2**40},
    "code of its own": {"model_type": "custom", "auto_map": {"AutoModel": "evil.py"}},
}


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(build(SMALL_NETWORKS[0], 11), folder)
    return folder


def copied(folder: Path, into: Path) -> Path:
    for path in folder.iterdir():
        (into / path.name).write_bytes(path.read_bytes())
    return into


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_made_to_do_harm(name: str, small_model: Path, tmp_path: Path) -> None:
    folder, config = copied(small_model, tmp_path), CONFIGS[name]
    if isinstance(config, dict):
        config = json.dumps(json.loads((folder / "config.json").read_text()) | config)
    (folder / "config.json").write_text(config)
    for load in (load_model, load_pretrained):
        with refused():
            load(folder)


def header(table: dict[str, Any] | bytes, *, size: int | None = None, data: bytes = b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
WEIGHTS: dict[str, bytes] = {
    "nothing": b"",
    "7 bytes": b"\0" * 7,
    "zeros": b"\0" * 99_999,
    "a header of 2^64 - 1 bytes": header({}, size=2**64 - 1) + b"\0" * 99_999,
    "a header of 2^40 bytes": header({}, size=2**40) + b"\0" * 99_999,
    "a header that is no JSON": header(b"<html>") + b"\0" * 99_999,
    "lists within lists": header(b"[" * 99_999),
    "a tensor beyond the end": header({"a": F32 | {"data_offsets": [0, 2**40]}}, data=b"\0" * 99_999),
    "a tensor before the start": header({"a": F32 | {"data_offsets": [-8, 8]}}, data=b"\0" * 99_999),
    "a tensor from end to start": header({"a": F32 | {"data_offsets": [8, 0]}}, data=b"\0" * 99_999),
    "tensors over each other": header({"a": F32, "b": F32}, data=b"\0" * 99_999),
    "a shape that overflows": header({"a": F32 | {"shape": [2**40, 2**40]}}, data=b"\0" * 99_999),
    "an unknown type": header({"a": F32 | {"dtype": "PICKLE"}}, data=b"\0" * 99_999),
    "a pickle": b"\x80\x04cos\nsystem\n" + b"\0" * 99_999,
    "other tensors": header({"a": F32}, data=b"\0" * 8) + b"\0" * 0,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_made_to_do_harm(name: str, small_model: Path, tmp_path: Path) -> None:
    folder = copied(small_model, tmp_path)
    (folder / "model.safetensors").write_bytes(WEIGHTS[name])
    for load in (load_model, load_pretrained):
        with refused():
            load(folder)


@pytest.mark.parametrize("names", [["../../etc/passwd"], ["/etc/passwd"], ["gone"], [1], [[]], {}, None, "x"])
def test_an_index_of_weights_leads_to_no_other_folder(names: Any, small_model: Path, tmp_path: Path) -> None:
    folder = copied(small_model, tmp_path)
    (folder / "model.safetensors").unlink()
    weights = {str(n): name for n, name in enumerate(names)} if isinstance(names, list) else names
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    with refused():
        load_pretrained(folder)


# The store

GOOD_MANIFEST: dict[str, Any] = {"facts": {}, "files": {}, "kind": "corpus", "layout": 1}
MANIFESTS: dict[str, bytes] = {
    name: content if isinstance(content, bytes) else json.dumps(content).encode()
    for name, content in {
        "nothing": b"",
        "no JSON": b"<html>",
        "bytes": bytes(range(256)),
        "a list": [],
        "lists within lists": b"[" * 100_000,
        "facts within facts": b'{"facts": ' + b'{"a": ' * 100_000,
        "no files": {"facts": {}, "kind": "corpus", "layout": 1},
        "a further field": GOOD_MANIFEST | {"exec": "rm"},
        "a file that is a list": GOOD_MANIFEST | {"files": {"a": []}},
        "a size that is infinite": GOOD_MANIFEST | {"files": {"a": {"bytes": float("inf"), "sha256": ""}}},
        "a layout in letters": GOOD_MANIFEST | {"layout": "one"},
    }.items()
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_made_to_do_harm(name: str, store: Store) -> None:
    """Its digest is right, as in a home that was brought from elsewhere."""
    handle = Corpus(digest=hashlib.sha256(MANIFESTS[name]).hexdigest())
    store.place(handle).mkdir(parents=True)
    (store.place(handle) / "manifest.json").write_bytes(MANIFESTS[name])
    assert store.damage(handle) is not None
    for read in (store.manifest, store.facts, store.origin):
        with refused():
            read(handle)


@pytest.mark.parametrize("file", ["../../../secret", "/etc/passwd", "a/../../../../secret"])
def test_a_manifest_reads_no_file_outside_of_its_folder(file: str, store: Store) -> None:
    (store.root.parent / "secret").write_text("secret")
    content = json.dumps(GOOD_MANIFEST | {"files": {file: {"bytes": 6, "sha256": "0" * 64}}}).encode()
    handle = Corpus(digest=hashlib.sha256(content).hexdigest())
    store.place(handle).mkdir(parents=True)
    (store.place(handle) / "manifest.json").write_bytes(content)
    (store.place(handle) / "origin.json").write_text("{}")
    assert "damaged" in str(store.damage(handle))


ENTRY: dict[str, Any] = {
    **{"number": 1, "kind": "corpus", "digest": "0" * 64, "at": "2026-01-01", "by": "me", "why": "it", "notes": {}}
}
ENTRIES: dict[str, bytes] = {
    name: content if isinstance(content, bytes) else json.dumps(content).encode()
    for name, content in {
        "nothing": b"",
        "no JSON": b"<html>",
        "a list": [],
        "lists within lists": b"[" * 100_000,
        "notes within notes": b'{"notes": ' + b'{"a": ' * 100_000,
        "an unknown kind": ENTRY | {"kind": "__class__"},
        "a digest that is a path": ENTRY | {"digest": "../../../../etc"},
        "a digest that is too short": ENTRY | {"digest": "0"},
        "a number in letters": ENTRY | {"number": "first"},
        "a further field": ENTRY | {"exec": "rm"},
    }.items()
}


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_of_a_name_made_to_do_harm(name: str, store: Store) -> None:
    refs = Refs(store.root)
    (refs.folder / "it" / "champion").mkdir(parents=True)
    (refs.folder / "it" / "champion" / "000001.json").write_bytes(ENTRIES[name])
    before = files_of(store.root)
    with refused(r"000001\.json"):
        entry = refs.head("it/champion")
        assert entry is not None
        store.folder(entry.handle)
    assert files_of(store.root) == before
