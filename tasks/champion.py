"""The champion of a corpus: comparing it with a new model, replacing it, and its history."""

from typing import NamedTuple

from bardflow.errors import BardError
from bardflow.model.scoring import CONFIDENCE, compare
from bardflow.pages.run import Verdict
from bardflow.storage.handles import Corpus, Evaluation, Model, Report
from bardflow.storage.refs import Entry, RefMoved
from bardflow.tasks.evaluation import charges_of, scores_of
from bardflow.tasks.events import CHAMPION_CHANGED, SCORE_WORSE, TEXT_CHANGED, announce
from bardflow.tasks.run import refs, store
from bardflow.tasks.saying import say

# The relative standard deviation of bits per character between seeds (benchmarks/LOG.md, "Luck").
LUCK = 0.006
# The beginning of the note about a text that is not the same as before.
CHANGED = "changed"
# The shortest prefix of a digest that identifies an entry.
LEAST_DIGEST = 4


class Champion(NamedTuple):
    """A corpus's champion, and the entry in its history that made it champion."""

    model: Model
    entry: Entry


class Decision(NamedTuple):
    """A verdict on a model, and whether an earlier run made it (`recalled`).

    `against` is the number of the champion's entry at that time, or 0; `rival` is its evaluation if it was compared.
    """

    verdict: Verdict
    against: int
    rival: Evaluation | None
    recalled: bool


def champion(corpus: str) -> Champion | None:
    """Return the corpus's champion, or None if there is none or its model is missing.

    Raises:
        storage.manifests.ObjectMissing: the model is damaged; as long as it can be repaired, no worse one replaces it.
    """
    entry = refs().head(f"{corpus}/champion")
    if entry is None:
        return None
    model = Model(digest=entry.digest)
    if store().damage(model) == "missing":
        say(f"{corpus}/champion points at {model}, which is missing: so the corpus counts as having no champion")
        return None
    store().folder(model)
    return Champion(model, entry)


def decide(
    corpus: str,
    recipe: str,
    model: Model,
    evaluation: Evaluation,
    current: Champion | None,
    rival: Evaluation | str | None,
    *,
    recall: bool = True,
) -> Decision:
    """Compare a model with the champion; the model replaces it only if better with 95 % confidence on the same text.

    The first decision about a model and an evaluation is final: a repeated run reads it from the recipe's history and
    gives the same report. `rival` is the champion's evaluation on the same corpus, or the reason why it cannot be
    scored. Without `recall`, the models are compared again, because the champion changed after this run's own decision.
    """
    for entry in reversed(refs().history(f"{corpus}/{recipe}")) if recall else ():
        if entry.notes["model"] == model.digest and entry.notes["evaluation"] == evaluation.digest:
            verdict = Verdict.model_validate(entry.notes["verdict"])
            return Decision(verdict, entry.notes["against"], still_there(entry.notes.get("rival")), True)
    head = refs().head(f"{corpus}/champion")
    against = head.number if head else 0
    own = scores_of(evaluation).bits_per_character
    if current is None or rival is None:
        return Decision(Verdict(moved=True, reason=f"the first champion of {corpus}"), against, None, False)
    name = f"{current.entry.notes['recipe']} {current.model.short}"
    if isinstance(rival, str):
        reason = f"the champion before it, {name}, cannot be scored on the text as it is now: {rival}"
        return Decision(Verdict(moved=True, reason=reason), against, None, False)
    theirs = scores_of(rival).bits_per_character
    if current.model == model:
        verdict = Verdict(moved=False, reason="the same model is the champion already")
        return Decision(verdict, against, None, False)
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
    return Decision(verdict, against, rival, False)


def still_there(digest: str | None) -> Evaluation | None:
    """Return the champion's evaluation that an earlier decision used; None if there was none or it was deleted.

    Garbage collection keeps the evaluations of each name's last entry. If this one was deleted, the report lacks only
    the champion's samples.
    """
    if digest is None:
        return None
    met = Evaluation(digest=digest)
    if harm := store().damage(met):
        say(f"the champion that this model met had {met}, which is {harm}: its samples are left out of the report")
        return None
    return met


def signed(bits: float) -> str:
    """Format a difference with its sign (a true minus)."""
    return f"{bits:+.4f}".replace("-", "\N{MINUS SIGN}")


def update_champion(
    corpus: str, recipe: str, model: Model, evaluation: Evaluation, decision: Decision, report: Report, *, by: str
) -> bool:
    """Add the run to its recipe's history, and make the model the champion if the decision says so.

    Returns whether the champion was replaced. A second call with the same arguments changes nothing.

    Raises:
        storage.refs.RefMoved: the champion changed after the decision (by a rollback); compare again.
    """
    verdict = decision.verdict
    current = refs().head(f"{corpus}/champion")
    unchanged = (current.number if current else 0) == decision.against
    if not unchanged and not decision.recalled:
        raise RefMoved(f"{corpus}/champion changed while this model was compared")
    notes = {
        "model": model.digest,
        "evaluation": evaluation.digest,
        "verdict": verdict.model_dump(mode="json"),
        "against": decision.against,
        "rival": decision.rival.digest if decision.rival else None,
    }
    history = refs().head(f"{corpus}/{recipe}")
    if history is None or history.handle != report or history.notes != notes:
        refs().move(f"{corpus}/{recipe}", report, after=history, by=by, why=verdict.reason, notes=notes)
    if not verdict.moved or not unchanged:
        return False
    notes = {"recipe": recipe, "report": report.digest, "evaluation": evaluation.digest}
    refs().move(f"{corpus}/champion", model, after=current, by=by, why=verdict.reason, notes=notes)
    bits = scores_of(evaluation).bits_per_character
    said = f"{recipe} {model.short} is the champion of {corpus} with {bits:.4f} bits per character: {verdict.reason}"
    announce(CHAMPION_CHANGED, corpus, said, corpus=corpus, model=model.digest, bits_per_character=bits)
    return True


