"""A recipe is every spec of one run under a name; any recipe runs on any corpus, and any field can be overridden."""

import difflib
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from bard.errors import BardError
from model.spec import GPTSpec
from model.training import TrainingSpec
from model.vocabulary import VocabularySpec
from storage.shards import ShardSpec
from tasks.evaluation import EvaluationSpec

RecipeName = Literal["small", "sprint", "best", "classic", "lecture", "bpe", "tiny"]


class RecipeError(BardError):
    """A recipe, a field or a value that does not exist."""


class Recipe(BaseModel):
    """All that decides what a run computes, except the corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: RecipeName
    vocabulary: VocabularySpec = VocabularySpec()
    shards: ShardSpec = ShardSpec()
    gpt: GPTSpec = GPTSpec()
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()

    def settings(self) -> dict[str, str | int | float | bool | None]:
        """Every field under its flat name, in order."""
        parts = self.model_dump(mode="json", exclude={"name"})
        return {flat(part, field): value for part, fields in parts.items() for field, value in fields.items()}

    def changed(self, **fields: Any) -> "Recipe":
        """The recipe with other values of some fields, by their flat names, checked as a whole.

        Raises:
            RecipeError: a value that is not legal; the message says what is.
        """
        parts = self.model_dump()
        for name, value in fields.items():
            part, field = FIELDS[name]
            parts[part][field] = value
        try:
            return Recipe.model_validate(parts)
        except ValidationError as error:
            raise RecipeError(explained(error)) from error


SPECS: dict[str, type[BaseModel]] = {
    "vocabulary": VocabularySpec,
    "shards": ShardSpec,
    "gpt": GPTSpec,
    "training": TrainingSpec,
    "evaluation": EvaluationSpec,
}


def flat(part: str, field: str) -> str:
    """A field's name among all of a recipe's: a vocabulary's are prefixed, since `size` alone says nothing."""
    return f"vocabulary_{field}" if part == "vocabulary" else field


FIELDS: dict[str, tuple[str, str]] = {
    flat(part, field): (part, field) for part, spec in SPECS.items() for field in spec.model_fields
}


def _optional_fields() -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, (part, field) in FIELDS.items():
        info = SPECS[part].model_fields[field]
        described = Field(description=info.description)
        annotation: Any = Annotated[(info.annotation, *info.metadata, described)]
        fields[name] = (annotation | None, None)
    return fields


# Made from the specs, so that it can not drift from them; Prefect's UI shows it as a form.
_Fields: Any = create_model("_Fields", __config__=ConfigDict(frozen=True, extra="forbid"), **_optional_fields())


class Overrides(_Fields):  # type: ignore[misc]
    """Fields of a recipe to change, by name; what is not given stays as the recipe has it."""

    def changes(self) -> dict[str, Any]:
        """The fields that were given."""
        given: dict[str, Any] = self.model_dump(exclude_unset=True)
        return given


AS_THE_RECIPE_HAS_IT = Overrides()

