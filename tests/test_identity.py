"""What a question is stays what it is: a field that is added later changes no key, and keys of today are kept."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from prefect import Task
from pydantic import BaseModel, Field, create_model

from bardflow.identity import AsBefore, identity, restored
from bardflow.model.training.spec import TrainingSpec
from bardflow.sources.corpora import load_corpus
from bardflow.storage.handles import Checkpoint, Corpus, Model, Source, TokenShards, Vocabulary
from bardflow.tasks.caching import CACHE_BY_INPUTS, canonical
from bardflow.tasks.corpus import clean_corpus
from bardflow.tasks.evaluation import evaluate_model
from bardflow.tasks.recipes import Recipe
from bardflow.tasks.training import begin_training, train_leg
from bardflow.tasks.vocabulary import learn_vocabulary, tokenize_corpus
from tests.conftest import CHECKOUT, RECIPES

NOBODY = "0" * 64

# The first 12 digits of each task's key for a recipe's specs, as commit a9a1d25 had them. A key changes only with its
# task's version or with a recipe: everything under the old one is computed again.
GOLDEN = {
    "small": ("6f9075cd0ea8", "f7a5213a8cb6", "9a16dfa0ed6f", "2da27a204406", "75b9b7ed1104"),
    "sprint": ("6f9075cd0ea8", "f7a5213a8cb6", "708b88f86e20", "a3425437d94e", "75b9b7ed1104"),
    "best": ("6f9075cd0ea8", "f7a5213a8cb6", "0a1a31423f7d", "32413e9bedb8", "75b9b7ed1104"),
    "classic": ("6f9075cd0ea8", "f7a5213a8cb6", "a6836ea8ca8f", "d40e573c9437", "75b9b7ed1104"),
    "lecture": ("6f9075cd0ea8", "f7a5213a8cb6", "3412e8039d68", "ab83a6a8da82", "75b9b7ed1104"),
    "bpe": ("aaa7df5590d3", "f7a5213a8cb6", "5ac0b45cdd42", "8611d0bbb6f1", "75b9b7ed1104"),
    "tiny": ("6f9075cd0ea8", "f7a5213a8cb6", "b501e6a99e4c", "3de4629cdff5", "19c076fc6e05"),
}
GOLDEN_CORPORA = {
    "tiny-shakespeare": "265ec2515e3cbeea",
    "three-kingdoms": "23ce21ae5a0b219a",
    "synthetic": "a3b4b6c5ba6b0dba",
}


def key(task: Task[..., Any], **inputs: Any) -> str:
    made = CACHE_BY_INPUTS.compute_key(SimpleNamespace(task=task), inputs, {})
    assert made is not None and made.startswith(f"{task.name}-{task.version}-")
    return made.rpartition("-")[2]


def keys(recipe: Recipe) -> tuple[str, ...]:
    corpus, vocabulary = Corpus(digest=NOBODY), Vocabulary(digest=NOBODY)
    shards, checkpoint = TokenShards(digest=NOBODY), Checkpoint(digest=NOBODY)
    return (
        key(learn_vocabulary, corpus=corpus, spec=recipe.vocabulary),
        key(tokenize_corpus, corpus=corpus, vocabulary=vocabulary, spec=recipe.shards),
        key(begin_training, vocabulary=vocabulary, gpt=recipe.gpt, seed=recipe.training.seed),
        key(train_leg, checkpoint=checkpoint, shards=shards, spec=recipe.training, until=20),
        key(evaluate_model, model=Model(digest=NOBODY), corpus=corpus, spec=recipe.evaluation),
    )


@pytest.mark.parametrize("name", GOLDEN)
def test_the_keys_of_the_built_in_recipes_are_kept(name: Any) -> None:
    assert tuple(made[:12] for made in keys(RECIPES[name])) == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN_CORPORA)
def test_the_keys_of_the_built_in_corpora_are_kept(name: str) -> None:
    spec = load_corpus(name, CHECKOUT / "corpora")
    assert key(clean_corpus, source=Source(digest=NOBODY), corpus=spec)[:16] == GOLDEN_CORPORA[name]


def later(**fields: Any) -> type[TrainingSpec]:
    """The training spec of a later day, with more fields."""
    return create_model("TrainingSpec", __base__=TrainingSpec, **fields)


def test_a_field_that_was_added_later_and_says_as_before_changes_no_key() -> None:
    smoothing = Annotated[float, AsBefore(0.0), Field(ge=0, lt=1)]
    of_today, kept = TrainingSpec(), canonical(TrainingSpec())
    for default in (0.0, 0.1):
        spec: Any = later(label_smoothing=(smoothing, default))
        assert canonical(spec(label_smoothing=0.0)) == kept
        assert canonical(spec(label_smoothing=0.2)) != kept
    assert canonical(later(label_smoothing=(smoothing, 0.1))()) != kept, "another default is another question"
    assert canonical(later(label_smoothing=(float, 0.0))()) != kept, "only what says so is left out"
    assert canonical(of_today.model_copy(update={"steps": 1001})) != kept


def test_what_lacks_a_later_field_is_read_as_it_was_meant_whatever_the_default_is_by_then() -> None:
    stored = identity(TrainingSpec(steps=7))
    spec = later(label_smoothing=(Annotated[float, AsBefore(0.0)], 0.1))
    read = restored(spec, json.loads(json.dumps(stored)))
    assert read.label_smoothing == 0.0  # type: ignore[attr-defined]
    assert identity(read) == stored
    assert identity(restored(spec, identity(spec()))) == identity(spec())


def test_specs_within_specs_and_in_lists_are_spelled_alike() -> None:
    class Inner(BaseModel):
        a: int = 1
        b: Annotated[int, AsBefore(2)] = 3

    class Outer(BaseModel):
        one: Inner = Inner()
        several: tuple[Inner, ...] = (Inner(b=2), Inner(b=4))

    assert identity(Outer()) == {"one": {"a": 1, "b": 3}, "several": [{"a": 1}, {"a": 1, "b": 4}]}
    assert identity(Outer(one=Inner(b=2)))["one"] == {"a": 1}
    assert restored(Outer, {"one": {"a": 5}}).one == Inner(a=5, b=2)
    digest = hashlib.sha256(json.dumps(canonical([Outer()]), sort_keys=True).encode()).hexdigest()
    assert digest == hashlib.sha256(json.dumps(canonical((Outer(),)), sort_keys=True).encode()).hexdigest()


def test_every_spec_is_read_back_from_its_identity() -> None:
    for recipe in RECIPES.values():
        assert restored(Recipe, identity(recipe)) == recipe
    for path in Path(CHECKOUT / "corpora").glob("*.toml"):
        spec = load_corpus(path.stem, CHECKOUT / "corpora")
        assert restored(type(spec), identity(spec)) == spec
