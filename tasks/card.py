"""A model's card in the Hub's format: Markdown under a YAML head."""

from typing import Any

import yaml

from bardflow.model.networks import GPTSpec
from bardflow.pages.run import Scores


def model_card(
    corpus: dict[str, Any],
    gpt: GPTSpec,
    step: int,
    parameters: int,
    vocabulary: dict[str, Any],
    scores: Scores | None = None,
) -> str:
    """What the model is, what it was trained on, and what it is not good for. `corpus` and `vocabulary` are facts.

    With its scores, the card has them in words and in the head, where the Hub looks for them (`model-index`).
    """
    head: dict[str, Any] = {
        "language": corpus["language"],
        "license": "other",
        "license_name": corpus["licence"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["bardflow", "character-level" if vocabulary["kind"] == "char" else "bpe"],
    }
    if scores is not None:
        metrics = [
            {"type": "bits_per_character", "value": round(scores.bits_per_character, 4), "name": "Bits per character"},
            {"type": "bits_per_byte", "value": round(scores.bits_per_byte, 4), "name": "Bits per UTF-8 byte"},
            {"type": "loss", "value": round(scores.nats_per_token, 4), "name": "Nats per token"},
        ]
        result = {
            "task": {"type": "text-generation"},
            "dataset": {"name": f"{corpus['title']}, held out", "type": "text"},
            "metrics": metrics,
        }
        head["model-index"] = [{"name": corpus["name"], "results": [result]}]
    survey, text = corpus["survey"], corpus["text"]
    return f"""---
{yaml.safe_dump(head, allow_unicode=True, sort_keys=False).strip()}
---

# A small GPT of {corpus["title"]}

{parameters:,} parameters: {gpt.layers} layers, {gpt.heads} heads, width {gpt.width}, context {gpt.context} tokens
(`{gpt.architecture}`). Vocabulary: {vocabulary["kind"]}, {vocabulary["size"]:,} tokens. Weights from step {step:,}.

## Training text

{corpus["title"]} ({corpus["licence"]}): {survey["train_characters"]:,} characters were trained on, and
{survey["validation_characters"]:,} were held out.

| part | sha256 of its text |
|---|---|
| train | `{text["train_sha256"]}` |
| validation | `{text["validation_sha256"]}` |

{scored(scores)}## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this/folder")
tokenizer = AutoTokenizer.from_pretrained("this/folder")
```

## Limits

It has read one text and writes in its manner. It knows no facts, follows no instructions, and sees {gpt.context}
tokens at once.
"""


def scored(scores: Scores | None) -> str:
    """The scores as a section of the card; nothing where there are none."""
    if scores is None:
        return ""
    overlapping = (
        f"| bits per character, windows overlapping by half | {scores.sliding_bits_per_character:.4f} |\n"
        if scores.sliding_bits_per_character is not None
        else ""
    )
    return f"""## Scores

Over the whole held-out text, every character charged, in disjoint windows of the context.

| measure | value |
|---|---|
| bits per character | {scores.bits_per_character:.4f} |
| bits per UTF-8 byte | {scores.bits_per_byte:.4f} |
| nats per token | {scores.nats_per_token:.4f} |
{overlapping}| characters, tokens | {scores.characters:,}, {scores.tokens:,} |

"""
