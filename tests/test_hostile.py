"""Corpus files, recipes, texts, manifests and entries made to do harm: each is a clear error, in bounded time."""

import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bardflow.commands.cli import assignment
from bardflow.errors import BardError
from bardflow.sources.adding import PROPOSED, look
from bardflow.sources.corpora import load_corpus
from bardflow.sources.spec import CorpusSpec, PathSource
from bardflow.storage.handles import Corpus
from bardflow.storage.refs import Refs
from bardflow.storage.store import Store
from bardflow.tasks.recipes import load_recipe
from tests.hostile import files_of, refused
from tests.site import TEXT

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
