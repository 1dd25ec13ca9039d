"""The main job on one screen: a corpus goes in, an evaluated and versioned GPT and a page about it come out."""

from prefect import flow
from prefect.states import Completed

from bardflow.flows.outcome import outcome
from bardflow.flows.training import train_and_evaluate
from bardflow.home import project_folder
from bardflow.outcome import Outcome
from bardflow.sources.spec import load_corpus
from bardflow.storage.refs import RefMoved
from bardflow.tasks.answers import Asking
from bardflow.tasks.champion import champion, crown, judge, note_text
from bardflow.tasks.corpus import clean_corpus, fetch_source
from bardflow.tasks.evaluation import evaluate_model, measure_baselines, unspellable
from bardflow.tasks.locks import training_lock
from bardflow.tasks.planning import checked_limit
from bardflow.tasks.recipes import AS_THE_RECIPE_HAS_IT, Overrides, RecipeName
from bardflow.tasks.recipes import recipe as recipe_named
from bardflow.tasks.reporting import publish_report, show_in_prefect
from bardflow.tasks.saying import say


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
) -> Outcome:
    """Train a GPT on a corpus by a recipe; what was answered before is not computed again.

    Args:
        corpus: the name of a file in `corpora/`.
        recipe: what to train and how.
        overrides: fields of the recipe to change.
        memory_limit: the most memory that training may take: bytes, a text such as 800MB or 2GiB, or free for what the
            machine has free. It changes how a step is computed and not what, so no answer depends on it.

    Returns:
        What came out. The run's state says it in its message, and is named `Unchanged` where nothing had to be trained.
    """
    spec = load_corpus(corpus, project_folder() / "corpora")
    chosen = recipe_named(recipe, overrides)
    checked_limit(memory_limit, chosen.training)
    with training_lock(corpus), Asking() as ask:
        text = ask(clean_corpus, ask(fetch_source, spec), spec)
        say(f"{corpus}: text {note_text(corpus, text, by='train-gpt')}")
        legs, model, evaluation = train_and_evaluate(ask, text, chosen, memory_limit)
        baselines = ask(measure_baselines, text)
        recall = True
        while True:
            seat = champion(corpus)
            rival = seat and (unspellable(seat.model, text) or ask(evaluate_model, seat.model, text, chosen.evaluation))
            judgement = judge(corpus, recipe, model, evaluation, seat, rival, recall=recall)
            changed = sorted(overrides.changes())
            report = ask(
                publish_report, model, evaluation, baselines, text, chosen, changed, judgement.verdict, legs,
                judgement.rival,
            )  # fmt: skip
            try:
                moved = crown(corpus, recipe, model, evaluation, judgement, report, by="train-gpt")
                break
            except RefMoved as moved_meanwhile:
                say(f"{moved_meanwhile}: judging again")
                # What this run may have written down a moment ago is a judgement against another champion.
                recall = judgement.recalled
        show_in_prefect(corpus, report)
        came_out = outcome(corpus, chosen, model, report, ask, moved=moved, recalled=judgement.recalled)
    name = "Completed" if came_out.trained else "Unchanged"
    # Prefect takes the state for the run's own and hands its data to whoever called.
    return Completed(name=name, message=came_out.line(), data=came_out)  # type: ignore[return-value]
