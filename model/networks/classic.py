"""The classic network, as in the lecture: learned positions, LayerNorm, GELU or ReLU, dropout; exported as `gpt2`."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bardflow.model.machine import compiled
from bardflow.model.networks.attention import attend
from bardflow.model.networks.autograd import applied, backward_from
from bardflow.model.networks.cache import KeyValueCache, Reach
from bardflow.model.networks.dropout import Dropout
from bardflow.model.networks.network import GPT, Kept, Parameters, require_usual
from bardflow.model.networks.spec import GPTSpec
from bardflow.model.networks.tables import rows_of
from bardflow.model.networks.weights import require_alike

# `gelu` is exact, not approximated, as in nanoGPT; `relu2` is transformers' name for squared ReLU.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
}

EPSILON = 1e-5


class ClassicGPT(GPT):
    """GPT-2's architecture (Radford et al. 2019), with nanoGPT's choice of biases and initialisation."""

    MODEL_TYPES = ("gpt2",)

    @staticmethod
    def kept(spec: GPTSpec) -> Kept:
        """As `GPT.kept`."""
        # On a CPU in bf16: the norms' inputs (f32) and outputs, and 8 C of the MLP.
        return Kept(on_cpu=19.2, elsewhere=17.0, fragmentation=0.55, attention_mask=True)

    @staticmethod
    def check(spec: GPTSpec) -> None:
        """Accept every spec."""

    @staticmethod
    def count(spec: GPTSpec, vocabulary_size: int) -> Parameters:
        """As `GPT.count`."""
        C, table = spec.width, vocabulary_size * spec.width
        norm = 2 * C if spec.biases else C
        block = 12 * C * C + (9 * C if spec.biases else 0) + 2 * norm
        embedding = (1 if spec.tied else 2) * table + spec.context * C
        return Parameters(embedding=embedding, body=spec.layers * block + norm)

    @staticmethod
    def looked_up(spec: GPTSpec, vocabulary_size: int) -> int:
        """The table of positions, and the table of tokens unless it is tied to the head."""
        return spec.context * spec.width + (0 if spec.tied else vocabulary_size * spec.width)

    @staticmethod
    def fields_of(config: dict[str, Any]) -> dict[str, Any]:
        """As `GPT.fields_of`. GPT-2's files always have biases; they are zeros if the model has none."""
        require_usual(
            config,
            {
                "layer_norm_epsilon": EPSILON,
                "scale_attn_weights": True,
                "scale_attn_by_inverse_layer_idx": False,
                "add_cross_attention": False,
            },
        )
        if config.get("n_inner") not in (None, 4 * config["n_embd"]):
            raise ValueError(f"its config.json has n_inner = {config['n_inner']}, but only 4 * n_embd is supported")
        return {
            "layers": config["n_layer"],
            "heads": config["n_head"],
            "width": config["n_embd"],
            "context": config["n_positions"],
            "dropout": config["resid_pdrop"],
            "activation": config.get("activation_function", "gelu_new"),
            "biases": True,
            "tied": config.get("tie_word_embeddings", True),
        }

    def __init__(self, spec: GPTSpec, vocabulary_size: int) -> None:
        super().__init__(spec, vocabulary_size)
        self.tokens = nn.Embedding(vocabulary_size, spec.width)
        self.positions = nn.Embedding(spec.context, spec.width)
        self.blocks = nn.ModuleList(_Block(spec) for _ in range(spec.layers))
        self.norm = LayerNorm(spec.width, bias=spec.biases)
        self.head = nn.Linear(spec.width, vocabulary_size, bias=False)
        if spec.tied:
            self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue  # LayerNorms keep their ones and zeros; biases are set to zero below
            # GPT-2 scales weights of layers that add to the residual stream by 1 / sqrt(number of additions).
            residual = name.endswith(("attention_out.weight", "mlp_out.weight"))
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * spec.layers) if residual else 0.02)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def hidden(
        self, ids_BT: Tensor, dropout: Dropout | None = None, *, recompute: bool = False, fused: bool = False
    ) -> Tensor:
        """As `GPT.hidden`."""
        positions_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        x_BTC = (rows_of(self.tokens.weight, ids_BT) + self.positions(positions_T)).to(self.blocks_type())
        if dropout is not None:
            x_BTC = x_BTC * dropout.mask("tokens", x_BTC)
        for i, block in enumerate(self.blocks):
            assert isinstance(block, _Block)
            masks = block.masks(x_BTC, dropout, i) if dropout else [None] * 3
            x_BTC = computed(block, recompute, fused, x_BTC, *masks)
        normed_BTC: Tensor = self.norm(x_BTC)
        return normed_BTC

    @torch.inference_mode()
    def extend(self, ids_BT: Tensor, cache: KeyValueCache) -> Tensor:
        """As `GPT.extend`."""
        reach = cache.reach(ids_BT.shape[1])
        x_BTC = self.tokens(ids_BT) + reach.of(self.positions.weight)
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, _Block)
            x_BTC = block.extend(x_BTC, cache, layer, reach)
        cache.advance(ids_BT.shape[1])
        logits_BV: Tensor = self.head(self.norm(x_BTC[:, -1]))
        return logits_BV

    def to_transformers(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return `config.json` and the weights of the same model as transformers' `GPT2LMHeadModel`.

        That class always has biases (written as zeros if this model has none) and transposed linear weights.
        """
        vocabulary_size, width = self.tokens.weight.shape
        tied = self.head.weight is self.tokens.weight
        config = {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": self.MODEL_TYPES[0],
            "vocab_size": vocabulary_size,
            "n_positions": self.context,
            "n_embd": width,
            "n_layer": len(self.blocks),
            "n_head": self.heads,
            "activation_function": self.activation,
            "resid_pdrop": self.dropout,
            "embd_pdrop": self.dropout,
            "attn_pdrop": self.dropout,
            "layer_norm_epsilon": EPSILON,
            "tie_word_embeddings": tied,
            "bos_token_id": None,
            "eos_token_id": None,
            "dtype": "float32",
        }
        weights = {"transformer.wte.weight": self.tokens.weight, "transformer.wpe.weight": self.positions.weight}
        for i, block in enumerate(self.blocks):
            for ours, theirs in BLOCK_NAMES.items():
                weight, bias = block.get_parameter(f"{ours}.weight"), getattr(block.get_submodule(ours), "bias", None)
                name = f"transformer.h.{i}.{theirs}"
                weights[f"{name}.weight"] = weight.t() if weight.dim() == 2 else weight
                weights[f"{name}.bias"] = torch.zeros(weight.shape[0]) if bias is None else bias
        weights["transformer.ln_f.weight"] = self.norm.weight
        weights["transformer.ln_f.bias"] = torch.zeros(width) if self.norm.bias is None else self.norm.bias
        if not tied:
            weights["lm_head.weight"] = self.head.weight
        return config, weights

    @torch.no_grad()
    def load_transformers(self, weights: Mapping[str, Tensor]) -> None:
        """As `GPT.load_transformers`."""
        require_alike(self.to_transformers()[1], weights)
        self.tokens.weight.copy_(weights["transformer.wte.weight"])
        self.positions.weight.copy_(weights["transformer.wpe.weight"])
        for i, block in enumerate(self.blocks):
            for ours, theirs in BLOCK_NAMES.items():
                module = block.get_submodule(ours)
                weight = weights[f"transformer.h.{i}.{theirs}.weight"]
                block.get_parameter(f"{ours}.weight").copy_(weight.t() if weight.dim() == 2 else weight)
                if isinstance(bias := getattr(module, "bias", None), Tensor):
                    bias.copy_(weights[f"transformer.h.{i}.{theirs}.bias"])
        self.norm.weight.copy_(weights["transformer.ln_f.weight"])
        if self.norm.bias is not None:
            self.norm.bias.copy_(weights["transformer.ln_f.bias"])
        if self.head.weight is not self.tokens.weight:
            self.head.weight.copy_(weights["lm_head.weight"])


NETWORK = ClassicGPT

BLOCK_NAMES = {
    "attention_norm": "ln_1",
    "attention_in": "attn.c_attn",
    "attention_out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp_in": "mlp.c_fc",
    "mlp_out": "mlp.c_proj",
}


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in f32 for every type of x.

    In bf16 on a CPU, its weight's gradient was 5 % too small for 4,096 rows (torch 2.13; benchmarks/LOG.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., C); the output has the type of x."""
        return super().forward(x.float()).to(x.dtype)


class _Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, spec: GPTSpec) -> None:
        super().__init__()
        self.heads, self.activation = spec.heads, ACTIVATIONS[spec.activation]
        width, biases = spec.width, spec.biases
        self.attention_norm = LayerNorm(width, bias=biases)
        self.attention_in = nn.Linear(width, 3 * width, bias=biases)
        self.attention_out = nn.Linear(width, width, bias=biases)
        self.mlp_norm = LayerNorm(width, bias=biases)
        self.mlp_in = nn.Linear(width, 4 * width, bias=biases)
        self.mlp_out = nn.Linear(4 * width, width, bias=biases)

    def extend(self, x_BTC: Tensor, cache: KeyValueCache, layer: int, reach: Reach) -> Tensor:
        """Compute `forward` for new tokens, which follow those in the cache."""
        B, T, C = x_BTC.shape
        qkv = self.attention_in(self.attention_norm(x_BTC)).view(B, T, 3, self.heads, C // self.heads)
        q_BHTD, k_BHTD, v_BHTD = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x_BTC = x_BTC + self.attention_out(cache.attend(layer, q_BHTD, k_BHTD, v_BHTD, reach))
        mlp_BTC: Tensor = self.mlp_out(self.activation(self.mlp_in(self.mlp_norm(x_BTC))))
        return x_BTC + mlp_BTC

    def masks(self, x_BTC: Tensor, dropout: Dropout, number: int) -> list[Tensor]:
        """Draw dropout masks for the attention's weights, the attention's output and the MLP's output."""
        B, T, _ = x_BTC.shape
        weights_BHTT = x_BTC.new_empty(()).expand(B, self.heads, T, T)
        return [
            dropout.mask(f"weights {number}", weights_BHTT),
            dropout.mask(f"attention {number}", x_BTC),
            dropout.mask(f"mlp {number}", x_BTC),
        ]

    def forward(
        self,
        x_BTC: Tensor,
        weights_mask_BHTT: Tensor | None,
        attention_mask_BTC: Tensor | None,
        mlp_mask_BTC: Tensor | None,
    ) -> Tensor:
        B, T, C = x_BTC.shape
        qkv = self.attention_in(self.attention_norm(x_BTC)).view(B, T, 3, self.heads, C // self.heads)
        q_BHTD, k_BHTD, v_BHTD = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended_BTC = self.attention_out(attend(q_BHTD, k_BHTD, v_BHTD, weights_mask_BHTT))
        x_BTC = add_dropped(x_BTC, attended_BTC, attention_mask_BTC)
        mlp_BTC = self.mlp_out(self.activation(self.mlp_in(self.mlp_norm(x_BTC))))
        return add_dropped(x_BTC, mlp_BTC, mlp_mask_BTC)


def add_dropped(x_BTC: Tensor, added_BTC: Tensor, mask_BTC: Tensor | None) -> Tensor:
    """Add to x, with dropout if there is a mask."""
    return x_BTC + added_BTC if mask_BTC is None else torch.addcmul(x_BTC, added_BTC, mask_BTC)


def computed(block: nn.Module, recompute: bool, fused: bool, x_BTC: Tensor, *others: Any) -> Tensor:
    """Compute a block; `recompute` saves only its inputs, and the backward pass computes the rest again."""
    if recompute and hasattr(block, "unshard"):  # FSDP puts a block together for torch's own function
        from torch.utils.checkpoint import checkpoint

        again: Tensor = checkpoint(block, x_BTC, *others, use_reentrant=False, preserve_rng_state=False)
        return again
    forward = partial(compiled(type(block).forward), block) if fused else block
    output: Tensor = applied(_Recomputed, forward, x_BTC, *others) if recompute else forward(x_BTC, *others)
    return output


class _Recomputed(torch.autograd.Function):
    """A torch.utils.checkpoint that restores no random state (masks are inputs) and does not load torch's compiler.

    The compiler takes 75 MB, and recomputation is used when memory is short.
    """

    @staticmethod
    def forward(ctx: Any, block: Callable[..., Tensor], x_BTC: Tensor, *others: Any) -> Tensor:
        ctx.block, ctx.others = block, others
        ctx.save_for_backward(x_BTC)
        output: Tensor = block(x_BTC, *others)
        return output

    @staticmethod
    def backward(ctx: Any, g_BTC: Tensor) -> tuple[Tensor | None, ...]:
        (x_BTC,) = ctx.saved_tensors
        x_BTC = x_BTC.detach().requires_grad_()
        with torch.enable_grad():
            output_BTC = ctx.block(x_BTC, *ctx.others)
        backward_from(output_BTC, g_BTC)
        return None, x_BTC.grad, *(None for _ in ctx.others)
