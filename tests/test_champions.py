"""A champion is defended, judged again, rolled back and scored, and its history says why."""

from pathlib import Path
from typing import Any

import pytest

from bardflow.errors import BardError
from bardflow.flows.evaluate_gpt import evaluate_gpt
from bardflow.storage.documents import read_text
from bardflow.storage.garbage import Collected, collect_garbage
from bardflow.storage.handles import Corpus, Evaluation, Model, Report
from bardflow.storage.refs import Refs
from bardflow.tasks.champion import NoSuchChampion, named_by, note_text, rollback, update_champion
from bardflow.tasks.index import write_index
from bardflow.tasks.reporting import page_of
from bardflow.tasks.run import refs, store
from tests.quick import run

pytestmark = pytest.mark.usefixtures("quickly_answered")


def test_a_worse_challenger_is_not_promoted() -> None:
    good = run(steps=40, leg_steps=40)
    worse = run()
    assert worse.bits_per_character > good.bits_per_character
    assert not worse.champion_moved
    assert worse.champion == good.model
    assert "lost" in worse.verdict and f"{worse.bits_per_character - good.bits_per_character:.4f}" in worse.verdict


def test_a_better_challenger_takes_the_seat_and_the_history_says_why() -> None:
    worse = run()
    good = run(steps=40, leg_steps=40)
    assert good.champion_moved and good.champion == good.model
    history = refs().history("own/champion")
    assert [entry.digest for entry in history] == [worse.model, good.model]
    assert "less than the champion before it" in history[1].why


@pytest.mark.slow
def test_a_rollback_puts_the_one_before_back_and_the_history_says_who_and_why() -> None:
    first, second, third = (run(steps=steps, leg_steps=steps).model for steps in (4, 20, 60))
    assert [entry.digest for entry in refs().history("own/champion")] == [first, second, third]
    for to, expected in ((None, second), (None, first), (third, third), (None, first), ("2", second)):
        before, now = rollback("own", to=to, by="a test", why="it rhymes better")
        assert now.digest == refs().history("own/champion")[-1].digest == expected
        assert now.by == "a test" and "it rhymes better" in now.why and before.handle.short in now.why
        assert now.notes["recipe"] == "tiny" and now.notes["report"]
    rollback("own", to=None, by="a test", why=None)
    with pytest.raises(NoSuchChampion, match="came before"):
        rollback("own", to=None, by="a test", why=None)
    with pytest.raises(NoSuchChampion, match="is the champion already"):
        rollback("own", to=first[:8], by="a test", why=None)
    with pytest.raises(NoSuchChampion, match="is no champion of own's history"):
        rollback("own", to="77", by="a test", why=None)
    with pytest.raises(NoSuchChampion, match="no champion yet"):
        rollback("other", to=None, by="a test", why=None)
    # What was rolled back does not come back by itself: it was judged before.
    again = run(steps=60, leg_steps=60)
    assert not again.champion_moved and again.champion == first


def test_a_number_of_the_history_is_meant_before_a_digest_that_begins_so() -> None:
    models = [run(steps=steps, leg_steps=steps).model for steps in (4, 40)]
    history = refs().history("own/champion")
    seated = [entry.digest for entry in history]
    assert seated == models
    # A history in which entry 1's number begins the digest of another model, as a digest in 16 does.
    other = history[-1].model_copy(update={"number": 3, "digest": "1" + history[-1].digest[1:]})
    assert named_by("1", [*history, other]) == history[:1]
    assert named_by(other.digest[:4], [*history, other]) == [other]
    assert named_by(other.digest[:3], [*history, other]) == [], "three characters name nothing"
    _, now = rollback("own", to="1", by="a test", why=None)
    assert now.digest == seated[0]
    for nothing in ("", "0", "zzzz", seated[-1][:3]):
        with pytest.raises(NoSuchChampion, match="at least the first 4 characters"):
            rollback("own", to=nothing, by="a test", why=None)


def test_a_start_that_several_champions_digests_have_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = run(), run(steps=40, leg_steps=40)
    history = refs().history("own/champion")
    assert [entry.digest for entry in history] == [first.model, second.model]
    twins = [history[0], history[1].model_copy(update={"digest": history[0].digest[:6] + history[1].digest[6:]})]
    monkeypatch.setattr("bardflow.storage.refs.Refs.history", lambda refs, name: twins)
    with pytest.raises(NoSuchChampion, match="begins the digests of several"):
        rollback("own", to=first.model[:6], by="a test", why=None)


def collected() -> Collected:
    return collect_garbage(store(), refs(), dry_run=False)


@pytest.mark.slow
def test_a_run_can_run_again_after_a_garbage_collection_although_the_champion_that_it_met_is_another_by_now() -> None:
    run(steps=20, leg_steps=20)
    # With a sample more the champion is scored anew, and that score has no name but in the loser's note.
    lost = run(samples=2)
    noted = refs().head("own/tiny")
    assert noted is not None and not lost.champion_moved
    rival = Evaluation(digest=noted.notes["rival"])
    collected()
    assert store().damage(rival) is None
    assert run(steps=80, leg_steps=80).champion_moved
    collected()
    assert store().damage(rival) == "missing", "the last note of the recipe is another's now"
    again = run(samples=2)
    assert again.model == lost.model and lost.verdict in again.verdict and not again.champion_moved
    assert page_of(Report(digest=Path(again.report).parent.name)).rival_samples == ()
    collected()
    assert run(samples=2).report == again.report


