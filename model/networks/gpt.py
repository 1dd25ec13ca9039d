"""A GPT of a spec, its copy for computing in bf16, and the count of its parameters.

Shapes in names: B batch, T time, C channels (width), H heads, D channels of a head, V vocabulary.
"""

import copy

import torch
from torch import nn

from bardflow.model.networks.network import GPT, network
from bardflow.model.networks.spec import GPTSpec


def build(spec: GPTSpec, vocabulary_size: int) -> GPT:
    """A GPT with freshly drawn weights, from torch's global generator (seed it first)."""
    return network(spec.architecture)(spec, vocabulary_size)


def working_copy(gpt: GPT, dtype: torch.dtype) -> GPT:
    """A model whose blocks multiply in `dtype`: their linear layers are copies, to be copied again when weights change.

    All the rest are the very same parameters and stay in f32, because their gradients are long sums: a table's row's
    over all occurrences of its token, a LayerNorm's over all tokens. In f32 it is `gpt` itself.
    """
    if dtype == torch.float32:
        return gpt
    shared = [m for m in gpt.modules() if isinstance(m, nn.Embedding | nn.LayerNorm)] + [gpt.head]
    copied = copy.deepcopy(gpt, {id(m): m for m in shared})
    for module in copied.blocks.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)
    return copied


def count_parameters(gpt: nn.Module) -> tuple[int, int]:
    """Parameters in all, and those of them in tables indexed by vocabulary or position (a tied table counts once)."""
    tables = {
        id(p) for name, p in gpt.named_parameters() if name in ("tokens.weight", "positions.weight", "head.weight")
    }
    sizes = {id(p): p.numel() for p in gpt.parameters()}
    return sum(sizes.values()), sum(size for key, size in sizes.items() if key in tables)
