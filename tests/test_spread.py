"""What a run on several workers does in its own process: how many there are, threads that wait for them, locks."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from bardflow.engine.cluster import ClusterError, EngineMissing, connected, require_alike, versions_here
from bardflow.engine.tokens import TASK_CHARACTERS, tasks
from bardflow.flows.compare_vocabularies import compare_vocabularies
from bardflow.flows.train_gpt import train_gpt
from bardflow.model.training import TooManyWorkers, TrainingSpec
from bardflow.tasks.cluster import Unwanted, at_once, checked_workers, require_wanted, spread, workers_of_a_training
from bardflow.tasks.locks import making
from bardflow.tasks.planning import planned
from tests.conftest import CHECKOUT, RECIPES
from tests.quick import quickly

pytestmark = pytest.mark.slow

IN_ONE_PROCESS = """
import sys
from bardflow.flows import search, train_gpt
from bardflow.tasks.cluster import spread
with spread() as cluster:
    print(cluster, "ray" in sys.modules)
"""


def test_one_worker_needs_no_engine() -> None:
    clean = {"PATH": "/usr/bin:/bin", "PREFECT_PLUGINS_ENABLED": "false"}
    done = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS], capture_output=True, text=True, cwd=CHECKOUT, env=clean
    )
    assert done.stdout == "None False\n", done.stderr


def test_without_the_extra_several_workers_are_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineMissing, match=r"need Ray, .*\[cluster\]"), connected(2, 2):
        pass


def test_the_number_of_workers_is_given_or_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BARDFLOW_WORKERS", raising=False)
    assert checked_workers(None) == 1 == workers_of_a_training()
    monkeypatch.setenv("BARDFLOW_WORKERS", "3")
    assert (checked_workers(None), checked_workers(2)) == (3, 2)
    for wrong in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("BARDFLOW_WORKERS", wrong)
        with pytest.raises(ClusterError, match=f"is '{wrong}', but a positive whole number"):
            checked_workers(None)
    with pytest.raises(TooManyWorkers, match="5 workers were given for a batch of 4"):
        checked_workers(5, TrainingSpec(batch=4))


def test_too_many_workers_are_refused_before_anything_starts(project: Path, answers: None) -> None:
    with pytest.raises(TooManyWorkers, match="at most 4 workers"):
        train_gpt("own", "tiny", quickly(), workers=5)
    with pytest.raises(ClusterError, match="trainings_at_once is 2 and budget is time"):
        compare_vocabularies(["own"], ["char"], trainings_at_once=2)
    assert not (project / "home" / "objects").exists()


def test_a_plan_for_two_workers_is_that_of_one_with_half_the_batch() -> None:
    recipe = RECIPES["small"]
    whole = planned(recipe.gpt, 65, recipe.training, None)
    half = planned(recipe.gpt, 65, recipe.training.model_copy(update={"batch": recipe.training.batch // 2}), None)
    each = planned(recipe.gpt, 65, recipe.training, None, 2)
    assert each.execution == half.execution.model_copy(update={"workers": 2})
    assert each.peak.model_copy(update={"program": 0}) == half.peak.model_copy(update={"program": 0})
    assert (whole.execution.workers, half.execution.workers) == (1, 1)


def test_work_is_done_at_once_and_returned_in_order() -> None:
    both = threading.Barrier(2)

    def work(number: int) -> int:
        both.wait()  # returns only if two are here at once
        return number * number

    assert at_once(work, range(4), 2) == [0, 1, 4, 9]
    assert at_once(lambda number: -number, range(3), 1) == [0, -1, -2]


def test_the_first_error_ends_what_waits_for_a_cluster() -> None:
    begun, ended = threading.Event(), list[str]()

    def work(number: int) -> None:
        if number == 0:
            begun.wait()
            raise ValueError("the first")
        begun.set()
        try:
            while True:
                require_wanted()
        except Unwanted:
            ended.append("the second")
            raise

    with pytest.raises(ValueError, match="the first"):
        at_once(work, range(2), 2)
    assert ended == ["the second"]
    require_wanted()


def test_threads_make_a_result_one_at_a_time_and_keep_the_lock_from_other_processes(project: Path) -> None:
    """A lock of POSIX belongs to a process, which loses all of them in a file when it closes the file once."""
    inside, most = 0, 0
    counting = threading.Lock()

    def make(result: str) -> None:
        nonlocal inside, most
        with making(result):
            with counting:
                inside += result == "same"
                most = max(most, inside)
            with counting:
                inside -= result == "same"

    code = (
        "import fcntl, sys\n"
        "from bardflow.tasks import locks\n"
        "locks.say = lambda line: (print(line), sys.exit(0))\n"
        "with locks.making('held'): print('free')"
    )

    def other_process() -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    with making("held"):
        at_once(make, ["same", "other"] * 20, 4)
        assert other_process() == "another run is making the same result: waiting for it"
    assert most == 1
    assert other_process() == "free"


def test_a_worker_with_other_versions_is_refused_with_both() -> None:
    require_alike(versions_here(), "n1")
    with pytest.raises(ClusterError, match=r"node n1 of the cluster has torch 1\.0 \(here 2\..*\); install the same"):
        require_alike(versions_here() | {"torch": "1.0"}, "n1")


def test_a_text_is_cut_into_tasks_without_losing_a_piece() -> None:
    pieces = ["a" * (TASK_CHARACTERS // 2 - 64)] * 5 + [""] * 3 + ["b"]
    found = list(tasks(pieces))
    assert [len(texts) for _, texts in found] == [2, 2, 5]
    assert [number for number, _ in found] == [0, 2, 4]
    assert [text for _, texts in found for text in texts] == pieces
    assert list(tasks([])) == []


def test_a_run_without_a_cluster_computes_in_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BARDFLOW_WORKERS", "BARDFLOW_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    seen: list[Any] = []
    with spread() as cluster:
        seen.append(cluster)
    assert seen == [None]
