"""Damage of every kind in every kind of file of a home: found, never served, and repaired to the same bytes."""

import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import prefect
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from bardflow.commands import cli
from bardflow.commands.prefect_database import ensure_database
from bardflow.commands.web import reports_app
from bardflow.errors import BardError
from bardflow.storage.backup import restore
from bardflow.storage.handles import KINDS, Corpus, Handle
from bardflow.storage.manifests import ObjectMissing, StoreError
from bardflow.storage.verifying import repaired, verify
from bardflow.tasks.recipes import Overrides
from bardflow.tasks.run import refs, store
from bardflow.tasks.searching import TO_THE_END, Range, Search
from tests.conftest import make_project, own_text, served_by
from tests.quick import run
from tests.site import Site, bring, corpus
from tests.site import serving as answering

# Folders and files whose bytes are the same after a repair; stamps are not, and Prefect's database changes.
LASTING = ("objects", "refs", "prefect/results", "searches", "copies", "downloads", "layout.json")


def searched() -> Search:
    """The journal of a search in the home, which may have trials."""
    text = next(handle for handle in store().handles() if isinstance(handle, Corpus))
    return Search(text, "tiny", Overrides(), {"learning_rate": Range(low=1e-4, high=1e-2, log=True)}, 1)


@contextmanager
def at_home(project: Path) -> Iterator[Path]:
    """Let this process use the project, with Prefect's results where `bard` has them; yields the home."""
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    home = project / "home"
    with (
        pytest.MonkeyPatch.context() as patch,
        temporary_settings({PREFECT_LOCAL_STORAGE_PATH: home / "prefect" / "results"}),
    ):
        patch.setenv("BARDFLOW_PROJECT", str(project))
        patch.setenv("BARDFLOW_HOME", str(home))
        patch.delenv("CORPORA_MIRROR", raising=False)
        yield home


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Iterator[Path]:
    """A project after two runs, with a download, a database, a stamp and two champions."""
    site = Site()
    site.answers = [answering(own_text().encode())]
    project = make_project(tmp_path_factory.mktemp("trained") / "project")
    ensure_database(project / "home" / "prefect" / "prefect.db", prefect.__version__)
    described = project / "corpora" / "own.toml"
    described.write_text(described.read_text().replace('path = "texts/own.txt"', f'url = "{site.url}"'))
    with at_home(project), pytest.MonkeyPatch.context() as patch:
        run()
        patch.setattr("bardflow.storage.checking.SETTLED_NS", -(10**12))  # the files are only seconds old
        run(steps=40, leg_steps=20)
        search = searched()
        for trial in search.trials(2):
            search.fields(trial)
            search.end(trial, 2.5 - trial.number / 10, 10, TO_THE_END)
    yield project
    site.close()


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the trained project at another path; yields its home."""
    shutil.copytree(trained, tmp_path / "project")
    with at_home(tmp_path / "project") as home:
        # The copies of the files have other inodes, so their stamps are made again.
        shutil.rmtree(home / "stamps")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bardflow.storage.checking.SETTLED_NS", -(10**12))
            for handle in store().handles():
                store().folder(handle)
        yield home


def bytes_of(home: Path) -> dict[str, str]:
    """The sha256 of each lasting file of a home; of a cached result's value, because the file has the home's path."""
    files = [path for top in LASTING for path in [home / top, *(home / top).rglob("*")] if path.is_file()]
    found = {}
    for path in files:
        content = path.read_bytes()
        if path.parent.name == "results":
            if path.parent.parent.parent.name == "copies":
                content = content.partition(b"\n")[2]
            value = json.loads(content)
            content = str(value["result"] if "metadata" in value else value).encode()
        found[path.relative_to(home).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def kinds_of_files(home: Path) -> dict[str, Path]:
    """One file of each kind of a home."""
    found: dict[str, Path] = {}
    for kind in KINDS:
        place = sorted((home / "objects" / kind).iterdir())[-1]
        data = [path for path in sorted(place.rglob("*")) if path.is_file() and path.parent.name != "drafts"]
        found[f"data of {kind}"] = max(data, key=lambda path: path.stat().st_size)
    others = sorted((home / "objects" / "checkpoint").iterdir())
    return found | {
        "manifest": others[0] / "manifest.json",
        "origin": others[1] / "origin.json",
        "last entry": sorted((home / "refs" / "own" / "champion").iterdir())[-1],
        "first entry": sorted((home / "refs" / "own" / "champion").iterdir())[0],
        "result of a task": next((home / "prefect" / "results").glob("train_leg-*")),
        "copy of an origin": next((home / "copies" / "objects" / "corpus").rglob("origin.json")),
        "copy of an entry": next((home / "copies" / "refs" / "own" / "tiny").iterdir()),
        "copy of a result": next((home / "copies" / "prefect" / "results").glob("clean_corpus-*")),
        "layout": home / "layout.json",
        "stamp": next((home / "stamps" / "model").iterdir()),
        "download": next((home / "downloads").glob("*/body-*")),
        "record of a download": next((home / "downloads").glob("*/record.json")),
        "search": next((home / "searches").glob("*.log")),
        "database": home / "prefect" / "prefect.db",
    }


def flip(path: Path) -> None:
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size // 2)


HARMS: dict[str, Callable[[Path], None]] = {"flipped": flip, "truncated": truncate, "deleted": Path.unlink}
# A stamp or a database that is gone is no loss: it is made again. A download's record has only a date and an ETag
# beside the sha256; with a wrong one, the file is downloaded again. It cannot be missed where the file is gone too.
UNSEEN = {("deleted", "stamp"), ("deleted", "database"), ("flipped", "record of a download")}
UNSEEN |= {("deleted", "record of a download"), ("deleted", "download")}


@pytest.fixture
def bard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call the command line in this process; returns the exit status, the output and the errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bard", *arguments])
        capsys.readouterr()
        logger = logging.getLogger("bardflow")
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
            patch.setattr(logger, "handlers", [])  # `bard` adds one for this test's standard error
            patch.setattr(logger, "propagate", True)
            cli.main()
            raise SystemExit(0)
        said = capsys.readouterr()
        return int(str(end.value.code or 0)), said.out, said.err

    return call


def handles_in(home: Path, path: Path) -> Handle:
    kind, digest = path.relative_to(home / "objects").parts[:2]
    return KINDS[kind](digest=digest)


@pytest.mark.parametrize("harm", HARMS)
def test_damage_to_every_kind_of_file_is_found_not_served_and_repaired_to_the_same_bytes(
    home: Path, harm: str, server_url: str, bard: Callable[..., tuple[int, str, str]]
) -> None:
    before = bytes_of(home)
    assert [finding for finding in verify(home) if finding.harmful] == []
    files = kinds_of_files(home)
    if harm == "flipped":
        del files["database"]  # a flipped bit may lie in a free page
    for path in files.values():
        HARMS[harm](path)
    found = {finding.path.as_posix() for finding in verify(home)}
    for kind, path in files.items():
        assert path.relative_to(home).as_posix() in found or (harm, kind) in UNSEEN, kind
    for kind, path in files.items():
        if kind.startswith("data of") or kind in ("manifest", "origin"):
            with pytest.raises(ObjectMissing, match="bard verify"):
                store().folder(handles_in(home, path))
        elif kind.endswith("entry") and "copy" not in kind:
            with pytest.raises(StoreError, match="bard verify"):
                refs().history("own/champion")
    for command in (["sample", "own/champion"], ["show", "own/champion"], ["export", "own/champion", str(home / "x")]):
        code, out, err = bard(*command)
        assert (code, out) == (1, "") and "bard verify" in err, command
    assert not (home / "x").exists()

    with served_by(home, server_url):
        code, out, err = bard("verify", "--repair")
    left = [finding for finding in verify(home) if finding.harmful]
    if harm == "truncated":
        assert [finding.path.name for finding in left] == ["prefect.db"] and code == 1
        (home / "prefect" / "prefect.db").unlink()
    else:
        assert left == [] and code == 0, err + out
    expected = {name: digest for name, digest in before.items() if not name.startswith("downloads/")}
    after = bytes_of(home)
    assert {name: after.get(name) for name in expected} == expected
    assert not run(steps=40, leg_steps=20).trained
    assert [tried.bits for tried in searched().over()] == [2.5, 2.4]
    assert bytes_of(home).keys() >= {name for name in before if "/body-" in name}, "downloaded again"


def damaged(home: Path, path: Path) -> Handle:
    flip(path)
    return handles_in(home, path)


def test_what_cannot_be_made_again_is_said_with_the_reason_and_what_stays_lost(
    home: Path, server_url: str, bard: Callable[..., tuple[int, str, str]]
) -> None:
    source = damaged(home, kinds_of_files(home)["data of source"])
    site = Site()
    site.answers = [answering(own_text().encode() + b"And more.\n")]
    # The origin says where the text came from; there is another text now.
    path = store().place(source) / "origin.json"
    origin = json.loads(path.read_bytes())
    address = origin["spec"]["corpus"]["source"]["url"]
    other = path.read_bytes().replace(address.encode(), site.url.encode())
    path.chmod(0o644)
    path.write_bytes(other)
    store().copies.write(path, other)
    shutil.rmtree(home / "downloads")
    try:
        with served_by(home, server_url):
            code, out, err = bard("verify", source.short, "--repair")
    finally:
        site.close()
    assert code == 1
    assert f"{source} cannot be made again: fetch_source@1 gives Source" in err and "its source changed since" in err
    assert "is missing" in out and "needed by own/champion, own/text, own/tiny" in out
    assert (home / "set-aside" / "objects" / "source" / source.digest).is_dir(), "the damaged one is kept"
    with pytest.raises(ObjectMissing, match=r"own/champion.*bard verify"):
        store().folder(source)


def test_no_worse_model_takes_the_place_of_a_champion_that_can_be_repaired(home: Path) -> None:
    entry = refs().head("own/champion")
    assert entry is not None
    champion = damaged(home, store().place(entry.handle) / "model.safetensors")
    with pytest.raises(ObjectMissing, match=rf"{champion} is damaged .*own/champion.*bard verify"):
        run()
    assert refs().head("own/champion") == entry
    assert not run(steps=40, leg_steps=20).champion_moved, "the run that made it makes it again"
    assert refs().head("own/champion") == entry and store().damage(champion) is None


def test_foreign_files_are_listed_and_moved_away_but_never_deleted(
    home: Path, bard: Callable[..., tuple[int, str, str]]
) -> None:
    place = next((home / "objects" / "model").iterdir())
    strays = {
        "notes.txt": home / "notes.txt",
        "an unknown kind": home / "objects" / "pictures" / "x",
        "in a kind": home / "objects" / "model" / "copy of it",
        "in an artifact": place / "config.json.bak",
        "among the entries": home / "refs" / "own" / "champion" / "old.json",
        "a draft of nobody": home / "drafts" / "mine",
    }
    for name, path in strays.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    code, out, _ = bard("verify")
    assert code == 1, "an artifact with a foreign file is not what its digest says"
    for name, path in strays.items():
        shown = path.parent if name == "an unknown kind" else path
        assert f"{shown.relative_to(home).as_posix()} is not" in out, name
    assert all(path.is_file() for path in strays.values())
    assert bard("verify", "--repair")[0] == 0
    assert list(verify(home)) == []
    for name, path in strays.items():
        assert (home / "set-aside" / path.relative_to(home)).read_text() == name


def test_a_report_that_is_damaged_is_not_served_and_the_index_says_so(home: Path) -> None:
    entry = refs().head("own/tiny")
    assert entry is not None
    flip(store().place(entry.handle) / "report.html")
    with TestClient(reports_app(), raise_server_exceptions=False) as client:
        served = client.get(f"/objects/report/{entry.digest}/report.html")
        index = client.get("/").text
    assert served.status_code == 500 and f"{entry.handle} is damaged (report.html does not match" in served.text
    assert f"{entry.handle} is left out" in index and f"objects/report/{entry.digest}" not in index


def test_a_home_of_the_version_before_is_read_and_gets_its_copies(home: Path) -> None:
    for later in ("copies", "stamps"):
        shutil.rmtree(home / later)
    (home / "layout.json").unlink()
    before = bytes_of(home)
    assert store().folder(refs().history("own/champion")[-1].handle).is_dir()
    assert not run(steps=40, leg_steps=20).trained
    assert list(verify(home)) == []
    assert before.items() <= bytes_of(home).items()
    flip(next((home / "objects" / "corpus").rglob("origin.json")))
    assert [(finding.path.name, finding.repair) for finding in verify(home)] == [("origin.json", "from its copy")]


@pytest.mark.parametrize("lost", ["body-", "record.json"])
def test_a_download_without_its_record_and_a_record_without_its_file_are_found(tmp_path: Path, lost: str) -> None:
    site = Site()
    site.answers = [answering(b"a text\n")]
    try:
        bring(tmp_path, corpus(site.url))
        assert list(verify(tmp_path)) == [] or all(not finding.harmful for finding in verify(tmp_path))
        next((tmp_path / "downloads").glob(f"*/{lost}*")).unlink()
        assert any(lost in finding.path.name and finding.what == "is missing" for finding in verify(tmp_path))
        list(repaired(tmp_path, list(verify(tmp_path))))
        assert not any("downloads" in finding.path.parts for finding in verify(tmp_path) if finding.harmful)
        fetched, data = bring(tmp_path, corpus(site.url))
        assert fetched.downloaded and data == b"a text\n"
    finally:
        site.close()


def test_a_champion_samples_the_same_text_after_backup_wipe_and_restore(
    home: Path, tmp_path: Path, bard: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ("sample", "own/champion", "--characters", "60", "--no-stream")
    before, bytes_before = bard(*ask)[1], bytes_of(home)
    (home / "drafts" / "1-left").mkdir()
    file = tmp_path / "home.tar.zst"
    code, out, err = bard("backup", str(file))
    assert code == 0 and "verified" in out, err
    assert bard("backup", str(file))[0] == 1, "nothing is overwritten"
    code, _, err = bard("restore", str(file))
    assert code == 1 and "has names already, such as own/champion, and nothing is overwritten" in err
    shutil.rmtree(home)
    code, out, err = bard("restore", str(file))
    assert code == 0 and "own/champion" in out, err
    assert [finding for finding in verify(home) if finding.harmful] == []
    assert bard(*ask)[1] == before and len(before) > 60
    # All that was kept is there again; what no name needs is not.
    restored = bytes_of(home)
    assert restored.items() <= bytes_before.items()
    assert {name for name in bytes_before if name.startswith(("refs/", "objects/model/"))} <= restored.keys()
    assert not [name for name in restored if name.startswith("downloads/")]
    assert not run(steps=40, leg_steps=20).trained
    again = tmp_path / "again.tar.zst"
    assert bard("backup", str(again))[0] == 0
    # A restore that was killed half way left artifacts without names; it is started again.
    for folder in ("refs", "copies/refs"):
        shutil.rmtree(home / folder)
    flip(weights_in(home))
    code, out, err = bard("restore", str(file))
    assert code == 0 and bard(*ask)[1] == before, err


def weights_in(home: Path) -> Path:
    return max((home / "objects" / "model").rglob("*.safetensors"))


def test_a_damaged_home_is_not_backed_up_and_a_damaged_backup_is_not_restored(
    home: Path, tmp_path: Path, bard: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, weights = tmp_path / "home.tar.zst", weights_in(home)
    flip(weights)
    code, _, err = bard("backup", str(file))
    assert code == 1 and "damaged or missing files, such as objects/model" in err and "bard verify --repair" in err
    assert not list(tmp_path.glob("*tar*"))
    flip(weights)
    assert bard("backup", str(file))[0] == 0
    monkeypatch.setenv("BARDFLOW_HOME", str(tmp_path / "new"))
    whole = file.read_bytes()
    flipped = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in (0, 40, len(whole) // 2)]
    harms = [whole[: len(whole) // 2], b"", b"no archive", *flipped]
    for content in harms:
        file.write_bytes(content)
        code, out, err = bard("restore", str(file))
        assert (code, out) == (1, "") and err.startswith(f"bard: {file}") and "Traceback" not in err
        assert not (tmp_path / "new" / "objects").exists() and not (tmp_path / "new" / "refs").exists()
        assert list((tmp_path / "new" / "drafts").iterdir()) == []
    for absent in (tmp_path / "absent.tar", tmp_path):
        assert bard("restore", str(absent))[0] == 1
    file.write_bytes(whole)
    assert bard("restore", str(file))[0] == 0


DIGEST = "ab" * 32


def archive_of(path: Path, index: object, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    first = tarfile.TarInfo("bardflow-backup.json")
    content = index if isinstance(index, bytes) else json.dumps(index).encode()
    first.size = len(content)
    with (
        pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), "zstd") as sink,
        tarfile.open(fileobj=sink, mode="w|") as tar,
    ):
        for member, body in [(first, content), *members]:
            tar.addfile(member, BytesIO(body))
    return path


def member(name: str, body: bytes = b"x", **more: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(body)
    for key, value in more.items():
        setattr(info, key, value)
    return info, body


def listed(*names: str, body: bytes = b"x", **more: object) -> dict[str, object]:
    stored = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    return {"format": 1, "layout": 2, "files": dict.fromkeys(names, stored)} | more


FILE = f"objects/model/{DIGEST}/file"
LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}
HOSTILE: dict[str, tuple[object, list[tuple[tarfile.TarInfo, bytes]]]] = {
    "up": (listed("../outside"), [member("../outside")]),
    "up inside": (listed(f"objects/model/{DIGEST}/../../../../outside"), []),
    "absolute": (listed("/tmp/outside"), [member("/tmp/outside")]),
    "another folder": (listed("locks/store.lock"), [member("locks/store.lock")]),
    "another kind": (listed(f"objects/pictures/{DIGEST}/x"), []),
    "doubled slash": (listed(f"objects/model/{DIGEST}//x"), []),
    "a dot": (listed(f"objects/model/{DIGEST}/./x"), []),
    "not in the index": (listed(FILE), [member(FILE), member("refs/own/champion/000001.json")]),
    "twice": (listed(FILE), [member(FILE), member(FILE)]),
    "missing": (listed(FILE), []),
    "a link": (listed(FILE), [member(FILE, b"", **LINK)]),
    "a hard link": (listed(FILE), [member(FILE, b"", **LINK | {"type": tarfile.LNKTYPE})]),
    "a device": (listed(FILE), [member(FILE, b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5)]),
    "a fifo": (listed(FILE), [member(FILE, b"", type=tarfile.FIFOTYPE)]),
    "a folder": (listed(FILE), [member(FILE, b"", type=tarfile.DIRTYPE)]),
    "other bytes": (listed(FILE), [member(FILE, b"y")]),
    "longer": (listed(FILE), [member(FILE, b"xx")]),
    "a file in a file": (listed(FILE, FILE + "/below"), [member(FILE), member(FILE + "/below")]),
    "a long name": (listed(FILE + "n" * 300), [member(FILE + "n" * 300)]),
    "no manifest": (listed(FILE), [member(FILE)]),
    "a bomb": (
        {"format": 1, "layout": 2, "files": {FILE: {"bytes": 2**60, "sha256": DIGEST}}},
        [member(FILE)],
    ),
    "a bomb in a header": (listed(FILE), [member(FILE, pax_headers={"comment": "0" * 2**20})]),
    "a newer format": (listed(FILE, format=2), []),
    "a newer layout": (listed(FILE, layout=3), []),
    "a negative size": ({"format": 1, "layout": 2, "files": {FILE: {"bytes": -1, "sha256": DIGEST}}}, []),
    "no index": (b"[]", []),
    "an index of brackets": (b"[" * 200_000, []),
    "not JSON": (b"\xff", []),
}


@pytest.mark.parametrize(("index", "members"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_backup_is_a_clear_error_and_writes_nothing(
    tmp_path: Path, index: object, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    file = archive_of(tmp_path / "x.tar.zst", index, *members)
    with pytest.raises(BardError, match=re.escape(str(file))):
        restore(file, tmp_path / "home")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["home", "x.tar.zst"]
    assert [path.relative_to(tmp_path).as_posix() for path in (tmp_path / "home").rglob("*")] == ["home/drafts"]


def test_a_home_that_was_moved_works(home: Path, bard: Callable[..., tuple[int, str, str]]) -> None:
    # The fixture is a project that was copied to another path after training.
    outcome = run(steps=40, leg_steps=20)
    assert not outcome.trained and Path(outcome.report).is_relative_to(home)
    assert bard("sample", "own/champion", "--characters", "20")[0] == 0
    code, out, _ = bard("report", "own/champion")
    assert code == 0 and Path(out.strip()).is_relative_to(home) and Path(out.strip()).is_file()
