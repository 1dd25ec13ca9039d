"""The model card in the format of the Hugging Face Hub: Markdown with YAML metadata."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from bardflow.model.networks import GPTSpec
from bardflow.pages.run import Scores

LIMITS = "It has read one text and writes in its manner. It knows no facts, follows no instructions, and sees"
LIMITS_WITH_A_BASE = """\
It was trained further on one text and writes in its manner. For its licence, and for what it read before, see the
model that it began from. It sees"""
# The tag of each kind of vocabulary; a tokenizer of another program may be of any kind.
TAGS = {
    "char": ["character-level"],
    "bpe": ["bpe"],
    "bpe-char": ["bpe"],
    "unigram": ["unigram"],
    "wordpiece": ["wordpiece"],
    "file": [],
}


def model_card(
    corpus: dict[str, Any],
    gpt: GPTSpec,
    step: int,
    parameters: int,
    vocabulary: dict[str, Any],
    scores: Scores | None = None,
    base: str | None = None,
) -> str:
    """Return a model's card: its size, training text and limits. `corpus` and `vocabulary` are facts of artifacts.

    `base` describes the model that the training began from. If `scores` are given, they are in the text and in the
    metadata (`model-index`).
    """
    head = {
        "language": corpus["language"],
        "license": "other",
        "license_name": corpus["licence"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["bardflow", *TAGS[vocabulary["kind"]]],
    }
    results = (
        []
        if scores is None
        else [
            EvalResult(
                task_type="text-generation",
                dataset_type="text",
                dataset_name=f"{corpus['title']}, validation set",
                metric_type=metric,
                metric_value=round(value, 4),
                metric_name=name,
            )
            for metric, name, value in (
                ("bits_per_character", "Bits per character", scores.bits_per_character),
                ("bits_per_byte", "Bits per UTF-8 byte", scores.bits_per_byte),
                ("loss", "Nats per token", scores.nats_per_token),
            )
        ]
    )
    data = ModelCardData(**head, **({"model_name": corpus["name"], "eval_results": results} if results else {}))
    survey, text = corpus["survey"], corpus["text"]
    weights, limits = f"Weights from step {step:,}", f"{LIMITS} {gpt.context}\ntokens at once."
    if base is not None:
        weights += f" of a training that\nbegan from {base}"
        limits = f"{LIMITS_WITH_A_BASE} {gpt.context} tokens at once."
    return f"""---
{data.to_yaml(original_order=[*head, "model-index"])}
---

# A small GPT of {corpus["title"]}

{parameters:,} parameters: {gpt.layers} layers, {gpt.heads} heads, width {gpt.width}, context {gpt.context} tokens
(`{gpt.architecture}`). Vocabulary: {vocabulary["kind"]}, {vocabulary["size"]:,} tokens. {weights}.

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

{limits}
"""


def scored(scores: Scores | None) -> str:
    """Return the scores as a section of the card; empty if there are none."""
    if scores is None:
        return ""
    overlapping = (
        f"| bits per character, overlapping windows | {scores.sliding_bits_per_character:.4f} |\n"
        if scores.sliding_bits_per_character is not None
        else ""
    )
    return f"""## Scores

Over the whole validation set, in disjoint windows of the context length.

| measure | value |
|---|---|
| bits per character | {scores.bits_per_character:.4f} |
| bits per UTF-8 byte | {scores.bits_per_byte:.4f} |
| nats per token | {scores.nats_per_token:.4f} |
{overlapping}| characters, tokens | {scores.characters:,}, {scores.tokens:,} |

"""
