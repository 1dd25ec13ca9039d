"""A training as one of two workers, in a process that imports little."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bardflow.model.machine import Device, Execution
from bardflow.model.networks import GPTSpec
from bardflow.model.training import Snapshot, Team, Training, TrainingSpec, begin, joined, save_snapshot

VOCABULARY, STEPS, HALF = 23, 8, 3
F32, BF16 = Device("cpu", "f32"), Device("cpu", "bf16")
WHOLE = Execution(micro_batch=64)
SHARDED = Execution(micro_batch=64, sharded=True)


class Case(NamedTuple):
    """A training on random tokens. Batches of 7 cannot be halved."""

    gpt: GPTSpec
    optimizer: Any
    device: Device = F32
    execution: Execution = WHOLE
    batch: int = 7

    @property
    def spec(self) -> TrainingSpec:
        """Input noise is drawn for the whole batch, and the small clip makes each step depend on all gradients."""
        return TrainingSpec(
            steps=STEPS,
            batch=self.batch,
            optimizer=self.optimizer,
            input_noise=0.1,
            clip=0.3,
            warmup_steps=2,
            dropout_warmup_steps=3,
            average_decay=0.5,
        )


def tokens() -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Some tokens with something to learn in them."""
    drawn = np.random.default_rng(0).integers(0, VOCABULARY, 400)
    return np.where(np.arange(400) % 3 == 0, 7, drawn).astype(np.uint16)


def trained(case: Case, snapshot: Snapshot, until: int, team: Team | None = None) -> tuple[list[float], Snapshot]:
    """The loss of each step to `until`, and the new snapshot."""
    training = Training(snapshot, case.spec, case.device, case.execution, team)
    return [step.loss.item() for step in training.steps(tokens(), until)], training.snapshot()


def as_worker(rank: int, address: str, folder: Path, cases: list[Case]) -> None:
    """Train all cases as one of two, in two legs; losses and snapshots go to files."""
    torch.set_num_threads(1)
    with joined(rank, 2, address) as team:
        for number, case in enumerate(cases):
            losses, half = trained(case, begin(case.gpt, VOCABULARY, 1), HALF, team)
            more, whole = trained(case, half, STEPS, team)
            for name, snapshot in (("half", half), ("whole", whole)):
                place = folder / f"{rank}-{number}-{name}"
                place.mkdir()
                save_snapshot(snapshot, place)
            np.save(folder / f"{rank}-{number}.npy", np.array(losses + more))
