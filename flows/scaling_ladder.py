"""Experiment: train larger and larger models while the gain is worth it, and report the knee and the next cost."""

from prefect import flow
from prefect.states import Completed

from bardflow.flows.parameters import Bits, Count
from bardflow.flows.text import prepared_text
from bardflow.flows.training import Trained, train_and_evaluate, with_steps
from bardflow.home import project_folder
from bardflow.sources.corpora import load_corpus
from bardflow.tasks.cluster import spread
from bardflow.tasks.experiments import interval, show_experiment
from bardflow.tasks.ladder import RUNGS, heads_of, larger, learning_rate_factor, pays, publish_ladder
from bardflow.tasks.recipes import AS_THE_RECIPE_HAS_IT, Overrides, Recipe, RecipeName, from_random_weights
from bardflow.tasks.recipes import recipe as recipe_named
from bardflow.tasks.run import Run
from bardflow.tasks.saying import say


@flow(name="scaling-ladder", description="Grow a model while it pays; fit the losses; name the knee and the next cost.")
def scaling_ladder(
    corpus: str = "tiny-shakespeare",
    recipe: RecipeName = "small",
    overrides: Overrides = AS_THE_RECIPE_HAS_IT,
    steps: Count = 1000,
    least_gain: Bits = 0.005,
    patience: Count = 2,
    most_rungs: Count = 11,
) -> str:
    """Train models of growing size, each about twice the size before, and return the path of the report.

    Args:
        corpus: The corpus to train on: the name of a file in `corpora/` without `.toml`.
        recipe: The recipe for all settings but the size; its learning rates are scaled from its own width.
        overrides: Recipe fields to change for this run.
        steps: The number of training steps of each model.
        least_gain: The least gain in bits per character; a size must also be better with 95 % confidence.
        patience: Training stops after this many sizes in a row that do not gain enough.
        most_rungs: The largest number of sizes to train.
    """
    described = load_corpus(corpus, project_folder() / "corpora")
    chosen = from_random_weights(recipe_named(recipe, overrides), "scaling-ladder")
    with Run() as run, spread():
        text = prepared_text(run, described)
        rungs: list[Trained] = []
        best, idle = 0, 0
        shape = RUNGS[0]
        while True:
            say(f"rung {len(rungs) + 1}: {shape[0]} layers of width {shape[1]}")
            rungs.append(train_and_evaluate(run, text, with_steps(of_size(chosen, *shape), steps)))
            if len(rungs) > 1:
                paid, found = pays(rungs[-1].evaluation, rungs[best].evaluation, least_gain)
                verdict = "it pays" if paid else "it does not pay"
                say(f"rung {len(rungs)}: {interval(found)} bits per character: {verdict}")
                best, idle = (len(rungs) - 1, 0) if paid else (best, idle + 1)
            following = larger(*shape)
            if idle >= patience:
                stopped = f"Stopped by itself: {idle} rungs in a row did not pay."
                break
            if len(rungs) >= most_rungs:
                stopped = f"Stopped after {most_rungs} rungs, as most_rungs says."
                break
            shape = following
        report = run(
            publish_ladder,
            text,
            [rung.model for rung in rungs],
            [rung.evaluation for rung in rungs],
            [rung.legs[-1] for rung in rungs],
            stopped,
            f"{following[0]} layers of width {following[1]}",
            following[0] * following[1] ** 2 / (shape[0] * shape[1] ** 2),
        )
        where = show_experiment(f"experiments/scaling-ladder-{corpus}", report, by="scaling-ladder")
    ran = run.ran("train_leg")
    return Completed(name="Completed" if ran else "Unchanged", message=where, data=where)  # type: ignore[return-value]


def of_size(recipe: Recipe, layers: int, width: int) -> Recipe:
    """Return the recipe at another size, with learning rates scaled to its width."""
    factor = learning_rate_factor(width, recipe.gpt.width)
    return recipe.changed(
        layers=layers,
        width=width,
        heads=heads_of(width),
        learning_rate=recipe.training.learning_rate * factor,
        muon_learning_rate=recipe.training.muon_learning_rate * factor,
    )
