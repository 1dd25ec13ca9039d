"""What a training will take before it is started: parameters, arithmetic, memory by part, disk. Pure arithmetic.

The formulas follow what `model.training` and its neighbours hold at each moment; `benchmarks/memory_plan.py` measures
how well. Shapes as in `model.gpt`: B windows of a micro-batch, T context, C width, V vocabulary.
"""

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict

from bardflow.errors import BardError
from bardflow.model.machine import Device, Execution, compiles
from bardflow.model.networks import QUERIES, GPTSpec, Parameters, network
from bardflow.model.training import OPTIMIZERS, STACKED, STACKED_ON_A_CARD, TrainingSpec

# A plan is kept this much below a limit: as much as plans were off (benchmarks/memory_plan.py).
MARGIN = 0.1


class TooLittleMemory(BardError):
    """No way to compute a step fits into the limit."""


class Machine(BaseModel):
    """Where a training is planned to run. `base` is what the process holds before it: the interpreter and libraries.

    `compiles` is whether `torch.compile` works there (`model.machine.compiles`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Literal["cpu", "cuda", "mps"]
    precision: Literal["f32", "bf16"]
    base: int
    compiles: bool = False

    @classmethod
    def here(cls, device: Device, base: int) -> "Machine":
        """This machine."""
        return cls.model_validate(
            {"device": device.name, "precision": device.precision, "base": base, "compiles": compiles(device)}
        )


class Parts(BaseModel):
    """Bytes held at one moment, by what they are for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int
    holes: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.model_dump().values())


class Plan(BaseModel):
    """How a training is to be computed, and the bytes that it then holds at each of its moments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    execution: Execution
    machine: Machine
    moments: dict[str, Parts]

    @property
    def moment(self) -> str:
        """When the peak is reached."""
        return max(self.moments, key=lambda name: self.moments[name].total)

    @property
    def peak(self) -> Parts:
        """The peak by part."""
        return self.moments[self.moment]


def parameters(gpt: GPTSpec, vocabulary_size: int) -> Parameters:
    """The parameters of `model.networks.build(gpt, vocabulary_size)`, without building it."""
    return network(gpt.architecture).count(gpt, vocabulary_size)


def flops_per_token(gpt: GPTSpec, vocabulary_size: int) -> int:
    """Floating-point operations of matrix products to train on a token: 6 N + 12 L C T.

    PaLM's convention (Chowdhery et al. 2022, appendix B), which nanoGPT's `estimate_mfu` follows too: 2 N forward and
    4 N backward, where N leaves out what is only looked up; attention's products over the whole context, though half of
    it is masked. What is computed twice to save memory does not count.
    """
    counted = parameters(gpt, vocabulary_size).total - network(gpt.architecture).looked_up(gpt, vocabulary_size)
    return 6 * counted + 12 * gpt.layers * gpt.width * gpt.context


def flops_per_step(gpt: GPTSpec, vocabulary_size: int, training: TrainingSpec) -> int:
    """Floating-point operations of one optimizer step."""
    return flops_per_token(gpt, vocabulary_size) * training.batch * gpt.context


def checkpoint_bytes(gpt: GPTSpec, vocabulary_size: int, training: TrainingSpec, execution: Execution) -> int:
    """A checkpoint on disk: weights in f32 (a tied table stands there twice) and the optimizer's state."""
    weights = 4 * parameters(gpt, vocabulary_size).total
    if gpt.tied:
        weights += 4 * vocabulary_size * gpt.width
    return weights + optimizer_bytes(gpt, vocabulary_size, training, execution)


def disk_bytes(gpt: GPTSpec, vocabulary_size: int, training: TrainingSpec, execution: Execution) -> int:
    """All checkpoints of a run that goes to its last step: the first weights, and one for each leg."""
    one = checkpoint_bytes(gpt, vocabulary_size, training, execution)
    begun = one - optimizer_bytes(gpt, vocabulary_size, training, execution)
    return begun + len(training.leg_ends()) * one


