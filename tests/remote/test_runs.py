"""Runs with a remote: a second, empty home trains nothing, evaluates and continues; and the commands for the remote."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bardflow.commands import cli
from bardflow.flows.evaluate_gpt import evaluate_gpt
from bardflow.storage.handles import Checkpoint
from bardflow.storage.refs import Refs
from bardflow.storage.remote import RemoteError, RemoteUnreachable, object_storage, remote_of
from bardflow.storage.store import Store
from bardflow.tasks import run as tasks
from bardflow.tasks.champion import champion
from bardflow.tasks.run import Run
from tests.artifacts import keep, origin, writable
from tests.object_storage import (
    BUCKET,
    Fault,
    Proxy,
    Storage,
    denied,
    proxy_before,
    running_storage,
    unavailable,
    unconditional,
    with_remote,
)
from tests.quick import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    with running_storage(tmp_path_factory.mktemp("storage") / "served") as running:
        yield running


@pytest.fixture
def proxy(storage: Storage, project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The project's home has a remote of this test, behind a proxy."""
    with proxy_before(storage) as running:
        with_remote(monkeypatch, storage, project.parent.name, running.url)
        monkeypatch.setattr(object_storage, "RETRIES", 1)
        monkeypatch.setattr(object_storage, "FIRST_PAUSE", 0.01)
        yield running


@pytest.fixture
def in_home(project: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Work in another home of the project from now on, with Prefect's results in it."""
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    entered = []

    def enter(name: str) -> Path:
        home = project / name
        monkeypatch.setenv("BARDFLOW_HOME", str(home))
        settings = temporary_settings({PREFECT_LOCAL_STORAGE_PATH: home / "results"})
        settings.__enter__()
        entered.append(settings)
        return home

    yield enter
    for settings in reversed(entered):
        settings.__exit__(None, None, None)


def test_a_second_empty_home_trains_nothing_evaluates_the_champion_and_continues_it(
    in_home: Callable[[str], Path], proxy: Proxy
) -> None:
    a = in_home("a")
    first = run()
    assert first.trained and first.champion_moved
    b = in_home("b")
    proxy.asked.clear()
    second = run()
    assert not second.trained
    assert Path(second.report).read_bytes() == Path(first.report).read_bytes()
    assert Path(second.report).is_relative_to(b)
    assert Refs(b).history("own/champion") == Refs(a).history("own/champion")
    asked = [key for method, key in proxy.asked if method == "GET"]
    assert not [key for key in asked if "/checkpoint/" in key and key.endswith(".safetensors")], "no weights are needed"
    scored = evaluate_gpt(["own"])
    assert scored == {"own": pytest.approx(first.bits_per_character)}
    continued = run(base_model="own/champion", steps=8)
    assert continued.trained and continued.champion_moved
    in_home("a")
    reached = champion("own")
    assert reached is not None and reached.model.digest == continued.model
    assert evaluate_gpt(["own"]) == {"own": pytest.approx(continued.bits_per_character)}


def test_a_run_goes_on_while_the_remote_is_away_and_says_that_no_name_was_moved(
    in_home: Callable[[str], Path], proxy: Proxy
) -> None:
    a = in_home("a")
    proxy.fault = unavailable(10**6)
    with pytest.raises(RemoteUnreachable, match="cannot be reached"):
        run()
    assert Refs(a).names() == []
    proxy.fault = None
    remote_of.cache_clear()  # as in a new process
    again = run()
    assert again.champion_moved
    leg = next(handle for handle in Store(a).handles() if isinstance(handle, Checkpoint))
    file = next(Store(a).place(leg).glob("*.safetensors"))
    writable(file).write_bytes(b"damaged")
    assert not run().trained, "what is damaged here comes from the remote, and is not made again"
    assert Store(a).is_record(leg)
    assert (tasks.store().folder(leg) / file.name).read_bytes() != b"damaged"


@pytest.mark.parametrize(
    ("fault", "words"),
    [(denied, "is denied"), (unconditional, "ignores conditional writes")],
    ids=["denied", "ignored"],
)
def test_a_run_whose_remote_cannot_be_used_fails_before_its_first_task(
    project: Path, proxy: Proxy, fault: Fault, words: str
) -> None:
    proxy.fault = fault
    with pytest.raises(RemoteError, match=words), Run():
        pytest.fail("no task may be called")


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def bard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], proxy: Proxy) -> Callable[..., Said]:
    def call(home: Path, *arguments: str) -> Said:
        monkeypatch.setenv("BARDFLOW_HOME", str(home))
        monkeypatch.setattr(sys, "argv", ["bard", *arguments])
        remote_of.cache_clear()
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Said(int(end.value.code or 0), *capsys.readouterr())

    return call


