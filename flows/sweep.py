"""A small search over recipe fields: hopeless trials stop early, and what was tried stays tried."""

from typing import Any

from prefect import flow
from prefect.states import Completed

from bard.home import project_folder
from flows.training import LEGS, train_and_evaluate
from sources.spec import load_corpus
from storage.handles import Checkpoint, TokenShards
from tasks.answers import Asking
from tasks.corpus import clean_corpus, fetch_source
from tasks.experiments import show_experiment
from tasks.recipes import AS_THE_RECIPE_HAS_IT, Overrides, Recipe, RecipeError, RecipeName, overrides_from
from tasks.recipes import recipe as recipe_named
from tasks.saying import say
from tasks.searching import STOPPED, TO_THE_END, Range, Search, bits_so_far, publish_sweep
from tasks.turns import turn

LEARNING_RATES: dict[str, Range | list[Any]] = {
    "learning_rate": Range(low=1e-3, high=1e-2, log=True),
    "muon_learning_rate": Range(low=0.01, high=0.06, log=True),
}


@flow(name="sweep", description="Search over recipe fields; hopeless trials stop early; begun again, it goes on.")
def sweep(
    corpus: str = "tiny-shakespeare",
    recipe: RecipeName = "small",
    overrides: Overrides = AS_THE_RECIPE_HAS_IT,
    fields: dict[str, Range | list[Any]] = LEARNING_RATES,
    trials: int = 12,
    seed: int = 1337,
) -> str:
    """Try fields and say which reach the fewest bits per character; returns where the report lies.

    Args:
        corpus: the name of a file in `corpora/`.
        recipe: everything that is not searched.
        overrides: fields of the recipe to change in all trials.
        fields: what to search: a list of values, or a range such as {"low": 0.001, "high": 0.01, "log": true}.
        trials: how many there shall be in all; a study that has as many only shows its report.
        seed: of the search.
    """
    described = load_corpus(corpus, project_folder() / "corpora")
    base = recipe_named(recipe, overrides)
    ask = Asking()
    text = ask(clean_corpus, ask(fetch_source, described), described)
    # Two processes in one study would take each other's trials for dead.
    with turn(f"{corpus}-sweep"):
        search = Search(text, recipe, overrides, fields, seed)
        for trial in search.trials(trials):
            drawn = search.fields(trial)
            try:
                chosen = in_legs(recipe_named(recipe, overrides_from(overrides.changes() | drawn)))
            except RecipeError as error:
                say(f"trial {trial.number}: {error}")
                search.end(trial, None, 0, str(error))
                continue
            reached: list[float] = []

            def hopeless(legs: list[Checkpoint], shards: TokenShards) -> str | None:
                reached.append(bits_so_far(text, legs[-1], shards))  # noqa: B023
                stop = search.hopeless(trial, min(reached), len(reached))  # noqa: B023
                return "this trial is worse than half of the others at this point" if stop else None

            trained = train_and_evaluate(ask, text, chosen, stop=hopeless)
            stopped = len(trained.legs) < len(chosen.training.leg_ends())
            search.end(trial, min(reached), len(reached), STOPPED if stopped else TO_THE_END)
            say(f"trial {trial.number}: {drawn}: {min(reached):.4f} bits per character")
        over = [tried for tried in search.over() if tried.bits is not None]
    if not over:
        raise RecipeError("no trial had legal fields: " + "; ".join(tried.ending for tried in search.over()))
    best = min(over, key=lambda tried: tried.bits or 0.0)
    chosen = in_legs(recipe_named(recipe, overrides_from(overrides.changes() | best.fields)))
    again = train_and_evaluate(ask, text, chosen)
    report = ask(
        publish_sweep,
        text,
        [tried.said for tried in over],
        [tried.bits or 0.0 for tried in over],
        [tried.ending for tried in over],
        again.model,
        again.evaluation,
        f"{', '.join(sorted(fields))} of {base.name}",
    )
    where = show_experiment(f"experiments/sweep-{corpus}", report, by="sweep")
    name = "Completed" if ask.ran("train_leg") else "Unchanged"
    return Completed(name=name, message=where, data=where)  # type: ignore[return-value]


def in_legs(recipe: Recipe) -> Recipe:
    """The recipe with legs enough to see early that a trial is hopeless; legs change nothing else of a training."""
    short = -(-recipe.training.steps // LEGS)
    training = recipe.training.model_copy(update={"leg_steps": min(recipe.training.leg_steps, short)})
    return recipe.model_copy(update={"training": training})
