"""Receipts: a run that would change nothing is answered from one, in the same words, until anything changes."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bardflow.outcome import Outcome
from bardflow.storage.handles import Model
from bardflow.tasks import receipts
from bardflow.tasks.receipts import answer
from bardflow.tasks.run import refs, store
from tests.artifacts import writable
from tests.quick import quickly, run

ASKED = quickly().changes()
pytestmark = pytest.mark.usefixtures("quickly_answered")


@pytest.fixture
def answered(project: Path) -> Outcome:
    """The outcome of a second run of which there is a receipt."""
    assert run().champion_moved and answer("own", "tiny", ASKED) is None, "a run that moved a name leaves none"
    return run()


def test_the_answer_is_that_of_the_run_in_the_same_words(answered: Outcome, caplog: pytest.LogCaptureFixture) -> None:
    def said() -> list[str]:
        lines = [record.getMessage() for record in caplog.records if record.name == "bardflow"]
        caplog.clear()
        return [line for line in lines if "plan: peak" not in line]  # the process's own memory is measured

    said()
    again = run()
    by_the_run = said()
    assert answer("own", "tiny", ASKED) == again == answered
    assert said() == by_the_run and len(by_the_run) > 10
    assert Path(again.report).is_file()


def change_text(project: Path) -> None:
    text = project / "texts" / "own.txt"
    text.write_bytes(text.read_bytes() + b"More.\n")


def lose_text(project: Path) -> None:
    (project / "texts" / "own.txt").unlink()


def change_corpus(project: Path) -> None:
    file = project / "corpora" / "own.toml"
    file.write_text(file.read_text().replace("title = ", "title = 'Another' # "))


def write_recipe(project: Path) -> None:
    (project / "recipes").mkdir(exist_ok=True)
    (project / "recipes" / "tiny.toml").write_text("description = 'my own'\n")


def damage(project: Path) -> None:
    for weights in (project / "home" / "objects" / "model").glob("*/model.safetensors"):
        writable(weights).write_bytes(weights.read_bytes()[:-1] + b"?")


def move_a_name(project: Path) -> None:
    head = refs().head("own/champion")
    assert head is not None
    refs().move("own/champion", head.handle, after=head, by="me", why="again", notes=head.notes)


def damage_the_receipt(project: Path) -> None:
    [receipt] = (project / "home" / "receipts").iterdir()
    receipt.write_bytes(receipt.read_bytes().replace(b"nats", b"bits", 1))


@pytest.mark.parametrize(
    "change",
    [change_text, lose_text, change_corpus, write_recipe, damage, move_a_name, damage_the_receipt],
)
def test_after_a_change_there_is_no_answer(
    change: Callable[[Path], None], answered: Outcome, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert answer("own", "tiny", ASKED) == answered
    change(project)
    caplog.clear()
    assert answer("own", "tiny", ASKED) is None
    assert not caplog.messages, "the run says what is wrong"
    assert not list((project / "home" / "drafts").iterdir())


def test_other_settings_other_code_another_machine_and_bard_up_are_not_answered(
    answered: Outcome, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer("own", "tiny", ASKED | {"steps": 5}) is None
    assert answer("own", "small", ASKED) is None
    for name in (*receipts.ELSEWHERE, "BARDFLOW_REMOTE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "file:///tmp" if name == "BARDFLOW_REMOTE" else "1")
            assert answer("own", "tiny", ASKED) is None
    with monkeypatch.context() as patch:
        patch.setattr(receipts, "CODE", (".py",))
        assert answer("own", "tiny", ASKED) is None
    with (project / "home" / "up.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert answer("own", "tiny", ASKED) is None
    assert answer("own", "tiny", ASKED) == answered


def test_the_report_is_found_where_the_home_is_now(
    answered: Outcome, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "home").rename(project / "moved")
    monkeypatch.setenv("BARDFLOW_HOME", str(project / "moved"))
    found = answer("own", "tiny", ASKED)
    assert found is not None and Path(found.report).is_relative_to(project / "moved") and Path(found.report).is_file()
    assert store().damage(Model(digest=found.model)) is None


def test_an_answer_needs_neither_prefect_nor_torch(answered: Outcome) -> None:
    check = (
        "import json, sys; from bardflow.tasks.receipts import answer; "
        f"found = answer('own', 'tiny', {ASKED!r}); "
        "print(found.model, [name for name in ('prefect', 'torch', 'pyarrow', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == f"{answered.model} []\n"
