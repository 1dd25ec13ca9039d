"""Tokens drawn from a model, one after the other."""

from collections.abc import Iterator, Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field

from model.device import Device
from model.gpt import GPT


class SamplingSpec(BaseModel):
    """How the next token is drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=0.8, ge=0, le=10, description="0: always the likeliest token")
    top_k: int | None = Field(default=200, ge=1, description="draw from so many of the likeliest; null: from all")
    seed: int = Field(default=1337, ge=0, lt=2**32)


def sample(gpt: GPT, prompt: Sequence[int], spec: SamplingSpec, device: Device) -> Iterator[int]:
    """Endless token ids that continue `prompt` (at least one token). The caller decides when to stop.

    Drawn on the CPU from a generator of its own, so the same seed gives the same text whatever else draws.
    """
    generator = torch.Generator().manual_seed(spec.seed)
    ids = list(prompt)
    gpt.eval()
    while True:
        window = torch.tensor([ids[-gpt.context :]], device=device.name)
        with torch.inference_mode():
            logits_V = gpt(window)[0, -1].float().cpu()
        if spec.temperature == 0:
            drawn = int(logits_V.argmax())
        else:
            # Stable: of equal logits the lower ids stay, as in argmax, so no more than top_k can be drawn.
            logits_K, ids_K = logits_V.sort(descending=True, stable=True)
            shares_K = ((logits_K[: spec.top_k] - logits_K[0]) / spec.temperature).softmax(-1)
            drawn = int(ids_K[torch.multinomial(shares_K, 1, generator=generator)])
        ids.append(drawn)
        yield drawn
