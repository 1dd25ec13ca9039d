"""`bard status` shows what is there, and `bard doctor` finds what is wrong."""

import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bardflow.commands import cli
from bardflow.commands.doctor import Check, examine
from bardflow.commands.prefect_api import api
from bardflow.commands.status import LAST_RUNS, RUNS, disk_use, gather, runs_of_file, runs_of_server, text_of
from bardflow.errors import BardError
from bardflow.flows.train_gpt import train_gpt
from bardflow.storage.refs import Refs
from bardflow.tasks.recipes import Overrides
from tests.conftest import served_by, shared_folder
from tests.project_up import free_port
from tests.quick import QUICK, quickly


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Commands set Prefect's variables for their own process, which here is that of the tests."""
    before = dict(os.environ)
    for name in ("PREFECT_HOME", "PREFECT_RESULTS_LOCAL_STORAGE_PATH", "PREFECT_API_URL"):
        os.environ.pop(name, None)
    yield
    os.environ.clear()
    os.environ.update(before)


def wrong(checks: list[Check]) -> dict[str, str]:
    """The levels of all checks that are not ok, by what was found."""
    assert all(check.todo for check in checks if check.level != "ok"), "each says what to do"
    return {check.found: check.level for check in checks if check.level != "ok"}


def only(checks: list[Check]) -> Check:
    [check] = [check for check in checks if check.level != "ok"]
    return check


def test_an_empty_home_has_a_status(project: Path) -> None:
    status = gather()
    assert (status.server, status.worker, status.runs, status.champions) == ("not running", "offline", [], [])
    assert status.problems == [] and not (project / "home").exists(), "looking makes nothing"
    assert "`bard up` starts it" in text_of(status) and "no champion yet" in text_of(status)


