"""A GPT of today: rotary positions, RMSNorm, normalised queries and keys, no biases. Exports to `nanochat`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import attend
from model.cache import KeyValueCache, Reach
from model.classic import ACTIVATIONS
from model.spec import GPTSpec

EPSILON = 1e-6
ROTARY_BASE = 10_000.0


class ModernGPT(nn.Module):
    """RMSNorm (Zhang & Sennrich 2019), rotary positions (Su et al. 2021), query-key norm (Henry et al. 2020)."""

    def __init__(self, spec: GPTSpec, vocabulary_size: int) -> None:
        super().__init__()
        self.context, self.heads = spec.context, spec.heads
        self.activation, self.dropout = spec.activation, spec.dropout
        self.tokens = nn.Embedding(vocabulary_size, spec.width)
        self.blocks = nn.ModuleList(_Block(spec) for _ in range(spec.layers))
        self.head = nn.Linear(spec.width, vocabulary_size, bias=False)
        nn.init.normal_(self.tokens.weight)  # its scale does not matter: a norm follows
        nn.init.zeros_(self.head.weight)  # the first guess is uniform
        cosine_TD, sine_TD = rotary_tables(spec.context, spec.width // spec.heads)
        self.register_buffer("cosine_TD", cosine_TD, persistent=False)
        self.register_buffer("sine_TD", sine_TD, persistent=False)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits (B, T, V) for the token after each of ids (B, T), T at most the context."""
        T = ids_BT.shape[1]
        cosine_TD, sine_TD = self.get_buffer("cosine_TD")[:T], self.get_buffer("sine_TD")[:T]
        x_BTC = norm(self.tokens(ids_BT))
        x_BTC = F.dropout(x_BTC, self.dropout, self.training)
        for block in self.blocks:
            x_BTC = block(x_BTC, cosine_TD, sine_TD)
        logits_BTV: Tensor = self.head(norm(x_BTC))
        return logits_BTV

    @torch.inference_mode()
    def extend(self, ids_BT: Tensor, cache: KeyValueCache) -> Tensor:
        """Logits (B, V) for the token after ids (B, T), which follow what each row of the cache has read.

        Without dropout, in f32, and the same as `forward` gives for the last of all the row's tokens.

        Raises:
            CacheFull: they do not fit the context.
        """
        reach = cache.reach(ids_BT.shape[1])
        # A row's own positions stand for all its heads.
        cosine, sine = (reach.of(self.get_buffer(n))[..., None, :, :] for n in ("cosine_TD", "sine_TD"))
        x_BTC = norm(self.tokens(ids_BT))
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, _Block)
            x_BTC = block.extend(x_BTC, cosine, sine, cache, layer, reach)
        cache.advance(ids_BT.shape[1])
        logits_BV: Tensor = self.head(norm(x_BTC[:, -1]))
        return logits_BV

    def to_transformers(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """`config.json` and the weights of the same model as transformers' `NanoChatForCausalLM`."""
        vocabulary_size, width = self.tokens.weight.shape
        config = {
            "architectures": ["NanoChatForCausalLM"],
            "model_type": "nanochat",
            "vocab_size": vocabulary_size,
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": len(self.blocks),
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "max_position_embeddings": self.context,
            "hidden_act": self.activation,
            "attention_dropout": self.dropout,
            "rms_norm_eps": EPSILON,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            "dtype": "float32",
        }
        weights = {"model.embed_tokens.weight": self.tokens.weight, "lm_head.weight": self.head.weight}
        for i, block in enumerate(self.blocks):
            for ours, theirs in BLOCK_NAMES.items():
                weights[f"model.layers.{i}.{theirs}.weight"] = block.get_parameter(f"{ours}.weight")
        return config, weights

    @torch.no_grad()
    def load_transformers(self, weights: dict[str, Tensor]) -> None:
        """Take weights spelled as `to_transformers` spells them, into a model of the same shape."""
        for name, parameter in self.to_transformers()[1].items():
            parameter.copy_(weights[name])


BLOCK_NAMES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_out": "self_attn.o_proj",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}


class _Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, spec: GPTSpec) -> None:
        super().__init__()
        self.heads, self.dropout, self.activation = spec.heads, spec.dropout, ACTIVATIONS[spec.activation]
        width = spec.width
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)
        for linear in (self.query, self.key, self.value, self.mlp_in):
            nn.init.normal_(linear.weight, std=width**-0.5)
        for linear in (self.attention_out, self.mlp_out):
            nn.init.zeros_(linear.weight)  # each block begins as the identity

    def extend(
        self, x_BTC: Tensor, cosine: Tensor, sine: Tensor, cache: KeyValueCache, layer: int, reach: Reach
    ) -> Tensor:
        """What `forward` computes, for tokens that follow the cache's."""
        B, T, C = x_BTC.shape
        h_BTC = norm(x_BTC)
        q_BTC, k_BTC, v_BTC = self.query(h_BTC), self.key(h_BTC), self.value(h_BTC)
        # Queries and keys are turned and normalised alike, so in one go: as many heads again.
        qk_BGTD = torch.cat((q_BTC, k_BTC), dim=-1).view(B, T, 2 * self.heads, C // self.heads).transpose(1, 2)
        q_BHTD, k_BHTD = norm(rotate(qk_BGTD, cosine, sine)).chunk(2, dim=1)
        v_BHTD = v_BTC.view(B, T, self.heads, C // self.heads).transpose(1, 2)
        x_BTC = x_BTC + self.attention_out(cache.attend(layer, q_BHTD, k_BHTD, v_BHTD, reach))
        mlp_BTC: Tensor = self.mlp_out(self.activation(self.mlp_in(norm(x_BTC))))
        return x_BTC + mlp_BTC

    def forward(self, x_BTC: Tensor, cosine_TD: Tensor, sine_TD: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        h_BTC = norm(x_BTC)
        shape = (B, T, self.heads, C // self.heads)
        q_BHTD = self.query(h_BTC).view(shape).transpose(1, 2)
        k_BHTD = self.key(h_BTC).view(shape).transpose(1, 2)
        v_BHTD = self.value(h_BTC).view(shape).transpose(1, 2)
        q_BHTD, k_BHTD = norm(rotate(q_BHTD, cosine_TD, sine_TD)), norm(rotate(k_BHTD, cosine_TD, sine_TD))
        attended_BTC = self.attention_out(attend(q_BHTD, k_BHTD, v_BHTD, self.dropout if self.training else 0.0))
        x_BTC = x_BTC + F.dropout(attended_BTC, self.dropout, self.training)
        mlp_BTC = self.mlp_out(self.activation(self.mlp_in(norm(x_BTC))))
        return x_BTC + F.dropout(mlp_BTC, self.dropout, self.training)


def norm(x: Tensor) -> Tensor:
    """RMSNorm over the last axis, without weights."""
    return F.rms_norm(x, (x.shape[-1],), eps=EPSILON)


def rotary_tables(context: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each (T, D), of position * base ** (-2i / D); the second half of D repeats the first."""
    frequencies = ROTARY_BASE ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    angles_TD = torch.outer(torch.arange(context, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles_TD.cos(), angles_TD.sin()


def rotate(x_BHTD: Tensor, cosine_TD: Tensor, sine_TD: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + D/2}) by its position's angle, clockwise as `nanochat` does."""
    first, second = x_BHTD.chunk(2, dim=-1)
    cosine_TD, sine_TD = cosine_TD.to(x_BHTD.dtype), sine_TD.to(x_BHTD.dtype)
    return x_BHTD * cosine_TD + torch.cat((second, -first), dim=-1) * sine_TD
