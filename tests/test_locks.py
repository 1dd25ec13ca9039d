"""Who waits for whom: runs share the store, a garbage collection has it alone, and a lock dies with its holder."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bardflow.tasks.locks import search_lock, training_lock, using_store
from bardflow.tasks.run import Run
from bardflow.tasks.vocabulary import learn_vocabulary
from tests.conftest import CHECKOUT

HOLDER = """
import logging, sys
from bardflow.tasks import locks
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
sys.stdout.reconfigure(line_buffering=True)
with getattr(locks, sys.argv[1])(*sys.argv[2:]):
    print("has it")
    sys.stdin.read()
"""


class Holder:
    """A process that takes a lock, says so, and holds it until it is let go or killed."""

    def __init__(self, *lock: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, *lock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
        )

    def says(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARDFLOW_HOME", str(tmp_path))


@contextmanager
def holders(*locks: tuple[str, ...]) -> Iterator[list[Holder]]:
    started = [Holder(*lock) for lock in locks]
    try:
        yield started
    finally:
        for holder in started:
            holder.end()


@pytest.mark.usefixtures("home")
def test_garbage_collection_waits_for_every_run_and_runs_wait_for_it() -> None:
    with holders(("using_store",), ("using_store",)) as runs:
        assert [run.says() for run in runs] == ["has it", "has it"], "runs share the store"
        with holders(("collecting_garbage",)) as [collection]:
            assert collection.says().startswith("waiting for active runs")
            runs[0].end()
            runs[1].end()
            assert collection.says() == "has it", "killed, a run frees its share"
            with holders(("using_store",)) as [late]:
                assert late.says().startswith("waiting for garbage collection")
                collection.end()
                assert late.says() == "has it"


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("lock", ["training_lock", "search_lock"])
def test_one_run_at_a_time_on_a_corpus(lock: str) -> None:
    with holders((lock, "own")) as [first]:
        assert first.says() == "has it"
        with holders((lock, "own"), (lock, "other")) as [second, elsewhere]:
            assert elsewhere.says() == "has it"
            assert "waiting for it to end" in second.says()
            first.end()
            assert second.says() == "has it"


@pytest.mark.usefixtures("home")
def test_one_process_at_a_time_makes_a_result_and_others_make_other_results() -> None:
    with holders(("making", "train_leg-2-ab")) as [first]:
        assert first.says() == "has it"
        with holders(("making", "train_leg-2-ab"), ("making", "train_leg-2-cd")) as [second, elsewhere]:
            assert elsewhere.says() == "has it"
            assert "waiting for it" in second.says()
            first.end()
            assert second.says() == "has it", "killed, it frees the lock"


@pytest.mark.usefixtures("home")
def test_no_corpus_is_named_like_the_search_on_another() -> None:
    with search_lock("own"), training_lock("own-sweep"), training_lock("own"), using_store(), using_store():
        pass


@pytest.mark.usefixtures("home")
def test_questions_are_asked_under_the_lease_alone() -> None:
    run = Run()
    with pytest.raises(RuntimeError, match="with Run"):
        run(learn_vocabulary)  # type: ignore[call-arg]
    with holders(("collecting_garbage",)) as [collection]:
        assert collection.says() == "has it"
    with run, holders(("collecting_garbage",)) as [collection]:
        assert collection.says().startswith("waiting for active runs")
