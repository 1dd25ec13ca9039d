"""The seat of a corpus's best model: who sits there, who may take it, and how that is written down."""

from typing import NamedTuple

from bardflow.errors import BardError
from bardflow.model.scoring import CONFIDENCE, compare
from bardflow.pages.run import Verdict
from bardflow.storage.handles import Corpus, Evaluation, Model, Report
from bardflow.storage.refs import Entry, RefMoved
from bardflow.tasks.answers import refs, store
from bardflow.tasks.evaluation import charges_of, scores_of
from bardflow.tasks.saying import say

# What a training's seed alone brings: the standard deviation of bits per character as a share of them
# (benchmarks/LOG.md, "Luck").
LUCK = 0.006
# A digest is named by so many of its first characters or more.
LEAST_DIGEST = 4


class Seat(NamedTuple):
    """A corpus's champion and the move that seated it."""

    model: Model
    entry: Entry


class Judgement(NamedTuple):
    """A verdict, the head of the champion's history it was made against, and whether an earlier run made it.

    `rival` is the champion's evaluation where the model was compared with one.
    """

    verdict: Verdict
    against: int
    rival: Evaluation | None
    recalled: bool


def champion(corpus: str) -> Seat | None:
    """The corpus's champion, or None where there is none or its model is gone from the store."""
    entry = refs().head(f"{corpus}/champion")
    if entry is None:
        return None
    model = Model(digest=entry.digest)
    if harm := store().damage(model):
        say(f"{corpus}/champion points at {model}, which is {harm}: so the corpus counts as having no champion")
        return None
    return Seat(model, entry)


def judge(
    corpus: str,
    recipe: str,
    model: Model,
    evaluation: Evaluation,
    seat: Seat | None,
    rival: Evaluation | str | None,
    *,
    recall: bool = True,
) -> Judgement:
    """Whether the model takes the seat: only if it surely needs fewer bits per character on the same text.

    The first judgement of a model under one evaluation stands: asked again, it is read from the recipe's history, so
    that the same run gives the same report. `rival` is the champion's evaluation on the same corpus, or the reason why
    it cannot be scored there. Without `recall` it is judged anew: the seat was moved since this run's own judgement.
    """
    for entry in reversed(refs().history(f"{corpus}/{recipe}")) if recall else ():
        if entry.notes["model"] == model.digest and entry.notes["evaluation"] == evaluation.digest:
            verdict = Verdict.model_validate(entry.notes["verdict"])
            return Judgement(verdict, entry.notes["against"], still_there(entry.notes.get("rival")), True)
    head = refs().head(f"{corpus}/champion")
    against = head.number if head else 0
    own = scores_of(evaluation).bits_per_character
    if seat is None or rival is None:
        return Judgement(Verdict(moved=True, reason=f"the first champion of {corpus}"), against, None, False)
    name = f"{seat.entry.notes['recipe']} {seat.model.short}"
    if isinstance(rival, str):
        reason = f"the champion before it, {name}, cannot be scored on the text as it is now: {rival}"
        return Judgement(Verdict(moved=True, reason=reason), against, None, False)
    theirs = scores_of(rival).bits_per_character
    if seat.model == model:
        verdict = Verdict(moved=False, reason="the same model is the champion already")
        return Judgement(verdict, against, None, False)
    found = compare(charges_of(evaluation), charges_of(rival), luck=LUCK * theirs)
    interval = f"{CONFIDENCE:.0%} interval {signed(found.low)} to {signed(found.high)}".replace("%", " %")
    apart = f"{abs(own - theirs):.4f} bits per character"
    reason = {
        "better": f"it needs {apart} less than the champion before it, {name} ({interval})",
        "worse": f"it lost to the champion, {name}, by {apart} ({interval})",
        "not distinguishable": f"it is not distinguishable from the champion, {name}: "
        f"{apart} {'less' if own < theirs else 'more'}, which chance explains ({interval})",
    }[found.verdict]
    verdict = Verdict(
        moved=found.verdict == "better",
        reason=reason,
        rival=name,
        rival_bits_per_character=theirs,
        interval=(found.low, found.high),
    )
    return Judgement(verdict, against, rival, False)


def still_there(digest: str | None) -> Evaluation | None:
    """The evaluation of a champion that was met long ago; None where there was none, or it was deleted since.

    Garbage collection keeps those of each name's last entry. Only the champion's samples are lost with it: the verdict
    stands.
    """
    if digest is None:
        return None
    met = Evaluation(digest=digest)
    if harm := store().damage(met):
        say(f"the champion that this model met had {met}, which is {harm}: its samples are left out of the report")
        return None
    return met


def signed(bits: float) -> str:
    """A difference with its sign (a true minus)."""
    return f"{bits:+.4f}".replace("-", "\N{MINUS SIGN}")


