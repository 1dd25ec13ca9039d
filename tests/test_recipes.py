"""Recipes: any field can be changed by name, and a wrong name or value is refused with the legal ones."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bardflow.model.networks import OWN_FIELDS
from bardflow.tasks.evaluation import EvaluationSpec
from bardflow.tasks.recipes import (
    FIELDS,
    SPECS,
    Overrides,
    Recipe,
    RecipeError,
    load_recipe,
    overrides_from,
    recipe,
    recipe_names,
)
from bardflow.tasks.reporting import evaluation_spec
from tests.conftest import RECIPES


def test_every_field_of_every_spec_has_one_flat_name() -> None:
    assert len(FIELDS) == sum(len(spec.model_fields) for spec in SPECS.values())
    assert set(Overrides.model_fields) == set(FIELDS)
    others = {field for field, architectures in OWN_FIELDS.items() if "lfm2" not in architectures}
    assert set(RECIPES["small"].settings()) == set(FIELDS) - {"base_model", "cooldown", *others}


def test_an_override_changes_its_field_and_nothing_else() -> None:
    changed = recipe("small", Overrides(learning_rate=0.5, width=96))
    assert (changed.training.learning_rate, changed.gpt.width) == (0.5, 96)
    before, after = RECIPES["small"].settings(), changed.settings()
    assert {name for name in before if before[name] != after[name]} == {"learning_rate", "width"}


def test_an_override_can_set_a_field_to_nothing() -> None:
    assert recipe("small", Overrides(patience=None)).training.patience is None


def test_no_override_is_the_recipe_itself() -> None:
    for name, as_named in RECIPES.items():
        assert recipe(name, Overrides()) == as_named


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"learning_rat": 0.1}, "did you mean 'learning_rate'"),
        ({"optimizer": "sgd"}, "'adamw', 'muon'"),
        ({"width": "wide"}, "width = 'wide'"),
        ({"dropout": 1.5}, "less than 1"),
        ({"layers": 0}, "greater than or equal to 1"),
    ],
)
def test_a_wrong_field_or_value_is_refused_with_the_legal_ones(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        overrides_from(given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"heads": 5}, "not divisible by heads 5"),
        ({"vocabulary_size": 300}, "size=300"),
        ({"vocabulary_kind": "bpe"}, "needs a size"),
        ({"biases": True}, "no biases"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe("small", overrides_from(given))


def test_the_settings_of_a_page_that_knows_no_later_field_are_an_evaluation_spec() -> None:
    settings = recipe("small", Overrides(samples=7)).settings()
    assert evaluation_spec(settings) == EvaluationSpec(samples=7)
    del settings["top_p"]
    assert evaluation_spec(settings) == EvaluationSpec(samples=7)


def test_a_recipe_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(RecipeError, match=r"smal.*did you mean 'small'.*To add one, write"):
        recipe("smal", Overrides())


OWN = """
description = "narrow"

[gpt]
width = 64
heads = 2

[training]
steps = 30
patience = "null"
"""


@pytest.fixture
def recipes(project: Path) -> Path:
    (project / "recipes").mkdir()
    (project / "recipes" / "own.toml").write_text(OWN)
    return project / "recipes"


def test_a_recipe_is_a_file_and_what_it_leaves_out_has_its_default(recipes: Path) -> None:
    assert {"own", "small"} <= set(recipe_names())
    own = load_recipe("own")
    assert (own.description, own.path) == ("narrow", recipes / "own.toml")
    assert (own.recipe.gpt.width, own.recipe.training.patience) == (64, None)
    left = {name: value for name, value in own.recipe.settings().items() if name not in ("width", "steps", "patience")}
    assert left | {"heads": 4} == {n: v for n, v in Recipe(name="default").settings().items() if n in left}
    assert recipe("own", Overrides(width=32)).gpt.width == 32


def test_a_file_of_the_projects_own_comes_before_the_built_in_one(recipes: Path) -> None:
    (recipes / "tiny.toml").write_text("[training]\nsteps = 7\n")
    assert load_recipe("tiny").recipe.training.steps == 7
    assert load_recipe("small").recipe == RECIPES["small"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gpt", "own.toml is not valid TOML"),
        ("description = 3", "description is 3"),
        ("[gtp]\nwidth = 8", "gtp is no section.*did you mean 'gpt'"),
        ("width = 8", r"width is no section.*\[gpt\]"),
        ("[gpt]\nwith = 8", r"\[gpt\] has no field 'with'.*did you mean 'width'"),
        ("[gpt]\nwidth = 'wide'", "own.toml is not a recipe.\nwidth = 'wide'"),
        ("[gpt]\nheads = 5", "not divisible by heads 5"),
        ("[training]\nsteps = 0", "steps = 0: .*greater than or equal to 1"),
    ],
)
def test_a_mistake_in_a_recipes_file_is_said_with_file_field_and_what_is_legal(
    recipes: Path, text: str, said: str
) -> None:
    (recipes / "own.toml").write_text(text)
    with pytest.raises(RecipeError, match=said):
        load_recipe("own")


@pytest.mark.parametrize("name", ["text", "champion", "evaluated"])
def test_a_recipe_is_not_called_as_what_stands_beside_it(recipes: Path, name: str) -> None:
    (recipes / f"{name}.toml").write_text(OWN)
    with pytest.raises(RecipeError, match="rename the file"):
        load_recipe(name)


def test_the_form_in_prefect_knows_fields_and_limits() -> None:
    schema = Overrides.model_json_schema()
    assert schema["additionalProperties"] is False
    assert "muon" in str(schema["properties"]["optimizer"])
    with pytest.raises(ValidationError):
        Overrides.model_validate({"layers": 0})


def test_the_published_preset_has_the_published_shape() -> None:
    gpt, training = RECIPES["classic"].gpt, RECIPES["classic"].training
    assert (gpt.layers, gpt.heads, gpt.width, gpt.context, gpt.dropout) == (4, 4, 128, 64, 0.0)
    assert (training.batch, training.steps) == (12, 2000)
    gpt, training = RECIPES["lecture"].gpt, RECIPES["lecture"].training
    assert (gpt.layers, gpt.heads, gpt.width, gpt.context, gpt.dropout) == (6, 6, 384, 256, 0.2)
    assert (training.batch, training.steps) == (64, 5000)