def optimizer_bytes(gpt: GPTSpec, vocabulary_size: int, training: TrainingSpec, execution: Execution) -> int:
    """What the optimizer remembers: AdamW two numbers a parameter, Muon one for each of the blocks' matrices."""
    numbers = OPTIMIZERS[training.optimizer].numbers(parameters(gpt, vocabulary_size).total, block_matrices(gpt))
    return numbers * (4 if execution.optimizer_state == "f32" else 2)


def block_matrices(gpt: GPTSpec) -> int:
    """Numbers in the blocks' matrices."""
    return gpt.layers * 12 * gpt.width**2


# Tokens in a micro-batch beyond which a step gets no faster.
FAST_TOKENS = {"cpu": 4096, "cuda": 32_768, "mps": 8192}
# Logits that exist at once where nothing is said: on a CPU 32 MiB in f32, on a graphics card 1 GiB.
FAST_LOGITS = {"cpu": 2**23, "cuda": 2**28, "mps": 2**26}
LEAST_LOSS_TOKENS = 128
# Arithmetic of a training from which compiling is worth its seconds: an H100 saves 2 ms of each step of recipe `best`
# (4e11 operations) and 37 ms of each of 124 M parameters (2.8e13), and compiles for 5 to 12 s (benchmarks/LOG.md).
COMPILED_FLOPS = 1e15


