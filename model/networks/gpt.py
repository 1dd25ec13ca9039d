"""Functions that build a GPT from a spec, copy it for computing in bf16, and count its parameters.

Shapes in names: B batch, T time, C channels (width), H heads, D channels of a head, V vocabulary.
"""

import copy

import torch
from torch import nn

from bardflow.model.networks.network import GPT, network
from bardflow.model.networks.spec import GPTSpec


def build(spec: GPTSpec, vocabulary_size: int) -> GPT:
    """Build a GPT with random weights from torch's global generator, which must be seeded before."""
    return network(spec.architecture)(spec, vocabulary_size)


def working_copy(gpt: GPT, dtype: torch.dtype) -> GPT:
    """Return a model whose blocks multiply in `dtype`; it is `gpt` itself in f32.

    The blocks' linear layers are copies, which must be updated when the weights change. All other parameters are
    shared and stay in f32, because their gradients are long sums: of a table's row over all occurrences of its token,
    of a norm's weights over all tokens.
    """
    if dtype == torch.float32:
        return gpt
    shared = [m for m in gpt.modules() if isinstance(m, nn.Embedding | nn.LayerNorm | nn.RMSNorm)] + [gpt.head]
    copied = copy.deepcopy(gpt, {id(m): m for m in shared})
    for module in copied.blocks.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)
    return copied


def count_parameters(gpt: nn.Module) -> tuple[int, int]:
    """Count all parameters, and those in tables indexed by vocabulary or position (a tied table counts once)."""
    tables = {
        id(p) for name, p in gpt.named_parameters() if name in ("tokens.weight", "positions.weight", "head.weight")
    }
    sizes = {id(p): p.numel() for p in gpt.parameters()}
    return sum(sizes.values()), sum(size for key, size in sizes.items() if key in tables)