def test_the_status_shows_runs_champions_and_disk_with_and_without_a_server(
    project: Path,
    server_url: str,
    answers: None,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Another process of the tests has its runs on the same server meanwhile.
    monkeypatch.setattr("bardflow.commands.status.RUNS", 200)
    monkeypatch.setattr("bardflow.commands.status.LAST_RUNS", LAST_RUNS.replace(f"limit {RUNS}", "limit 200"))
    (project / "texts" / "own.txt").write_text("".join(f"{n}: of this test alone\n" for n in range(900)))
    outcome = train_gpt("own", "tiny", quickly(steps=6, leg_steps=5))
    bits = f"{outcome.bits_per_character:.4f} bits per character"
    with pytest.raises(BardError):
        train_gpt("owl", "tiny", Overrides.model_validate(QUICK))
    with served_by(project / "home", server_url):
        status = gather()
    assert status.server == "running" and status.worker == "offline" and status.problems == []
    own = [run for run in status.runs if str(project) in run.message or bits in run.message]
    failed, trained = own
    assert (failed.type, trained.type, trained.flow) == ("FAILED", "COMPLETED", "train-gpt")
    assert "owl" in failed.message
    [champion] = status.champions
    assert (champion.corpus, champion.recipe, champion.model) == ("own", "tiny", outcome.model)
    assert champion.bits_per_character == pytest.approx(outcome.bits_per_character)
    assert sum(status.disk.values()) == sum(f.stat().st_size for f in (project / "home").rglob("*") if f.is_file())
    assert bits in text_of(status)
    assert len(text_of(status.model_copy(update={"runs": status.runs[:RUNS]})).splitlines()) < 45, "one screen"
    assert type(status).model_validate_json(status.model_dump_json()) == status

    database = shared_folder(tmp_path_factory) / "server" / "prefect" / "prefect.db"
    with api(server_url) as client:
        for runs in (runs_of_file(database), runs_of_server(client)):
            assert [run for run in runs if run in own] == own, "the same with and without a server"
    assert gather().server == "not running"
    (project / "home" / "prefect").mkdir(exist_ok=True)
    (project / "home" / "prefect" / "prefect.db").write_text("no database")
    assert "could not be read" in gather().problems[0]


def test_the_parts_of_the_disk_use_are_the_whole(tmp_path: Path) -> None:
    for name in ("objects/model/x/weights", "refs/a/champion/000001.json", "prefect/prefect.db-wal", "logs/a.log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1" * len(name))
    assert disk_use(tmp_path) == {"model": 23, "Prefect's database": 22, "logs": 10, "other": 27}


def test_a_good_project_has_nothing_to_mend(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bard", "doctor", "--json"])
    before = sorted((project / "home").rglob("*"))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    checks = [Check.model_validate(check) for check in json.loads(capsys.readouterr().out)]
    assert wrong(checks) == {} and {"corpora", "recipes", "deployments", "clock"} <= {check.name for check in checks}
    left = [path for path in (project / "home").rglob("*") if path not in before and path.name != "prefect"]
    assert left == [], "the doctor leaves nothing behind"


def test_what_is_wrong_with_a_project_is_an_error_with_a_way_out(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "corpora" / "draft.toml").write_text('title = "half')
    assert "draft.toml is not valid TOML" in only(examine()).found
    monkeypatch.setattr(sys, "argv", ["bard", "doctor"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1 and "error    corpora" in capsys.readouterr().out
    (project / "corpora" / "draft.toml").unlink()

    (project / "recipes").mkdir()
    (project / "recipes" / "mine.toml").write_text("layers = 0")
    assert only(examine()).name == "recipes"
    (project / "recipes" / "mine.toml").unlink()

    described = (project / "prefect.yaml").read_text()
    (project / "prefect.yaml").write_text(described.replace("clean_up:", "another:"))
    assert "bounds the size" in only(examine()).found
    (project / "prefect.yaml").write_text("name: bardflow\n")
    assert only(examine()).level == "error"
    (project / "prefect.yaml").write_text(described)

    from bardflow.storage.handles import Model

    refs = Refs(project / "home")
    refs.move("own/champion", Model(digest="ab" * 32), after=None, by="a test", why="")
    entry = project / "home" / "refs" / "own" / "champion" / "000001.json"
    content = entry.read_text()
    entry.unlink()
    refs.copies.remove(entry)
    year = datetime.now(UTC)
    entry.write_text(content.replace(str(year.year), str((year + timedelta(days=800)).year)))
    assert (only(examine()).name, only(examine()).level) == ("clock", "warning")
    entry.write_text("{")
    assert only(examine()).name == "home"

    monkeypatch.setenv("BARDFLOW_HOME", str(project / "prefect.yaml"))
    assert "error" in wrong(examine()).values()


def test_a_server_and_settings_that_do_not_fit_are_found(
    project: Path, server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served_by(project / "home", server_url):
        assert wrong(examine()) == {}
        (project / "prefect.toml").write_text('[api]\nurl = "http://127.0.0.1:4200/api"\n')
        assert f"PREFECT_API_URL={server_url}" in only(examine()).todo
    with served_by(project / "home", f"http://127.0.0.1:{free_port()}/api"):
        (project / "prefect.toml").unlink()
        assert "does not answer" in only(examine()).found
    monkeypatch.setenv("PREFECT_RESULTS_DEFAULT_SERIALIZER", "pickle")
    assert "PREFECT_RESULTS_DEFAULT_SERIALIZER is 'pickle'" in only(examine()).found
    monkeypatch.setenv("PREFECT_RESULTS_DEFAULT_SERIALIZER", "json")
    monkeypatch.setenv("PREFECT_API_URL", "")
    assert only(examine()).level == "error"


def test_a_version_that_breaks_prefect_is_found(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fastapi-0.155.0.dist-info").mkdir()
    (tmp_path / "fastapi-0.155.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: fastapi\nVersion: 0.155.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    check = only(examine())
    assert check.found == "fastapi 0.155.0: Prefect's server does not start with it"
    assert check.todo == "pip install 'fastapi<0.151,>=0.139'"
