"""The training loop: it starts from a snapshot, takes steps, and returns a new snapshot."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bardflow.errors import BardError
from bardflow.model.machine import Device, Execution, give_back
from bardflow.model.networks import (
    GPT,
    NOT_CHARGED,
    Bits,
    Dropout,
    GPTSpec,
    backward_from,
    build,
    fill,
    head_loss,
    require_alike,
    working_copy,
)
from bardflow.model.training.averaging import AVERAGE, WeightAverage
from bardflow.model.training.batches import Batches, Tokens, with_noise
from bardflow.model.training.factors import dropout_share, gradient_factor, learning_rate_factor
from bardflow.model.training.optimizers import OPTIMIZERS, Optimizer, RandomBits, owners
from bardflow.model.training.replay import Replayed
from bardflow.model.training.sharding import Shards
from bardflow.model.training.spec import TrainingSpec
from bardflow.model.training.team import Team


class Diverged(BardError):
    """The training loss is not a finite number."""


@dataclass(frozen=True)
class Snapshot:
    """A training state: the number of steps taken (the data position), weights and optimizer state by name.

    If the training averages its weights, `optimizer` has the averages too.
    """

    step: int
    gpt: GPTSpec
    vocabulary_size: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


@dataclass(frozen=True)
class Step:
    """A step that was taken. `loss` is the mean over the step's tokens in nats, a scalar tensor on the device."""

    number: int
    loss: Tensor
    learning_rate: float
    tokens: int


@dataclass(frozen=True)
class Inputs:
    """The inputs of a step, without weights and optimizer state.

    On a CPU, the last three are numbers. On other devices, all are tensors, which are overwritten in place for each
    step, so that a step can be recorded once.
    """

    inputs_BT: Tensor
    targets_BT: Tensor
    charged: Any
    factor: Any
    step: Any

    @classmethod
    def on_gpu(cls, rows: int, context: int, device: Device) -> "Inputs":
        """Allocate tensors on the device."""
        inputs_BT, targets_BT = torch.zeros(2, rows, context, dtype=torch.int64, device=device.name)
        charged, factor = torch.zeros(2, device=device.name)
        return cls(inputs_BT, targets_BT, charged, factor, torch.zeros((), dtype=torch.int64, device=device.name))

    def take(self, given: "Inputs") -> None:
        """Copy these inputs from the CPU into the tensors."""
        for ours, theirs in ((self.inputs_BT, given.inputs_BT), (self.targets_BT, given.targets_BT)):
            # Pinned memory is copied while Python continues, and torch does not reuse it before the copy is made. MPS
            # would read it later, when it may already be freed.
            ours.copy_(theirs.pin_memory() if ours.is_cuda else theirs, non_blocking=ours.is_cuda)
        self.charged.fill_(given.charged)
        self.factor.fill_(given.factor)
        self.step.fill_(given.step)


