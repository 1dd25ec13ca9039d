"""What a GPT is: the two architectures behind it, and where its parameters are.

Shapes in names: B batch, T time, C channels (width), H heads, D channels of a head, V vocabulary.
"""

import copy

import torch
from torch import nn

from model.classic import ClassicGPT
from model.modern import ModernGPT
from model.spec import GPTSpec

GPT = ClassicGPT | ModernGPT


def build(spec: GPTSpec, vocabulary_size: int) -> GPT:
    """A GPT with freshly drawn weights, from torch's global generator (seed it first)."""
    if spec.architecture == "classic":
        return ClassicGPT(spec, vocabulary_size)
    return ModernGPT(spec, vocabulary_size)


def replica(gpt: GPT, dtype: torch.dtype) -> tuple[GPT, list[tuple[nn.Parameter, nn.Parameter]]]:
    """A model that computes in `dtype` with gradients of its own, and its parameters, each beside the one it stands for.

    Blocks and the last norm are copies in `dtype`, to be copied again when the weights change. Tables and the head share their
    memory with `gpt` and stay in f32, because the gradient of a row is a sum over all of its token's occurrences.
    """
    shared = {id(p) for name, m in gpt.named_children() if name in ("tokens", "positions", "head") for p in m.parameters()}
    stand_in = {
        id(p): nn.Parameter(p.detach() if id(p) in shared else p.detach().to(dtype)) for p in gpt.parameters()
    }
    copied = copy.deepcopy(gpt, dict(stand_in))
    return copied, [(stand_in[id(p)], p) for p in gpt.parameters()]


def count_parameters(gpt: nn.Module) -> tuple[int, int]:
    """Parameters in all, and those of them in tables indexed by vocabulary or position (a tied table counts once)."""
    tables = {
        id(p) for name, p in gpt.named_parameters() if name in ("tokens.weight", "positions.weight", "head.weight")
    }
    sizes = {id(p): p.numel() for p in gpt.parameters()}
    return sum(sizes.values()), sum(size for key, size in sizes.items() if key in tables)
