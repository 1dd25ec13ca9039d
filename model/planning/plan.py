"""Calculation of a training run's parameters, FLOPs, memory by part and disk space, without running it.

The formulas follow what `model.training` and the networks allocate at each moment; `benchmarks/memory_plan.py` measures
the error. Shapes: B windows of a micro-batch, T context, C width, V vocabulary.
"""

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict

from bardflow.errors import BardError
from bardflow.model.machine import Device, Execution, compiles
from bardflow.model.networks import QUERIES, GPTSpec, Parameters, network
from bardflow.model.training import OPTIMIZERS, STACKED, STACKED_ON_A_CARD, TrainingSpec

# A plan must stay below the limit by this share: the error of plans (benchmarks/memory_plan.py).
MARGIN = 0.1


class TooLittleMemory(BardError):
    """No execution fits into the memory limit."""


class Machine(BaseModel):
    """The machine of a plan. `base` is the bytes of the process before training: the interpreter and libraries.

    `compiles` says whether `torch.compile` works there (`model.machine.compiles`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Literal["cpu", "cuda", "mps"]
    precision: Literal["f32", "bf16", "f16"]
    base: int
    compiles: bool = False

    @property
    def number(self) -> int:
        """The bytes of a number in matrix products."""
        return 4 if self.precision == "f32" else 2

    @classmethod
    def here(cls, device: Device, base: int) -> "Machine":
        """Describe this machine."""
        return cls.model_validate(
            {"device": device.name, "precision": device.precision, "base": base, "compiles": compiles(device)}
        )


class Parts(BaseModel):
    """Bytes allocated at one moment, by purpose."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    program: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    workspace: int
    fragmentation: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(self.model_dump().values())