def begin(gpt: GPTSpec, vocabulary_size: int, seed: int) -> Snapshot:
    """Return the snapshot of step 0: random weights from the seed, and no optimizer state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = build(gpt, vocabulary_size).state_dict()
    return Snapshot(0, gpt, vocabulary_size, dict(weights), {})


class Training:
    """A training on a device, started from a snapshot: a model, its optimizers, and the number of steps taken.

    `gpt` has the weights in f32. If products are in bf16, `working` is a copy that computes, and each of its gradients
    is added to that of `gpt` as soon as it is computed.

    With a `team`, other processes take the same steps from the same snapshot. This one computes its rows of each batch,
    and the gradients of all are added up. So the steps are those of a single process up to rounding. If the execution
    says so, the blocks' weights, gradients and optimizer state are in shards (`model.training.sharding`).

    Raises:
        TooManyWorkers: the team has more workers than a batch has windows.
    """

    def __init__(
        self, snapshot: Snapshot, spec: TrainingSpec, device: Device, execution: Execution, team: Team | None = None
    ) -> None:
        self.spec, self.device, self.execution, self.step = spec, device, execution, snapshot.step
        self.team = team
        self.enlarged = gradient_factor(spec, snapshot.gpt, device)
        self.rows = slice(0, spec.batch) if team is None else team.rows(spec.batch)
        self.gpt_spec, self.vocabulary_size = snapshot.gpt, snapshot.vocabulary_size
        self.shards: Shards | None = None
        if execution.sharded and team is not None:
            self.shards = Shards(snapshot.gpt, snapshot.vocabulary_size, snapshot.weights, device, team)
            self.gpt: GPT = self.shards.gpt
            self.working, self.named = self.gpt, self.shards.named()
        else:
            self.gpt = restore(snapshot).to(device.name)
            self.working, self.named = working_copy(self.gpt, device.dtype), dict(self.gpt.named_parameters())
        pairs = zip(self.working.parameters(), self.gpt.parameters(), strict=True)
        self.copies = {theirs: ours for theirs, ours in pairs if theirs is not ours}
        # The hook has only a weak reference to the training: Python's cycle collector does not find torch's hooks, so
        # with a strong one the training was never freed, which took 70 MB per leg of recipe `best`.
        hand_over = weakref.WeakMethod(self._hand_over)
        for theirs in self.copies:
            theirs.register_post_accumulate_grad_hook(partial(_call, hand_over))  # type: ignore[no-untyped-call]
        self.optimizers = OPTIMIZERS[spec.optimizer].make(self.named, spec, device)
        for optimizer in self.optimizers:
            optimizer.shards = self.shards
        self.average = WeightAverage(self.named, spec.average_decay) if spec.average_decay else None
        self._load_optimizers(snapshot.optimizer)

    def steps(self, tokens: Tokens, until: int) -> Iterator[Step]:
        """Take steps until `until` have been taken in all, and yield each one.

        All random numbers are a function of (seed, step). A training resumed from a snapshot gives exactly the same
        weights on one CPU with the same number of threads and the same execution.

        Raises:
            TooFewTokens: the text is shorter than a window.
            Diverged: the loss of step `until` is not finite (a loss that is not finite stays so in later steps).
        """
        spec = self.spec
        batches = Batches(tokens, context=self.gpt.context, batch=spec.batch, seed=spec.seed)
        rows = self._computed_rows()
        inputs = Inputs.on_gpu(rows, self.gpt.context, self.device) if self.device.is_card else None
        compute: Callable[[], Tensor] | None = partial(self._compute, inputs) if inputs else None
        if compute and self.device.name == "cuda":
            # A recorded step has no sums over processes.
            compute = Replayed(compute, recorded=self.execution.recorded and self.team is None)
        while self.step < until:
            given = self._inputs(batches)
            if inputs and compute:
                inputs.take(given)
                loss = compute()
            else:
                loss = self._compute(given)
            self.step += 1
            if self.step == until and not torch.isfinite(loss):
                rates = (f"{name} than {getattr(spec, name):g}" for name in OPTIMIZERS[spec.optimizer].rates)
                raise Diverged(
                    f"the loss at step {self.step:,} is {loss.item()}: the weights have run away; give a smaller "
                    f"{' or '.join(rates)}"
                )
            yield Step(self.step, loss, spec.learning_rate * given.factor, given.charged)
        del compute  # also frees the recorded step, so that scoring can use its memory
        self._rest()

    def _rest(self) -> None:
        """Free gradients and return freed memory to the system, because scoring and saving follow and need memory."""
        for parameter in self.named.values():
            parameter.grad = None
        give_back(self.device)

    def _inputs(self, batches: Batches) -> "Inputs":
        """Return this process's inputs of the next step, with input noise; `charged` counts the whole batch."""
        batch = batches.at(self.step)
        if noise := self.spec.input_noise:
            batch = with_noise(batch, noise, vocabulary_size=self.vocabulary_size, seed=self.spec.seed, step=self.step)
        charged = int((batch.targets_BT != NOT_CHARGED).sum())
        factor = learning_rate_factor(self.step, self.spec)
        inputs_BT, targets_BT = batch.inputs_BT[self.rows], batch.targets_BT[self.rows]
        if missing := self._computed_rows() - len(inputs_BT):
            inputs_BT = torch.cat((inputs_BT, inputs_BT[:missing]))
            targets_BT = torch.cat((targets_BT, torch.full_like(targets_BT[:missing], NOT_CHARGED)))
        return Inputs(inputs_BT, targets_BT, charged, factor, self.step)

    def _computed_rows(self) -> int:
        """Return the number of windows that this process computes in a step.

        With shards all workers compute the same number, because they put each block together at once: one with a window
        less computes one again, whose targets are not charged.
        """
        if self.shards is None or self.team is None:
            return self.rows.stop - self.rows.start
        return -(-self.spec.batch // self.team.workers)

    def _compute(self, given: "Inputs") -> Tensor:
        """Take the step and return its mean loss, without reading a value from the device."""
        loss = self._gradients(given)
        if self.team is not None:
            self.team.add_up([loss, *(p.grad for p in self._whole() if p.grad is not None)])
        if self.shards is not None:
            self.shards.collect()
        if self.enlarged != 1:
            torch._foreach_div_([p.grad for p in self.named.values() if p.grad is not None], self.enlarged)
        if self.spec.clip is not None:
            if self.shards is None:
                torch.nn.utils.clip_grad_norm_(self.gpt.parameters(), self.spec.clip)
            else:
                self.shards.clip(self.spec.clip)
        self._update(given)
        return loss

    def _whole(self) -> Iterable[Tensor]:
        """Return the parameters that are not in shards."""
        return [p for name, p in self.named.items() if self.shards is None or name not in self.shards.parts]

    def computing(self) -> GPT:
        """Return the model that computes, with the current weights: `gpt`, or its copy in bf16."""
        if self.copies:
            with torch.no_grad():
                torch._foreach_copy_([*self.copies], [*self.copies.values()])
        return self.working

    def _gradients(self, given: "Inputs") -> Tensor:
        """Return the step's mean loss, and add its gradients to those of the weights."""
        working = self.computing()
        dropout = None
        if self.gpt.dropout:
            dropout = Dropout(
                dropout_share(given.step, self.spec, self.gpt_spec),
                seed=self.spec.seed,
                step=given.step,
                fused=self.execution.compiled,
                first=self.rows.start,
            )
        loss = torch.zeros((), device=self.device.name)
        micro = self.execution.micro_batch
        for first in range(0, len(given.inputs_BT), micro):
            rows = slice(first, first + micro)
            hidden_BTC = working.hidden(
                given.inputs_BT[rows], dropout, recompute=self.execution.recompute, fused=self.execution.compiled
            )
            micro_loss, dhidden_BTC = head_loss(
                hidden_BTC.detach(),
                working.head.weight,
                given.targets_BT[rows],
                charged=given.charged,
                tokens=self.execution.loss_tokens,
                scale=self.spec.logit_scale,
                enlarged=self.enlarged,
                fused=self.execution.compiled,
            )
            backward_from(hidden_BTC, dhidden_BTC)
            loss += micro_loss
        return loss

    def _hand_over(self, theirs: nn.Parameter) -> None:
        """Add a working copy's gradient to that of its f32 weight, and free it."""
        ours = self.copies[theirs]
        assert theirs.grad is not None
        if ours.grad is None:
            ours.grad = theirs.grad.to(ours.dtype)
        else:
            ours.grad += theirs.grad
        theirs.grad = None

    def _update(self, given: "Inputs") -> None:
        """Update the weights with every optimizer, at its peak learning rate times the step's factor."""
        seed, step = self.spec.seed, given.step
        bits: RandomBits = (
            Bits(seed, step, "rounding")
            if isinstance(step, Tensor)
            else np.random.Generator(np.random.SFC64([seed, step]))
        )
        for optimizer in self.optimizers:
            optimizer.step(
                optimizer.peak * given.factor,
                # With several micro-batches, all gradients exist at peak memory; freeing them would only leave holes.
                keep_gradients=self.execution.micro_batch < self.spec.batch,
                resting=bits if self.execution.optimizer_state == "bf16" else None,
            )
        if self.average is not None:
            self.average.update(step)

    def snapshot(self) -> Snapshot:
        """Return a copy of the current state."""
        now = self.state()
        weights, optimizer = ({n: copied(t) for n, t in part.items()} for part in (now.weights, now.optimizer))
        return Snapshot(now.step, now.gpt, now.vocabulary_size, weights, optimizer)

    def state(self, *, keep: bool = True) -> Snapshot:
        """Return the current state without copying it; the next step changes its tensors.

        With shards, all workers call this, because they put the tensors together; a worker without `keep` gets none.
        """
        optimizer = {
            f"{name}/{key}": value
            for name, parameter, owner in self._owned()
            for key, value in owner.state[parameter].items()
        }
        if self.average is not None:
            optimizer |= {f"{name}/{AVERAGE}": average for name, average in self.average.averages.items()}
        if self.shards is None:
            return Snapshot(self.step, self.gpt_spec, self.vocabulary_size, self.gpt.state_dict(), optimizer)
        weights = self.shards.weights(keep)
        whole: dict[str, Tensor] = {}
        for key, value in optimizer.items():
            together = self.shards.whole(value, self.named[key.rpartition("/")[0]]) if value.dim() else value
            if keep:
                whole[key] = together.cpu()
        return Snapshot(self.step, self.gpt_spec, self.vocabulary_size, weights, whole)

    def _load_optimizers(self, saved: Mapping[str, Tensor]) -> None:
        if saved or self.step:
            averaged = () if self.average is None else self.average.averages
            require_state(saved, self._owned(), dict(self.gpt.named_parameters()), averaged)
        for name, parameter, owner in self._owned():
            prefix = f"{name}/"
            state = {key.removeprefix(prefix): saved[key] for key in saved if key.startswith(prefix)}
            if (average := state.pop(AVERAGE, None)) is not None and self.average is not None:
                rows = average if self.shards is None else self.shards.rows(name, average)
                self.average.averages[name].copy_(rows)
            # AdamW's step count is on the CPU for every device, unless it is fused on a GPU.
            dtype = torch.bfloat16 if self.execution.optimizer_state == "bf16" else torch.float32
            if self.shards is not None:
                state = {key: self.shards.rows(name, value) if value.dim() else value for key, value in state.items()}
            owner.state[parameter] = {
                key: value.clone()
                if value.dim() == 0 and self.device.name != "cuda"
                else value.to(self.device.name, dtype if value.dim() else value.dtype, copy=True)
                for key, value in state.items()
            }

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the model has the averages of its weights, if the training keeps them."""
        return nullcontext() if self.average is None else self.average.in_use()

    def _owned(self) -> Iterator[tuple[str, Tensor, Optimizer]]:
        owner = owners(self.optimizers)
        for name, parameter in self.named.items():
            yield name, parameter, owner[id(parameter)]


def _call(method: "weakref.WeakMethod[Any]", parameter: nn.Parameter) -> None:
    """Call the method if its object still exists."""
    found = method()
    if found is not None:
        found(parameter)


def restore(snapshot: Snapshot, *, averaged: bool = False) -> GPT:
    """Return the snapshot's model, on the CPU; with `averaged`, with the averages of its weights if it has them.

    Raises:
        model.networks.WrongWeights: the snapshot's weights do not match its model.
    """
    with torch.random.fork_rng(devices=[]):
        gpt = build(snapshot.gpt, snapshot.vocabulary_size)
    fill(gpt.state_dict(), snapshot.weights)
    if averaged:
        for name, parameter in gpt.named_parameters():
            if (average := snapshot.optimizer.get(f"{name}/{AVERAGE}")) is not None:
                parameter.data.copy_(average)
    return gpt


def require_state(
    saved: Mapping[str, Tensor],
    owned: Iterable[tuple[str, Tensor, Optimizer]],
    whole: Mapping[str, Tensor],
    averaged: Iterable[str] = (),
) -> None:
    """Check that saved optimizer state matches these parameters; `whole` has those that are in shards in one piece.

    `averaged` has the names of the parameters that have averages in it.

    Raises:
        model.networks.WrongWeights: a key is missing or belongs to no parameter, or a shape or type is wrong.
    """
    expected = {
        # State for zero elements shows the names, and which values are scalars. On torch's meta device, the first
        # `zeros_like` would load sympy: 36 MB and a second for every resumed leg.
        f"{name}/{key}": whole[name] if value.dim() else value
        for name, parameter, owner in owned
        for key, value in owner.begun(parameter.new_empty(0)).items()
    }
    expected |= {f"{name}/{AVERAGE}": whole[name] for name in averaged}
    require_alike(expected, saved, also=(torch.bfloat16,))


def best_leg(losses: Iterable[float]) -> int:
    """The index of the lowest validation loss, or the first of equal ones."""
    listed = list(losses)
    return listed.index(min(listed))


def hopeless(losses: list[float], patience: int | None) -> bool:
    """Whether none of the last `patience` legs has a lower loss than the best leg before them."""
    return patience is not None and len(losses) - 1 - best_leg(losses) >= patience


def copied(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU that shares no memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()
