"""Score champions again on today's text, and publish their reports."""

from prefect import flow

from bardflow.flows.each_corpus import each_corpus, require_all
from bardflow.flows.parameters import Corpora
from bardflow.sources.spec import CorpusSpec
from bardflow.storage.handles import Report
from bardflow.tasks.answers import Asking
from bardflow.tasks.champion import champion, note_evaluation, note_text
from bardflow.tasks.corpus import clean_corpus, fetch_source
from bardflow.tasks.evaluation import evaluate_model, measure_baselines, scores_of, unspellable
from bardflow.tasks.reporting import evaluated_with, rescore_report, show_in_prefect
from bardflow.tasks.saying import say


@flow(name="evaluate-gpt", description="Score champions again, and publish their reports.")
def evaluate_gpt(corpora: Corpora | None = None) -> dict[str, float]:
    """Score the champions of some corpora and return their bits per character.

    A corpus that fails does not keep the others from being scored. `<corpus>/evaluated` names the last report.

    Args:
        corpora: names of files in `corpora/`; all of them when left out.

    Raises:
        BardError: a corpus could not be brought here or its champion not scored; the message has each one's reason.
    """
    with Asking() as ask:
        scores, failed = each_corpus(corpora, lambda spec: score_champion(ask, spec))
    require_all(failed)
    return {name: bits for name, bits in scores.items() if bits is not None}


def score_champion(ask: Asking, spec: CorpusSpec) -> float | None:
    """The champion's bits per character on the text as it is now; None where there is none, or it cannot be scored."""
    name, seat = spec.name, champion(spec.name)
    if seat is None:
        say(f"{name}: no champion yet; train one with `prefect deployment run train-gpt -p corpus={name}`")
        return None
    text = ask(clean_corpus, ask(fetch_source, spec), spec)
    say(f"{name}: text {note_text(name, text, by='evaluate-gpt')}")
    if hindered := unspellable(seat.model, text):
        say(f"{name}: champion {seat.model.short} cannot be scored on the text as it is now: {hindered}")
        return None
    report = Report(digest=seat.entry.notes["report"])
    evaluation = ask(evaluate_model, seat.model, text, evaluated_with(report))
    if evaluation.digest != seat.entry.notes["evaluation"]:
        report = ask(rescore_report, report, seat.model, evaluation, ask(measure_baselines, text), text)
    note_evaluation(name, seat.model, evaluation, report, by="evaluate-gpt")
    bits = scores_of(evaluation).bits_per_character
    say(f"{name}: champion {seat.model.short} needs {bits:.4f} bits per character")
    show_in_prefect(name, report)
    return bits
