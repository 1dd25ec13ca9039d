"""Recipes: all settings of a run except the corpus. Any field can be overridden."""

import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from bardflow.errors import BardError
from bardflow.home import project_folder
from bardflow.identity import AsBefore
from bardflow.model.networks import OWN_FIELDS, GPTSpec
from bardflow.model.training import TrainingSpec
from bardflow.model.vocabulary import VocabularySpec
from bardflow.storage.shards import ShardSpec
from bardflow.tasks.base_model import BaseSpec
from bardflow.tasks.evaluation import EvaluationSpec
from bardflow.toml import closest, read_toml

RECIPES_FOLDER = "recipes"
BUILT_IN = Path(str(resources.files("bardflow"))) / RECIPES_FOLDER
NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
# Recipes cannot have these names, because names such as `<corpus>/text` have another meaning.
RESERVED_NAMES = frozenset({"text", "champion", "evaluated"})

RecipeName = Annotated[
    str, Field(pattern=f"^{NAME.pattern}$", description="A file of recipes/ without .toml; `bard recipe list` has all.")
]


class RecipeError(BardError):
    """A recipe or a field does not exist, or a value is not legal."""


class Recipe(BaseModel):
    """All settings of a run except the corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: RecipeName
    vocabulary: VocabularySpec = VocabularySpec()
    shards: ShardSpec = ShardSpec()
    base: Annotated[BaseSpec, AsBefore(BaseSpec())] = BaseSpec()
    gpt: GPTSpec = GPTSpec()
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()

    def settings(self) -> dict[str, str | int | float | bool | None]:
        """Return every field that applies by its flat name, in order."""
        parts = self.model_dump(mode="json", exclude={"name"})
        return {
            flat(part, field): value
            for part, fields in parts.items()
            for field, value in fields.items()
            if self.applies(part, field)
        }

    def applies(self, part: str, field: str) -> bool:
        """Return whether a field has an effect: one of another network, or that the base gives, has none."""
        if self.base.model is not None:
            return not given_by_base(part, field)
        if field == "cooldown":
            return self.training.schedule == "trapezoid"
        return part != "base" and self.gpt.architecture in OWN_FIELDS.get(field, (self.gpt.architecture,))

    def changed(self, **fields: Any) -> "Recipe":
        """Return the recipe with some fields changed, given by their flat names, and validated.

        Raises:
            RecipeError: a value is not legal; the message has the legal values.
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
    "base": BaseSpec,
    "gpt": GPTSpec,
    "training": TrainingSpec,
    "evaluation": EvaluationSpec,
}


PREFIXED = ("vocabulary", "base")
# Fields of the network that apply to a training that begins from a model; the model has all others.
WITH_A_BASE = frozenset({"context", "dropout"})


def flat(part: str, field: str) -> str:
    """Return a field's name in overrides; some have a prefix, as in `vocabulary_size` and `base_model`."""
    return f"{part}_{field}" if part in PREFIXED else field


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


# Generated from the specs; Prefect's UI shows it as a form.
_Fields: Any = create_model("_Fields", __config__=ConfigDict(frozen=True, extra="forbid"), **_optional_fields())


class Overrides(_Fields):  # type: ignore[misc]
    """Recipe fields to change, by name; all others keep the recipe's values."""

    def changes(self) -> dict[str, Any]:
        """Return only the fields that were given."""
        given: dict[str, Any] = self.model_dump(exclude_unset=True)
        return given


AS_THE_RECIPE_HAS_IT = Overrides()


class RecipeFile(NamedTuple):
    """A recipe with its description and its file."""

    recipe: Recipe
    description: str
    path: Path


def recipe_names() -> list[str]:
    """Return the names of all recipes, sorted: the project's and the built-in ones."""
    return sorted(_paths())


