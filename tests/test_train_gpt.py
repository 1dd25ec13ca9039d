"""The main job's laws: what was answered is not computed again, what changed is, and what is lost is made again."""

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from bardflow.errors import BardError
from bardflow.flows.evaluate_gpt import evaluate_gpt
from bardflow.flows.refresh_corpora import refresh_corpora
from bardflow.flows.train_gpt import train_gpt
from bardflow.model.machine.memory import BadLimit
from bardflow.model.planning.plan import TooLittleMemory
from bardflow.outcome import Outcome
from bardflow.sources.spec import CorpusError
from bardflow.storage.garbage import Collected, collect_garbage
from bardflow.storage.handles import KINDS, Corpus, Evaluation, Model, Report
from bardflow.storage.refs import Refs
from bardflow.tasks.champion import NoSuchChampion, named_by, note_text, rollback, update_champion
from bardflow.tasks.index import write_index
from bardflow.tasks.recipes import Overrides, RecipeError
from bardflow.tasks.reporting import page_of
from bardflow.tasks.run import refs, store
from bardflow.tasks.vocabulary import tokenize_corpus
from tests.conftest import own_text

pytestmark = pytest.mark.usefixtures("prefect_server", "answers")

QUICK = {"steps": 4, "leg_steps": 2, "width": 16, "context": 16, "batch": 4, "samples": 1, "sample_characters": 20}


def run(**changes: object) -> Outcome:
    return train_gpt("own", "tiny", Overrides.model_validate(QUICK | changes))


def limited(memory_limit: int | str) -> Outcome:
    return train_gpt("own", "tiny", Overrides.model_validate(QUICK), memory_limit)


