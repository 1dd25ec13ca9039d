"""The summary of a training run."""

from bardflow.outcome import Outcome
from bardflow.storage.handles import Model, Report
from bardflow.tasks.recipes import Recipe
from bardflow.tasks.reporting import html_of, page_of
from bardflow.tasks.run import Run, refs
from bardflow.tasks.saying import say

# If the corpus was tokenized again, the first of these tasks that ran is the reason.
NEW_TOKENS = {
    "clean_corpus": "the corpus is new or changed",
    "mix_corpora": "the mixture is new or changed",
    "learn_vocabulary": "the vocabulary was not learned before",
    "vocabulary_of": "the vocabulary of this model was not used before",
    "tokenize_corpus": "the corpus was not tokenized so before",
}


def outcome(
    corpus: str, recipe: Recipe, model: Model, report: Report, run: Run, *, moved: bool, recalled: bool
) -> Outcome:
    """Summarise a run and log it. `moved`: the champion was replaced; `recalled`: an earlier run made the decision."""
    page = page_of(report)
    legs, legs_run = (sum(a.task == "train_leg" and a.ran >= ran for a in run.calls) for ran in (False, True))
    rebuilt = [f"{call.handle} was {call.rebuilt}" for call in run.calls if call.rebuilt]
    if rebuilt:
        why = f"{'; '.join(rebuilt)}; made again"
    elif legs_run:
        why = f"{reason(run)} ({legs_run} of {legs} checkpoints trained)"
    elif run.ran("clean_corpus", "mix_corpora"):
        why = f"the corpus is new or changed, but all {legs} checkpoints were trained on the same tokens before"
    else:
        why = f"corpus unchanged, recipe unchanged: vocabulary, shards and all {legs} checkpoints came from the cache"
    current = refs().head(f"{corpus}/champion")
    verdict = page.verdict.reason
    if recalled and not moved:
        verdict = f"this run was judged before ({verdict})"
    summary = Outcome(
        corpus=corpus,
        recipe=recipe.name,
        trained=legs_run > 0,
        why=why,
        nats_per_token=page.scores.nats_per_token,
        bits_per_character=page.scores.bits_per_character,
        baselines={baseline.name: baseline.bits_per_character for baseline in page.baselines},
        sample=page.samples[0].text if page.samples else "",
        champion_moved=moved,
        verdict=verdict,
        champion=current.digest if current else "",
        model=model.digest,
        report=str(html_of(report)),
    )
    say(summary.line())
    return summary


def reason(run: Run) -> str:
    """Explain why training ran: say which of its inputs is new."""
    if run.ran("tokenize_corpus"):
        return next(said for task, said in NEW_TOKENS.items() if run.ran(task))
    if run.ran("begin_training"):
        return "a model of this shape and seed was not begun before"
    if run.ran("begin_from_base"):
        return "no training began from this model before"
    return "these training settings were not run before, or not to the end"