def test_the_commands_push_pull_and_verify_a_home(
    project: Path, bard: Callable[..., Said], storage: Storage, proxy: Proxy
) -> None:
    a, b = project / "a", project / "b"
    alone = Store(a)
    source = keep(alone, {"model.safetensors": b"an input"})
    made = keep(alone, {"model.safetensors": b"weights", "config.json": b"{}"}, origin(vocabulary=source))
    for handle in (source, made):
        Refs(a).point("own/champion", handle, by="a", why=lambda before: "")
    said = bard(a, "push")
    assert said.code == 0 and "sent " in said.out and f"s3://{BUCKET}/" in said.out
    assert "sent 0 files" in bard(a, "push").out
    pulled = json.loads(bard(b, "pull", "--names-only", "--json").out)
    assert pulled["files"] == 0 and pulled["entries"] == 2
    assert Refs(b).history("own/champion") == Refs(a).history("own/champion") and Store(b).is_record(made)
    assert "own/champion" in bard(b, "show").out
    assert bard(b, "explain", "own/champion").code == 0
    assert bard(b, "verify").code == 0
    assert bard(project / "c", "verify", "own/champion").out == "0 damaged or missing files, 0 harmless findings\n"
    pulled = json.loads(bard(b, "pull", "own/champion", "--json").out)
    assert pulled["files"] == 3 and Store(b).damage(made) is None
    assert json.loads(bard(b, "pull", "--json").out)["files"] == 0
    assert [Store(b).damage(handle) for handle in Store(b).handles()] == [None, None]
    assert "0 damaged" in bard(b, "verify", "--remote").out

    lost = next(storage.bucket.rglob(f"{made.digest}/model.safetensors"))
    lost.write_bytes(lost.read_bytes()[:-1] + b"?")
    said = bard(b, "verify", "--remote")
    assert said.code == 1 and f"objects/vocabulary/{made.digest}/model.safetensors does not have its sha256" in said.out
    said = bard(b, "verify", "--remote", "--repair", "--json")
    assert said.code == 0 and json.loads(said.out)["harmful"] == 0
    assert f"{made}: sent again" in said.err


def test_status_and_doctor_show_the_remote(project: Path, bard: Callable[..., Said], proxy: Proxy) -> None:
    home = project / "a"
    assert "answers, and is empty" in bard(home, "status").out
    keep(Store(home))
    proxy.fault = denied
    assert "is denied" in bard(home, "status").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pull",), "is empty: `bard push`"),
        (("pull", "--replace"), "--replace needs a name"),
        (("verify", "own/champion", "--remote"), "checks the whole remote"),
    ],
)
def test_what_a_command_cannot_do_is_said(
    project: Path, bard: Callable[..., Said], arguments: tuple[str, ...], words: str
) -> None:
    said = bard(project / "a", *arguments)
    assert said.code == 1 and words in said.err


def test_without_a_remote_the_commands_say_what_to_set(
    project: Path, bard: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BARDFLOW_REMOTE")
    for command in (("push",), ("pull",), ("verify", "--remote")):
        said = bard(project / "a", *command)
        assert said.code == 1 and "set BARDFLOW_REMOTE to an address such as s3://BUCKET/FOLDER" in said.err