@pytest.mark.slow
def test_a_seat_that_is_moved_between_a_runs_two_notes_makes_it_judge_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run(steps=20, leg_steps=20)
    second = run(steps=30, leg_steps=30)
    assert second.champion_moved
    moves: list[str] = []
    move = Refs.move

    def meanwhile(refs: Refs, name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "own/champion" and not moves:
            moves.append(name)
            rollback("own", to=None, by="a test", why=None)
        return move(refs, name, *args, **kwargs)

    monkeypatch.setattr(Refs, "move", meanwhile)
    best = run(steps=80, leg_steps=80)
    assert moves and best.champion_moved and best.champion == best.model


def test_two_processes_that_note_one_text_at_once_lose_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    noted = refs().head("own/text")
    assert noted is not None
    text, gone = Corpus(digest=noted.digest), Corpus(digest="ab" * 32)
    refs().move("own/text", gone, after=noted, by="another", why="")
    move, others = Refs.move, iter([Corpus(digest="cd" * 32), Corpus(digest="ef" * 32)])

    def after_another(refs: Refs, name: str, *args: Any, **kwargs: Any) -> Any:
        if other := next(others, None):
            move(refs, name, other, after=refs.head(name), by="another", why="")
        return move(refs, name, *args, **kwargs)

    monkeypatch.setattr(Refs, "move", after_another)
    assert note_text("own", text, by="a test") == "changed (the text before is no longer in the store)"
    assert [entry.by for entry in refs().history("own/text")] == ["train-gpt", *["another"] * 3, "a test"]
    head = refs().head("own/text")
    assert head is not None and head.handle == text


@pytest.mark.slow
def test_a_rollback_while_a_training_ends_makes_it_judge_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = run(), run(steps=40, leg_steps=40)
    crowned: list[str] = []

    def meanwhile(*args: Any, **kwargs: Any) -> bool:
        if not crowned:
            rollback("own", to=None, by="a test", why=None)
        crowned.append("tried")
        return update_champion(*args, **kwargs)

    monkeypatch.setattr("bardflow.flows.train_gpt.update_champion", meanwhile)
    third = run(steps=30, leg_steps=30)
    assert len(crowned) == 2
    assert store().find(first.model).short in third.verdict, "judged against the one that sits there now"
    history = refs().history("own/champion")
    assert [entry.digest for entry in history[:3]] == [first.model, second.model, first.model]
    assert third.champion_moved and history[3].digest == third.model


def test_a_champion_is_scored_again_on_the_text_of_today(project: Path) -> None:
    first = run()
    collected()  # reports of models that have no name
    assert evaluate_gpt(["own"]) == {"own": first.bits_per_character}
    text = project / "texts" / "own.txt"
    text.write_text(text.read_text().replace("bard", "drab"))
    scores = evaluate_gpt(["own"])
    assert scores["own"] != first.bits_per_character
    assert refs().history("own/champion")[-1].digest == first.model
    reports = [h for h in store().handles() if h.kind == "report"]
    assert len(reports) == 2


@pytest.mark.slow
def test_a_corpus_that_cannot_be_scored_keeps_no_other_from_it_and_what_was_scored_has_a_name(project: Path) -> None:
    first = run()
    collected()
    for name in ("a-gone", "z-gone"):
        (project / "corpora" / f"{name}.toml").write_text('title = "Gone"\n[source]\npath = "texts/gone.txt"\n')
        refs().move(
            f"{name}/champion",
            Model(digest=first.model),
            after=None,
            by="a test",
            why="",
            notes=dict(refs().history("own/champion")[-1].notes),
        )
    (project / "corpora" / "draft.toml").write_text('title = "Half')
    text = project / "texts" / "own.txt"
    text.write_text(text.read_text().replace("bard", "drab"))
    with pytest.raises(BardError, match=r"(?s)a-gone: .*draft: .*z-gone: "):
        evaluate_gpt()
    head = refs().head("own/evaluated")
    assert head is not None and head.handle != Report(digest=Path(first.report).parent.name)
    assert head.notes["model"] == first.model
    assert collected().objects == ()
    assert store().damage(head.handle) is None
    bits = page_of(Report(digest=head.digest)).scores.bits_per_character
    assert f"{bits:.4f}" in write_index().read_text(encoding="utf-8"), "the index shows the score of today's text"
    assert evaluate_gpt(["own"]) == {"own": bits}
    assert len(refs().history("own/evaluated")) == 1


def test_a_champion_that_cannot_spell_the_context_before_the_validation_set_stops_no_run(project: Path) -> None:
    first = run()
    text = project / "texts" / "own.txt"
    content = text.read_text()
    cut = store().facts(refs().history("own/text")[0].handle)["survey"]["characters"] * 9 // 10
    text.write_text(content[: cut - 20] + "β" + content[cut - 19 :])
    [entry] = refs().history("own/champion")
    assert evaluate_gpt(["own"]) == {}
    seen = "".join(read_text(store().folder(refs().history("own/text")[-1].handle), "validation"))
    assert "β" not in seen, "it is in the training set"
    second = run()
    assert second.champion_moved and "'β'" in second.verdict and second.model != first.model == entry.digest
