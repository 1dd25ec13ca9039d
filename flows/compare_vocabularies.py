"""Experiment: the same network body with several vocabularies at an equal budget, compared in bits per character."""

from typing import Literal

from prefect import flow
from prefect.states import Completed

from bardflow.engine.cluster import ClusterError
from bardflow.flows.parameters import Corpora, Count, Seconds, Vocabularies
from bardflow.flows.text import prepared_text
from bardflow.flows.training import Trained, make_vocabulary, train_and_evaluate, with_steps
from bardflow.home import project_folder
from bardflow.sources.corpora import load_corpus
from bardflow.storage.handles import Corpus, Vocabulary
from bardflow.tasks.cluster import at_once, spread
from bardflow.tasks.comparing import characters_per_token, publish_vocabularies, steps_within
from bardflow.tasks.experiments import show_experiment
from bardflow.tasks.recipes import AS_THE_RECIPE_HAS_IT, Overrides, Recipe, RecipeName, from_random_weights
from bardflow.tasks.recipes import recipe as recipe_named
from bardflow.tasks.run import Run, store
from bardflow.tasks.saying import say
from bardflow.tasks.vocabulary import require_vocabulary, tokenize_corpus, vocabulary_named

NAME = "experiments/compare-vocabularies"
VOCABULARIES = ["char", "bytes", "bpe-512", "bpe-2048", "bpe-8192", "bpe-char-8192", "unigram-2048", "wordpiece-2048"]


@flow(name="compare-vocabularies", description="The same network body on several vocabularies, at an equal budget.")
def compare_vocabularies(
    corpora: Corpora = ["tiny-shakespeare", "three-kingdoms"],  # noqa: B006
    vocabularies: Vocabularies = VOCABULARIES,
    recipe: RecipeName = "small",
    overrides: Overrides = AS_THE_RECIPE_HAS_IT,
    budget: Literal["time", "characters"] = "time",
    seconds: Seconds = 60.0,
    characters: Count = 2_500_000,
    trainings_at_once: Count = 1,
) -> str:
    """Train a model with each vocabulary at an equal budget, compare the scores, and return the report's path.

    Args:
        corpora: The corpora to train on: names of files in `corpora/` without `.toml`.
        vocabularies: The vocabularies to compare: char, bytes, bpe-SIZE, bpe-char-SIZE, unigram-SIZE, wordpiece-SIZE,
            or the path of a tokenizer.json from the project folder.
        recipe: The recipe for the network and its training; its context is taken as a number of characters.
        overrides: Recipe fields to change for this run.
        budget: What is equal for all models: seconds of training on this machine, or characters seen.
        seconds: The training time of each model if the budget is time.
        characters: The number of characters that each model sees if the budget is characters.
        trainings_at_once: The number of models that are trained at the same time, if the budget is characters; see
            docs/distributed.md.

    Raises:
        ClusterError: `trainings_at_once` is above 1 and the budget is time.
    """
    specs = {name: vocabulary_named(name) for name in vocabularies}
    for spec in specs.values():
        require_vocabulary(spec)
    chosen = from_random_weights(recipe_named(recipe, overrides), "compare-vocabularies")
    texts = {name: load_corpus(name, project_folder() / "corpora") for name in corpora}
    if trainings_at_once > 1 and budget == "time":
        raise ClusterError(
            f"trainings_at_once is {trainings_at_once} and budget is time, but trainings at the same time take each "
            "other's cores, so their times would be wrong; give budget = characters, or train one after another"
        )
    with Run() as run, spread(trainings=trainings_at_once):
        names: list[str] = []
        on: list[Corpus] = []
        learned: list[Vocabulary] = []
        reaches: list[float] = []
        fitted: list[Recipe] = []
        for corpus, described in texts.items():
            text = prepared_text(run, described)
            for name, spec in specs.items():
                say(f"{corpus}: {name}")
                vocabulary = make_vocabulary(run, text, spec)
                reach = characters_per_token(text, run(tokenize_corpus, text, vocabulary, chosen.shards))
                names.append(name)
                on.append(text)
                learned.append(vocabulary)
                reaches.append(reach)
                fitted.append(with_vocabulary(chosen, name, reach))
        if budget == "time":
            steps, _ = run.result(
                steps_within, learned, [one.gpt for one in fitted], [one.training for one in fitted], seconds
            )
        else:
            seen = [one.training.batch * one.gpt.context * reach for one, reach in zip(fitted, reaches, strict=True)]
            steps = [max(1, round(characters / a_step)) for a_step in seen]

        def trained(which: int) -> Trained:
            say(f"{store().facts(on[which])['title']}, {names[which]}: {steps[which]:,} steps")
            return train_and_evaluate(run, on[which], with_steps(fitted[which], steps[which]))

        runs = at_once(trained, range(len(names)), trainings_at_once)
        said = f"{seconds:g} s of training each" if budget == "time" else f"{characters:,} characters seen by each"
        report = run(
            publish_vocabularies,
            names,
            on,
            [run.model for run in runs],
            [run.evaluation for run in runs],
            [run.legs[-1] for run in runs],
            said,
            seconds if budget == "time" else None,
        )
        where = show_experiment(NAME, report, by="compare-vocabularies")
    ran = run.ran("train_leg")
    return Completed(name="Completed" if ran else "Unchanged", message=where, data=where)  # type: ignore[return-value]


def with_vocabulary(recipe: Recipe, name: str, characters_a_token: float) -> Recipe:
    """Return the recipe with another vocabulary; its context has as many characters as the recipe's has tokens."""
    context = max(8, round(recipe.gpt.context / characters_a_token / 8) * 8)
    spec = {f"vocabulary_{field}": value for field, value in vocabulary_named(name).model_dump().items()}
    return recipe.changed(context=context, **spec)
