"""The optimizers: torch's AdamW, and Muon for matrices, with an optimizer state in f32 or bf16."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim.adamw import adamw

from bardflow.model.machine import Device
from bardflow.model.networks import Bits
from bardflow.model.training.spec import TrainingSpec

if TYPE_CHECKING:
    from bardflow.model.training.sharding import Shards

# The source of random bits: NumPy on the CPU, or the GPU itself.
RandomBits = np.random.Generator | Bits

# The coefficients of the quintic in the Newton-Schulz iteration (Jordan et al. 2024,
# https://kellerjordan.github.io/posts/muon).
QUINTIC = (3.4445, -4.7750, 2.0315)
# The most elements in a stack of matrices that are orthogonalised together: 16 MB of products, and 256 MB on a GPU.
STACKED = 2**21
STACKED_ON_A_CARD = 2**25
# The number of elements that are rounded at random at once; a multiple of four, because one draw is for four.
ROUNDED = 2**20


class Optimizer(ABC):
    """Parameters that are updated together, with the optimizer state of each.

    Not a torch.optim.Optimizer, because the first one loads torch's compiler: 75 MB and a second in every process.
    With `shards`, a parameter may be this worker's rows of a matrix.
    """

    shards: "Shards | None" = None

    def __init__(self, parameters: Iterable[Tensor], *, peak: float, weight_decay: float) -> None:
        self.parameters = list(parameters)
        self.peak, self.weight_decay = peak, weight_decay
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(
        self, learning_rate: float | Tensor, *, keep_gradients: bool = False, resting: RandomBits | None = None
    ) -> None:
        """Update every parameter that has a gradient; free the gradients, or set them to zero with `keep_gradients`.

        The learning rate is a number, or a scalar tensor on a GPU. With `resting`, the optimizer state is in bf16
        between two steps, rounded at random with these bits.
        """
        moved = [p for p in self.parameters if p.grad is not None]
        for p in moved:
            if not self.state.get(p):
                begun = self.begun(p)
                self.state[p] = begun if resting is None else {key: at_rest(value) for key, value in begun.items()}
        gradients = [p.grad for p in moved if p.grad is not None]
        if resting is None:
            self.update(moved, gradients, learning_rate)
        else:
            self.update_at_rest(moved, gradients, learning_rate, resting)
        for p in moved:
            if keep_gradients and p.grad is not None:
                p.grad.zero_()
            else:
                p.grad = None

    def update_at_rest(
        self, parameters: list[Tensor], gradients: list[Tensor], learning_rate: float | Tensor, bits: RandomBits
    ) -> None:
        """Convert bf16 state to f32, call `update`, and write the state back in bf16 in place."""
        places = {p: self.state[p] for p in parameters}
        for p in parameters:
            self.state[p] = {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in places[p].items()}
        self.update(parameters, gradients, learning_rate)
        for p in parameters:
            for key, value in self.state[p].items():
                if value is not places[p][key]:
                    round_at_random(value, places[p][key], bits)
            self.state[p] = places[p]

    @abstractmethod
    def begun(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the state of a parameter before its first step."""

    @abstractmethod
    def update(self, parameters: list[Tensor], gradients: list[Tensor], learning_rate: float | Tensor) -> None:
        """Update parameters and state in place."""


