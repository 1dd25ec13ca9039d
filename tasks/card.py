"""A model's card in the Hub's format: Markdown under a YAML head."""

from typing import Any

import yaml

from model.spec import GPTSpec


def model_card(corpus: dict[str, Any], gpt: GPTSpec, step: int, parameters: int, vocabulary: dict[str, Any]) -> str:
    """What the model is, what it was trained on, and what it is not good for. `corpus` and `vocabulary` are facts."""
    head = {
        "language": corpus["language"],
        "license": "other",
        "license_name": corpus["licence"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["bardflow", "character-level" if vocabulary["kind"] == "char" else "bpe"],
    }
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

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this/folder")
tokenizer = AutoTokenizer.from_pretrained("this/folder")
```

## Limits

It has read one text and writes in its manner. It knows no facts, follows no instructions, and sees {gpt.context}
tokens at once.
"""
