"""The network of Llama, Qwen2 and Qwen3: RMSNorm with weights, rotary positions, gated MLP, shared keys and values.

Shapes in names: B batch, T time, C channels (width), H query heads, G key-value heads, D channels of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bardflow.model.networks.attention import attend
from bardflow.model.networks.cache import KeyValueCache
from bardflow.model.networks.classic import ACTIVATIONS, add_dropped
from bardflow.model.networks.cpu_kernels import RotaryEmbedding
from bardflow.model.networks.dropout import Dropout
from bardflow.model.networks.modern import ROTARY_BASE, rotary_of, rotary_tables, through_rotary_blocks
from bardflow.model.networks.network import GPT, Kept, Parameters, require_usual
from bardflow.model.networks.spec import GPTSpec
from bardflow.model.networks.tables import rows_of

EPSILON = 1e-6
# The classes in transformers: Qwen2 has biases of queries, keys and values, and Qwen3 a norm of queries and keys.
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


class LlamaGPT(GPT):
    """Llama (Touvron et al. 2023) with grouped-query attention (Ainslie et al. 2023) and SwiGLU (Shazeer 2020).

    With `biases` it is Qwen2, and with `query_key_norm` Qwen3.
    """

    MODEL_TYPES = tuple(CLASSES)

    @staticmethod
    def kept(spec: GPTSpec) -> Kept:
        """As `GPT.kept`, counted with torch's saved-tensor hooks for eight shapes."""
        wide, narrow = (channels / spec.width for channels in _widths(spec))
        inner = spec.inner / spec.width
        on_cpu, elsewhere = 10.2 + 5 * wide + 4 * inner, 7 + 4 * wide + 4 * inner
        if spec.query_key_norm:
            on_cpu, elsewhere = on_cpu + 4 * (wide + narrow), elsewhere + 3 * wide + 2 * narrow
        return Kept(on_cpu=on_cpu, elsewhere=elsewhere, fragmentation=0.55, attention_mask=False)

    @staticmethod
    def check(spec: GPTSpec) -> None:
        """As `GPT.check`."""
        if spec.channels % 2:
            raise ValueError(f"rotary positions need an even number of channels in a head, but {spec.channels} is odd")
        if spec.heads % (spec.key_value_heads or spec.heads):
            raise ValueError(f"heads {spec.heads} is not divisible by key_value_heads {spec.key_value_heads}")
        if spec.biases and spec.query_key_norm:
            raise ValueError("give biases (as in Qwen2) or query_key_norm (as in Qwen3), not both")

    @staticmethod
    def count(spec: GPTSpec, vocabulary_size: int) -> Parameters:
        """As `GPT.count`."""
        wide, narrow = _widths(spec)
        small = 2 * spec.width + (wide + 2 * narrow if spec.biases else 0)
        small += 2 * spec.channels if spec.query_key_norm else 0
        body = LlamaGPT.matrices(spec) + spec.layers * small + spec.width
        return Parameters(embedding=(1 if spec.tied else 2) * vocabulary_size * spec.width, body=body)

    @staticmethod
    def matrices(spec: GPTSpec) -> int:
        """As `GPT.matrices`."""
        wide, narrow = _widths(spec)
        return spec.layers * spec.width * (2 * wide + 2 * narrow + 3 * spec.inner)

    @staticmethod
    def looked_up(spec: GPTSpec, vocabulary_size: int) -> int:
        """The table of tokens, unless it is tied to the head."""
        return 0 if spec.tied else vocabulary_size * spec.width

    @staticmethod
    def fields_of(config: dict[str, Any]) -> dict[str, Any]:
        """As `GPT.fields_of`."""
        kind = config["model_type"]
        rotary = config.get("rope_parameters") or {
            **(config.get("rope_scaling") or {}),
            "rope_theta": config.get("rope_theta", ROTARY_BASE),
        }
        require_usual(rotary, {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0})
        usual = {"mlp_bias": False, "attention_bias": False, "use_sliding_window": False}
        require_usual(config, {**usual, "layer_types": ["full_attention"] * config["num_hidden_layers"]})
        return {
            "layers": config["num_hidden_layers"],
            "heads": config["num_attention_heads"],
            "key_value_heads": config.get("num_key_value_heads"),
            "head_width": config.get("head_dim"),
            "width": config["hidden_size"],
            "mlp_width": config["intermediate_size"],
            "context": config["max_position_embeddings"],
            "dropout": config.get("attention_dropout", 0.0),
            "activation": config.get("hidden_act", "silu"),
            "biases": kind == "qwen2",
            "tied": config.get("tie_word_embeddings", False),
            "query_key_norm": kind == "qwen3",
            "rotary_base": rotary["rope_theta"],
            "norm_epsilon": config.get("rms_norm_eps", EPSILON),
        }

    def __init__(self, spec: GPTSpec, vocabulary_size: int) -> None:
        super().__init__(spec, vocabulary_size)
        self.spec = spec
        self.tokens = nn.Embedding(vocabulary_size, spec.width)
        self.blocks = nn.ModuleList(_Block(spec) for _ in range(spec.layers))
        self.norm = RMSNorm(spec.width, eps=_epsilon(spec))
        self.head = nn.Linear(spec.width, vocabulary_size, bias=False)
        if spec.tied:
            self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)  # as in transformers
        cosine_TD, sine_TD = rotary_tables(spec.context, spec.channels, spec.rotary_base)
        self.register_buffer("cosine_TD", cosine_TD, persistent=False)
        self.register_buffer("sine_TD", -sine_TD, persistent=False)  # counter-clockwise

    def hidden(
        self, ids_BT: Tensor, dropout: Dropout | None = None, *, recompute: bool = False, fused: bool = False
    ) -> Tensor:
        """As `GPT.hidden`."""
        x_BTC = rows_of(self.tokens.weight, ids_BT).to(self.blocks_type())
        normed_BTC: Tensor = self.norm(through_rotary_blocks(self, x_BTC, dropout, recompute=recompute, fused=fused))
        return normed_BTC

    @torch.inference_mode()
    def extend(self, ids_BT: Tensor, cache: KeyValueCache) -> Tensor:
        """As `GPT.extend`."""
        reach = cache.reach(ids_BT.shape[1])
        rotary = rotary_of(self, reach)
        x_BTC = self.tokens(ids_BT)
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, _Block)
            x_BTC = x_BTC + block.attention_out(cache.attend(layer, *block.heads_of(x_BTC, rotary), reach))
            x_BTC = x_BTC + block.mlp(x_BTC)
        cache.advance(ids_BT.shape[1])
        logits_BV: Tensor = self.head(self.norm(x_BTC[:, -1]))
        return logits_BV

    def to_transformers(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return `config.json` and the weights of the same model as transformers' Llama, Qwen2 or Qwen3."""
        spec = self.spec
        kind = "qwen3" if spec.query_key_norm else "qwen2" if spec.biases else "llama"
        config = {
            "architectures": [CLASSES[kind]],
            "model_type": kind,
            "vocab_size": self.tokens.weight.shape[0],
            "hidden_size": spec.width,
            "intermediate_size": spec.inner,
            "num_hidden_layers": spec.layers,
            "num_attention_heads": spec.heads,
            "num_key_value_heads": spec.key_value_heads or spec.heads,
            "head_dim": spec.channels,
            "max_position_embeddings": spec.context,
            "hidden_act": spec.activation,
            "attention_dropout": spec.dropout,
            "rms_norm_eps": _epsilon(spec),
            "rope_parameters": {"rope_type": "default", "rope_theta": spec.rotary_base},
            "tie_word_embeddings": spec.tied,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            "dtype": "float32",
        }
        weights = {"model.embed_tokens.weight": self.tokens.weight, "model.norm.weight": self.norm.weight}
        for i, block in enumerate(self.blocks):
            for name, parameter in block.named_parameters():
                ours, _, part = name.rpartition(".")
                weights[f"model.layers.{i}.{BLOCK_NAMES[ours]}.{part}"] = parameter
        if not spec.tied:
            weights["lm_head.weight"] = self.head.weight
        return config, weights


NETWORK = LlamaGPT

BLOCK_NAMES = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "attention_out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp_gate": "mlp.gate_proj",
    "mlp_in": "mlp.up_proj",
    "mlp_out": "mlp.down_proj",
}


