"""A leg of training: the steps between two checkpoints, its loss curve, and its score on the validation set."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from bardflow.model.machine import Device, forget_peak, peak_bytes
from bardflow.model.scoring import Rounded, score
from bardflow.model.training import Step, Tokens, Training, TrainingSpec

LOGGED_POINTS = 400  # the approximate number of points in a run's loss curve, which take 30 kB


@dataclass(frozen=True)
class Point:
    """A point of the loss curve: mean loss since the point before, nats per token, and seconds since the leg began."""

    step: int
    train_nats: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class Leg:
    """What a leg gave besides the snapshot, and what was measured."""

    points: list[Point]
    validation_nats_per_token: float
    train_seconds: float
    tokens: int
    peak_bytes: int
    peak_of: str
    device: str
    precision: str
    threads: int
    workers: int


def points_every(spec: TrainingSpec) -> int:
    """Return the number of steps between two points of the loss curve.

    A leg of a constant schedule is the same in a training of any length, so its points do not depend on that.
    """
    return max(1, (10 * spec.leg_steps if spec.schedule == "constant" else spec.steps) // LOGGED_POINTS)


def point(step: Step, losses: list[torch.Tensor], seconds: float) -> Point:
    """Return the point of the loss curve at a step, with the mean of the losses since the point before."""
    # On the CPU, because Apple's GPUs have no f64.
    return Point(step.number, float(torch.stack(losses).cpu().double().mean()), step.learning_rate, seconds)


class LegRun:
    """A leg that is trained: take the `steps` to step `until`, then call `finished`, which scores the validation set.

    In a team, each worker takes the steps, and the one that `leads` (rank 0) scores. `begun` begins the training.

    Raises:
        BardError: as `Training`.
    """

    def __init__(
        self, begun: Callable[[], Training], train: Tokens, validation: Tokens, until: int, device: Device
    ) -> None:
        self.of_this_leg = forget_peak(device)
        self.training = begun()
        self.train, self.validation, self.until, self.device = train, validation, until, device
        self.points: list[Point] = []
        self.tokens, self.seconds = 0, 0.0

    @property
    def leads(self) -> bool:
        """Whether this process scores and writes the checkpoint."""
        return self.training.team is None or self.training.team.rank == 0

    def steps(self) -> Iterator[Step]:
        """Take the steps, and yield each one.

        Raises:
            BardError: as `Training.steps`.
        """
        every, losses, began = points_every(self.training.spec), list[torch.Tensor](), time.monotonic()
        for step in self.training.steps(self.train, self.until):
            losses.append(step.loss)
            self.tokens += step.tokens
            if step.number % every == 0 or step.number == self.until:
                self.points.append(point(step, losses, time.monotonic() - began))
                losses = []
            yield step
        self.seconds = time.monotonic() - began

    def finished(self) -> Leg:
        """Score the first `validation_tokens` of the validation set, and return what was measured.

        Blocks compute in the training's precision. In bf16 the score takes half of the time or less, and it differs by
        some 1e-4 nats from that of the evaluation, which is in f32.
        """
        training, device = self.training, self.device
        nats = float("nan")
        # With shards, all workers put each block together, so all of them score.
        if self.leads or training.shards is not None:
            with training.averaged():
                nats = score(
                    Rounded(training.gpt, training.computing()),
                    self.validation[: training.spec.validation_tokens],
                    before=self.train[len(self.train) - 1 : len(self.train)],
                    device=Device(device.name, "f32"),
                    execution=training.execution,
                ).nats_per_token
        return Leg(
            points=self.points,
            validation_nats_per_token=nats,
            train_seconds=self.seconds,
            tokens=self.tokens,
            peak_bytes=peak_bytes(device),
            peak_of="leg" if self.of_this_leg else "process",
            device=device.name,
            precision=device.precision,
            threads=torch.get_num_threads(),
            workers=1 if training.team is None else training.team.workers,
        )
