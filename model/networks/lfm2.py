"""A network of LFM2's kind: short convolutions and attention take turns; exported as `lfm2`.

Shapes in names: B batch, T time, C channels (width), F channels within the MLP.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bardflow.model.networks.attention import in_bf16_on_cpu
from bardflow.model.networks.cache import KeyValueCache
from bardflow.model.networks.classic import add_dropped
from bardflow.model.networks.convolution import ShortConvolution
from bardflow.model.networks.cpu_kernels import RotaryEmbedding, gated_linear
from bardflow.model.networks.dropout import Dropout
from bardflow.model.networks.modern import (
    BLOCK_NAMES,
    EPSILON,
    ROTARY_BASE,
    Block,
    norm,
    rotary_of,
    rotary_tables,
    through_rotary_blocks,
)
from bardflow.model.networks.network import GPT, Kept, Parameters, require_usual
from bardflow.model.networks.spec import GPTSpec
from bardflow.model.networks.tables import rows_of
from bardflow.model.networks.weights import WrongWeights, fill, require_alike, source

# The number of tokens in a convolution's sums.
KERNEL = 4


class Lfm2GPT(GPT):
    """Blocks with a short convolution take turns with blocks with attention; all have a gated MLP (Shazeer 2020).

    It is LFM2 (Liquid AI 2025, https://arxiv.org/abs/2511.23404) without what costs most there: its convolutions have
    no gates and no projections, and norms have no weights. In an export, they are ones, zeros and identities.
    """

    MODEL_TYPES = ("lfm2",)

    @staticmethod
    def kept(spec: GPTSpec) -> Kept:
        """As `GPT.kept`, counted with hooks on saved tensors: the mean of a block of each kind."""
        inner = spec.inner / spec.width
        return Kept(on_cpu=5.0 + 2 * inner, elsewhere=8.0 + 4 * inner, fragmentation=0.9, attention_mask=False)

    @staticmethod
    def check(spec: GPTSpec) -> None:
        """As `GPT.check`."""
        if spec.layers < 2:
            raise ValueError("the architecture lfm2 needs 2 layers or more, because the first has no attention")
        if spec.width // spec.heads % 2:
            raise ValueError(f"rotary positions need an even width/heads, but {spec.width}/{spec.heads} is odd")
        if spec.biases or spec.tied or spec.activation != "silu":
            raise ValueError(
                "the architecture lfm2 has no biases, its head is its own and its MLP is gated by silu: set biases and "
                "tied to false and activation to silu"
            )

    @staticmethod
    def attending(spec: GPTSpec) -> int:
        """As `GPT.attending`: every second block."""
        return spec.layers // 2

    @staticmethod
    def matrices(spec: GPTSpec) -> int:
        """As `GPT.matrices`."""
        return Lfm2GPT.attending(spec) * 4 * spec.width**2 + spec.layers * 3 * spec.width * spec.inner

    @staticmethod
    def count(spec: GPTSpec, vocabulary_size: int) -> Parameters:
        """As `GPT.count`."""
        convolutions = (spec.layers - Lfm2GPT.attending(spec)) * spec.width * KERNEL
        return Parameters(embedding=2 * vocabulary_size * spec.width, body=Lfm2GPT.matrices(spec) + convolutions)

    @staticmethod
    def looked_up(spec: GPTSpec, vocabulary_size: int) -> int:
        """The table of tokens."""
        return vocabulary_size * spec.width

    @staticmethod
    def fields_of(config: dict[str, Any]) -> dict[str, Any]:
        """As `GPT.fields_of`."""
        layers = config["num_hidden_layers"]
        require_usual(
            {"conv_bias": False, "conv_L_cache": 3, "block_auto_adjust_ff_dim": True, "tie_word_embeddings": True}
            | config,  # the defaults in transformers
            {
                "conv_bias": True,
                "conv_L_cache": KERNEL,
                "layer_types": [layer_type(i) for i in range(layers)],
                "block_auto_adjust_ff_dim": False,
                "num_key_value_heads": config["num_attention_heads"],
                "norm_eps": EPSILON,
                "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
                "tie_word_embeddings": False,
            },
        )
        return {
            "layers": layers,
            "heads": config["num_attention_heads"],
            "width": config["hidden_size"],
            "mlp_width": config["intermediate_size"],
            "context": config["max_position_embeddings"],
            "dropout": config.get("dropout", 0.0),
            "activation": "silu",
        }

    def __init__(self, spec: GPTSpec, vocabulary_size: int) -> None:
        super().__init__(spec, vocabulary_size)
        self.inner = spec.inner
        self.recent = ((KERNEL - 1, spec.width),) * (spec.layers - self.attention_blocks)
        self.tokens = nn.Embedding(vocabulary_size, spec.width)
        self.blocks = nn.ModuleList(
            AttentionBlock(spec) if layer_type(i) == "full_attention" else ConvolutionBlock(spec)
            for i in range(spec.layers)
        )
        self.head = nn.Linear(spec.width, vocabulary_size, bias=False)
        nn.init.zeros_(self.head.weight)  # the first predictions are uniform
        cosine_TD, sine_TD = rotary_tables(spec.context, spec.width // spec.heads)
        self.register_buffer("cosine_TD", cosine_TD, persistent=False)
        self.register_buffer("sine_TD", -sine_TD, persistent=False)  # counter-clockwise

    def hidden(
        self, ids_BT: Tensor, dropout: Dropout | None = None, *, recompute: bool = False, fused: bool = False
    ) -> Tensor:
        """As `GPT.hidden`."""
        x_BTC = rows_of(self.tokens.weight, ids_BT).to(self.blocks_type())
        return norm(through_rotary_blocks(self, x_BTC, dropout, recompute=recompute, fused=fused))

    @torch.inference_mode()
    def extend(self, ids_BT: Tensor, cache: KeyValueCache) -> Tensor:
        """As `GPT.extend`."""
        reach = cache.reach(ids_BT.shape[1])
        rotary = rotary_of(self, reach)
        x_BTC = self.tokens(ids_BT)
        for i, block in enumerate(self.blocks):
            # The cache counts each kind of block on its own.
            if isinstance(block, AttentionBlock):
                x_BTC = block.extend(x_BTC, rotary, cache, i // 2, reach)
            else:
                assert isinstance(block, ConvolutionBlock)
                x_BTC = block.extend(x_BTC, cache, i // 2)
        cache.advance(ids_BT.shape[1])
        logits_BV: Tensor = self.head(norm(x_BTC[:, -1]))
        return logits_BV

    def to_transformers(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return `config.json` and the weights of the same model as transformers' `Lfm2ForCausalLM`."""
        vocabulary_size, width = self.tokens.weight.shape
        config = {
            "architectures": ["Lfm2ForCausalLM"],
            "model_type": self.MODEL_TYPES[0],
            "vocab_size": vocabulary_size,
            "hidden_size": width,
            "intermediate_size": self.inner,
            "block_auto_adjust_ff_dim": False,
            "num_hidden_layers": len(self.blocks),
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "layer_types": [layer_type(i) for i in range(len(self.blocks))],
            "conv_L_cache": KERNEL,
            "conv_bias": True,
            "max_position_embeddings": self.context,
            "dropout": self.dropout,
            "norm_eps": EPSILON,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            "dtype": "float32",
        }
        weights = {"model.embed_tokens.weight": self.tokens.weight, "lm_head.weight": self.head.weight}
        for i, block in enumerate(self.blocks):
            for name, parameter in block.named_parameters():
                weights[f"model.layers.{i}.{LFM2_NAMES[name.removesuffix('.weight')]}.weight"] = parameter
        return config, weights | self._constants()

    def _constants(self) -> dict[str, Tensor]:
        """Return the weights that this network does not have, with the values at which LFM2 computes the same."""
        width, channels = self.tokens.weight.shape[1], self.channels
        found = {"model.embedding_norm.weight": torch.ones(width)}
        for i, block in enumerate(self.blocks):
            layer = f"model.layers.{i}"
            found |= {f"{layer}.{name}_norm.weight": torch.ones(width) for name in ("operator", "ffn")}
            if isinstance(block, AttentionBlock):
                found |= {f"{layer}.self_attn.{name}_layernorm.weight": torch.ones(channels) for name in "qk"}
                continue
            # The gates before and after the convolution are ones, and the values are the norm's output itself.
            zeros, identity = torch.zeros(width, width), torch.eye(width)
            found |= {
                f"{layer}.conv.in_proj.weight": torch.cat((zeros, zeros, identity)),
                f"{layer}.conv.in_proj.bias": torch.cat((torch.ones(2 * width), torch.zeros(width))),
                f"{layer}.conv.conv.bias": torch.zeros(width),
                f"{layer}.conv.out_proj.weight": identity,
                f"{layer}.conv.out_proj.bias": torch.zeros(width),
            }
        return found

    @torch.no_grad()
    def load_transformers(self, weights: Mapping[str, Tensor]) -> None:
        """As `GPT.load_transformers`.

        Raises:
            model.networks.WrongWeights: as there, or the file is of an LFM2 with gates or with weights in its norms.
        """
        expected = self.to_transformers()[1]
        require_alike(expected, weights)
        for name, constant in self._constants().items():
            if not torch.equal(weights[name], constant):
                raise WrongWeights(
                    f"{source(weights)}: {name} has values that bardflow's lfm2 cannot have: its convolutions have no "
                    "gates, and its norms no weights. Give a model that bardflow wrote."
                )
        fill(expected, weights)


NETWORK = Lfm2GPT

LFM2_NAMES = {
    **{name: theirs for name, theirs in BLOCK_NAMES.items() if theirs.startswith("self_attn.")},
    "attention_out": "self_attn.out_proj",
    "convolution": "conv.conv",
    "mlp_gate": "feed_forward.w1",
    "mlp_in": "feed_forward.w3",
    "mlp_out": "feed_forward.w2",
}


def layer_type(block: int) -> str:
    """Return transformers' name for what a block has beside its MLP; the first block has a convolution."""
    return "full_attention" if block % 2 else "conv"


class Gated(nn.Module):
    """A gated MLP, silu(gate h) * (into h) times `mlp_out`, for a block that has these layers."""

    mlp_gate: nn.Linear
    mlp_in: nn.Linear
    mlp_out: nn.Linear

    def mlp(self, h_BTC: Tensor) -> Tensor:
        """The MLP, of norm(x). Both products with h are one."""
        joint_BTG = F.linear(h_BTC, torch.cat((self.mlp_gate.weight, self.mlp_in.weight)))
        if in_bf16_on_cpu(h_BTC):
            return gated_linear(joint_BTG.flatten(0, 1), self.mlp_out.weight).view_as(h_BTC)
        gate_BTF, into_BTF = joint_BTG.chunk(2, dim=-1)
        mlp_BTC: Tensor = self.mlp_out(F.silu(gate_BTF) * into_BTF)
        return mlp_BTC


class AttentionBlock(Gated, Block):
    """x + attention(norm(x)), then x + mlp(norm(x)) with a gated MLP."""

    def __init__(self, spec: GPTSpec) -> None:
        super().__init__(spec)
        self.mlp_gate = into_mlp(spec)


class ConvolutionBlock(Gated):
    """x + convolution(norm(x)), then x + mlp(norm(x)) with a gated MLP."""

    def __init__(self, spec: GPTSpec) -> None:
        super().__init__()
        self.convolution = ShortConvolution(spec.width, KERNEL)
        nn.init.normal_(self.convolution.weight, std=0.3)  # zeros: 1.865 instead of 1.851 nats in `sprint`
        self.mlp_gate, self.mlp_in = into_mlp(spec), into_mlp(spec)
        self.mlp_out = nn.Linear(spec.inner, spec.width, bias=False)
        nn.init.zeros_(self.mlp_out.weight)

    def forward(
        self,
        x_BTC: Tensor,
        rotary: RotaryEmbedding,
        convolution_mask_BTC: Tensor | None,
        mlp_mask_BTC: Tensor | None,
    ) -> Tensor:
        x_BTC = add_dropped(x_BTC, self.convolution(norm(x_BTC)), convolution_mask_BTC)
        return add_dropped(x_BTC, self.mlp(norm(x_BTC)), mlp_mask_BTC)

    def extend(self, x_BTC: Tensor, cache: KeyValueCache, number: int) -> Tensor:
        """Compute `forward` for new tokens, which follow those in the cache; `number` counts these blocks."""
        T = x_BTC.shape[1]
        x_BTC = x_BTC + self.convolution(cache.after_recent(number, norm(x_BTC)))[:, -T:]
        return x_BTC + self.mlp(norm(x_BTC))


def into_mlp(spec: GPTSpec) -> nn.Linear:
    """Return a layer into the MLP, with its first weights."""
    linear = nn.Linear(spec.width, spec.inner, bias=False)
    nn.init.normal_(linear.weight, std=spec.width**-0.5)
    return linear