class RMSNorm(nn.RMSNorm):
    """RMSNorm computed in f32 for every type of x, because its weight's gradient is a long sum."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., C); the output has the type of x."""
        return super().forward(x.float()).to(x.dtype)


class _Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, spec: GPTSpec) -> None:
        super().__init__()
        self.channels, self.activation = spec.channels, ACTIVATIONS[spec.activation]
        self.sharing = spec.heads // (spec.key_value_heads or spec.heads)
        wide, narrow = _widths(spec)
        self.attention_norm = RMSNorm(spec.width, eps=_epsilon(spec))
        self.query = nn.Linear(spec.width, wide, bias=spec.biases)
        self.key = nn.Linear(spec.width, narrow, bias=spec.biases)
        self.value = nn.Linear(spec.width, narrow, bias=spec.biases)
        if spec.query_key_norm:
            self.query_norm = RMSNorm(spec.channels, eps=_epsilon(spec))
            self.key_norm = RMSNorm(spec.channels, eps=_epsilon(spec))
        self.attention_out = nn.Linear(wide, spec.width, bias=False)
        self.mlp_norm = RMSNorm(spec.width, eps=_epsilon(spec))
        self.mlp_gate = nn.Linear(spec.width, spec.inner, bias=False)
        self.mlp_in = nn.Linear(spec.width, spec.inner, bias=False)
        self.mlp_out = nn.Linear(spec.inner, spec.width, bias=False)

    def forward(
        self,
        x_BTC: Tensor,
        rotary: RotaryEmbedding,
        attention_mask_BTC: Tensor | None,
        mlp_mask_BTC: Tensor | None,
    ) -> Tensor:
        attended_BTC = self.attention_out(attend(*self.heads_of(x_BTC, rotary), None))
        x_BTC = add_dropped(x_BTC, attended_BTC, attention_mask_BTC)
        return add_dropped(x_BTC, self.mlp(x_BTC), mlp_mask_BTC)

    def heads_of(self, x_BTC: Tensor, rotary: RotaryEmbedding) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, T, D); each key and value is repeated for all heads that share it."""
        B, T, _ = x_BTC.shape
        h_BTC = self.attention_norm(x_BTC)
        q_BHTD, k_BGTD, v_BGTD = (
            linear(h_BTC).view(B, T, -1, self.channels).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )
        if hasattr(self, "query_norm"):
            q_BHTD, k_BGTD = self.query_norm(q_BHTD), self.key_norm(k_BGTD)
        q_BHTD, k_BGTD = rotary.rotate(q_BHTD), rotary.rotate(k_BGTD)
        if self.sharing > 1:
            k_BGTD, v_BGTD = (x_BGTD.repeat_interleave(self.sharing, dim=1) for x_BGTD in (k_BGTD, v_BGTD))
        return q_BHTD, k_BGTD, v_BGTD

    def mlp(self, x_BTC: Tensor) -> Tensor:
        """The gated MLP of norm(x)."""
        h_BTC = self.mlp_norm(x_BTC)
        mlp_BTC: Tensor = self.mlp_out(self.activation(self.mlp_gate(h_BTC)) * self.mlp_in(h_BTC))
        return mlp_BTC


def _widths(spec: GPTSpec) -> tuple[int, int]:
    """The channels of all queries, and those of all keys."""
    return spec.heads * spec.channels, (spec.key_value_heads or spec.heads) * spec.channels


def _epsilon(spec: GPTSpec) -> float:
    return EPSILON if spec.norm_epsilon is None else spec.norm_epsilon
