"""One training run from a corpus to scores, used by all flows that train."""

from collections.abc import Callable
from typing import NamedTuple

from bardflow.model.planning import Plan
from bardflow.model.vocabulary import VocabularySpec
from bardflow.storage.handles import Checkpoint, Corpus, Evaluation, Model, TokenShards, Vocabulary
from bardflow.tasks.base_model import begin_from_base, fetch_base, vocabulary_of
from bardflow.tasks.evaluation import evaluate_model
from bardflow.tasks.planning import plan_training
from bardflow.tasks.recipes import Recipe
from bardflow.tasks.run import Run
from bardflow.tasks.saying import say
from bardflow.tasks.training import begin_training, best, export_model, is_hopeless, train_leg
from bardflow.tasks.vocabulary import import_vocabulary, learn_vocabulary, tokenize_corpus


class Trained(NamedTuple):
    """The artifacts of a training run."""

    legs: list[Checkpoint]
    model: Model
    evaluation: Evaluation


# The number of legs of a training run in an experiment.
LEGS = 4
# A function that gets the legs so far and returns the reason to stop, or None.
Stop = Callable[[list[Checkpoint], TokenShards], str | None]


def train_and_evaluate(
    run: Run, text: Corpus, chosen: Recipe, memory_limit: int | str | None = None, stop: Stop | None = None
) -> Trained:
    """Make the vocabulary, write the shards, train, export the best checkpoint and evaluate it."""
    base = None if chosen.base.model is None else run(fetch_base, chosen.base)
    vocabulary = make_vocabulary(run, text, chosen.vocabulary) if base is None else run(vocabulary_of, base)
    shards = run(tokenize_corpus, text, vocabulary, chosen.shards)
    # The plan comes after learning and tokenizing, because memory that they leave in use counts during training.
    plan = plan_training(vocabulary, chosen.gpt, chosen.training, memory_limit, base)
    legs = train(run, vocabulary, shards, chosen, plan, stop, base)
    model = run(export_model, best(legs), vocabulary, text)
    return Trained(legs, model, run(evaluate_model, model, text, chosen.evaluation))


def make_vocabulary(run: Run, text: Corpus, spec: VocabularySpec) -> Vocabulary:
    """Learn the vocabulary from the corpus, or take it from the `tokenizer.json` that the recipe names."""
    return run(learn_vocabulary, text, spec) if spec.file is None else run(import_vocabulary, spec.file)


def train(
    run: Run,
    vocabulary: Vocabulary,
    shards: TokenShards,
    chosen: Recipe,
    plan: Plan,
    stop: Stop | None,
    base: Model | None = None,
) -> list[Checkpoint]:
    """Train leg after leg until the last step, until the validation loss no longer falls, or until `stop` ends it."""
    if base is None:
        checkpoint = run(begin_training, vocabulary, chosen.gpt, chosen.training.seed)
    else:
        checkpoint = run(begin_from_base, base, chosen.gpt.context, chosen.gpt.dropout)
    legs: list[Checkpoint] = []
    for until in chosen.training.leg_ends():
        checkpoint = run(train_leg, checkpoint, shards, chosen.training.for_leg(until), until, plan)
        legs.append(checkpoint)
        why = stop(legs, shards) if stop else None
        if is_hopeless(legs, chosen.training.patience):
            why = "the validation loss no longer falls"
        if why and until < chosen.training.steps:
            say(f"{why}: stopping after step {until:,} of {chosen.training.steps:,}")
            break
    return legs


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """Return the recipe with this number of steps in a few legs, without patience."""
    warmup = min(recipe.training.warmup_steps, steps // 10)
    return recipe.changed(steps=steps, leg_steps=-(-steps // LEGS), warmup_steps=warmup, patience=None)
