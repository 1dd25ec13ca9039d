"""The seat of a corpus's best model: who sits there, who may take it, and how that is written down."""

from typing import NamedTuple

from pages.run import Verdict
from storage.handles import Corpus, Evaluation, Model, Report
from storage.refs import Entry
from tasks.answers import refs, store
from tasks.evaluation import scores_of
from tasks.saying import say


class Seat(NamedTuple):
    """A corpus's champion and the move that seated it."""

    model: Model
    entry: Entry


class Judgement(NamedTuple):
    """A verdict, the head of the champion's history it was made against, and whether an earlier run made it."""

    verdict: Verdict
    against: int
    recalled: bool


def champion(corpus: str) -> Seat | None:
    """The corpus's champion, or None where there is none or its model is gone from the store."""
    entry = refs().head(f"{corpus}/champion")
    if entry is None:
        return None
    model = Model(digest=entry.digest)
    if harm := store().damage(model):
        say(f"{corpus}/champion points at {model}, which is {harm}: the seat counts as free")
        return None
    return Seat(model, entry)


def judge(
    corpus: str, recipe: str, model: Model, evaluation: Evaluation, seat: Seat | None, rival: Evaluation | str | None
) -> Judgement:
    """Whether the model takes the seat: only if it needs fewer bits per character on the same text.

    The first judgement of a model under one evaluation stands: asked again, it is read from the recipe's history, so
    that the same run gives the same report. `rival` is the champion's evaluation on the same corpus, or the reason why
    it can not be scored there.
    """
    for entry in reversed(refs().history(f"{corpus}/{recipe}")):
        if entry.notes["model"] == model.digest and entry.notes["evaluation"] == evaluation.digest:
            return Judgement(Verdict.model_validate(entry.notes["verdict"]), entry.notes["against"], True)
    head = refs().head(f"{corpus}/champion")
    against = head.number if head else 0
    own = scores_of(evaluation).bits_per_character
    if seat is None or rival is None:
        return Judgement(Verdict(moved=True, reason=f"the first champion of {corpus}"), against, False)
    name = f"{seat.entry.notes['recipe']} {seat.model.short}"
    if isinstance(rival, str):
        reason = f"the champion before it, {name}, can not be scored on the text as it is now: {rival}"
        return Judgement(Verdict(moved=True, reason=reason), against, False)
    theirs = scores_of(rival).bits_per_character
    if seat.model == model:
        verdict = Verdict(moved=False, reason="the same model is the champion already")
    elif own < theirs:
        reason = f"it needs {theirs - own:.4f} bits per character less than the champion before it, {name}"
        verdict = Verdict(moved=True, reason=reason, rival=name, rival_bits_per_character=theirs)
    else:
        reason = f"it lost to the champion, {name}, by {own - theirs:.4f} bits per character"
        verdict = Verdict(moved=False, reason=reason, rival=name, rival_bits_per_character=theirs)
    return Judgement(verdict, against, False)


def crown(
    corpus: str, recipe: str, model: Model, evaluation: Evaluation, judgement: Judgement, report: Report, *, by: str
) -> bool:
    """Write the run into its recipe's history and, if so judged, seat the model. Done twice it changes nothing.

    Returns whether the champion moved now.

    Raises:
        storage.refs.RefMoved: somebody else took the seat since the judgement; run again.
    """
    verdict = judgement.verdict
    notes = {
        "model": model.digest,
        "evaluation": evaluation.digest,
        "verdict": verdict.model_dump(mode="json"),
        "against": judgement.against,
    }
    history = refs().head(f"{corpus}/{recipe}")
    if history is None or history.handle != report or history.notes != notes:
        refs().move(f"{corpus}/{recipe}", report, after=history, by=by, why=verdict.reason, notes=notes)
    seat = refs().head(f"{corpus}/champion")
    if not verdict.moved or (seat.number if seat else 0) != judgement.against:
        return False
    notes = {"recipe": recipe, "report": report.digest, "evaluation": evaluation.digest}
    refs().move(f"{corpus}/champion", model, after=seat, by=by, why=verdict.reason, notes=notes)
    return True


def note_text(corpus: str, text: Corpus, *, by: str) -> str:
    """Remember which text a corpus has now, and say in words what changed since the last look."""
    name = f"{corpus}/text"
    before = refs().head(name)
    if before is not None and before.handle == text:
        return f"unchanged since {before.at[:16].replace('T', ' ')} UTC"
    why = "first seen" if before is None else changed(before, text)
    refs().move(name, text, after=before, by=by, why=why)
    return why


def changed(before: Entry, text: Corpus) -> str:
    """The difference between two states of a corpus in one line."""
    if store().damage(before.handle):
        return "changed (the text before is no longer in the store)"
    if store().facts(before.handle)["text"] == store().facts(text)["text"]:
        return "the same text, described otherwise"
    old, new = store().facts(before.handle)["survey"], store().facts(text)["survey"]
    names = {"characters": "characters", "distinct": "distinct characters", "documents": "documents", "lines": "lines"}
    moves = [f"{new[key] - old[key]:+,} {word}" for key, word in names.items() if new[key] != old[key]]
    return f"changed: {', '.join(moves) or 'other characters, same counts'}"
