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
            logits_V = logits_V / spec.temperature
            if spec.top_k is not None and spec.top_k < len(logits_V):
                least = logits_V.topk(spec.top_k).values[-1]
                logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
            drawn = int(torch.multinomial(logits_V.softmax(-1), 1, generator=generator))
        ids.append(drawn)
        yield drawn