def ran(task: Callable[[], object], caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    """What each task of a run did, by the lines it says."""
    caplog.clear()
    task()
    said: dict[str, str] = {}
    for line in caplog.messages:
        words = line.split()
        if len(words) > 1 and words[1] in ("done", "cached"):
            said[words[0]] = words[1]
    return said


def test_running_the_flow_twice_trains_once() -> None:
    first, second = run(), run()
    assert first.trained and first.champion_moved
    assert not second.trained and not second.champion_moved
    assert "corpus unchanged" in second.why
    assert (second.model, second.report) == (first.model, first.report)


def test_an_unchanged_source_trains_nothing(project: Path) -> None:
    first = run()
    text = project / "texts" / "own.txt"
    content = text.read_bytes()
    text.unlink()
    text.write_bytes(content)
    assert not run().trained
    assert refresh_corpora(["own"])["own"].startswith("unchanged")
    assert run().model == first.model


def test_another_corpus_with_the_same_text_trains_nothing_and_is_not_called_unchanged(project: Path) -> None:
    first = run()
    shutil.copy(project / "corpora" / "own.toml", project / "corpora" / "twin.toml")
    twin = train_gpt("twin", "tiny", Overrides.model_validate(QUICK))
    assert not twin.trained and twin.nats_per_token == first.nats_per_token
    assert "same tokens" in twin.why and "unchanged" not in twin.why


def test_one_more_byte_in_the_source_changes_everything_after_it(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run()
    with (project / "texts" / "own.txt").open("a") as text:
        text.write("!")
    outcome: list[Outcome] = []
    did = ran(lambda: outcome.append(run()), caplog)
    # The champion has no bytes to spell `!` with: it cannot keep a seat on a text that it gives no probability.
    assert outcome[0].champion_moved and "'!'" in outcome[0].verdict
    for task in ("clean_corpus", "learn_vocabulary", "tokenize_corpus", "train_leg", "export_model", "evaluate_model"):
        assert did[task] == "done", task


def test_a_report_counts_the_rows_that_were_left_out(project: Path) -> None:
    verses = (project / "texts" / "own.txt").read_text().splitlines()
    rows = [*({"verse": verse} for verse in verses), {"verse": None}, {"other": 7}]
    (project / "texts" / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    described = (project / "corpora" / "own.toml").read_text().replace("own.txt", "own.jsonl")
    (project / "corpora" / "rows.toml").write_text(described + '\n[rows]\nformat = "jsonl"\ncolumn = "verse"\n')
    outcomes = {name: train_gpt(name, "tiny", Overrides.model_validate(QUICK)) for name in ("rows", "own")}
    counts = {
        name: page_of(Report(digest=Path(outcome.report).parent.name)).corpus for name, outcome in outcomes.items()
    }
    assert (counts["rows"].rows, counts["rows"].rows_without_value) == (len(rows), 2)
    assert (counts["own"].rows, counts["own"].rows_without_value) == (None, None)
    facts = {
        store().facts(corpus)["name"]: store().facts(corpus) for corpus in store().handles() if corpus.kind == "corpus"
    }
    assert facts["rows"]["rows"] == {"rows": len(rows), "without_value": 2} and "rows" not in facts["own"]
    (project / "texts" / "own.jsonl").write_text("verse\nOne verse\n")
    with pytest.raises(CorpusError, match=r"own\.jsonl, line 1 is not JSON.*leave the file out"):
        train_gpt("rows", "tiny", Overrides.model_validate(QUICK))


def test_the_origin_of_an_extracted_text_names_the_version_of_the_library(project: Path) -> None:
    pytest.importorskip("resiliparse", reason="needs the extra html")
    verses = "".join(f"<p>{verse}</p>" for verse in (project / "texts" / "own.txt").read_text().splitlines())
    (project / "texts" / "own.html").write_text(f"<html><body><main>{verses}</main></body></html>")
    described = (project / "corpora" / "own.toml").read_text().replace("own.txt", "own.html")
    (project / "corpora" / "page.toml").write_text('format = "html"\n' + described)
    train_gpt("page", "tiny", Overrides.model_validate(QUICK))
    train_gpt("own", "tiny", Overrides.model_validate(QUICK))
    corpora = {store().facts(handle)["name"]: handle for handle in store().handles() if handle.kind == "corpus"}
    assert store().facts(corpora["page"])["format"] == "html" and "format" not in store().facts(corpora["own"])
    packages = store().origin(corpora["page"]).packages
    assert packages["resiliparse"] == version("resiliparse")
    assert "resiliparse" not in store().origin(corpora["own"]).packages


def test_another_learning_rate_trains_on_the_same_shards(caplog: pytest.LogCaptureFixture) -> None:
    run()
    did = ran(lambda: run(learning_rate=0.0123), caplog)
    for task in ("clean_corpus", "learn_vocabulary", "tokenize_corpus", "begin_training"):
        assert did[task] == "cached", task
    assert did["train_leg"] == "done"


def test_a_longer_training_continues_a_shorter_one_where_the_schedule_allows_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def legs(**changes: object) -> list[str]:
        caplog.clear()
        run(**changes)
        return [line.split()[1] for line in caplog.messages if line.startswith("train_leg ")]

    assert legs(schedule="constant", steps=4) == ["done"] * 2
    assert legs(schedule="constant", steps=8) == ["cached"] * 2 + ["done"] * 2
    assert "8 steps: this continues the run of 4 steps" in caplog.text
    # The last 20 % of the steps, which is two of ten, have a falling rate.
    assert legs(schedule="trapezoid", steps=10) == ["cached"] * 4 + ["done"]
    assert legs(schedule="trapezoid", steps=14) == ["cached"] * 4 + ["done"] * 3
    assert legs(schedule="linear", steps=4) == ["done"] * 2
    assert legs(schedule="linear", steps=6) == ["done"] * 3
    assert "the run of 4 steps cannot be continued, and training starts at step 0" in caplog.text


def test_another_memory_limit_trains_nothing(caplog: pytest.LogCaptureFixture) -> None:
    first = run()
    did = ran(lambda: limited("8GB"), caplog)
    assert did["train_leg"] == "cached"
    assert limited(8 * 10**9).model == first.model


def test_a_limit_is_kept_and_the_report_has_the_plan_beside_what_was_measured(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outcome = limited("8GB")
    (leg, *_) = [h for h in store().handles() if h.kind == "checkpoint" and store().facts(h)["step"] == 4]
    measured = store().origin(leg).measured
    assert 0 < measured["planned_peak_bytes"] < 8 * 10**9
    assert measured["execution"]["micro_batch"] >= 1
    assert "plan" not in store().origin(leg).spec
    cost = page_of(Report(digest=Path(outcome.report).parent.name)).cost
    assert cost.planned_peak_bytes == measured["planned_peak_bytes"]
    assert "planned peak memory" in Path(outcome.report).read_text(encoding="utf-8")
    assert any(line.startswith("plan: peak ") for line in caplog.messages)


def test_the_limit_can_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BARDFLOW_MEMORY_LIMIT", "1MB")
    with pytest.raises(TooLittleMemory, match="the least that would do"):
        run()
    run_within = limited("8GB")  # an argument of its own wins
    assert run_within.trained


def test_too_small_a_limit_is_refused_before_training(project: Path) -> None:
    with pytest.raises(BadLimit, match="800MB"):
        limited("plenty")
    assert not (project / "home" / "objects").exists()
    with pytest.raises(TooLittleMemory, match="the least that would do"):
        limited("1MB")
    assert not [h for h in store().handles() if h.kind == "checkpoint"]


def test_a_new_version_of_tokenize_does_not_refetch(caplog: pytest.LogCaptureFixture) -> None:
    run()
    version = tokenize_corpus.version
    tokenize_corpus.version = "a later one"
    try:
        did = ran(run, caplog)
    finally:
        tokenize_corpus.version = version
    assert did["clean_corpus"] == did["learn_vocabulary"] == "cached"
    assert did["tokenize_corpus"] == "done"
    # The bytes came out equal, so nothing after it ran.
    assert did["train_leg"] == did["evaluate_model"] == "cached"


def test_a_deleted_object_is_rebuilt_not_served(caplog: pytest.LogCaptureFixture) -> None:
    first = run()
    for kind in KINDS:
        place = sorted((store().objects / kind).iterdir())[0]
        shutil.rmtree(place)
        caplog.clear()
        second = run()
        assert second.model == first.model, kind
        if kind == "report":  # it tells when its lineage was made, and by now that was made again
            assert Path(second.report).is_file()
        else:
            assert place.is_dir(), kind
        if kind != "source":  # a source is always asked for, so there it is simply fetched
            assert "missing" in second.why, kind
            assert any("missing: making it again" in message for message in caplog.messages), kind


def test_a_damaged_object_is_rebuilt_not_served() -> None:
    first = run()
    for kind in KINDS:
        place = sorted((store().objects / kind).iterdir())[0]
        damaged = next(path for path in sorted(place.rglob("*")) if path.is_file() and path.name != "origin.json")
        damaged.chmod(0o644)
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
        second = run()
        assert second.model == first.model, kind
        assert [h for h in store().handles() if store().damage(h)] == [], kind
        if kind != "source":
            assert "damaged" in second.why, kind


def test_a_worse_challenger_is_not_promoted() -> None:
    good = run(steps=40, leg_steps=20)
    worse = run()
    assert worse.bits_per_character > good.bits_per_character
    assert not worse.champion_moved
    assert worse.champion == good.model
    assert "lost" in worse.verdict and f"{worse.bits_per_character - good.bits_per_character:.4f}" in worse.verdict


def test_a_better_challenger_takes_the_seat_and_the_history_says_why() -> None:
    worse = run()
    good = run(steps=40, leg_steps=20)
    assert good.champion_moved and good.champion == good.model
    history = refs().history("own/champion")
    assert [entry.digest for entry in history] == [worse.model, good.model]
    assert "less than the champion before it" in history[1].why


def test_a_rollback_puts_the_one_before_back_and_the_history_says_who_and_why() -> None:
    first, second, third = (run(steps=steps, leg_steps=steps).model for steps in (4, 40, 160))
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
    again = run(steps=160, leg_steps=160)
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


def test_training_stops_when_the_validation_loss_no_longer_falls_and_keeps_the_best_leg() -> None:
    # At a learning rate that destroys the model each leg is worse than the one before.
    outcome = run(steps=20, leg_steps=2, patience=2, learning_rate=3.0, muon_learning_rate=3.0, schedule="constant")
    legs = [h for h in store().handles() if h.kind == "checkpoint" and store().facts(h)["step"] > 0]
    steps = sorted(store().facts(leg)["step"] for leg in legs)
    losses = {store().facts(leg)["step"]: store().facts(leg)["validation_nats_per_token"] for leg in legs}
    best = min(losses, key=lambda step: (losses[step], step))
    assert steps[-1] < 20
    assert steps[-1] == best + 4
    assert store().facts(store().find(outcome.model))["step"] == best


def test_a_champion_is_scored_again_on_the_text_of_today(project: Path) -> None:
    first = run()
    assert evaluate_gpt(["own"]) == {"own": first.bits_per_character}
    text = project / "texts" / "own.txt"
    text.write_text(text.read_text().replace("bard", "drab"))
    scores = evaluate_gpt(["own"])
    assert scores["own"] != first.bits_per_character
    assert refs().history("own/champion")[-1].digest == first.model
    reports = [h for h in store().handles() if h.kind == "report"]
    assert len(reports) == 2


def test_a_corpus_that_cannot_be_scored_keeps_no_other_from_it_and_what_was_scored_has_a_name(project: Path) -> None:
    first = run()
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


def test_a_text_of_one_symbol_is_trained_on_compressed_and_reported(project: Path) -> None:
    (project / "texts" / "own.txt").write_text("a" * 5000)
    outcome = run(compress=True)
    assert outcome.bits_per_character == 0
    assert "The bits are real" in Path(outcome.report).read_text(encoding="utf-8")


def test_refreshing_says_what_changed_and_one_failure_hides_no_other_news(project: Path) -> None:
    assert refresh_corpora(["own"]) == {"own": "first seen"}
    with (project / "texts" / "own.txt").open("a") as text:
        text.write("一二三\n")
    (project / "corpora" / "gone.toml").write_text('title = "Gone"\n[source]\npath = "texts/gone.txt"\n')
    with pytest.raises(BardError, match="gone"):
        refresh_corpora()
    news = refs().history("own/text")[-1].why
    assert "+4 characters" in news and "+3 distinct" in news


def test_a_wrong_recipe_field_or_corpus_is_refused_before_anything_starts(project: Path) -> None:
    with pytest.raises(RecipeError, match="not divisible"):
        train_gpt("own", "tiny", Overrides(heads=3))
    with pytest.raises(CorpusError, match="own"):
        train_gpt("owl", "tiny", Overrides())
    assert not (project / "home" / "objects").exists()


def with_documents(project: Path, duplicates: str) -> None:
    """A corpus `notes` of 11 files, of which three repeat another one."""
    folder = project / "texts" / "notes"
    folder.mkdir(exist_ok=True)
    for number, part in enumerate([0, 1, 2, 3, 3, 4, 5, 6, 7, 2, 1]):
        changed = "!" * (number == 9)
        (folder / f"{number:02}.txt").write_text(own_text()[part * 1500 : part * 1500 + 1500] + changed)
    described = f'title = "Notes"\nduplicates = "{duplicates}"\n[source]\npath = "texts/notes"\n'
    split = '[documents]\ncut = "file"\n[split]\nby = "document"\nvalidation = 0.2\n'
    (project / "corpora" / "notes.toml").write_text(described + split)


def test_duplicates_are_counted_in_the_report_and_dropped_from_the_training_set(project: Path) -> None:
    quick = Overrides.model_validate(QUICK)
    seen: dict[str, Any] = {}
    for duplicates in ("keep", "drop"):
        with_documents(project, duplicates)
        outcome = train_gpt("notes", "tiny", quick)
        text = refs().head("notes/text")
        assert text is not None
        seen[duplicates] = store().facts(text.handle)
        [part] = [p for p in page_of(Report(digest=Path(outcome.report).parent.name)).parts if p.title == "Duplicates"]
        assert [row[1:] for row in part.tables[0].rows] == [(1, 0), (0, 0), (1, 1)]
        assert len(part.quotes) == 2
        html = Path(outcome.report).read_text(encoding="utf-8")
        assert "in the training set, of the validation set" in html
        assert ("so the score is too good" if duplicates == "keep" else "They were dropped") in html
    kept, dropped = seen["keep"], seen["drop"]
    assert kept["duplicates"] | {"dropped": True} == dropped["duplicates"]
    assert kept["text"]["validation_sha256"] == dropped["text"]["validation_sha256"]
    assert (kept["survey"]["documents"], dropped["survey"]["documents"]) == (11, 8)
    assert kept["survey"]["characters"] - dropped["survey"]["characters"] == dropped["duplicates"]["characters"] == 4500


def test_a_corpus_that_says_nothing_of_duplicates_keeps_its_digest_and_has_no_section(project: Path) -> None:
    outcome = run()
    text = refs().head("own/text")
    assert text is not None
    assert "duplicates" not in store().facts(text.handle)
    # As the commit before duplicates were counted made it.
    assert text.digest == "324249996583979174fb1ccbed506ba93179a83e06d5cca03ade8207dc8d1634"
    titles = [part.title for part in page_of(Report(digest=Path(outcome.report).parent.name)).parts]
    assert titles == ["Memorised"]
