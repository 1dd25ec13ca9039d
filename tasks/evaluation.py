"""Scoring a model on the whole validation set, generating samples, and baselines for the same text."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from prefect import task
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from tokenizers import Tokenizer

from bardflow.errors import BardError
from bardflow.model.machine import device
from bardflow.model.networks import GPT
from bardflow.model.sampling import SamplingSpec, opening, write
from bardflow.model.scoring import (
    Charges,
    Guess,
    baselines,
    by_character,
    characters_started,
    charges_both_ways,
    charges_in_bf16,
    compare,
    compress,
    decompress,
    guesses,
    total,
)
from bardflow.model.training import load_model
from bardflow.model.vocabulary import (
    TOKENIZER_FILE,
    NotLossless,
    TextStream,
    TokenIds,
    UnknownCharacter,
    decode,
    encode,
    load,
    spellings,
)
from bardflow.pages.run import Alternative, Baseline, Sample, Scores, Surprise
from bardflow.storage.documents import read_end, read_text
from bardflow.storage.handles import Baselines, Corpus, Evaluation, Model
from bardflow.tasks.caching import CACHE_BY_INPUTS
from bardflow.tasks.memorised import MEMORISED, find_memorised
from bardflow.tasks.run import origin, store
from bardflow.tasks.saying import Progress, say, watched

SCORES = "scores.json"
SAMPLES = "samples.json"
CHARGES = "charges.npy"
COMPRESSED = "validation.coded"
SURPRISES = "surprises.json"
BASELINES = "baselines.json"
# Longer validation sets are scored in bf16 where the device is fast at it, with this bound on the error in bits per
# character. Shorter ones take seconds in f32.
BF16_CHARACTERS, BF16_ERROR_BITS = 2**20, 1e-4
# Baselines use only the end of the training set: the n-gram model takes 65 bytes and 1 us for each character.
LOOK_BACK_CHARACTERS = 2**23
# The length of the passage with surprises, and the number of probable tokens listed for each of its tokens.
PASSAGE_CHARACTERS = 700
LIKELIEST = 6
# No learned token has more characters (model/vocabulary limits the length of words).
CHARACTERS_A_TOKEN = 64


class BitsNotReal(BardError):
    """The decompressed text differs from the text that was compressed."""


SAMPLE_LIST = TypeAdapter(list[Sample])
BASELINE_LIST = TypeAdapter(list[Baseline])
SURPRISE_LIST = TypeAdapter(list[Surprise])


class EvaluationSpec(BaseModel):
    """What an evaluation measures in addition to the scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(default=2, ge=0, le=20, description="texts to draw")
    sample_characters: int = Field(default=600, ge=1, le=20_000, description="length of each")
    prompt: str | None = Field(
        default=None,
        min_length=1,
        description="what each text begins with; null: a new line, or what the vocabulary has",
    )
    temperature: float = Field(default=0.8, ge=0, le=10, description="0: always the most probable token")
    top_k: int | None = Field(default=200, ge=1, description="draw from so many of the most probable; null: from all")
    top_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="draw from the fewest most probable ones that together have this probability; null: from all",
    )
    sample_seed: int = Field(default=1337, ge=0, lt=2**31, description="of all texts; each is a row that draws apart")
    compress: bool = Field(
        default=False,
        description="compress the validation set with the model and decompress it again, as a proof of the score",
    )


