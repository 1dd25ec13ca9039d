"""Laws of training with several workers: the same steps, up to rounding, whatever their number."""

import multiprocessing
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bardflow.model.machine import Execution
from bardflow.model.networks.dropout import Dropout
from bardflow.model.training import Snapshot, Team, TooManyWorkers, Training, begin, load_snapshot
from bardflow.model.training.team import TOGETHER, buffers
from tests.conftest import SMALL_NETWORKS
from tests.team import BF16, F32, HALF, SHARDED, STEPS, VOCABULARY, WHOLE, Case, as_worker, trained

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = [Case(gpt, optimizer) for gpt in SMALL_NETWORKS for optimizer in ("adamw", "muon")]
CASES += [
    Case(SMALL_NETWORKS[0], "muon", BF16),
    Case(SMALL_NETWORKS[1], "adamw", F32, Execution(micro_batch=2, recompute=True, loss_tokens=5), batch=2),
    Case(SMALL_NETWORKS[2], "muon", F32, Execution(micro_batch=3, optimizer_state="bf16")),
]
# The blocks' matrices in shards.
CASES += [Case(gpt, optimizer, F32, SHARDED) for gpt in SMALL_NETWORKS for optimizer in ("adamw", "muon")]
CASES += [
    Case(SMALL_NETWORKS[0], "muon", BF16, SHARDED),
    Case(SMALL_NETWORKS[1], "muon", F32, Execution(micro_batch=2, recompute=True, loss_tokens=5, sharded=True)),
    Case(SMALL_NETWORKS[2], "adamw", F32, Execution(micro_batch=3, optimizer_state="bf16", sharded=True)),
]


# What a worker left of a case, by its rank, the case's number and the end of the file's name.
LeftBy = Callable[[int, int, str], Path]
NUMBERS = [
    pytest.param(number, id=f"{case.gpt.architecture}-{number}", marks=[pytest.mark.slow] * case.execution.sharded)
    for number, case in enumerate(CASES)
]


def trained_by_two(folder: Path, cases: list[Case]) -> Path:
    """Train by two processes, which leave their losses and snapshots in a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    spawned = multiprocessing.get_context("spawn")
    workers = [spawned.Process(target=as_worker, args=(rank, address, folder, cases)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    return folder


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> LeftBy:
    """What a worker left of a case; those in shards, and the others, are trained when the first is asked for."""
    folders: dict[bool, Path] = {}

    def left_by(rank: int, number: int, name: str) -> Path:
        sharded = CASES[number].execution.sharded
        alike = [other for other, case in enumerate(CASES) if case.execution.sharded == sharded]
        if sharded not in folders:
            folder = tmp_path_factory.mktemp("workers")
            folders[sharded] = trained_by_two(folder, [CASES[other] for other in alike])
        return folders[sharded] / f"{rank}-{alike.index(number)}{name}"

    return left_by


def left(path: Path) -> Snapshot:
    found = load_snapshot(path)
    return replace(found, weights=dict(found.weights), optimizer=dict(found.optimizer))


@pytest.mark.parametrize("number", NUMBERS)
def test_two_workers_take_the_steps_of_one(two_workers: LeftBy, number: int) -> None:
    case = CASES[number]
    losses, whole = trained(case, begin(case.gpt, VOCABULARY, 1), STEPS)
    theirs = np.load(two_workers(0, number, ".npy"))
    # With bf16 products a row's result depends on how many rows are multiplied at once.
    tolerance = 1e-5 if case.device == F32 and case.execution.optimizer_state == "f32" else 2e-2
    assert theirs == pytest.approx(losses, abs=tolerance)
    assert np.array_equal(theirs, np.load(two_workers(1, number, ".npy"))), "each worker knows the loss of the batch"
    both = left(two_workers(0, number, "-whole"))
    assert both.weights.keys() == whole.weights.keys() and both.optimizer.keys() == whole.optimizer.keys()
    if tolerance < 1e-4:
        for name, weight in whole.weights.items():
            assert torch.allclose(both.weights[name], weight, atol=1e-4), name


@pytest.mark.parametrize("number", NUMBERS)
def test_all_workers_end_with_the_same_weights_to_the_bit(two_workers: LeftBy, number: int) -> None:
    one, other = (left(two_workers(rank, number, "-whole")) for rank in range(2))
    for ours, theirs in ((one.weights, other.weights), (one.optimizer, other.optimizer)):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("number", [*range(len(SMALL_NETWORKS) * 2), *NUMBERS[-9:-3]])
def test_a_checkpoint_of_two_workers_loads_at_one(two_workers: LeftBy, number: int) -> None:
    case = CASES[number]
    losses, _ = trained(case, left(two_workers(0, number, "-half")), STEPS)
    assert losses == pytest.approx(np.load(two_workers(0, number, ".npy"))[HALF:], abs=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_the_rows_of_all_workers_are_the_batch_and_differ_by_one(batch: int) -> None:
    for workers in range(1, batch + 1):
        rows = [Team(rank, workers).rows(batch) for rank in range(workers)]
        assert [row for part in rows for row in range(batch)[part]] == list(range(batch))
        sizes = [part.stop - part.start for part in rows]
        assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1


def test_more_workers_than_windows_are_refused_with_both_numbers() -> None:
    with pytest.raises(TooManyWorkers, match="3 workers were given for a batch of 2 windows"):
        Training(begin(SMALL_NETWORKS[0], VOCABULARY, 1), CASES[0]._replace(batch=2).spec, F32, WHOLE, Team(0, 3))


@pytest.mark.parametrize("step", [3, torch.tensor(3)], ids=["NumPy", "on a device"])
def test_a_window_has_the_same_mask_whichever_worker_computes_it(step: Any) -> None:
    x_BTC = torch.zeros(7, 5, 3)
    whole = Dropout(0.4, seed=1, step=step)
    masks = {place: whole.mask(place, x_BTC) for place in ("tokens", "mlp 0")}
    for first in range(7):
        part = Dropout(0.4, seed=1, step=step, first=first)
        for place, mask_BTC in masks.items():
            assert torch.equal(part.mask(place, x_BTC[first : first + 1]), mask_BTC[first : first + 1])
            if first + 1 < 7:  # a second micro-batch goes on where the first one ended
                assert torch.equal(part.mask(place, x_BTC[first + 1 :]), mask_BTC[first + 1 :])


def test_small_gradients_are_added_up_together_and_none_is_lost() -> None:
    sizes = [3, TOGETHER, 5, TOGETHER - 6, 1, 1, TOGETHER + 1]
    tensors = [torch.empty(size) for size in sizes]
    groups = [[one.numel() for one in group] for group in buffers(tensors)]
    assert groups == [[TOGETHER], [3, 5], [TOGETHER + 1], [TOGETHER - 6, 1, 1]]
