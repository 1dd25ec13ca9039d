"""The blocks' matrices in shards: each worker keeps some rows of each, as PyTorch's FSDP2 divides them.

A block is put together only while it computes, and its gradients go to the workers that keep them. Tables and norms are
whole in each worker.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bardflow.model.machine import Device
from bardflow.model.networks import GPT, GPTSpec, build, require_alike
from bardflow.model.training.team import Team


class Shards:
    """A network whose blocks' linear layers are in shards.

    `parts` has the rows that this worker keeps of each parameter in shards, by name. Blocks compute in the device's
    type, and gradients are added up in f32.

    Raises:
        model.networks.WrongWeights: the weights do not match the network.
    """

    def __init__(
        self, spec: GPTSpec, vocabulary_size: int, weights: Mapping[str, Tensor], device: Device, team: Team
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        self.team = team
        with torch.random.fork_rng(devices=[]):
            gpt = build(spec.model_copy(update={"layers": 1}), vocabulary_size)
        # Without memory, because the blocks may not fit: only the shards get some.
        with torch.device("meta"):
            gpt.blocks = build(spec, vocabulary_size).blocks
        gpt.computes_in = device.dtype
        layers = [module for module in gpt.blocks.modules() if isinstance(module, nn.Linear)]
        whole = set(gpt.parameters()) - {parameter for layer in layers for parameter in layer.parameters()}
        how: dict[str, Any] = {
            "mesh": init_device_mesh(device.name, (team.workers,)),
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=None if device.dtype == torch.float32 else device.dtype, reduce_dtype=torch.float32
            ),
            "ignored_params": whole,
        }
        for block in gpt.blocks:
            fully_shard(block, reshard_after_forward=True, **how)
        fully_shard(gpt, **how)
        register_fsdp_forward_method(gpt, "hidden")
        gpt.blocks.to_empty(device=device.name)
        self.gpt: GPT = gpt.to(device.name)
        self.sharded: dict[str, Any] = {n: p for n, p in self.gpt.named_parameters() if hasattr(p, "full_tensor")}
        self.parts = {name: parameter.detach().to_local() for name, parameter in self.sharded.items()}
        self._named = {id(part): self.sharded[name] for name, part in self.parts.items()}
        require_alike(self.gpt.state_dict(), weights)
        with torch.no_grad():
            for name, tensor in self.gpt.state_dict().items():
                self.parts.get(name, tensor).copy_(self.rows(name, weights[name]))

    def named(self) -> dict[str, Tensor]:
        """Return all parameters by name, of those in shards the rows that this worker keeps."""
        return {name: self.parts.get(name, parameter) for name, parameter in self.gpt.named_parameters()}

    def rows(self, name: str, whole: Tensor) -> Tensor:
        """Return this worker's rows of a tensor with the shape of a parameter, which may be in shards."""
        return whole if name not in self.parts else self.own_rows(whole, self.parts[name])

    def shape(self, part: Tensor) -> torch.Size:
        """Return the shape of the whole parameter that a tensor of `named` belongs to."""
        parameter = self._named.get(id(part))
        return part.shape if parameter is None else torch.Size(parameter.shape)

    def whole(self, rows: Tensor, part: Tensor) -> Tensor:
        """Put all workers' rows of the parameter of `part` together. All workers call this in one order."""
        parameter = self._named.get(id(part))
        if parameter is None:
            return rows
        together: Tensor = (
            type(parameter.data)
            .from_local(
                rows.contiguous(),
                parameter.device_mesh,
                parameter.placements,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
            .full_tensor()
        )
        return together

    def own_rows(self, whole: Tensor, part: Tensor) -> Tensor:
        """Return this worker's rows of a whole tensor; `part` says which parameter's they are."""
        if id(part) not in self._named:
            return whole
        each = -(-len(whole) // self.team.workers)
        return whole[self.team.rank * each : (self.team.rank + 1) * each]

    @torch.no_grad()
    def collect(self) -> None:
        """Move the gradients of parameters in shards to `parts`: FSDP's mean over the workers becomes the sum."""
        for name, parameter in self.sharded.items():
            if parameter.grad is not None:
                self.parts[name].grad = parameter.grad.to_local().mul_(self.team.workers)
            parameter.grad = None

    @torch.no_grad()
    def clip(self, most: float) -> None:
        """Scale all gradients so that the norm of the whole gradient is at most `most`, as `clip_grad_norm_` does."""
        inside: list[Tensor] = []
        outside: list[Tensor] = []
        for name, parameter in self.named().items():
            if parameter.grad is not None:
                (inside if name in self.parts else outside).append(parameter.grad)
        squares = torch.stack([torch.linalg.vector_norm(gradient).square() for gradient in inside]).sum()
        dist.all_reduce(squares)
        squares += torch.stack([torch.linalg.vector_norm(gradient).square() for gradient in outside]).sum()
        factor = (most / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([*inside, *outside], factor)

    def weights(self, keep: bool) -> dict[str, Tensor]:
        """Return the whole weights by name, on the CPU if in shards; none without `keep`. All workers call this."""
        found: dict[str, Tensor] = {}
        for name, tensor in self.gpt.state_dict().items():
            whole = tensor if name not in self.parts else self.whole(self.parts[name], self.parts[name])
            if keep:
                found[name] = whole if name not in self.parts else whole.cpu()
        return found
