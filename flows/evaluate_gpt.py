"""Score champions again on today's text, and publish their reports."""

from prefect import flow

from bard.home import project_folder
from sources.spec import corpus_names, load_corpus
from storage.handles import Report
from tasks.answers import Asking
from tasks.champion import champion, note_text
from tasks.corpus import clean_corpus, fetch_source
from tasks.evaluation import evaluate_model, measure_baselines, scores_of, unspellable
from tasks.reporting import evaluated_with, rescore_report, show_in_prefect
from tasks.saying import say


@flow(name="evaluate-gpt", description="Score champions again, and publish their reports.")
def evaluate_gpt(corpora: list[str] | None = None) -> dict[str, float]:
    """Score the champions of some corpora and return their bits per character.

    Args:
        corpora: names of files in `corpora/`; all of them when left out.
    """
    folder = project_folder() / "corpora"
    ask = Asking()
    scores: dict[str, float] = {}
    for name in corpora or corpus_names(folder):
        spec = load_corpus(name, folder)
        seat = champion(name)
        if seat is None:
            say(f"{name}: no champion yet; train one with `prefect deployment run train-gpt -p corpus={name}`")
            continue
        text = ask(clean_corpus, ask(fetch_source, spec), spec)
        say(f"{name}: text {note_text(name, text, by='evaluate-gpt')}")
        if hindered := unspellable(seat.model, text):
            say(f"{name}: champion {seat.model.short} can not be scored on the text as it is now: {hindered}")
            continue
        report = Report(digest=seat.entry.notes["report"])
        evaluation = ask(evaluate_model, seat.model, text, evaluated_with(report))
        if evaluation.digest != seat.entry.notes["evaluation"]:
            report = ask(rescore_report, report, seat.model, evaluation, ask(measure_baselines, text), text)
        scores[name] = scores_of(evaluation).bits_per_character
        say(f"{name}: champion {seat.model.short} needs {scores[name]:.4f} bits per character")
        show_in_prefect(name, report)
    return scores
