"""Score champions again on the current text of their corpora, and publish their reports."""

from prefect import flow

from bardflow.flows.each_corpus import each_corpus, require_all
from bardflow.flows.parameters import Corpora
from bardflow.flows.text import prepared_text
from bardflow.sources.spec import AnyCorpus
from bardflow.storage.handles import Report
from bardflow.tasks.champion import champion, note_evaluation, note_text
from bardflow.tasks.evaluation import evaluate_model, measure_baselines, scores_of, unspellable
from bardflow.tasks.reporting import evaluated_with, rescore_report, show_in_prefect
from bardflow.tasks.run import Run
from bardflow.tasks.saying import say


@flow(name="evaluate-gpt", description="Score champions again, and publish their reports.")
def evaluate_gpt(corpora: Corpora | None = None) -> dict[str, float]:
    """Score the champion of each corpus on its current text, publish its report, and return its bits per character.

    If one corpus fails, the others are still scored. The name `<corpus>/evaluated` refers to the last report.

    Args:
        corpora: The corpora to score: names of files in `corpora/` without `.toml`. If left out, all of them.

    Raises:
        BardError: a corpus could not be fetched or its champion not scored; the message has each error.
    """
    with Run() as run:
        scores, failed = each_corpus(corpora, lambda spec: score_champion(run, spec))
    require_all(failed)
    return {name: bits for name, bits in scores.items() if bits is not None}


def score_champion(run: Run, spec: AnyCorpus) -> float | None:
    """Score the champion on the current text, in bits per character; None if there is none or it cannot be scored."""
    name, current = spec.name, champion(spec.name)
    if current is None:
        say(f"{name}: no champion yet; train one with `prefect deployment run train-gpt -p corpus={name}`")
        return None
    text = prepared_text(run, spec)
    say(f"{name}: text {note_text(name, text, by='evaluate-gpt')}")
    if hindered := unspellable(current.model, text):
        say(f"{name}: champion {current.model.short} cannot be scored on the text as it is now: {hindered}")
        return None
    report = Report(digest=current.entry.notes["report"])
    evaluation = run(evaluate_model, current.model, text, evaluated_with(report))
    if evaluation.digest != current.entry.notes["evaluation"]:
        report = run(rescore_report, report, current.model, evaluation, run(measure_baselines, text), text)
    note_evaluation(name, current.model, evaluation, report, by="evaluate-gpt")
    bits = scores_of(evaluation).bits_per_character
    say(f"{name}: champion {current.model.short} needs {bits:.4f} bits per character")
    show_in_prefect(name, report)
    return bits
