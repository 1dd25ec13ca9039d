"""The whole pipeline: from a corpus to an evaluated, versioned GPT with a report."""

from prefect import flow
from prefect.states import Completed

from bardflow.flows.outcome import outcome
from bardflow.flows.parameters import Count
from bardflow.flows.text import prepared_text
from bardflow.flows.training import train_and_evaluate
from bardflow.home import project_folder
from bardflow.outcome import Outcome
from bardflow.sources.corpora import load_corpus
from bardflow.storage.refs import RefMoved
from bardflow.tasks.champion import champion, decide, note_text, update_champion
from bardflow.tasks.cluster import checked_workers, spread
from bardflow.tasks.evaluation import evaluate_model, measure_baselines, unspellable
from bardflow.tasks.locks import training_lock
from bardflow.tasks.planning import checked_limit
from bardflow.tasks.receipts import entries, write_receipt
from bardflow.tasks.recipes import AS_THE_RECIPE_HAS_IT, Overrides, RecipeName
from bardflow.tasks.recipes import recipe as recipe_named
from bardflow.tasks.reporting import note_length, publish_report, show_in_prefect
from bardflow.tasks.run import Run
from bardflow.tasks.saying import say
from bardflow.tasks.vocabulary import require_vocabulary


@flow(
    name="train-gpt",
    description="Corpus, vocabulary, shards, GPT, evaluation, report, champion.",
    validate_parameters=True,
)
def train_gpt(
    corpus: str = "tiny-shakespeare",
    recipe: RecipeName = "small",
    overrides: Overrides = AS_THE_RECIPE_HAS_IT,
    memory_limit: int | str | None = None,
    workers: Count | None = None,
) -> Outcome:
    """Train and evaluate a GPT on a corpus with a recipe; cached results are used again.

    Args:
        corpus: The corpus to train on: the name of a file in `corpora/` without `.toml`.
        recipe: The recipe with all settings of the run: the name of a file in `recipes/` without `.toml`.
        overrides: Recipe fields to change for this run.
        memory_limit: The most memory that training may use: bytes, a text such as 800MB or 2GiB, or `free` for the
            machine's free memory. It changes how a step is computed, not the result, so it is not part of cache keys.
        workers: The number of processes that share the windows of each step; see docs/distributed.md. It is not part of
            cache keys either.

    Returns:
        The scores and artifacts. The state's message has them too; its name is `Unchanged` if nothing was trained.
    """
    spec = load_corpus(corpus, project_folder() / "corpora")
    chosen = recipe_named(recipe, overrides)
    checked_limit(memory_limit, chosen.training)
    checked_workers(workers, chosen.training)
    require_vocabulary(chosen.vocabulary)
    with training_lock(corpus), Run() as run, spread(workers):
        before = entries(corpus)
        text = prepared_text(run, spec)
        say(f"{corpus}: text {note_text(corpus, text, by='train-gpt')}")
        note_length(corpus, chosen)
        legs, model, evaluation = train_and_evaluate(run, text, chosen, memory_limit)
        baselines = run(measure_baselines, text)
        recall = True
        while True:
            current = champion(corpus)
            rival = current and (
                unspellable(current.model, text) or run(evaluate_model, current.model, text, chosen.evaluation)
            )
            decision = decide(corpus, recipe, model, evaluation, current, rival, recall=recall)
            changed = sorted(overrides.changes())
            report = run(
                publish_report, model, evaluation, baselines, text, chosen, changed, decision.verdict, legs,
                decision.rival,
            )  # fmt: skip
            try:
                moved = update_champion(corpus, recipe, model, evaluation, decision, report, by="train-gpt")
                break
            except RefMoved as moved_meanwhile:
                say(f"{moved_meanwhile}: comparing again")
                # This run may have stored a decision already; it was made against another champion.
                recall = decision.recalled
        show_in_prefect(corpus, report)
        came_out = outcome(corpus, chosen, model, report, run, moved=moved, recalled=decision.recalled)
        alone = memory_limit is None and workers is None
        elsewhere = chosen.base.model is not None or chosen.vocabulary.file is not None
        if alone and not elsewhere and not run.changed:
            write_receipt(corpus, recipe, overrides.changes(), run.handles(), run.lines, before, came_out)
    name = "Completed" if came_out.trained else "Unchanged"
    # Prefect uses this as the run's state, and returns its data to the caller.
    return Completed(name=name, message=came_out.line(), data=came_out)  # type: ignore[return-value]
