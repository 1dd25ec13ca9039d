"""Scoring models that were not trained here: any causal model that `transformers` opens."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from prefect import task

from bardflow.model.machine import device
from bardflow.model.scoring import by_character, charges_both_ways, generate, open_causal, tokenized
from bardflow.pages.run import Sample
from bardflow.storage.documents import read_end, read_text
from bardflow.storage.handles import Corpus, Evaluation
from bardflow.tasks.caching import CACHE_BY_INPUTS
from bardflow.tasks.evaluation import (
    CHARACTERS_A_TOKEN,
    CHARGES,
    SAMPLE_LIST,
    SAMPLES,
    SCORES,
    SURPRISES,
    EvaluationSpec,
    scores_from,
    write_json,
)
from bardflow.tasks.memorised import MEMORISED, find_memorised
from bardflow.tasks.run import origin, store
from bardflow.tasks.saying import Progress, say

# The files of a model folder that its predictions depend on.
RELEVANT = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt")


class Folder(NamedTuple):
    """A model folder: its address for people, and the sha256 of its relevant files."""

    path: Path
    address: str
    sha256: str


def identified(path: Path, address: str) -> Folder:
    """Return the folder with the sha256 of the names and contents of its relevant files."""
    whole = hashlib.sha256()
    for file in sorted({found for pattern in RELEVANT for found in path.glob(pattern)}):
        with file.open("rb") as content:
            whole.update(f"{file.name}\n{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return Folder(path, address, whole.hexdigest())


@task(version="1", cache_policy=CACHE_BY_INPUTS.ignoring("folder", "address"))
def evaluate_pretrained(
    folder: str, address: str, sha256: str, corpus: Corpus, spec: EvaluationSpec, context: int | None
) -> Evaluation:
    """Score a model of `transformers` on every character of the validation set, in f32, and generate samples.

    `sha256` identifies the model; `folder` is where it is now.

    Raises:
        model.scoring.NotScorable: it cannot be opened, is not causal, or its tokenizer changes the text.
    """
    model, tokenizer = open_causal(Path(folder), context=context)
    place = device.choose("f32")
    model.to(place.name)
    text, survey = store().folder(corpus), store().facts(corpus)["survey"]
    count = model.context + 1
    end = "".join(read_end(text, "train", count * CHARACTERS_A_TOKEN))
    before = tokenized(tokenizer, end, name=address).ids[-count:]
    ids, started = tokenized(tokenizer, "".join(read_text(text, "validation")), name=address)
    say(f"{address}: {len(ids):,} tokens in windows of {model.context:,}")
    with Progress(f"scoring {address}", "token", len(ids)) as progress:
        charged, sliding = charges_both_ways(
            model, ids.astype(np.uint32), before=before.astype(np.uint32), device=place, progress=progress
        )
    scores = scores_from(charged, sliding, survey, None)
    samples = []
    for row in range(spec.samples):
        prompt = spec.prompt or "\n"
        drawn = generate(
            model,
            tokenizer,
            prompt,
            spec.sample_characters,
            seed=spec.sample_seed + row,
            temperature=spec.temperature,
            top_k=spec.top_k,
            top_p=spec.top_p,
        )[: spec.sample_characters]
        samples.append(Sample(prompt=prompt, text=drawn, temperature=spec.temperature, seed=spec.sample_seed, row=row))
    with store().draft() as draft:
        write_json(draft.folder / SCORES, scores.model_dump(mode="json"))
        write_json(draft.folder / SAMPLES, SAMPLE_LIST.dump_python(samples, mode="json"))
        if any(sample.text for sample in samples):
            found = find_memorised((sample.text for sample in samples), text, survey["train_characters"])
            write_json(draft.folder / MEMORISED, found.model_dump(mode="json", exclude_none=True))
        write_json(draft.folder / SURPRISES, [])
        np.save(draft.folder / CHARGES, by_character(charged, started))
        facts = {
            "bits_per_character": scores.bits_per_character,
            "nats_per_token": scores.nats_per_token,
            "type": str(model.model.config.model_type),
            "parameters": sum(p.numel() for p in {id(p): p for p in model.model.parameters()}.values()),
            "vocabulary_size": model.tokens.weight.shape[0],
            "context": model.context,
        }
        return store().keep(draft, Evaluation, facts, origin(address=address))
