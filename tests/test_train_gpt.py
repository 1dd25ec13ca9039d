"""The main job's laws: what was answered is not computed again, what changed is, and what is lost is made again."""

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from bardflow.errors import BardError
from bardflow.flows.refresh_corpora import refresh_corpora
from bardflow.flows.train_gpt import train_gpt
from bardflow.model.machine.memory import BadLimit
from bardflow.model.planning.plan import TooLittleMemory
from bardflow.outcome import Outcome
from bardflow.sources.corpora import load_corpus
from bardflow.sources.spec import CorpusError
from bardflow.storage.handles import KINDS, Corpus, Report
from bardflow.tasks.corpus import clean_corpus, fetch_source
from bardflow.tasks.recipes import Overrides, RecipeError
from bardflow.tasks.reporting import page_of
from bardflow.tasks.run import Run, refs, store
from bardflow.tasks.vocabulary import tokenize_corpus
from tests.conftest import own_text
from tests.quick import quickly, run

pytestmark = pytest.mark.usefixtures("prefect_server", "answers")


def limited(memory_limit: int | str) -> Outcome:
    return train_gpt("own", "tiny", quickly(), memory_limit)


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


def test_the_report_says_how_sure_the_difference_from_the_ngram_model_is() -> None:
    page = page_of(Report(digest=Path(run().report).parent.name))
    (ngram,) = [baseline for baseline in page.baselines if baseline.interval is not None]
    assert ngram.name == "7-gram" and ngram.interval is not None
    low, high = ngram.interval
    assert low < page.scores.bits_per_character - ngram.bits_per_character < high


@pytest.mark.parametrize("interrupted", ["split", "write_documents"])
def test_cleaning_does_not_count_again_what_an_interrupted_run_has_counted(
    interrupted: str, project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def cleaned() -> Corpus:
        with Run() as here:
            return here(clean_corpus, here(fetch_source, corpus), corpus)

    def stopped(*given: object) -> None:
        raise KeyboardInterrupt

    corpus = load_corpus("own", project / "corpora")
    with monkeypatch.context() as patch:
        patch.setattr(f"bardflow.tasks.corpus.{interrupted}", stopped)
        with pytest.raises(KeyboardInterrupt):
            flow(cleaned)()
    resumed = flow(cleaned)()
    assert "own: an interrupted run has counted the text already" in caplog.messages
    assert not list((project / "home" / "drafts").iterdir())
    shutil.rmtree(project / "home")
    assert flow(cleaned)() == resumed, "the same bytes as without an interruption"


@pytest.mark.usefixtures("quickly_answered")
def test_an_unchanged_source_trains_nothing(project: Path) -> None:
    first = run()
    text = project / "texts" / "own.txt"
    content = text.read_bytes()
    text.unlink()
    text.write_bytes(content)
    assert not run().trained
    assert refresh_corpora(["own"])["own"].startswith("unchanged")
    assert run().model == first.model


@pytest.mark.usefixtures("quickly_answered")
def test_another_corpus_with_the_same_text_trains_nothing_and_is_not_called_unchanged(project: Path) -> None:
    first = run()
    shutil.copy(project / "corpora" / "own.toml", project / "corpora" / "twin.toml")
    twin = run("twin")
    assert not twin.trained and twin.nats_per_token == first.nats_per_token
    assert "same tokens" in twin.why and "unchanged" not in twin.why


@pytest.mark.usefixtures("quickly_answered")
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


@pytest.mark.usefixtures("quickly_answered")
def test_a_report_counts_the_rows_that_were_left_out(project: Path) -> None:
    verses = (project / "texts" / "own.txt").read_text().splitlines()
    rows = [*({"verse": verse} for verse in verses), {"verse": None}, {"other": 7}]
    (project / "texts" / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    described = (project / "corpora" / "own.toml").read_text().replace("own.txt", "own.jsonl")
    (project / "corpora" / "rows.toml").write_text(described + '\n[rows]\nformat = "jsonl"\ncolumn = "verse"\n')
    outcomes = {name: run(name) for name in ("rows", "own")}
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
        run("rows")


@pytest.mark.usefixtures("quickly_answered")
def test_the_origin_of_an_extracted_text_names_the_version_of_the_library(project: Path) -> None:
    pytest.importorskip("resiliparse", reason="needs the extra html")
    verses = "".join(f"<p>{verse}</p>" for verse in (project / "texts" / "own.txt").read_text().splitlines())
    (project / "texts" / "own.html").write_text(f"<html><body><main>{verses}</main></body></html>")
    described = (project / "corpora" / "own.toml").read_text().replace("own.txt", "own.html")
    (project / "corpora" / "page.toml").write_text('format = "html"\n' + described)
    run("page")
    run()
    corpora = {store().facts(handle)["name"]: handle for handle in store().handles() if handle.kind == "corpus"}
    assert store().facts(corpora["page"])["format"] == "html" and "format" not in store().facts(corpora["own"])
    packages = store().origin(corpora["page"]).packages
    assert packages["resiliparse"] == version("resiliparse")
    assert "resiliparse" not in store().origin(corpora["own"]).packages


@pytest.mark.usefixtures("quickly_answered")
def test_another_learning_rate_trains_on_the_same_shards(caplog: pytest.LogCaptureFixture) -> None:
    run()
    did = ran(lambda: run(learning_rate=0.0123), caplog)
    for task in ("clean_corpus", "learn_vocabulary", "tokenize_corpus", "begin_training"):
        assert did[task] == "cached", task
    assert did["train_leg"] == "done"


@pytest.mark.slow
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


@pytest.mark.usefixtures("quickly_answered")
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


@pytest.mark.usefixtures("quickly_answered")
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
        assert (second.model, second.report) == (first.model, first.report), kind
        assert place.is_dir(), kind
        if kind != "source":  # a source is always asked for, so there it is simply fetched
            assert "missing" in second.why, kind
            assert any("missing: making it again" in message for message in caplog.messages), kind


def test_a_damaged_object_is_rebuilt_not_served(caplog: pytest.LogCaptureFixture) -> None:
    first = run()
    for kind in KINDS:
        place = sorted((store().objects / kind).iterdir())[0]
        damaged = next(path for path in sorted(place.rglob("*")) if path.is_file() and path.name != "origin.json")
        damaged.chmod(0o644)
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
        caplog.clear()
        second = run()
        assert second.model == first.model, kind
        assert [h for h in store().handles() if store().damage(h)] == [], kind
        if kind == "source":  # it is always fetched
            continue
        if damaged.name == "manifest.json":
            assert "was damaged: its manifest and origin are restored from their copies" in caplog.text, kind
        else:
            assert "damaged" in second.why, kind


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
    seen: dict[str, Any] = {}
    for duplicates in ("keep", "drop"):
        with_documents(project, duplicates)
        outcome = run("notes")
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


@pytest.mark.usefixtures("quickly_answered")
def test_a_corpus_that_says_nothing_of_duplicates_keeps_its_digest_and_has_no_section(project: Path) -> None:
    outcome = run()
    text = refs().head("own/text")
    assert text is not None
    assert "duplicates" not in store().facts(text.handle)
    # As the commit before duplicates were counted made it.
    assert text.digest == "324249996583979174fb1ccbed506ba93179a83e06d5cca03ade8207dc8d1634"
    titles = [part.title for part in page_of(Report(digest=Path(outcome.report).parent.name)).parts]
    assert titles == ["Memorised"]