def unlimited(gpt: GPTSpec, vocabulary_size: int, training: TrainingSpec, machine: Machine) -> Execution:
    """The execution where memory is no matter: the fastest, and of equally fast ones the one that takes least."""
    steps = math.ceil(training.batch * gpt.context / FAST_TOKENS[machine.device])
    loss_tokens = max(LEAST_LOSS_TOKENS, FAST_LOGITS[machine.device] // vocabulary_size)
    loss_tokens = min(FAST_TOKENS[machine.device], loss_tokens)
    micro_batch = math.ceil(training.batch / steps)
    if machine.device == "cpu":
        return Execution(micro_batch=micro_batch, loss_tokens=loss_tokens)
    # In pieces of one size: each size would be compiled by itself.
    tokens = micro_batch * gpt.context
    loss_tokens = math.ceil(tokens / math.ceil(tokens / loss_tokens))
    long = training.steps * flops_per_step(gpt, vocabulary_size, training) >= COMPILED_FLOPS
    return Execution(micro_batch=micro_batch, loss_tokens=loss_tokens, compiled=long and machine.compiles)


def choose(gpt: GPTSpec, vocabulary_size: int, training: TrainingSpec, machine: Machine, limit: int | None) -> Plan:
    """The fastest execution whose planned peak stays below the limit in bytes; without a limit, the fastest.

    Raises:
        TooLittleMemory: none does; the message names the least limit that would do.
    """
    fastest = unlimited(gpt, vocabulary_size, training, machine)
    if limit is None:
        return foresee(gpt, vocabulary_size, training, fastest, machine)
    plans = [foresee(gpt, vocabulary_size, training, e, machine) for e in economies(fastest)]
    fitting = [plan for plan in plans if needed(plan) <= limit]
    if not fitting:
        least = min(plans, key=needed)
        raise TooLittleMemory(
            f"memory_limit is {limit:,} bytes, but the least that would do for this training is {needed(least):,} "
            f"({least.peak.base:,} of them the program itself): give that much, or a smaller model; without a limit it "
            f"takes {needed(plans[0]):,}"
        )
    return min(fitting, key=lambda plan: slowness(plan.execution, gpt, fastest))


def needed(plan: Plan) -> int:
    """The least limit that a plan fits into."""
    return math.ceil(plan.peak.total * (1 + MARGIN))


def economies(fastest: Execution) -> Iterator[Execution]:
    """The fastest execution, and the ways to do the same in less memory."""
    micro_batches = [fastest.micro_batch]
    while micro_batches[-1] > 1:
        micro_batches.append(math.ceil(micro_batches[-1] / 2))
    loss_tokens = [fastest.loss_tokens]
    while loss_tokens[-1] > LEAST_LOSS_TOKENS:
        loss_tokens.append(max(LEAST_LOSS_TOKENS, loss_tokens[-1] // 2))
    for state in ("f32", "bf16"):
        for recompute in (False, True):
            for micro_batch in micro_batches:
                for tokens in loss_tokens:
                    yield fastest.model_copy(
                        update={
                            "micro_batch": micro_batch,
                            "recompute": recompute,
                            "loss_tokens": tokens,
                            "optimizer_state": state,
                        }
                    )


def slowness(execution: Execution, gpt: GPTSpec, fastest: Execution) -> tuple[bool, float]:
    """What an execution costs, for comparison: first the optimizer's precision, which touches the result, then time.

    Recomputing costs one forward pass more, a third of a step's arithmetic. What is paid once for each micro-batch and
    each piece of the logits counts as so many tokens' time.
    """
    time = 1 + execution.recompute / 3
    time += MICRO_BATCH_COST_TOKENS / (min(execution.micro_batch, fastest.micro_batch) * gpt.context)
    time += LOSS_COST_TOKENS / execution.loss_tokens
    return execution.optimizer_state != "f32", time


# What a micro-batch costs beside its tokens: 190 to 310 were measured (classic models of 11 to 12 M on 2 cores, one
# window at once beside sixteen). What a piece of the logits costs is assumed, to order plans.
MICRO_BATCH_COST_TOKENS = 250
LOSS_COST_TOKENS = 10


def foresee(gpt: GPTSpec, vocabulary_size: int, training: TrainingSpec, execution: Execution, machine: Machine) -> Plan:
    """The bytes held at each moment of a leg where the peak may be."""
    C, V, tokens = gpt.width, vocabulary_size, execution.micro_batch * gpt.context
    total = parameters(gpt, V).total
    number = 2 if machine.precision == "bf16" else 4
    micro_batches = math.ceil(training.batch / execution.micro_batch)
    state = optimizer_bytes(gpt, V, training, execution)
    head = V * C
    copies = 2 * parameters(gpt, V).body if machine.precision == "bf16" else 0
    kept = tokens * activation_bytes_per_token(gpt, execution, machine)
    block = tokens * block_bytes_per_token(gpt, machine)
    again = tokens * block_activation_bytes(gpt, ONE_BLOCK, machine) * execution.recompute
    at_once = min(execution.loss_tokens, tokens)
    logits = at_once * V * logit_bytes(execution, machine)
    heads = (2 if number < 4 else 1) * number * head  # converted, and a piece's gradient of it
    ends = tokens * number * C * 2  # the last norm's output and its gradient

    def parts(**given: int) -> Parts:
        passing = sum(given.get(part, 0) for part in ("activations", "logits", "workspace"))
        holes = holes_bytes(gpt, machine, execution, passing, 4 * total)
        held = {"base": machine.base, "optimizer": state, "holes": holes}
        return Parts(**dict.fromkeys(Parts.model_fields, 0) | held | given)

    largest = orthogonalising_bytes(gpt, number, machine) if OPTIMIZERS[training.optimizer].stacked else 0
    return Plan(
        execution=execution,
        machine=machine,
        moments={
            # All activations are there; of gradients the head's, or all where another micro-batch was before.
            "taking the loss": parts(
                weights=4 * total + copies,
                gradients=4 * (total if micro_batches > 1 else head),
                activations=kept,
                logits=logits,
                workspace=ends + heads,
            ),
            # The last block's gradient is taken while all activations are still there.
            "going back": parts(
                weights=4 * total + copies,
                gradients=4 * (total if micro_batches > 1 else head),
                activations=kept + again,
                workspace=block + ends,
            ),
            # All gradients are there, and of activations those of one block.
            "the first block": parts(
                weights=4 * total + copies,
                gradients=4 * total,
                activations=kept // max(1, gpt.layers),
                workspace=block + ends + again,
            ),
            "the optimizer's step": parts(weights=4 * total + copies, gradients=4 * total, workspace=largest),
        },
    )


def logit_bytes(execution: Execution, machine: Machine) -> int:
    """Bytes of each logit that exists at once: in f32, and the logarithm of its share; on a graphics card its share,
    and also the product as it came, or by `torch.compile` only this and its gradient.
    """
    if machine.device == "cpu":
        return 8
    number = 2 if machine.precision == "bf16" else 4
    return 2 * number if execution.compiled else 8 + number


def orthogonalising_bytes(gpt: GPTSpec, number: int, machine: Machine) -> int:
    """What Muon needs beside its state for its largest stack: the update in f32, and products in their type."""
    stack = min(STACKED if machine.device == "cpu" else STACKED_ON_A_CARD, gpt.layers * 8 * gpt.width**2)
    return stack * (4 + 4 + 4 * number)


ONE_BLOCK = Execution(micro_batch=1)


def activation_bytes_per_token(gpt: GPTSpec, execution: Execution, machine: Machine) -> int:
    """What the forward pass keeps of each token for the way back: the blocks' share, and the last norm's output."""
    number = 2 if machine.precision == "bf16" else 4
    return gpt.layers * block_activation_bytes(gpt, execution, machine) + number * gpt.width


def block_activation_bytes(gpt: GPTSpec, execution: Execution, machine: Machine) -> int:
    """What a block keeps of each token."""
    number, C = (2 if machine.precision == "bf16" else 4), gpt.width
    kept, dropped = network(gpt.architecture).KEPT, gpt.dropout > 0
    widths = 1.0 if execution.recompute else kept.on_cpu if on_our_own(machine) else kept.elsewhere
    if dropped:
        widths += 2
    if kept.attention_mask and dropped:
        # A mask of heads x T for a token; where attention with dropout is written out, weights and their product too.
        tables = 1 if execution.recompute or on_our_own(machine) else 3
        widths += tables * gpt.heads * gpt.context / C
    return int(number * C * widths)


def on_our_own(machine: Machine) -> bool:
    """Whether blocks are computed by the functions of model.networks.cpu_kernels and attention, and not by torch's."""
    return machine.precision == "bf16" and machine.device == "cpu"


def block_bytes_per_token(gpt: GPTSpec, machine: Machine) -> int:
    """What stands beside them for each token while one block's gradient is taken."""
    number, C = (2 if machine.precision == "bf16" else 4), gpt.width
    written_out = network(gpt.architecture).KEPT.attention_mask and gpt.dropout and not on_our_own(machine)
    table = gpt.heads * (gpt.context if written_out else min(QUERIES, gpt.context))
    return number * (BLOCK_WIDTHS * C + 2 * table)


def holes_bytes(gpt: GPTSpec, machine: Machine, execution: Execution, passing: int, gradients: int) -> int:
    """What lies unused between what is kept and what comes and goes, of which `passing` bytes stand now.

    glibc's heap is not moved together: with every large tensor mapped on its own there were no holes, and a step took
    twice as long (benchmarks/LOG.md). Our own functions make more that comes and goes, so there are more holes. And
    gradients are laid between what is freed: where little comes and goes, the holes are as large as a share of them,
    the more so where state rests in bf16.
    """
    if machine.device != "cpu":
        return 0
    share = network(gpt.architecture).KEPT.holes if on_our_own(machine) else HOLES
    return int(max(passing * share, gradients * HOLES_BETWEEN[execution.optimizer_state]))


# As a share of what comes and goes by torch's own functions, and of all gradients, by the type of the state at rest.
HOLES = 0.55
HOLES_BETWEEN = {"f32": 0.7, "bf16": 1.0}
# Numbers of a width that stand beside them for each token while a block's gradient is taken.
BLOCK_WIDTHS = 10