class AdamW(Optimizer):
    """AdamW (Loshchilov & Hutter 2019), computed by torch."""

    def __init__(
        self, parameters: Iterable[Tensor], *, peak: float, weight_decay: float, betas: tuple[float, float]
    ) -> None:
        super().__init__(parameters, peak=peak, weight_decay=weight_decay)
        self.betas = betas

    def begun(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return a step count and two means of zero; the count is on the device that torch's update needs."""
        counted_on = parameter.device if parameter.is_cuda else "cpu"
        return {
            "step": torch.zeros((), device=counted_on),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

    def update(self, parameters: list[Tensor], gradients: list[Tensor], learning_rate: float | Tensor) -> None:
        """Call torch's update, fused except on MPS."""
        steps, means, squares = ([self.state[p][key] for p in parameters] for key in ("step", "exp_avg", "exp_avg_sq"))
        self._update(parameters, gradients, means, squares, steps, learning_rate)

    def update_at_rest(
        self, parameters: list[Tensor], gradients: list[Tensor], learning_rate: float | Tensor, bits: RandomBits
    ) -> None:
        """Update in pieces of ROUNDED elements: the f32 means of a large table would take the memory that is saved."""
        for p, gradient in zip(parameters, gradients, strict=True):
            state = self.state[p]
            flat = (t.view(-1) for t in (p, gradient, state["exp_avg"], state["exp_avg_sq"]))
            for p_n, g_n, mean_n, square_n in zip(*(torch.split(t, ROUNDED) for t in flat), strict=True):
                wide_mean_n, wide_square_n, step = mean_n.float(), square_n.float(), state["step"].clone()
                self._update([p_n], [g_n], [wide_mean_n], [wide_square_n], [step], learning_rate)
                round_at_random(wide_mean_n, mean_n, bits)
                round_at_random(wide_square_n, square_n, bits)
            state["step"] += 1  # in place, because a recorded step reads this tensor

    def _update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
        steps: list[Tensor],
        learning_rate: float | Tensor,
    ) -> None:
        adamw(
            parameters, gradients, means, squares, [], steps,
            fused=not any(p.device.type == "mps" for p in parameters),
            amsgrad=False, maximize=False, eps=1e-8,
            beta1=self.betas[0], beta2=self.betas[1], lr=learning_rate, weight_decay=self.weight_decay,
        )  # fmt: skip


class Muon(Optimizer):
    """Muon, which orthogonalises the momentum (Jordan et al. 2024), with matrices of equal shape in one product.

    torch.optim.Muon takes the matrices one at a time; the update is the same up to rounding (`tests/test_training.py`).
    `precision` is the type of the products, and `iterations` the number of Newton-Schulz iterations.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        peak: float,
        weight_decay: float,
        momentum: float,
        precision: torch.dtype,
        iterations: int = 5,
    ) -> None:
        super().__init__(parameters, peak=peak, weight_decay=weight_decay)
        self.momentum, self.precision, self.iterations = momentum, precision, iterations

    def begun(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return a momentum of zero."""
        return {"momentum_buffer": torch.zeros_like(parameter)}

    def update(self, parameters: list[Tensor], gradients: list[Tensor], learning_rate: float | Tensor) -> None:
        """Update every matrix, one stack at a time."""
        gradient_of = dict(zip(parameters, gradients, strict=True))
        for stack in stacks(parameters, self.shape):
            buffers = [self.state[p]["momentum_buffer"] for p in stack]
            torch._foreach_lerp_(buffers, [gradient_of[p] for p in stack], 1 - self.momentum)
            updates: Iterable[Tensor] = torch._foreach_lerp([gradient_of[p] for p in stack], buffers, self.momentum)
            shapes = [self.shape(p) for p in stack]
            if self.shards is not None:
                updates = [self.shards.whole(u, p) for p, u in zip(stack, updates, strict=True)]
            wide = torch.stack([u.t() if u.shape[0] > u.shape[1] else u for u in updates])
            if self.precision == torch.float16:  # which has no numbers as small as gradients
                wide /= torch.linalg.vector_norm(wide, dim=(1, 2), keepdim=True).clamp_min(1e-20)
            wide = wide.to(self.precision)
            torch._foreach_mul_(stack, 1 - learning_rate * self.weight_decay)
            wide = orthogonalised(wide, self.iterations)
            orthogonal = [o.t() if s[0] > s[1] else o for s, o in zip(shapes, wide, strict=True)]
            if self.shards is not None:
                orthogonal = [self.shards.own_rows(o, p) for p, o in zip(stack, orthogonal, strict=True)]
            scales = [max(1, s[0] / s[1]) ** 0.5 for s in shapes]
            if isinstance(learning_rate, Tensor):
                changes = [o.to(p.dtype).contiguous() for p, o in zip(stack, orthogonal, strict=True)]
                torch._foreach_mul_(changes, scales)
                torch._foreach_mul_(changes, -learning_rate)
                torch._foreach_add_(stack, changes)
            else:
                for p, o, scale in zip(stack, orthogonal, scales, strict=True):
                    p.add_(o, alpha=-learning_rate * scale)

    def shape(self, parameter: Tensor) -> torch.Size:
        """Return the shape of a whole matrix, of which `parameter` may be some rows."""
        return parameter.shape if self.shards is None else self.shards.shape(parameter)


def stacks(
    matrices: Iterable[Tensor], shape: Callable[[Tensor], torch.Size] = lambda matrix: matrix.shape
) -> list[list[Tensor]]:
    """Group matrices of equal or transposed shape into stacks of at most STACKED elements, or of a single matrix.

    On a GPU the limit is STACKED_ON_A_CARD, because larger stacks are faster there. `shape` returns that of a matrix.
    """
    by_shape: dict[tuple[int, int], list[list[Tensor]]] = defaultdict(list)
    for matrix in matrices:
        rows, columns = shape(matrix)
        lists = by_shape[min(rows, columns), max(rows, columns)]
        most = STACKED if matrix.device.type == "cpu" else STACKED_ON_A_CARD
        if not lists or (len(lists[-1]) + 1) * rows * columns > most:
            lists.append([])
        lists[-1].append(matrix)
    return [stack for lists in by_shape.values() for stack in lists]


def orthogonalised(stack_NRC: Tensor, iterations: int) -> Tensor:
    """Bring all singular values of each wide matrix near 1 (0.7 to 1.2) by Newton-Schulz iteration.

    With fewer than five iterations, the smallest ones stay below that.
    """
    x: Tensor = stack_NRC / torch.linalg.vector_norm(stack_NRC, dim=(1, 2), keepdim=True).clamp_min(1e-7)
    a, b, c = QUINTIC
    for _ in range(iterations):
        gram = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def at_rest(value: Tensor) -> Tensor:
    """Convert initial state to bf16; scalars, such as a count, stay as they are."""
    return value.to(torch.bfloat16) if value.dim() else value


def round_at_random(x: Tensor, into: Tensor, bits: RandomBits) -> None:
    """Round x to bf16 at random, more often to the nearer neighbour, so that the mean is right; x is overwritten.

    If it were rounded to nearest, a mean squared gradient would not change: at beta2 0.999, its change is a quarter of
    the distance between two bf16 numbers.
    """
    # In pieces, because the random numbers take another 6 bytes per element.
    parts = (torch.split(tensor.view(-1), ROUNDED) for tensor in (x, into))
    for part, place in zip(*parts, strict=True):
        if isinstance(bits, Bits):
            drawn = bits.next(1, part.numel()).flatten()
        else:
            draws = bits.integers(0, 2**64, -(-part.numel() // 4), np.uint64)
            drawn = torch.from_numpy(draws.view(np.int16)[: part.numel()]).to(x.device)
        lower = drawn.to(torch.int32).bitwise_and_(0xFFFF)
        place.copy_(part.view(torch.int32).add_(lower).bitwise_and_(-0x10000).view(torch.float32))


def owners(optimizers: Iterable[Optimizer]) -> dict[int, Optimizer]:
    """The optimizer of each parameter, by the parameter's id."""
    return {id(p): o for o in optimizers for p in o.parameters}


class Choice(NamedTuple):
    """An entry of OPTIMIZERS; `TrainingSpec.optimizer` has its name.

    `make` creates the optimizers for parameters by name. `numbers` counts the numbers in the state, given the number of
    parameters and how many of them are in the blocks' matrices. `rates` names the learning rates of the spec that it
    uses. `stacked` is whether it computes with stacks of matrices.
    """

    make: "Callable[[Mapping[str, Tensor], TrainingSpec, Device], list[Optimizer]]"
    numbers: Callable[[int, int], int]
    rates: tuple[str, ...]
    stacked: bool


def adamw_alone(named: "Mapping[str, Tensor]", spec: TrainingSpec, device: Device) -> list[Optimizer]:
    """AdamW for all parameters. Weight decay is only for matrices and tables, as in nanoGPT."""
    tables, others = [p for p in named.values() if p.dim() == 2], [p for p in named.values() if p.dim() != 2]
    return [
        AdamW(parameters, peak=spec.learning_rate, weight_decay=decay, betas=(spec.beta1, spec.beta2))
        for parameters, decay in ((tables, spec.weight_decay), (others, 0.0))
        if parameters
    ]


def muon_and_adamw(named: "Mapping[str, Tensor]", spec: TrainingSpec, device: Device) -> list[Optimizer]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, and AdamW for the rest."""
    matrices = {n for n, p in named.items() if p.dim() == 2 and n.startswith("blocks.")}
    muons = [
        Muon(
            stack,
            peak=spec.muon_learning_rate,
            weight_decay=spec.weight_decay,
            momentum=0.95,
            precision=device.dtype,
            iterations=spec.muon_iterations,
        )
        for stack in stacks(named[n] for n in sorted(matrices))
    ]
    return [*adamw_alone({n: p for n, p in named.items() if n not in matrices}, spec, device), *muons]


OPTIMIZERS = {
    "adamw": Choice(adamw_alone, lambda all_, matrices: 2 * all_, ("learning_rate",), stacked=False),
    "muon": Choice(
        muon_and_adamw,
        lambda all_, matrices: 2 * all_ - matrices,
        ("learning_rate", "muon_learning_rate"),
        stacked=True,
    ),
}
