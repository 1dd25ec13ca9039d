"""Experiment: a hyperparameter search. Bad trials are pruned, and a later run resumes with the finished trials."""

from typing import Any

from optuna.trial import Trial
from prefect import flow
from prefect.states import Completed

from bardflow.errors import BardError
from bardflow.flows.parameters import Count, Seed
from bardflow.flows.text import prepared_text
from bardflow.flows.training import LEGS, train_and_evaluate
from bardflow.home import project_folder
from bardflow.sources.corpora import load_corpus
from bardflow.storage.handles import Checkpoint, Corpus, TokenShards
from bardflow.tasks.cluster import at_once, spread
from bardflow.tasks.experiments import show_experiment
from bardflow.tasks.locks import search_lock
from bardflow.tasks.recipes import AS_THE_RECIPE_HAS_IT, Overrides, Recipe, RecipeName, overrides_from
from bardflow.tasks.recipes import recipe as recipe_named
from bardflow.tasks.run import Run
from bardflow.tasks.saying import say
from bardflow.tasks.searching import (
    PATIENCE,
    STOPPED,
    TO_THE_END,
    Range,
    Search,
    SearchError,
    bits_so_far,
    publish_search,
)
from bardflow.tasks.training import is_hopeless

LEARNING_RATES: dict[str, Range | list[Any]] = {
    "learning_rate": Range(low=1e-3, high=1e-2, log=True),
    "muon_learning_rate": Range(low=0.01, high=0.06, log=True),
}


@flow(name="search", description="Search for hyperparameters; bad trials stop early; run it again to resume.")
def search(
    corpus: str = "tiny-shakespeare",
    recipe: RecipeName = "small",
    overrides: Overrides = AS_THE_RECIPE_HAS_IT,
    fields: dict[str, Range | list[Any]] = LEARNING_RATES,
    trials: Count = 12,
    seed: Seed = 1337,
    trials_at_once: Count = 1,
) -> str:
    """Search for the recipe fields with the fewest bits per character, and return the path of the report.

    Args:
        corpus: The corpus to train on: the name of a file in `corpora/` without `.toml`.
        recipe: The recipe for all settings that are not searched.
        overrides: Recipe fields to change in all trials.
        fields: Values or ranges to search, such as {"layers": [2, 4], "learning_rate": {"low": 0.001, "high": 0.01}}.
        trials: The total number of trials, including those of earlier runs.
        seed: The random seed of the search.
        trials_at_once: The number of trials that are trained at the same time, each in processes of its own; see
            docs/distributed.md. After the first four trials, the values of a trial depend on those that ended before.
    """
    described = load_corpus(corpus, project_folder() / "corpora")
    base = recipe_named(recipe, overrides)
    # With two processes in one study, each would treat the other's active trials as interrupted.
    with search_lock(corpus), Run() as run, spread(trainings=trials_at_once):
        text = prepared_text(run, described)
        search = Search(text, recipe, overrides, fields, seed)
        at_once(lambda _: searched(run, text, recipe, overrides, search, trials), range(trials_at_once), trials_at_once)
        over = [ended for ended in search.over() if ended.bits is not None]
        failed = [f"{ended.said}: {ended.ending}" for ended in search.over() if ended.bits is None]
        if not over:
            raise SearchError("\n".join([f"None of the {len(failed)} trials could be trained:", *failed]))
        best = min(over, key=lambda ended: ended.bits or 0.0)
        again = train_and_evaluate(
            run, text, in_legs(recipe_named(recipe, overrides_from(overrides.changes() | best.fields)))
        )
        report = run(
            publish_search,
            text,
            [ended.said for ended in over],
            [ended.bits or 0.0 for ended in over],
            [ended.ending for ended in over],
            again.model,
            again.evaluation,
            failed,
            f"{', '.join(sorted(fields))} of {base.name}",
        )
        where = show_experiment(f"experiments/search-{corpus}", report, by="search")
    name = "Completed" if run.ran("train_leg") else "Unchanged"
    return Completed(name=name, message=where, data=where)  # type: ignore[return-value]


def searched(run: Run, text: Corpus, recipe: RecipeName, overrides: Overrides, search: Search, trials: int) -> None:
    """Train trials one after another, until so many are finished or being trained by other threads."""
    for trial in search.trials(trials):
        drawn = search.fields(trial)
        try:
            chosen = in_legs(recipe_named(recipe, overrides_from(overrides.changes() | drawn)))
            reached, ending = tried(run, text, chosen, search, trial)
        except BardError as error:
            # These values cannot be trained on this text, but others can, so the search continues.
            say(f"trial {trial.number}: {drawn}: {error}")
            search.end(trial, None, 0, str(error))
            continue
        except Exception:
            raise  # probably not caused by the fields; a later run repeats the trial, up to a limit
        except BaseException:
            search.interrupted(trial)
            raise
        search.end(trial, min(reached), len(reached), ending)
        say(f"trial {trial.number}: {drawn}: {min(reached):.4f} bits per character")


def tried(run: Run, text: Corpus, chosen: Recipe, search: Search, trial: Trial) -> tuple[list[float], str]:
    """Train a trial, and return its bits per character after each leg and how it ended.

    Raises:
        BardError: the trial cannot be trained.
    """
    reached: list[float] = []
    ending = TO_THE_END

    def hopeless(legs: list[Checkpoint], shards: TokenShards) -> str | None:
        nonlocal ending
        reached.append(bits_so_far(text, legs[-1], shards))
        worse = search.hopeless(trial, min(reached), len(reached))
        if len(legs) == len(chosen.training.leg_ends()):
            return None
        if is_hopeless(legs, chosen.training.patience):
            ending = PATIENCE  # the recipe's patience stopped it; it is not pruned
            return None
        if not worse:
            return None
        ending = STOPPED
        return "this trial is worse than half of the others at this point"

    train_and_evaluate(run, text, chosen, stop=hopeless)
    return reached, ending


def in_legs(recipe: Recipe) -> Recipe:
    """Return the recipe with enough legs to prune a bad trial early; the number of legs does not change the result."""
    short = -(-recipe.training.steps // LEGS)
    return recipe.changed(leg_steps=min(recipe.training.leg_steps, short))
