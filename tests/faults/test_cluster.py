"""Several workers on a Ray cluster: the same results as in one process, also when a worker or a machine is killed.

    python -m pytest -m faults tests/faults/test_cluster.py

A machine is a node of a cluster of two on this machine (`ray.cluster_utils`).
"""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from bardflow.engine import legs, reading, tokens
from bardflow.engine.cluster import Cluster, ClusterError, WorkersLost, connected
from bardflow.engine.folders import Folder, fetch
from bardflow.engine.legs import Job, trained
from bardflow.flows.search import search
from bardflow.flows.train_gpt import train_gpt
from bardflow.model.leg import Leg, LegRun
from bardflow.model.machine import Device, Execution
from bardflow.model.networks import GPTSpec
from bardflow.model.training import Training, TrainingSpec, begin, load_snapshot, save_snapshot
from bardflow.model.training.loop import Diverged
from bardflow.model.vocabulary import NotLossless, UnknownCharacter, VocabularySpec, encode, learn
from bardflow.outcome import Outcome
from bardflow.sources.spec import CorpusError, CorpusSpec
from bardflow.storage.documents import SPLITS, read_documents
from bardflow.storage.handles import Checkpoint, Corpus, Handle, Source, TokenShards
from bardflow.storage.manifests import Origin
from bardflow.storage.shards import ShardSpec, read_shards, write_shards
from bardflow.storage.store import Store
from bardflow.tasks.cluster import spread
from bardflow.tasks.corpus import clean_corpus, fetch_source
from bardflow.tasks.run import Run
from bardflow.tasks.searching import Range
from tests.conftest import own_text
from tests.quick import quickly

# Ray leaves files and sockets open when it ends.
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::ResourceWarning")]

VOCABULARY = 96
GPT = GPTSpec(layers=2, heads=2, width=32, context=32, dropout=0.1)
SPEC = TrainingSpec(steps=200, batch=6, precision="f32", input_noise=0.05, leg_steps=100, validation_tokens=2000)
MADE = Origin(task="test@1", inputs={}, spec={}, run=None, commit=None, packages={}, at="", measured={})
Say = list[str]


class Made:
    """A store with the shards of a text and a checkpoint of step 0."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "home")
        ids = np.frombuffer(own_text().encode(), np.uint8).astype(np.uint16) % VOCABULARY
        with self.store.draft() as draft:
            rows = [("train", 0, ids), ("validation", 0, ids[:3000])]
            write_shards(draft.folder, rows, ShardSpec(), dtype=np.dtype(np.uint16))
            self.shards = self.store.keep(draft, TokenShards, {}, MADE)
        with self.store.draft() as draft:
            save_snapshot(begin(GPT, VOCABULARY, 1), draft.folder)
            self.begun = self.store.keep(draft, Checkpoint, {"step": 0}, MADE)

    def alone(self, checkpoint: Handle, until: int) -> tuple[Leg, Checkpoint]:
        """A leg in this process."""
        run = LegRun(
            lambda: Training(
                load_snapshot(self.store.folder(checkpoint)), SPEC, Device("cpu", "f32"), Execution(micro_batch=6)
            ),
            read_shards(self.store.folder(self.shards), "train"),
            read_shards(self.store.folder(self.shards), "validation"),
            until,
            Device("cpu", "f32"),
        )
        for _ in run.steps():
            pass
        with self.store.draft() as draft:
            save_snapshot(run.training.state(), draft.folder)
            return run.finished(), self.store.keep(draft, Checkpoint, {"step": until}, MADE)

    def on(
        self,
        cluster: Cluster,
        checkpoint: Handle,
        until: int,
        workers: int,
        watch: Callable[[int, float], None] = lambda step, loss: None,
        said: Say | None = None,
        spec: TrainingSpec = SPEC,
        sharded: bool = False,
    ) -> tuple[Leg, Checkpoint]:
        """A leg on a cluster."""
        checkpoint_folder, shards = (
            Folder(str(self.store.folder(handle)), handle.digest, cluster.node) for handle in (checkpoint, self.shards)
        )
        job = Job(checkpoint_folder, shards, spec, until, Execution(micro_batch=6, workers=workers, sharded=sharded))
        with self.store.draft() as draft:
            leg = trained(cluster, job, draft.folder, watch, (said if said is not None else []).append)
            return leg, self.store.keep(draft, Checkpoint, {"step": until}, MADE)


def losses(*parts: Leg) -> list[float]:
    """The loss of each step."""
    return [point.train_nats for leg in parts for point in leg.points]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@contextmanager
def nodes() -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of a cluster of two nodes with a core each, and a function that kills the one without the head."""
    from ray.cluster_utils import Cluster as Nodes

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    both = Nodes(initialize_head=True, head_node_args={"num_cpus": 1})
    other = both.add_node(num_cpus=1)
    alive = True

    def kill() -> None:
        nonlocal alive
        if alive:
            both.remove_node(other, allow_graceful=False)
        alive = False

    try:
        yield both.address, kill
    finally:
        both.shutdown()


