"""`bard recipe`: list and show recipes."""

from typing import Annotated

import typer

from bardflow.commands.console import AsJson, prepare_prefect, print_json, print_table

recipes = typer.Typer(no_args_is_help=True, help="The recipes, each a small TOML file in recipes/.")


@recipes.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """List the recipes that a model can be trained by."""
    prepare_prefect()
    from bardflow.tasks.recipes import RecipeError, RecipeFile, load_recipe, recipe_names

    found: dict[str, RecipeFile | RecipeError] = {}
    for name in recipe_names():
        try:
            found[name] = load_recipe(name)
        except RecipeError as error:
            found[name] = error
    if as_json:
        print_json(
            [
                {"name": name, "error": str(one)}
                if isinstance(one, RecipeError)
                else {"name": name, "description": one.description, "path": str(one.path)}
                for name, one in found.items()
            ]
        )
        return
    width = max(map(len, found))
    for name, one in found.items():
        said = one.description if isinstance(one, RecipeFile) else f"cannot be used: {one}"
        print(f"{name:<{width}}  " + f"\n{'':<{width}}  ".join(said.splitlines()))


@recipes.command("show")
def show_recipe(
    name: Annotated[str, typer.Argument(help="A name from `bard recipe list`.")], as_json: AsJson = False
) -> None:
    """Show all fields of a recipe, those with default values too."""
    prepare_prefect()
    from bardflow.tasks.recipes import load_recipe

    found = load_recipe(name)
    if as_json:
        print_json(
            {"name": name, "description": found.description, "path": str(found.path)}
            | found.recipe.model_dump(mode="json", exclude={"name"})
        )
        return
    print(f"{name}: {found.description}\n{found.path}")
    for section, fields in found.recipe.model_dump(mode="json", exclude={"name"}).items():
        print_table(f"[{section}]", {field: "null" if value is None else value for field, value in fields.items()})
