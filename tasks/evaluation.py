"""A model's score over a whole validation part, from the raw text, beside what needs no model at all."""

import json
from collections import deque
from pathlib import Path

from prefect import task
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from tokenizers import Tokenizer

from model import baselines, device
from model.folder import load_model
from model.gpt import GPT
from model.sampling import SamplingSpec, write
from model.scoring import score
from model.vocabulary import TOKENIZER_FILE, UnknownCharacter, decode, encode, load
from pages.run import Baseline, Sample, Scores
from storage.documents import read_text
from storage.handles import Baselines, Corpus, Evaluation, Model
from storage.shards import TokenArray
from tasks.answers import origin, store
from tasks.caching import SAME_QUESTION

SCORES = "scores.json"
SAMPLES = "samples.json"
BASELINES = "baselines.json"
# What a baseline may look back on: the n-gram model takes about 100 bytes and 1 microsecond a character.
LOOK_BACK_CHARACTERS = 2**23

SAMPLE_LIST = TypeAdapter(list[Sample])
BASELINE_LIST = TypeAdapter(list[Baseline])


class EvaluationSpec(BaseModel):
    """What is asked of a trained model beside its score."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = Field(default=2, ge=0, le=20, description="texts to draw")
    sample_characters: int = Field(default=600, ge=1, le=20_000, description="length of each")
    prompt: str | None = Field(
        default=None,
        min_length=1,
        description="what each text begins with; null: a new line, or what the vocabulary has",
    )
    temperature: float = Field(default=0.8, ge=0, le=10, description="0: always the likeliest token")
    top_k: int | None = Field(default=200, ge=1, description="draw from so many of the likeliest; null: from all")
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="draw from the fewest likeliest that have this share; null: from all"
    )
    sample_seed: int = Field(default=1337, ge=0, lt=2**31, description="of all texts; each is a row that draws apart")


@task(version="2", cache_policy=SAME_QUESTION)
def evaluate_model(model: Model, corpus: Corpus, spec: EvaluationSpec) -> Evaluation:
    """Charge the model for every character of the validation part, in f32, and let it write."""
    folder, text = store().folder(model), store().folder(corpus)
    gpt, tokenizer = load_model(folder), load(folder / TOKENIZER_FILE)
    place = device.choose("f32")
    gpt.to(place.name)
    survey = store().facts(corpus)["survey"]

    last_piece = deque(read_text(text, "train"), maxlen=1)
    before = int(next(encode(tokenizer, last_piece))[-1])
    tokens = TokenArray(list(encode(tokenizer, read_text(text, "validation"))))
    charged = score(gpt, tokens, before=before, device=place)
    scores = Scores(
        nats_per_token=charged.nats_per_token,
        bits_per_character=charged.bits_per(survey["validation_characters"]),
        bits_per_byte=charged.bits_per(survey["validation_bytes"]),
        tokens=charged.tokens,
        characters=survey["validation_characters"],
        bytes_utf8=survey["validation_bytes"],
    )
    samples = drawn(gpt, tokenizer, spec, place) if spec.samples else []
    with store().draft() as draft:
        write_json(draft.folder / SCORES, scores.model_dump(mode="json"))
        write_json(draft.folder / SAMPLES, SAMPLE_LIST.dump_python(samples, mode="json"))
        facts = {"bits_per_character": scores.bits_per_character, "nats_per_token": scores.nats_per_token}
        return store().keep(draft, Evaluation, facts, origin())


@task(version="1", cache_policy=SAME_QUESTION)
def measure_baselines(corpus: Corpus) -> Baselines:
    """Compressors and an n-gram model on the same split, and the figures that others have published for it."""
    folder, facts = store().folder(corpus), store().facts(corpus)
    train = "".join(read_text(folder, "train"))[-LOOK_BACK_CHARACTERS:]
    measured = baselines.measure(train, "".join(read_text(folder, "validation")))
    listed = [
        Baseline(name=b.name, kind=b.kind, bits_per_character=b.bits_per_character, note=b.note) for b in measured
    ]
    listed += [Baseline(kind="published", **figure) for figure in facts["published"]]
    with store().draft() as draft:
        write_json(draft.folder / BASELINES, BASELINE_LIST.dump_python(listed, mode="json"))
        return store().keep(draft, Baselines, {}, origin())


def unspellable(model: Model, corpus: Corpus) -> str | None:
    """Which character of the validation part the model's vocabulary can not spell, in words; None if it spells all.

    Such a model gives the text no probability at all: its charge would be infinite.
    """
    tokenizer = load(store().folder(model) / TOKENIZER_FILE)
    try:
        for _ in encode(tokenizer, read_text(store().folder(corpus), "validation")):
            pass
    except UnknownCharacter as unknown:
        return f"its vocabulary has no {unknown.character!r}"
    return None


def drawn(gpt: GPT, tokenizer: Tokenizer, spec: EvaluationSpec, place: device.Device) -> list[Sample]:
    """The texts that continue the prompt, all drawn at once."""
    sampling = SamplingSpec(temperature=spec.temperature, top_k=spec.top_k, top_p=spec.top_p, seed=spec.sample_seed)
    prompt = spec.prompt or opening(tokenizer)
    texts = [""] * spec.samples
    for row, text in write(gpt, tokenizer, prompt, spec.sample_characters, sampling, place, rows=spec.samples):
        texts[row] += text
    return [
        Sample(prompt=prompt, text=text, temperature=spec.temperature, seed=sampling.seed, row=row)
        for row, text in enumerate(texts)
    ]


def opening(tokenizer: Tokenizer) -> str:
    """What a text begins with where nobody said: a new line, or the first token of a vocabulary that has none."""
    try:
        next(encode(tokenizer, ["\n"]))
    except UnknownCharacter:
        return decode(tokenizer, [0])
    return "\n"


def scores_of(evaluation: Evaluation) -> Scores:
    """The figures of an evaluation."""
    return Scores.model_validate_json((store().folder(evaluation) / SCORES).read_bytes())


def samples_of(evaluation: Evaluation) -> list[Sample]:
    """The texts of an evaluation."""
    return SAMPLE_LIST.validate_json((store().folder(evaluation) / SAMPLES).read_bytes())


def baselines_of(measured: Baselines) -> list[Baseline]:
    """The figures of the baselines."""
    return BASELINE_LIST.validate_json((store().folder(measured) / BASELINES).read_bytes())


def write_json(path: Path, value: object) -> None:
    """Write a value for people and programs alike."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