class Plan(BaseModel):
    """An execution, and the bytes that a training run with it allocates at each moment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    execution: Execution
    machine: Machine
    moments: dict[str, Parts]

    @property
    def moment(self) -> str:
        """The name of the moment of the peak."""
        return max(self.moments, key=lambda name: self.moments[name].total)

    @property
    def peak(self) -> Parts:
        """The bytes at the peak, by part."""
        return self.moments[self.moment]


def parameters(gpt: GPTSpec, vocabulary_size: int) -> Parameters:
    """Count the parameters of `model.networks.build(gpt, vocabulary_size)` without building it."""
    return network(gpt.architecture).count(gpt, vocabulary_size)


def flops_per_token(gpt: GPTSpec, vocabulary_size: int) -> int:
    """Return the floating-point operations of matrix products to train on a token: 6 N + 12 L C T.

    PaLM's convention (Chowdhery et al. 2022, appendix B), as in nanoGPT's `estimate_mfu`: 2 N forward and 4 N backward,
    where N excludes parameters that are only looked up, and L counts blocks with attention. Attention counts the whole
    context, though half of it is masked. Recomputation is not counted.
    """
    kind = network(gpt.architecture)
    counted = parameters(gpt, vocabulary_size).total - kind.looked_up(gpt, vocabulary_size)
    return 6 * counted + 12 * kind.attending(gpt) * gpt.heads * gpt.channels * gpt.context


def flops_per_step(gpt: GPTSpec, vocabulary_size: int, training: TrainingSpec) -> int:
    """Return the floating-point operations of one optimizer step."""
    return flops_per_token(gpt, vocabulary_size) * training.batch * gpt.context


def checkpoint_bytes(gpt: GPTSpec, vocabulary_size: int, training: TrainingSpec, execution: Execution) -> int:
    """Return the bytes of a checkpoint on disk: weights in f32 (a tied table is stored twice) and optimizer state."""
    weights = 4 * parameters(gpt, vocabulary_size).total
    if gpt.tied:
        weights += 4 * vocabulary_size * gpt.width
    return weights + optimizer_bytes(gpt, vocabulary_size, training, execution)


def disk_bytes(gpt: GPTSpec, vocabulary_size: int, training: TrainingSpec, execution: Execution) -> int:
    """Return the bytes of all checkpoints of a run to its last step: the initial weights, and one for each leg."""
    one = checkpoint_bytes(gpt, vocabulary_size, training, execution)
    begun = one - optimizer_bytes(gpt, vocabulary_size, training, execution)
    return begun + len(training.leg_ends()) * one


def optimizer_bytes(
    gpt: GPTSpec, vocabulary_size: int, training: TrainingSpec, execution: Execution, matrices: int | None = None
) -> int:
    """Return the bytes of the optimizer state: AdamW has two numbers a parameter, Muon one in block matrices.

    Averages of the weights are one more, in f32. `matrices` is the number of parameters in block matrices, all by
    default.
    """
    total, of_blocks = parameters(gpt, vocabulary_size).total, block_matrices(gpt)
    here = of_blocks if matrices is None else matrices
    numbers = OPTIMIZERS[training.optimizer].numbers(total - of_blocks + here, here)
    averages = 4 * (total - of_blocks + here) if training.average_decay else 0
    return numbers * (4 if execution.optimizer_state == "f32" else 2) + averages


def block_matrices(gpt: GPTSpec) -> int:
    """Return the number of parameters in the matrices of all blocks."""
    return network(gpt.architecture).matrices(gpt)


# A micro-batch with more tokens does not make a step faster.
FAST_TOKENS = {"cpu": 4096, "cuda": 32_768, "mps": 8192}
# The default number of logits in memory at once: on a CPU 32 MiB in f32, on an NVIDIA GPU 1 GiB.
FAST_LOGITS = {"cpu": 2**23, "cuda": 2**28, "mps": 2**26}
LEAST_LOSS_TOKENS = 128
# The operations of a run from which compiling saves time: on an H100 it saves 2 ms for each step of recipe `best`
# (4e11 operations) and 37 ms with 124 M parameters (2.8e13), and takes 5 to 12 s (benchmarks/LOG.md).
COMPILED_FLOPS = 1e15


def unlimited(gpt: GPTSpec, vocabulary_size: int, training: TrainingSpec, machine: Machine) -> Execution:
    """Return the fastest execution without a memory limit; among equally fast ones, the one with the least memory."""
    steps = math.ceil(training.batch * gpt.context / FAST_TOKENS[machine.device])
    loss_tokens = max(LEAST_LOSS_TOKENS, FAST_LOGITS[machine.device] // vocabulary_size)
    loss_tokens = min(FAST_TOKENS[machine.device], loss_tokens)
    micro_batch = math.ceil(training.batch / steps)
    if machine.device == "cpu":
        return Execution(micro_batch=micro_batch, loss_tokens=loss_tokens)
    # All pieces have one size, because each size is compiled separately.
    tokens = micro_batch * gpt.context
    loss_tokens = math.ceil(tokens / math.ceil(tokens / loss_tokens))
    long = training.steps * flops_per_step(gpt, vocabulary_size, training) >= COMPILED_FLOPS
    return Execution(micro_batch=micro_batch, loss_tokens=loss_tokens, compiled=long and machine.compiles)


def choose(
    gpt: GPTSpec, vocabulary_size: int, training: TrainingSpec, machine: Machine, limit: int | None, workers: int = 1
) -> Plan:
    """Choose the fastest execution whose planned peak fits into the limit in bytes; without a limit, the fastest.

    The limit, and the batch of `training`, are those of one of `workers`. If nothing fits that has the whole model in
    each of them, the blocks are in shards.

    Raises:
        TooLittleMemory: none fits; the message gives the smallest limit that is enough.
    """
    fastest = unlimited(gpt, vocabulary_size, training, machine).model_copy(update={"workers": workers})
    if limit is None:
        return foresee(gpt, vocabulary_size, training, fastest, machine)
    plans = [foresee(gpt, vocabulary_size, training, e, machine) for e in economies(fastest)]
    fitting = [plan for plan in plans if needed(plan) <= limit]
    if not fitting and workers > 1:
        # A block that torch.compile fused would not be put together by FSDP.
        in_shards = fastest.model_copy(update={"sharded": True, "compiled": False})
        plans += [foresee(gpt, vocabulary_size, training, e, machine) for e in economies(in_shards)]
        fitting = [plan for plan in plans if needed(plan) <= limit]
    if not fitting:
        least = min(plans, key=needed)
        raise TooLittleMemory(
            f"memory_limit is {limit:,} bytes, but the least that would do for this training is {needed(least):,} "
            f"({least.peak.program:,} of them the program itself): give that much, or a smaller model; without a limit "
            f"it takes {needed(plans[0]):,}"
        )
    return min(fitting, key=lambda plan: slowness(plan.execution, gpt, fastest))


def needed(plan: Plan) -> int:
    """Return the smallest limit in bytes that a plan fits into."""
    return math.ceil(plan.peak.total * (1 + MARGIN))


def economies(fastest: Execution) -> Iterator[Execution]:
    """Yield the fastest execution and all variants that need less memory."""
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
    """Return a key to sort executions by: first the precision of the optimizer state, which affects results, then time.

    Recomputing costs one more forward pass, a third of a step's arithmetic. The fixed cost of each micro-batch and each
    piece of the logits is counted in tokens.
    """
    time = 1 + execution.recompute / 3
    time += MICRO_BATCH_COST_TOKENS / (min(execution.micro_batch, fastest.micro_batch) * gpt.context)
    time += LOSS_COST_TOKENS / execution.loss_tokens
    return execution.optimizer_state != "f32", time


# The fixed cost of a micro-batch, in tokens: measured 190 to 310 (classic models of 11 to 12 M on 2 cores, one window
# at once compared with sixteen). The fixed cost of a piece of the logits is an assumption, used to order plans.
MICRO_BATCH_COST_TOKENS = 250
LOSS_COST_TOKENS = 10


def foresee(gpt: GPTSpec, vocabulary_size: int, training: TrainingSpec, execution: Execution, machine: Machine) -> Plan:
    """Plan the bytes allocated at each moment of a leg that may be the peak."""
    C, V, tokens = gpt.width, vocabulary_size, execution.micro_batch * gpt.context
    number = machine.number
    micro_batches = math.ceil(training.batch / execution.micro_batch)
    matrices = math.ceil(block_matrices(gpt) / (execution.workers if execution.sharded else 1))
    total = parameters(gpt, V).total - block_matrices(gpt) + matrices
    state = optimizer_bytes(gpt, V, training, execution, matrices)
    head = V * C
    copies = 2 * parameters(gpt, V).body if machine.precision != "f32" else 0
    if execution.sharded:
        # Two blocks are whole, the second one already while the first computes; a block's gradients are whole in the
        # type of the products, and in f32 while they are added up.
        copies = (3 * number + 4) * math.ceil(block_matrices(gpt) / gpt.layers)
    kept = tokens * activation_bytes_per_token(gpt, execution, machine)
    block = tokens * block_bytes_per_token(gpt, machine)
    again = tokens * block_activation_bytes(gpt, ONE_BLOCK, machine) * execution.recompute
    at_once = min(execution.loss_tokens, tokens)
    logits = at_once * V * logit_bytes(execution, machine)
    heads = (2 if number < 4 else 1) * number * head  # converted to bf16, and its gradient from a piece
    ends = tokens * number * C * 2  # the last norm's output and its gradient

    def parts(**given: int) -> Parts:
        passing = sum(given.get(part, 0) for part in ("activations", "logits", "workspace"))
        unused = fragmentation_bytes(gpt, machine, execution, passing, 4 * total)
        held = {"program": machine.base, "optimizer": state, "fragmentation": unused}
        return Parts(**dict.fromkeys(Parts.model_fields, 0) | held | given)

    largest = orthogonalising_bytes(gpt, number, machine) if OPTIMIZERS[training.optimizer].stacked else 0
    return Plan(
        execution=execution,
        machine=machine,
        moments={
            # In memory: all activations, and the head's gradient, or all gradients after an earlier micro-batch.
            "taking the loss": parts(
                weights=4 * total + copies,
                gradients=4 * (total if micro_batches > 1 else head),
                activations=kept,
                logits=logits,
                workspace=ends + heads,
            ),
            # The last block's gradient is computed while all activations are in memory.
            "going back": parts(
                weights=4 * total + copies,
                gradients=4 * (total if micro_batches > 1 else head),
                activations=kept + again,
                workspace=block + ends,
            ),
            # In memory: all gradients, and the activations of one block.
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
    """Return the bytes for each logit in memory: on a CPU the logit in f32 and its log probability.

    On a GPU the logit in f32, its probability and the product before conversion; with `torch.compile` only the product
    and its gradient.
    """
    if machine.device == "cpu":
        return 8
    number = machine.number
    return 2 * number if execution.compiled else 8 + number


def orthogonalising_bytes(gpt: GPTSpec, number: int, machine: Machine) -> int:
    """Return the bytes that Muon needs for its largest stack besides its state: the update in f32, and the products."""
    stack = min(STACKED if machine.device == "cpu" else STACKED_ON_A_CARD, gpt.layers * 8 * gpt.width**2)
    return stack * (4 + 4 + 4 * number)


ONE_BLOCK = Execution(micro_batch=1)


def activation_bytes_per_token(gpt: GPTSpec, execution: Execution, machine: Machine) -> int:
    """Return the bytes for each token kept for the backward pass: those of all blocks, and the last norm's output."""
    number = machine.number
    return gpt.layers * block_activation_bytes(gpt, execution, machine) + number * gpt.width