class NoSuchChampion(BardError):
    """A rollback to a model that was never champion, or without an earlier champion."""


def line_of_champions(history: list[Entry]) -> list[Entry]:
    """Return the champions in order, without those that were rolled back; the last one is the current champion."""
    line: list[Entry] = []
    for entry in history:
        back_to = entry.notes.get("back_to")
        line = [earlier for earlier in line if back_to is None or earlier.number < back_to] + [entry]
    return line


def rollback(corpus: str, *, to: str | None, by: str, why: str | None) -> tuple[Entry, Entry]:
    """Make an earlier champion the champion again: the one before, or the one with that number or digest.

    A model that was rolled back can be restored in the same way. The history is never rewritten: a rollback adds an
    entry. It does not wait for active runs; they compare with the champion when they end.

    Returns:
        The entry that was rolled back, and the new one.

    Raises:
        NoSuchChampion: there is no earlier champion, or none with that number or digest; the message lists them.
        storage.refs.RefMoved: another process changed the champion at the same time.
    """
    name = f"{corpus}/champion"
    history = refs().history(name)
    if not history:
        raise NoSuchChampion(f"{corpus} has no champion yet, so there is none to roll back from; train one first")
    now, line = history[-1], line_of_champions(history)
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
    numbers = [earlier.number for earlier in line]
    notes = {key: value for key, value in chosen.notes.items() if key != "back_to"}
    if chosen.number in numbers:
        notes["back_to"] = chosen.number
    said = f"put back in place of {now.handle}{f': {why}' if why else ''}"
    return now, refs().move(name, chosen.handle, after=now, by=by, why=said, notes=notes)


def named_by(to: str, history: list[Entry]) -> list[Entry]:
    """Return the entry with that number, else those whose digest starts with `to` (it may be all digits)."""
    if numbered := [entry for entry in history if to == str(entry.number)]:
        return numbered
    return [entry for entry in history if len(to) >= LEAST_DIGEST and entry.digest.startswith(to)]


def note_text(corpus: str, text: Corpus, *, by: str) -> str:
    """Record the corpus's current text, and return in words what changed since the last run."""
    noted, moved = refs().point(f"{corpus}/text", text, by=by, why=lambda before: changed(before, text))
    if moved and noted.why.startswith(CHANGED):
        announce(TEXT_CHANGED, corpus, f"{corpus}: {noted.why}", corpus=corpus, text=text.digest)
    return noted.why if moved else f"unchanged since {noted.at[:16].replace('T', ' ')} UTC"


def note_evaluation(corpus: str, model: Model, evaluation: Evaluation, report: Report, *, by: str) -> None:
    """Give the report on the current text a name, so that it is listed and garbage collection keeps it.

    A score that is worse than the one before by more than `LUCK` is announced.
    """
    bits = scores_of(evaluation).bits_per_character
    before = bits_before(corpus, model)
    if before is not None and bits > before * (1 + LUCK):
        said = f"the champion {model.short} of {corpus} needs {bits:.4f} bits per character; it needed {before:.4f}"
        announce(SCORE_WORSE, corpus, said, corpus=corpus, bits_per_character=bits, before=before)
    notes = {"model": model.digest, "evaluation": evaluation.digest}
    why = f"the champion {model.short} scored again: {bits:.4f} bits per character"
    refs().point(f"{corpus}/evaluated", report, by=by, why=lambda before: why, notes=notes)


def bits_before(corpus: str, model: Model) -> float | None:
    """Return the bits per character that the champion needed when it was scored last; None if that is not stored."""
    for name in ("evaluated", "champion"):
        entry = refs().head(f"{corpus}/{name}")
        if entry is not None and model.digest in (entry.digest, entry.notes.get("model")):
            evaluation = still_there(entry.notes["evaluation"])
            return None if evaluation is None else scores_of(evaluation).bits_per_character
    return None


def changed(before: Entry | None, text: Corpus) -> str:
    """Describe the difference between two versions of a corpus in one line."""
    if before is None:
        return "first seen"
    if store().damage(before.handle):
        return f"{CHANGED} (the text before is no longer in the store)"
    if store().facts(before.handle)["text"] == store().facts(text)["text"]:
        return "the same text, described otherwise"
    old, new = store().facts(before.handle)["survey"], store().facts(text)["survey"]
    names = {"characters": "characters", "distinct": "distinct characters", "documents": "documents", "lines": "lines"}
    moves = [f"{new[key] - old[key]:+,} {word}" for key, word in names.items() if new[key] != old[key]]
    return f"{CHANGED}: {', '.join(moves) or 'other characters, same counts'}"
