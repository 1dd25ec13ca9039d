"""The modern network: rotary positions, RMSNorm, normalised queries and keys, no biases; exported as `nanochat`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bardflow.model.networks.attention import attend, in_bf16_on_cpu
from bardflow.model.networks.cache import KeyValueCache, Reach
from bardflow.model.networks.classic import ACTIVATIONS, add_dropped, computed
from bardflow.model.networks.cpu_kernels import RotaryEmbedding, relu2_linear, rms_norm, rotary_attention
from bardflow.model.networks.dropout import Dropout
from bardflow.model.networks.network import GPT, Kept, Parameters, require_usual
from bardflow.model.networks.spec import GPTSpec
from bardflow.model.networks.tables import rows_of

EPSILON = 1e-6
ROTARY_BASE = 10_000.0


class ModernGPT(GPT):
    """RMSNorm (Zhang & Sennrich 2019), rotary positions (Su et al. 2021), query-key norm (Henry et al. 2020)."""

    MODEL_TYPES = ("nanochat",)

    @staticmethod
    def kept(spec: GPTSpec) -> Kept:
        """As `GPT.kept`."""
        # On a CPU in bf16: two norms' outputs, rotated queries and keys, values (with ones), attention's output twice
        # and 4 C of the MLP.
        return Kept(on_cpu=11.2, elsewhere=24.0, fragmentation=0.9, attention_mask=False)

    @staticmethod
    def check(spec: GPTSpec) -> None:
        """As `GPT.check`."""
        if spec.width // spec.heads % 2:
            raise ValueError(f"rotary positions need an even width/heads, but {spec.width}/{spec.heads} is odd")
        if spec.biases or spec.tied:
            raise ValueError(
                "the modern architecture has no biases and its head is its own: set biases and tied to false"
            )

    @staticmethod
    def count(spec: GPTSpec, vocabulary_size: int) -> Parameters:
        """As `GPT.count`."""
        return Parameters(embedding=2 * vocabulary_size * spec.width, body=spec.layers * 12 * spec.width**2)

    @staticmethod
    def looked_up(spec: GPTSpec, vocabulary_size: int) -> int:
        """The table of tokens."""
        return vocabulary_size * spec.width

    @staticmethod
    def fields_of(config: dict[str, Any]) -> dict[str, Any]:
        """As `GPT.fields_of`."""
        require_usual(
            {"final_logit_softcapping": 15.0} | config,  # the default in transformers
            {
                "intermediate_size": 4 * config["hidden_size"],
                "num_key_value_heads": config["num_attention_heads"],
                "rms_norm_eps": EPSILON,
                "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
                "final_logit_softcapping": None,
                "tie_word_embeddings": False,
            },
        )
        return {
            "layers": config["num_hidden_layers"],
            "heads": config["num_attention_heads"],
            "width": config["hidden_size"],
            "context": config["max_position_embeddings"],
            "dropout": config["attention_dropout"],
            "activation": config["hidden_act"],
        }

    def __init__(self, spec: GPTSpec, vocabulary_size: int) -> None:
        super().__init__(spec, vocabulary_size)
        self.tokens = nn.Embedding(vocabulary_size, spec.width)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.layers))
        self.head = nn.Linear(spec.width, vocabulary_size, bias=False)
        nn.init.normal_(self.tokens.weight)  # the scale does not matter, because a norm follows
        nn.init.zeros_(self.head.weight)  # the first predictions are uniform
        cosine_TD, sine_TD = rotary_tables(spec.context, spec.width // spec.heads)
        self.register_buffer("cosine_TD", cosine_TD, persistent=False)
        self.register_buffer("sine_TD", sine_TD, persistent=False)

    def hidden(
        self, ids_BT: Tensor, dropout: Dropout | None = None, *, recompute: bool = False, fused: bool = False
    ) -> Tensor:
        """As `GPT.hidden`."""
        x_BTC = norm(rows_of(self.tokens.weight, ids_BT).to(self.blocks_type()))
        return norm(through_rotary_blocks(self, x_BTC, dropout, recompute=recompute, fused=fused))

    @torch.inference_mode()
    def extend(self, ids_BT: Tensor, cache: KeyValueCache) -> Tensor:
        """As `GPT.extend`."""
        reach = cache.reach(ids_BT.shape[1])
        rotary = rotary_of(self, reach)
        x_BTC = norm(self.tokens(ids_BT))
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x_BTC = block.extend(x_BTC, rotary, cache, layer, reach)
        cache.advance(ids_BT.shape[1])
        logits_BV: Tensor = self.head(norm(x_BTC[:, -1]))
        return logits_BV

    def to_transformers(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return `config.json` and the weights of the same model as transformers' `NanoChatForCausalLM`."""
        vocabulary_size, width = self.tokens.weight.shape
        config = {
            "architectures": ["NanoChatForCausalLM"],
            "model_type": self.MODEL_TYPES[0],
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


NETWORK = ModernGPT

BLOCK_NAMES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_out": "self_attn.o_proj",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, spec: GPTSpec) -> None:
        super().__init__()
        self.heads, self.squared_relu, self.activation = (
            spec.heads,
            spec.activation == "relu2",
            ACTIVATIONS[spec.activation],
        )
        width = spec.width
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_in = nn.Linear(width, spec.inner, bias=False)
        self.mlp_out = nn.Linear(spec.inner, width, bias=False)
        for linear in (self.query, self.key, self.value, self.mlp_in):
            nn.init.normal_(linear.weight, std=width**-0.5)
        for linear in (self.attention_out, self.mlp_out):
            nn.init.zeros_(linear.weight)  # each block is the identity at first

    def extend(self, x_BTC: Tensor, rotary: RotaryEmbedding, cache: KeyValueCache, layer: int, reach: Reach) -> Tensor:
        """Compute `forward` for new tokens, which follow those in the cache."""
        B, T, C = x_BTC.shape
        h_BTC = norm(x_BTC)
        q_BTC, k_BTC, v_BTC = self.query(h_BTC), self.key(h_BTC), self.value(h_BTC)
        # Queries and keys are rotated and normalised together, as twice the number of heads.
        qk_BGTD = torch.cat((q_BTC, k_BTC), dim=-1).view(B, T, 2 * self.heads, C // self.heads).transpose(1, 2)
        q_BHTD, k_BHTD = norm(rotary.rotate(qk_BGTD)).chunk(2, dim=1)
        v_BHTD = v_BTC.view(B, T, self.heads, C // self.heads).transpose(1, 2)
        x_BTC = x_BTC + self.attention_out(cache.attend(layer, q_BHTD, k_BHTD, v_BHTD, reach))
        return x_BTC + self.mlp(norm(x_BTC))

    def forward(
        self,
        x_BTC: Tensor,
        rotary: RotaryEmbedding,
        attention_mask_BTC: Tensor | None,
        mlp_mask_BTC: Tensor | None,
    ) -> Tensor:
        attended_BTC = self.attention_out(self._attended(norm(x_BTC), rotary))
        x_BTC = add_dropped(x_BTC, attended_BTC, attention_mask_BTC)
        return add_dropped(x_BTC, self.mlp(norm(x_BTC)), mlp_mask_BTC)

    def _attended(self, h_BTC: Tensor, rotary: RotaryEmbedding) -> Tensor:
        B, T, C = h_BTC.shape
        if in_bf16_on_cpu(h_BTC):
            joint = torch.cat((self.query.weight, self.key.weight, self.value.weight))
            return rotary_attention(F.linear(h_BTC, joint), rotary, self.heads, EPSILON)
        if h_BTC.device.type != "cpu":
            # One product, one norm and one rotation instead of two or three: launching a kernel takes more time than
            # its computation.
            joint = torch.cat((self.query.weight, self.key.weight, self.value.weight))
            qkv_3BHTD = F.linear(h_BTC, joint).view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
            q_BHTD, k_BHTD = norm(rotary.rotate(qkv_3BHTD[:2])).unbind(0)
            return attend(q_BHTD, k_BHTD, qkv_3BHTD[2], None)
        shape = (B, T, self.heads, C // self.heads)
        q_BHTD = self.query(h_BTC).view(shape).transpose(1, 2)
        k_BHTD = self.key(h_BTC).view(shape).transpose(1, 2)
        v_BHTD = self.value(h_BTC).view(shape).transpose(1, 2)
        q_BHTD, k_BHTD = norm(rotary.rotate(q_BHTD)), norm(rotary.rotate(k_BHTD))
        return attend(q_BHTD, k_BHTD, v_BHTD, None)

    def mlp(self, h_BTC: Tensor) -> Tensor:
        """The MLP, of norm(x)."""
        a_BTF = self.mlp_in(h_BTC)
        if in_bf16_on_cpu(h_BTC) and self.squared_relu:
            return relu2_linear(a_BTF.flatten(0, 1), self.mlp_out.weight).view_as(h_BTC)
        mlp_BTC: Tensor = self.mlp_out(self.activation(a_BTF))
        return mlp_BTC


def through_rotary_blocks(gpt: GPT, x_BTC: Tensor, dropout: Dropout | None, *, recompute: bool, fused: bool) -> Tensor:
    """Compute the blocks of a network with rotary positions, with dropout of their input and of what each adds."""
    T = x_BTC.shape[1]
    if dropout is not None:
        x_BTC = x_BTC * dropout.mask("tokens", x_BTC)
    rotary = RotaryEmbedding(*(gpt.get_buffer(name)[:T].to(x_BTC.dtype) for name in ("cosine_TD", "sine_TD")))
    for i, block in enumerate(gpt.blocks):
        masks = [dropout.mask(f"{place} {i}", x_BTC) for place in ("attention", "mlp")] if dropout else [None] * 2
        x_BTC = computed(block, recompute, fused, x_BTC, rotary, *masks)
    return x_BTC


def rotary_of(gpt: GPT, reach: Reach) -> RotaryEmbedding:
    """Return the rotary positions of the next tokens; all heads of a row have the same."""
    return RotaryEmbedding(*(reach.of(gpt.get_buffer(name))[..., None, :, :] for name in ("cosine_TD", "sine_TD")))


def norm(x: Tensor) -> Tensor:
    """RMSNorm over the last axis, without weights."""
    if in_bf16_on_cpu(x):
        return rms_norm(x, EPSILON)
    return F.rms_norm(x, (x.shape[-1],), eps=EPSILON)


def rotary_tables(context: int, head_width: int, base: float = ROTARY_BASE) -> tuple[Tensor, Tensor]:
    """Cosine and sine, each (T, D), of position * base ** (-2i / D); the second half of D repeats the first."""
    frequencies = base ** (-torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    angles_TD = torch.outer(torch.arange(context, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles_TD.cos(), angles_TD.sin()