@task(version="4", cache_policy=CACHE_BY_INPUTS)
def evaluate_model(model: Model, corpus: Corpus, spec: EvaluationSpec) -> Evaluation:
    """Score the model on every character of the validation set, and generate samples.

    Scores are computed in f32; those of a long validation set with blocks in bf16, where `charges_in_bf16` is fast.

    Raises:
        BitsNotReal: decompression gave a text that differs from the validation set.
    """
    folder, text = store().folder(model), store().folder(corpus)
    gpt, tokenizer = load_model(folder), load(folder / TOKENIZER_FILE)
    place = device.choose("f32")
    gpt.to(place.name)
    survey = store().facts(corpus)["survey"]

    before = last_tokens(tokenizer, text, gpt.context + 1)
    tokens = np.concatenate(list(encode(tokenizer, read_text(text, "validation"))))
    with Progress("scoring the validation set", "token", len(tokens)) as progress:
        quick = None
        if survey["validation_characters"] > BF16_CHARACTERS and device.bf16_is_fast(place.name):
            error = BF16_ERROR_BITS * math.log(2) * survey["validation_characters"] / len(tokens)
            quick = charges_in_bf16(gpt, tokens, before=before, device=place, error=error, progress=progress)
        if quick is None:
            charged, sliding = charges_both_ways(gpt, tokens, before=before, device=place, progress=progress)
        else:
            charged, sliding = quick.disjoint, quick.sliding
            say(f"scored in bf16, corrected by {quick.sampled:,} tokens in f32")
    coded = None
    if spec.compress:
        with Progress("compressing the validation set", "token", len(tokens)) as progress:
            coded = compress(gpt, tokens, before=int(before[-1]), device=place, progress=progress)
        with Progress("decompressing it", "token", len(tokens)) as progress:
            ids = decompress(gpt, coded, before=int(before[-1]), device=place, progress=progress)
        read_back = decode(tokenizer, ids)
        if read_back != "".join(read_text(text, "validation")):
            raise BitsNotReal(
                f"{model} compressed the validation set to {len(coded):,} bytes, but what was read back is another "
                "text: the machine does not compute the same twice; try again with OMP_NUM_THREADS=1"
            )
    started = characters_started(spellings(tokenizer))
    scores = scores_from(charged, sliding, survey, None if coded is None else len(coded))
    if quick is not None:
        error_bits = quick.error / math.log(2) * len(tokens) / survey["validation_characters"]
        scores = scores.model_copy(update={"bf16_error_bits": error_bits})
    samples = drawn(gpt, tokenizer, spec, place) if spec.samples else []
    with store().draft() as draft:
        write_json(draft.folder / SCORES, scores.model_dump(mode="json"))
        write_json(draft.folder / SAMPLES, SAMPLE_LIST.dump_python(samples, mode="json"))
        if samples:
            found = find_memorised((sample.text for sample in samples), text, survey["train_characters"])
            write_json(draft.folder / MEMORISED, found.model_dump(mode="json", exclude_none=True))
        passage = tokens[: int(np.searchsorted(np.cumsum(started[tokens]), PASSAGE_CHARACTERS)) + 1]
        expected = guesses(gpt, passage, before=before, device=place, likeliest=LIKELIEST)
        shown = surprises(tokenizer, passage.tolist(), expected)
        write_json(draft.folder / SURPRISES, SURPRISE_LIST.dump_python(shown, mode="json"))
        np.save(draft.folder / CHARGES, by_character(charged, started[tokens]))
        if coded is not None:
            (draft.folder / COMPRESSED).write_bytes(coded)
        facts = {"bits_per_character": scores.bits_per_character, "nats_per_token": scores.nats_per_token}
        return store().keep(draft, Evaluation, facts, origin())


def scores_from(charged: Charges, sliding: Charges, survey: dict[str, Any], compressed_bytes: int | None) -> Scores:
    """Return the scores of a validation set from each token's loss, in disjoint and in overlapping windows."""
    score = total(charged)
    return Scores(
        nats_per_token=score.nats_per_token,
        bits_per_character=score.bits_per(survey["validation_characters"]),
        bits_per_byte=score.bits_per(survey["validation_bytes"]),
        sliding_bits_per_character=total(sliding).bits_per(survey["validation_characters"]),
        compressed_bytes=compressed_bytes,
        tokens=score.tokens,
        characters=survey["validation_characters"],
        bytes_utf8=survey["validation_bytes"],
    )


@task(version="3", cache_policy=CACHE_BY_INPUTS)
def measure_baselines(corpus: Corpus) -> Baselines:
    """Measure compressors and an n-gram model on the same split, and add the published scores.

    If a baseline gives the loss of each character, these are stored too, in nats.
    """
    folder, facts = store().folder(corpus), store().facts(corpus)
    measured = baselines.measure(
        "".join(read_end(folder, "train", LOOK_BACK_CHARACTERS))[-LOOK_BACK_CHARACTERS:],
        "".join(read_text(folder, "validation")),
        train_characters=facts["survey"]["train_characters"],
    )
    found = list(watched(measured, doing="measuring baselines", unit="baseline", note=lambda b: b.name))
    listed = [Baseline(name=b.name, kind=b.kind, bits_per_character=b.bits_per_character, note=b.note) for b in found]
    listed += [Baseline(kind="published", **figure) for figure in facts["published"]]
    with store().draft() as draft:
        for baseline in found:
            if baseline.bits is not None:
                np.save(draft.folder / f"{baseline.name}.npy", (baseline.bits * math.log(2)).astype(np.float32))
        write_json(draft.folder / BASELINES, BASELINE_LIST.dump_python(listed, mode="json"))
        return store().keep(draft, Baselines, {}, origin())