def load_recipe(name: str) -> RecipeFile:
    """Read `recipes/<name>.toml`; missing fields get their defaults.

    Raises:
        RecipeError: there is no such recipe, or the file has a mistake; the message has the field and its legal values.
    """
    paths = _paths()
    if name not in paths:
        raise RecipeError(
            f"there is no recipe {name!r}{closest(name, paths)}; recipes: {', '.join(sorted(paths))}. "
            f"To add one, write {project_folder() / RECIPES_FOLDER / 'NAME.toml'}"
        )
    path = paths[name]
    table = read_toml(path, RecipeError)
    if name in RESERVED_NAMES:
        raise RecipeError(f"{path}: {name!r} names something else beside each corpus; rename the file")
    description = table.pop("description", "")
    if not isinstance(description, str):
        raise RecipeError(f"{path}: description is {description!r}, but a text is expected")
    for section, fields in table.items():
        if section not in SPECS or not isinstance(fields, dict):
            raise RecipeError(
                f"{path}: {section} is no section of a recipe{closest(section, SPECS)}; it has a description and the "
                f"sections {', '.join(f'[{part}]' for part in SPECS)}"
            )
        legal = SPECS[section].model_fields
        for field in fields:
            if field not in legal:
                raise RecipeError(
                    f"{path}: [{section}] has no field {field!r}{closest(field, legal)}; fields: {', '.join(legal)}"
                )
    if "model" in table.get("base", {}):
        require_free(path, (flat(part, field) for part, fields in table.items() for field in fields))
    # TOML has no null, so it is written as "null", as on the command line.
    given = {part: {f: None if v == "null" else v for f, v in fields.items()} for part, fields in table.items()}
    try:
        return RecipeFile(Recipe.model_validate({"name": name, **given}), description, path)
    except ValidationError as error:
        raise RecipeError(f"{path} is not a recipe.\n" + explained(error)) from error


def _paths() -> dict[str, Path]:
    """Return each recipe's file by name; a project's recipe hides a built-in one of the same name."""
    folders = (BUILT_IN, project_folder() / RECIPES_FOLDER)
    return {path.stem: path for folder in folders for path in folder.glob("*.toml") if NAME.fullmatch(path.stem)}


def recipe(name: str, overrides: Overrides) -> Recipe:
    """Return the named recipe with some fields changed, validated as a whole.

    Raises:
        RecipeError: there is no such recipe, or a value is not legal; the message has the legal values.
    """
    changes = overrides.changes()
    changed = load_recipe(name).recipe.changed(**changes)
    if changed.base.model is not None:
        require_free(changed.base.model, changes)
    return changed


def from_random_weights(recipe: Recipe, flow: str) -> Recipe:
    """Return the recipe if it begins from random weights, as a flow that changes the network or vocabulary needs.

    Raises:
        RecipeError: it begins from a model.
    """
    if recipe.base.model is not None:
        raise RecipeError(f"{flow} trains networks of its own, so base_model = {recipe.base.model!r} cannot be set")
    return recipe


def given_by_base(part: str, field: str) -> bool:
    """Return whether the model that a training begins from has this setting, so that the recipe's does not apply."""
    return part == "vocabulary" or (part == "gpt" and field not in WITH_A_BASE)


def require_free(where: str | Path, names: Iterable[str]) -> None:
    """Check that none of the fields is given by the model that a training begins from.

    Raises:
        RecipeError: one is.
    """
    for name in names:
        if given_by_base(*FIELDS[name]):
            raise RecipeError(
                f"{where}: {name} cannot be set with base_model, because the network and the vocabulary are those of "
                f"the model. Leave {name} out. {' and '.join(sorted(WITH_A_BASE))} can be set"
            )


def overrides_from(given: dict[str, Any]) -> Overrides:
    """Make overrides from names and values; a text becomes a number, a boolean or null where the field takes one.

    Raises:
        RecipeError: there is no such field, or a value has the wrong type.
    """
    for name in given:
        if name not in FIELDS:
            raise RecipeError(f"a recipe has no field {name!r}{closest(name, FIELDS)}; fields: {', '.join(FIELDS)}")
    try:
        return Overrides.model_validate(given)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise RecipeError(explained(error)) from error


def explained(error: ValidationError) -> str:
    """Describe each mistake in one line: the field, the given value and the legal values."""
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
    """Return a field's description and legal words in parentheses; empty if it has neither."""
    if name not in FIELDS:
        return ""
    part, field = FIELDS[name]
    info = SPECS[part].model_fields[field]
    words = [repr(w) for w in get_args(info.annotation) if isinstance(w, str)]
    said = [s for s in (info.description, f"one of {', '.join(words)}" if words else None) if s]
    return f" ({'; '.join(said)})" if said else ""