def block_activation_bytes(gpt: GPTSpec, execution: Execution, machine: Machine) -> int:
    """Return the bytes that a block keeps for each token."""
    number, C = machine.number, gpt.width
    kept, dropped = network(gpt.architecture).kept(gpt), gpt.dropout > 0
    widths = 1.0 if execution.recompute else kept.on_cpu if on_our_own(machine) else kept.elsewhere
    if dropped:
        widths += 2
    if kept.attention_mask and dropped:
        # A mask of heads x T for each token; if torch computes attention with dropout, also weights and their product.
        tables = 1 if execution.recompute or on_our_own(machine) else 3
        widths += tables * gpt.heads * gpt.context / C
    return int(number * C * widths)


def on_our_own(machine: Machine) -> bool:
    """Return whether blocks use the functions of model.networks.cpu_kernels and attention instead of torch's."""
    return machine.precision == "bf16" and machine.device == "cpu"


def block_bytes_per_token(gpt: GPTSpec, machine: Machine) -> int:
    """Return the temporary bytes for each token while the gradient of one block is computed."""
    number, C = machine.number, gpt.width
    written_out = network(gpt.architecture).kept(gpt).attention_mask and gpt.dropout and not on_our_own(machine)
    table = gpt.heads * (gpt.context if written_out else min(QUERIES, gpt.context))
    return number * (BLOCK_WIDTHS * C + 2 * table)


def fragmentation_bytes(gpt: GPTSpec, machine: Machine, execution: Execution, passing: int, gradients: int) -> int:
    """Return the unused bytes between allocations (fragmentation) when `passing` bytes are temporary tensors.

    glibc never compacts its heap. With mmap for every large tensor there was no fragmentation, but a step took twice as
    long (benchmarks/LOG.md). Our own functions make more temporary tensors, so more fragmentation. Gradients are
    allocated between freed blocks: with few temporary tensors the unused bytes are a share of the gradients, a larger
    one if the optimizer state is in bf16.
    """
    if machine.device != "cpu":
        return 0
    share = network(gpt.architecture).kept(gpt).fragmentation if on_our_own(machine) else FRAGMENTATION
    return int(max(passing * share, gradients * FRAGMENTATION_OF_GRADIENTS[execution.optimizer_state]))


# Unused bytes as a share of torch's temporary tensors, and as a share of all gradients by the optimizer state's type.
FRAGMENTATION = 0.55
FRAGMENTATION_OF_GRADIENTS = {"f32": 0.7, "bf16": 1.0}
# Temporary numbers for each token while the gradient of a block is computed, in multiples of the width.
BLOCK_WIDTHS = 10