def unspellable(model: Model, corpus: Corpus) -> str | None:
    """Return why the model's vocabulary cannot encode the validation set or the context before it, or None if it can.

    Such a model gives the text the probability 0, so its loss would be infinite.
    """
    tokenizer, text = load(store().folder(model) / TOKENIZER_FILE), store().folder(corpus)
    try:
        last_tokens(tokenizer, text, store().facts(model)["gpt"]["context"] + 1)
        for _ in encode(tokenizer, read_text(text, "validation")):
            pass
    except UnknownCharacter as unknown:
        return f"its vocabulary has no {unknown.character!r}"
    except NotLossless as changed:
        return f"its tokenizer changes {changed.text!r} to {changed.came_back!r}"
    return None


def last_tokens(tokenizer: Tokenizer, text: Path, count: int) -> TokenIds:
    """Return the last `count` tokens of a corpus's training set, or all tokens if it has fewer."""
    longest = max(CHARACTERS_A_TOKEN, int(characters_started(spellings(tokenizer)).max()))
    return np.concatenate(list(encode(tokenizer, read_end(text, "train", count * longest))))[-count:]


def surprises(tokenizer: Tokenizer, ids: list[int], expected: list[Guess]) -> list[Surprise]:
    """Cut a passage into pieces of whole characters, each with its bits and the most probable tokens at its start."""
    stream, pieces = TextStream(tokenizer), []
    spelled = cache(lambda token: decode(tokenizer, [token]))
    first, bits = 0, 0.0
    for number, (token, guess) in enumerate(zip(ids, expected, strict=True)):
        bits += guess.nats / math.log(2)
        if text := stream.take(token) + (stream.end() if number == len(ids) - 1 else ""):
            here = expected[first]
            likely = zip(here.likeliest, here.shares, strict=True)
            said = tuple(Alternative(text=spelled(i), share=share) for i, share in likely)
            pieces.append(Surprise(text=text, bits=bits, likeliest=said))
            first, bits = number + 1, 0.0
    return pieces


def drawn(gpt: GPT, tokenizer: Tokenizer, spec: EvaluationSpec, place: device.Device) -> list[Sample]:
    """Generate samples that continue the prompt, in one batch."""
    sampling = SamplingSpec(temperature=spec.temperature, top_k=spec.top_k, top_p=spec.top_p, seed=spec.sample_seed)
    prompt = spec.prompt or opening(tokenizer)
    texts = [""] * spec.samples
    for row, text in write(gpt, tokenizer, prompt, spec.sample_characters, sampling, place, rows=spec.samples):
        texts[row] += text
    return [
        Sample(prompt=prompt, text=text, temperature=spec.temperature, seed=sampling.seed, row=row)
        for row, text in enumerate(texts)
    ]


def scores_of(evaluation: Evaluation) -> Scores:
    """Read the scores of an evaluation."""
    return Scores.model_validate_json((store().folder(evaluation) / SCORES).read_bytes())


def samples_of(evaluation: Evaluation) -> list[Sample]:
    """Read the samples of an evaluation."""
    return SAMPLE_LIST.validate_json((store().folder(evaluation) / SAMPLES).read_bytes())


def charges_of(evaluation: Evaluation) -> Charges:
    """Read the loss of each character of the validation set, in nats."""
    charged: Charges = np.load(store().folder(evaluation) / CHARGES)
    return charged


def surprises_of(evaluation: Evaluation) -> list[Surprise]:
    """Read the passage of an evaluation, with the surprise of each piece."""
    return SURPRISE_LIST.validate_json((store().folder(evaluation) / SURPRISES).read_bytes())


def baselines_of(measured: Baselines) -> list[Baseline]:
    """Read the baselines of an artifact."""
    return BASELINE_LIST.validate_json((store().folder(measured) / BASELINES).read_bytes())


def baselines_beside(measured: Baselines, evaluation: Evaluation) -> tuple[Baseline, ...]:
    """Read the baselines of an artifact, with the interval of the model's difference where losses are stored."""
    listed = []
    for baseline in baselines_of(measured):
        losses = store().folder(measured) / f"{baseline.name}.npy"
        if losses.is_file():
            apart = compare(charges_of(evaluation), np.load(losses), luck=0)
            baseline = baseline.model_copy(update={"interval": (apart.low, apart.high)})
        listed.append(baseline)
    return tuple(listed)


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