@contextmanager
def two_nodes() -> Iterator[tuple[Cluster, Callable[[], None]]]:
    """Such a cluster, connected."""
    with nodes() as (address, kill), connected(2, 1, address) as cluster:
        assert (cluster.cpus, cluster.room(), cluster.nodes()) == (1, 2, 2)
        yield cluster, kill


def workers_here() -> list[psutil.Process]:
    """The processes that train, of those that this one has started."""
    return [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::work")]


def test_two_workers_take_200_steps_as_one_does_and_either_number_resumes(made: Made) -> None:
    first, half = made.alone(made.begun, 100)
    second, whole = made.alone(half, 200)
    alone = losses(first, second)
    assert len(alone) == 200 and alone[0] > alone[-1] + 1
    with connected(2, 2) as cluster:
        shared, shared_half = made.on(cluster, made.begun, 100, 2)
        at_two, _ = made.on(cluster, shared_half, 200, 2)
        at_one, _ = made.on(cluster, shared_half, 200, 1)
        same, same_whole = made.on(cluster, half, 200, 1)
        in_shards, sharded_half = made.on(cluster, made.begun, 100, 2, sharded=True)
        sharded_again, _ = made.on(cluster, sharded_half, 200, 2, sharded=True)
        whole_again, _ = made.on(cluster, sharded_half, 200, 1)
    assert (shared.workers, at_two.workers, at_one.workers) == (2, 2, 1)
    ways = [(shared, at_two), (shared, at_one), (in_shards, sharded_again), (in_shards, whole_again)]
    for way in (losses(*legs_) for legs_ in ways):
        print("largest difference of a step", np.abs(np.subtract(way, alone)).max())
        assert way == pytest.approx(alone, abs=1e-3)
    for leg in (at_two, sharded_again):
        assert leg.validation_nats_per_token == pytest.approx(second.validation_nats_per_token, abs=1e-3)
    assert losses(same) == losses(second) and same_whole == whole, "one worker computes what this process does"


def test_a_leg_in_shards_in_bf16_is_scored_as_in_one_process(made: Made) -> None:
    spec = SPEC.model_copy(update={"precision": "bf16"})
    with connected(2, 2) as cluster:
        alone, _ = made.on(cluster, made.begun, 60, 1, spec=spec)
        in_shards, _ = made.on(cluster, made.begun, 60, 2, spec=spec, sharded=True)
    assert losses(in_shards) == pytest.approx(losses(alone), abs=2e-2)
    assert in_shards.validation_nats_per_token == pytest.approx(alone.validation_nats_per_token, abs=2e-2)


def test_a_leg_whose_worker_is_killed_is_begun_again_and_ends_with_the_same_bytes(made: Made) -> None:
    said: Say = []
    killed: list[int] = []

    def kill_once(step: int, loss: float) -> None:
        if not killed:
            killed.append(workers_here()[-1].pid)
            os.kill(killed[0], signal.SIGKILL)

    with connected(2, 2) as cluster:
        leg, undisturbed = made.on(cluster, made.begun, 100, 2)
        again, disturbed = made.on(cluster, made.begun, 100, 2, kill_once, said)
        assert killed and (again.workers, losses(again)) == (2, losses(leg))
        assert disturbed == undisturbed
        assert len(said) == 1 and "beginning the leg again from its checkpoint (attempt 2 of 4)" in said[0]


def test_a_leg_whose_workers_die_each_time_ends_with_an_error_and_leaves_nothing(made: Made) -> None:
    def kill(step: int, loss: float) -> None:
        for worker in workers_here():
            worker.kill()

    with connected(2, 2) as cluster, pytest.raises(WorkersLost, match="begun 4 times, and each time a worker died"):
        made.on(cluster, made.begun, 100, 2, kill)
    assert not list(made.store.drafts.iterdir())


def test_an_error_of_the_training_is_raised_at_once_and_not_tried_again(made: Made) -> None:
    said: Say = []
    with made.store.draft() as draft:
        begun = begin(GPT, VOCABULARY, 1)
        broken = {name: weight * float("nan") for name, weight in begun.weights.items()}
        save_snapshot(replace(begun, weights=broken), draft.folder)
        checkpoint = made.store.keep(draft, Checkpoint, {"step": 0}, MADE)
    with connected(2, 2) as cluster:
        with pytest.raises(Diverged, match="the loss at step 60 is nan"):
            made.on(cluster, checkpoint, 60, 2, said=said)
        with pytest.raises(ClusterError, match="no living node"):
            made.on(Cluster(1, 1000, cluster.node), made.begun, 60, 1)
    assert not said


def test_a_training_completes_after_one_of_two_machines_is_killed(made: Made) -> None:
    alone, _ = made.alone(made.begun, 100)
    said: Say = []
    with two_nodes() as (cluster, kill):
        leg, trained_on = made.on(cluster, made.begun, 100, 2, lambda step, loss: kill(), said)
    assert leg.workers == 1 and losses(leg) == pytest.approx(losses(alone), abs=1e-3)
    assert "a worker died" in said[0] and "room for 1 of 2 workers" in said[-1]
    assert load_snapshot(made.store.folder(trained_on)).step == 100


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_text_is_tokenized_alike_after_one_of_two_machines_is_killed(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "TASK_CHARACTERS", 30_000)
    text = own_text()
    tokenizer = learn(
        lambda: [text],
        VocabularySpec(kind=kind, size=300 if kind == "bpe" else None),
        characters=len(text),
        unseen=False,
    )
    pieces = [text[n : n + 997] for n in range(0, len(text), 997)] * 20 + ["", "sings\n"]
    expected = list(encode(tokenizer, pieces))
    found = []
    with two_nodes() as (cluster, kill):
        for ids in tokens.encode_on(cluster, tokenizer, pieces):
            found.append(ids)
            if len(found) == 100:
                kill()
    assert len(found) == len(expected)
    assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_files_come_whole_from_another_machine_and_a_text_that_is_refused_is_named_as_in_one_process(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    tokenizer = learn(lambda: ["abc\n"], VocabularySpec(kind="char", byte_fallback="never"), characters=4, unseen=False)
    pieces = ["ab\n"] * 50 + ["a\n", "xa\n"]
    monkeypatch.setattr(tokens, "TASK_CHARACTERS", 1000)
    with two_nodes() as (cluster, _):
        [other] = [node["NodeID"] for node in ray.nodes() if node["NodeID"] != cluster.node]
        for handle in (made.begun, made.shards):
            folder = made.store.folder(handle)
            copy = Folder(str(folder), handle.digest, other).copied(tmp_path / "cache")
            files = [path for path in folder.rglob("*") if path.is_file() and path.name != "origin.json"]
            assert len(files) > 2
            assert all((copy / path.relative_to(folder)).read_bytes() == path.read_bytes() for path in files)
        wrong = Folder(str(made.store.folder(made.begun)), made.shards.digest, other)
        with pytest.raises(ClusterError, match=f"sha256 {made.begun.digest}"):
            wrong.copied(tmp_path / "other")
        big = tmp_path / "big"
        big.write_bytes(os.urandom(40 * 2**20 + 1))
        fetch(other, tmp_path, made.store.root, ["big"])
        assert (made.store.root / "big").read_bytes() == big.read_bytes()
        found = []
        with pytest.raises(UnknownCharacter, match="at offset 0 of piece 51") as refused:
            found += list(tokens.encode_on(cluster, tokenizer, pieces))
        assert refused.value.piece == 51 and not isinstance(refused.value, NotLossless)


CLEANING = ("strip-bom", "crlf", "gutenberg", "unwrap", "nfc")


@pytest.mark.parametrize(
    "fields",
    [
        {"documents": {"cut": "file"}, "cleaning": CLEANING},
        {"documents": {"cut": "heading", "heading": "^Chapter 1"}, "cleaning": CLEANING},
        {"documents": {"cut": "row"}, "rows": {"format": "jsonl"}},
    ],
    ids=["file", "heading", "row"],
)
@pytest.mark.usefixtures("prefect_server")
def test_a_corpus_of_many_files_that_two_machines_read_is_the_same_also_if_one_is_killed(
    fields: dict[str, Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cleaned, the same artifact; or the same error."""
    from prefect import flow

    folder = project / "texts" / "many"
    folder.mkdir()
    for number in range(60):
        text = f"\ufeffChapter {number}\r\n\r\nThe cafe\u0301 {number}\r\n" * (number % 7) + "\r\n" * (number % 3)
        if "rows" in fields:
            text = "".join(f'{{"text": {row}}}\n' for row in (f'"row {number}\\r\\n"', "null", '" "')[: 1 + number % 3])
        (folder / f"{number}.txt").write_bytes(text.encode())
    spec = CorpusSpec(name="many", title="many", source={"path": "texts/many"}, **fields)
    monkeypatch.setattr("bardflow.tasks.corpus.SPREAD_BYTES", 1)
    monkeypatch.setattr(reading, "TASK_BYTES", 1000)
    asked: list[int] = []

    def cleaned() -> tuple[Corpus, Source]:
        with Run() as here, spread():
            source = here(fetch_source, spec)
            return here(clean_corpus, source, spec), source

    def refused() -> str:
        whole = (folder / "5.txt").read_bytes()
        (folder / "5.txt").write_bytes(b"\xff" * 900)
        with pytest.raises(CorpusError, match=r"5\.txt") as error:
            flow(cleaned)()
        (folder / "5.txt").write_bytes(whole)
        return str(error.value)

    why = refused()
    alone = flow(cleaned)()
    folder_alone = Store(project / "home").folder(alone[0])
    assert len({document for part in SPLITS for document, _ in read_documents(folder_alone, part)}) > 5
    shutil.rmtree(project / "home")
    with nodes() as (address, kill):
        monkeypatch.setenv("BARDFLOW_CLUSTER", address)
        of_one = reading.UnitsOn.__call__

        def watched(self: reading.UnitsOn, *given: Any) -> Iterator[Iterator[str]]:
            asked.append(self.cluster.nodes())
            for number, unit in enumerate(of_one(self, *given)):
                if number == 20 and len(asked) == 2:
                    kill()
                yield unit

        monkeypatch.setattr(reading.UnitsOn, "__call__", watched)
        assert refused() == why
        assert flow(cleaned)() == alone
    assert asked[:2] == [2, 2], "both counted the text, until one was killed"


@pytest.mark.usefixtures("answers")
def test_a_run_completes_after_one_of_two_machines_is_killed_and_its_shards_have_the_same_bytes(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    overrides = quickly(
        steps=60, leg_steps=20, precision="f32", vocabulary_kind="bpe", vocabulary_size=300, patience=None
    )
    spread: list[int] = []

    def spread_too(cluster: Cluster, *given: Any) -> Any:
        spread.append(cluster.nodes())
        return tokens.encode_on(cluster, *given)

    monkeypatch.setattr("bardflow.tasks.vocabulary.SPREAD_CHARACTERS", 1)
    monkeypatch.setattr("bardflow.tasks.vocabulary.encode_on", spread_too)

    def run(number: int) -> tuple[Outcome, str]:
        home = project / f"home {number}"
        monkeypatch.setenv("BARDFLOW_HOME", str(home))
        with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: home / "results"}):
            outcome = train_gpt("own", "tiny", overrides, workers=number)
        [shards] = (home / "objects" / "token-shards").iterdir()
        return outcome, shards.name

    alone, expected = run(1)
    assert not spread

    with nodes() as (address, kill):
        monkeypatch.setenv("BARDFLOW_CLUSTER", address)

        def kill_while_it_trains() -> None:
            while len(workers_here()) < 2:
                time.sleep(0.05)
            kill()

        killer = threading.Thread(target=kill_while_it_trains)
        killer.start()
        outcome, shards = run(2)
        killer.join()
    assert spread == [2, 2] and shards == expected, "training and validation set were tokenized by two machines"
    assert outcome.nats_per_token == pytest.approx(alone.nats_per_token, abs=1e-3)
    assert "beginning the leg again from its checkpoint" in caplog.text and "room for 1 of 2 workers" in caplog.text


@pytest.mark.usefixtures("answers")
def test_two_trials_at_once_give_what_they_give_one_after_another(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    overrides = quickly(steps=40, leg_steps=20, precision="f32")
    fields: Any = {"learning_rate": Range(low=1e-4, high=1e-1, log=True), "heads": [1, 2, 3]}
    found = []
    for number in (1, 2):
        home = project / f"home {number}"
        monkeypatch.setenv("BARDFLOW_HOME", str(home))
        with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: home / "results"}):
            search("own", "tiny", overrides, fields, 4, trials_at_once=number)
        [journal] = (home / "searches").glob("*.log")
        storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=JournalFileOpenLock(str(journal))))
        found.append(optuna.load_study(study_name=journal.stem, storage=storage).trials)
    one, two = ([(t.params, t.value, t.user_attrs) for t in trials] for trials in found)
    assert two == one, "to the last bit"
    first, second = found[1][:2]
    starts, ends = ([getattr(t, when) for t in (first, second)] for when in ("datetime_start", "datetime_complete"))
    assert max(starts) < min(ends)


def test_an_address_without_a_cluster_is_an_error_that_says_what_to_start() -> None:
    with (
        pytest.raises(ClusterError, match=r"no cluster answers at 127\.0\.0\.1:1 .* `ray start --head`"),
        connected(2, 2, "127.0.0.1:1"),
    ):
        pass
    with pytest.raises(ClusterError, match="HOST:PORT of its head node"), connected(2, 2, "ray://somewhere:10001"):
        pass


def test_signals_and_attempts_are_as_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with connected(1, 1) as cluster:
        assert signal.getsignal(signal.SIGTERM) == before
        assert cluster.room() == 1
    assert signal.getsignal(signal.SIGTERM) == before and legs.ATTEMPTS > 1
