"""One training from a text on, as every flow that trains asks for it."""

from collections.abc import Callable
from typing import NamedTuple

from bardflow.model.planning import Plan
from bardflow.storage.handles import Checkpoint, Corpus, Evaluation, Model, TokenShards, Vocabulary
from bardflow.tasks.evaluation import evaluate_model
from bardflow.tasks.planning import plan_training
from bardflow.tasks.recipes import Recipe
from bardflow.tasks.run import Run
from bardflow.tasks.saying import say
from bardflow.tasks.training import begin_training, best, export_model, is_hopeless, train_leg
from bardflow.tasks.vocabulary import learn_vocabulary, tokenize_corpus


class Trained(NamedTuple):
    """What a training leaves behind."""

    legs: list[Checkpoint]
    model: Model
    evaluation: Evaluation


# Legs of an experiment's trainings: enough to see a curve.
LEGS = 4
# Hears of the legs so far, and says why training ends here, if it does.
Stop = Callable[[list[Checkpoint], TokenShards], str | None]


def train_and_evaluate(
    run: Run, text: Corpus, chosen: Recipe, memory_limit: int | str | None = None, stop: Stop | None = None
) -> Trained:
    """Vocabulary, shards, legs, model, evaluation: everything between a text and its scores."""
    vocabulary = run(learn_vocabulary, text, chosen.vocabulary)
    shards = run(tokenize_corpus, text, vocabulary, chosen.shards)
    # Last: what learning words and encoding leave behind in memory stands there through the training.
    plan = plan_training(vocabulary, chosen.gpt, chosen.training, memory_limit)
    legs = train(run, vocabulary, shards, chosen, plan, stop)
    model = run(export_model, best(legs), vocabulary, text)
    return Trained(legs, model, run(evaluate_model, model, text, chosen.evaluation))


def train(
    run: Run, vocabulary: Vocabulary, shards: TokenShards, chosen: Recipe, plan: Plan, stop: Stop | None
) -> list[Checkpoint]:
    """Leg after leg, until the last step, or until the validation loss no longer falls, or `stop` says so."""
    checkpoint = run(begin_training, vocabulary, chosen.gpt, chosen.training.seed)
    legs: list[Checkpoint] = []
    for until in chosen.training.leg_ends():
        checkpoint = run(train_leg, checkpoint, shards, chosen.training, until, plan)
        legs.append(checkpoint)
        why = stop(legs, shards) if stop else None
        if is_hopeless(legs, chosen.training.patience):
            why = "the validation loss no longer falls"
        if why and until < chosen.training.steps:
            say(f"{why}: stopping after step {until:,} of {chosen.training.steps:,}")
            break
    return legs


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe over so many steps in a few legs, all of them taken."""
    warmup = min(recipe.training.warmup_steps, steps // 10)
    return recipe.changed(steps=steps, leg_steps=-(-steps // LEGS), warmup_steps=warmup, patience=None)