def crown(
    corpus: str, recipe: str, model: Model, evaluation: Evaluation, judgement: Judgement, report: Report, *, by: str
) -> bool:
    """Write the run into its recipe's history and, if so judged, seat the model. Done twice it changes nothing.

    Returns whether the champion moved now.

    Raises:
        storage.refs.RefMoved: somebody else moved the seat since the judgement (a rollback); judge again.
    """
    verdict = judgement.verdict
    seat = refs().head(f"{corpus}/champion")
    sat = (seat.number if seat else 0) == judgement.against
    if not sat and not judgement.recalled:
        raise RefMoved(f"{corpus}/champion was moved while this model was judged")
    notes = {
        "model": model.digest,
        "evaluation": evaluation.digest,
        "verdict": verdict.model_dump(mode="json"),
        "against": judgement.against,
        "rival": judgement.rival.digest if judgement.rival else None,
    }
    history = refs().head(f"{corpus}/{recipe}")
    if history is None or history.handle != report or history.notes != notes:
        refs().move(f"{corpus}/{recipe}", report, after=history, by=by, why=verdict.reason, notes=notes)
    if not verdict.moved or not sat:
        return False
    notes = {"recipe": recipe, "report": report.digest, "evaluation": evaluation.digest}
    refs().move(f"{corpus}/champion", model, after=seat, by=by, why=verdict.reason, notes=notes)
    return True


class NoSuchChampion(BardError):
    """A rollback to a champion that there never was, or from a seat that nobody had before."""


def seats(history: list[Entry]) -> list[Entry]:
    """The champions that came one after the other, as if what was rolled back had not been: the last one sits now."""
    line: list[Entry] = []
    for entry in history:
        back_to = entry.notes.get("back_to")
        line = [seat for seat in line if back_to is None or seat.number < back_to] + [entry]
    return line


def rollback(corpus: str, *, to: str | None, by: str, why: str | None) -> tuple[Entry, Entry]:
    """Seat an earlier champion again: the one before, or the one of that number or digest in the history.

    A model that is in the history but not in the line of seats (it was rolled back) can be put back the same way. The
    history is never rewritten, a rollback is a further move of it. It waits for no training: one that is under way
    meets whoever sits there when it ends.

    Returns:
        The move that was rolled back from, and the new one.

    Raises:
        NoSuchChampion: there is none before, or none of that name; the message says which there are.
        storage.refs.RefMoved: somebody else moved the seat in between.
    """
    name = f"{corpus}/champion"
    history = refs().history(name)
    if not history:
        raise NoSuchChampion(f"{corpus} has no champion yet, so there is none to roll back from; train one first")
    now, line = history[-1], seats(history)
    known = "; ".join(f"{entry.number} {entry.handle}, {entry.at[:16]}" for entry in history)
    if to is None:
        if len(line) < 2:
            raise NoSuchChampion(f"no champion of {corpus} came before {now.handle}. In its history: {known}")
        chosen = line[-2]
    else:
        found = named_by(to, history)
        refused = None
        if not found:
            refused = f"is no champion of {corpus}'s history"
        elif len({entry.digest for entry in found}) > 1:
            refused = "begins the digests of several champions"
        elif found[-1].digest == now.digest:
            refused = "is the champion already"
        if refused:
            raise NoSuchChampion(
                f"{to!r} {refused}; give an entry's number, or at least the first {LEAST_DIGEST} characters of its "
                f"digest. In its history: {known}"
            )
        chosen = found[-1]
    if harm := store().damage(chosen.handle):
        raise NoSuchChampion(f"{chosen.handle} is {harm}; train it again, or roll back to another: {known}")
    seated = [seat.number for seat in line]
    notes = {key: value for key, value in chosen.notes.items() if key != "back_to"}
    if chosen.number in seated:
        notes["back_to"] = chosen.number
    said = f"put back in place of {now.handle}{f': {why}' if why else ''}"
    return now, refs().move(name, chosen.handle, after=now, by=by, why=said, notes=notes)


def named_by(to: str, history: list[Entry]) -> list[Entry]:
    """The entry of that number, else those whose digest begins so: a digest's start may be digits alone."""
    if numbered := [entry for entry in history if to == str(entry.number)]:
        return numbered
    return [entry for entry in history if len(to) >= LEAST_DIGEST and entry.digest.startswith(to)]


def note_text(corpus: str, text: Corpus, *, by: str) -> str:
    """Remember which text a corpus has now, and say in words what changed since the last look."""
    noted, moved = refs().point(f"{corpus}/text", text, by=by, why=lambda before: changed(before, text))
    return noted.why if moved else f"unchanged since {noted.at[:16].replace('T', ' ')} UTC"


def note_evaluation(corpus: str, model: Model, evaluation: Evaluation, report: Report, *, by: str) -> None:
    """Name the report of a champion's score on the text as it is now: so it is shown and kept."""
    bits = scores_of(evaluation).bits_per_character
    notes = {"model": model.digest, "evaluation": evaluation.digest}
    why = f"the champion {model.short} scored again: {bits:.4f} bits per character"
    refs().point(f"{corpus}/evaluated", report, by=by, why=lambda before: why, notes=notes)


def changed(before: Entry | None, text: Corpus) -> str:
    """The difference between two states of a corpus in one line."""
    if before is None:
        return "first seen"
    if store().damage(before.handle):
        return "changed (the text before is no longer in the store)"
    if store().facts(before.handle)["text"] == store().facts(text)["text"]:
        return "the same text, described otherwise"
    old, new = store().facts(before.handle)["survey"], store().facts(text)["survey"]
    names = {"characters": "characters", "distinct": "distinct characters", "documents": "documents", "lines": "lines"}
    moves = [f"{new[key] - old[key]:+,} {word}" for key, word in names.items() if new[key] != old[key]]
    return f"changed: {', '.join(moves) or 'other characters, same counts'}"