# tiny Shakespeare's published losses are of models with exactly its 65 characters; `auto` keeps them 65.
RECIPES: dict[RecipeName, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="small",
            gpt=GPTSpec(layers=3, heads=3, width=192, context=128),
            training=TrainingSpec(steps=1200, batch=16, muon_learning_rate=0.03, leg_steps=300),
        ),
        # The shortest way to the loss that nanoGPT's CPU preset ends with (benchmarks/time_to_loss.py).
        Recipe(
            name="sprint",
            gpt=GPTSpec(layers=2, heads=2, width=128, context=64),
            training=TrainingSpec(
                steps=140,
                batch=32,
                learning_rate=0.02,
                muon_learning_rate=0.06,
                warmup_steps=4,
                final_learning_rate=0.02,
                leg_steps=140,
            ),
        ),
        # The lowest loss on tiny Shakespeare that 2 cores reach within an hour. The text is so small that it is learned
        # by heart sooner: dropout, noise on the inputs and scaled logits each hold that off (benchmarks/LOG.md).
        Recipe(
            name="best",
            gpt=GPTSpec(layers=6, heads=5, width=320, context=256, dropout=0.3),
            training=TrainingSpec(
                steps=3000,
                batch=32,
                muon_learning_rate=0.02,
                logit_scale=1.3,
                input_noise=0.05,
                final_learning_rate=0.01,
                leg_steps=300,
                patience=None,
            ),
        ),
        # nanoGPT's config/train_shakespeare_char.py with its README's CPU settings (it rates it 1.88).
        Recipe(
            name="classic",
            gpt=GPTSpec(architecture="classic", layers=4, heads=4, width=128, context=64, activation="gelu", tied=True),
            training=TrainingSpec(
                steps=2000,
                batch=12,
                optimizer="adamw",
                learning_rate=1e-3,
                weight_decay=0.1,
                beta2=0.99,
                clip=1.0,
                schedule="cosine",
                warmup_steps=100,
                final_learning_rate=0.1,
                precision="f32",
                leg_steps=500,
                patience=None,
            ),
        ),
        # The script at the end of "Let's build GPT": its own head, ReLU, constant learning rate, torch's AdamW.
        Recipe(
            name="lecture",
            gpt=GPTSpec(
                architecture="classic",
                layers=6,
                heads=6,
                width=384,
                context=256,
                dropout=0.2,
                activation="relu",
                biases=True,
            ),
            training=TrainingSpec(
                steps=5000,
                batch=64,
                optimizer="adamw",
                learning_rate=3e-4,
                weight_decay=0.01,
                beta2=0.999,
                clip=None,
                schedule="constant",
                warmup_steps=0,
                leg_steps=500,
                patience=None,
            ),
        ),
        Recipe(
            name="bpe",
            vocabulary=VocabularySpec(kind="bpe", size=2048),
            gpt=GPTSpec(layers=3, heads=3, width=192, context=64),
            training=TrainingSpec(steps=1200, batch=16, muon_learning_rate=0.03, leg_steps=300),
        ),
        Recipe(
            name="tiny",
            gpt=GPTSpec(layers=2, heads=2, width=32, context=32),
            training=TrainingSpec(steps=60, batch=16, warmup_steps=5, leg_steps=20, validation_tokens=8192),
            evaluation=EvaluationSpec(samples=1, sample_characters=200),
        ),
    )
}


def recipe(name: str, overrides: Overrides) -> Recipe:
    """The named recipe with some fields changed, checked as a whole.

    Raises:
        RecipeError: no such recipe, or a value that is not legal; the message says what is.
    """
    if name not in RECIPES:
        raise RecipeError(f"there is no recipe {name!r}{closest(name, RECIPES)}; recipes: {', '.join(RECIPES)}")
    return RECIPES[name].changed(**overrides.changes())


def overrides_from(given: dict[str, Any]) -> Overrides:
    """Overrides by name, as the command line gives them (values as text are read as numbers, booleans or null).

    Raises:
        RecipeError: no such field, or a value of the wrong type.
    """
    for name in given:
        if name not in FIELDS:
            raise RecipeError(f"a recipe has no field {name!r}{closest(name, FIELDS)}; fields: {', '.join(FIELDS)}")
    try:
        return Overrides.model_validate(given)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise RecipeError(explained(error)) from error


def explained(error: ValidationError) -> str:
    """Each mistake in a line: the field, what was given, what is legal."""
    lines = []
    for mistake in error.errors(include_url=False):
        place = [str(part) for part in mistake["loc"]]
        name = next((p for p in place if p in FIELDS), None)
        if name is None:
            name = flat(place[0], place[1]) if len(place) > 1 else (place[0] if place else "recipe")
        reason = mistake["msg"].removeprefix("Value error, ")
        given = "" if isinstance(mistake["input"], dict | BaseModel) else f" = {mistake['input']!r}"
        lines.append(f"{name}{given}: {reason}{legal(name)}")
    return "\n".join(dict.fromkeys(lines))


def legal(name: str) -> str:
    """What a field is for and which words it takes, in brackets; empty where there is nothing to say."""
    if name not in FIELDS:
        return ""
    part, field = FIELDS[name]
    info = SPECS[part].model_fields[field]
    words = [repr(w) for w in get_args(info.annotation) if isinstance(w, str)]
    said = [s for s in (info.description, f"one of {', '.join(words)}" if words else None) if s]
    return f" ({'; '.join(said)})" if said else ""


def closest(name: str, among: Any) -> str:
    """A suggestion, or nothing."""
    near = difflib.get_close_matches(name, list(among), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
