"""Experiments over several trainings: equal budgets, one unit, and an answer that is kept."""

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from prefect.exceptions import ParameterTypeError
from pydantic import ValidationError

from bardflow.errors import BardError
from bardflow.flows.compare_vocabularies import compare_vocabularies
from bardflow.flows.evaluate_gpt import evaluate_gpt
from bardflow.flows.refresh_corpora import refresh_corpora
from bardflow.flows.scaling_ladder import of_size, scaling_ladder
from bardflow.flows.search import search
from bardflow.flows.train_gpt import train_gpt
from bardflow.flows.training import train_and_evaluate, with_steps
from bardflow.home import home
from bardflow.model.planning.ladder import WORTH, Fit, fit, foreseen_knee, knee
from bardflow.model.vocabulary import VocabularyError, VocabularySpec, learn
from bardflow.storage.handles import Report
from bardflow.storage.lineage import lineage
from bardflow.tasks.comparing import steps_of_the_fastest, strayed
from bardflow.tasks.ladder import RUNGS, heads_of, larger, learning_rate_factor
from bardflow.tasks.recipes import Overrides, RecipeError
from bardflow.tasks.run import refs, store
from bardflow.tasks.searching import Range
from bardflow.tasks.vocabulary import NoSuchVocabulary, vocabulary_named
from tests.conftest import CHECKOUT, RECIPES

SMALL = {"width": 16, "context": 16, "batch": 4, "samples": 1, "sample_characters": 20}


def page_of(name: str) -> dict[str, Any]:
    head = refs().head(name)
    assert head is not None
    page: dict[str, Any] = json.loads((store().folder(Report(digest=head.digest)) / "page.json").read_text())
    return page


@pytest.mark.slow
@pytest.mark.usefixtures("answers")
def test_vocabularies_are_compared_at_an_equal_budget_and_asked_again_nothing_is_trained(
    caplog: pytest.LogCaptureFixture, project: Path
) -> None:
    names = ["char", "bytes", "unigram-300", "wordpiece-540", "theirs.json"]
    theirs = learn(lambda: ["hear me speak. " * 99], VocabularySpec(kind="bpe", size=270), characters=9, unseen=False)
    theirs.add_special_tokens(["<|endoftext|>"])
    theirs.save(str(project / "theirs.json"))

    def run() -> Any:
        return compare_vocabularies(["own"], names, "tiny", Overrides.model_validate(SMALL), "characters", 1.0, 3000)

    where = run()
    assert Path(where).read_text().startswith("<!doctype html>")
    page = page_of("experiments/compare-vocabularies")
    [part] = page["parts"]
    [table] = part["tables"]
    column = {name: [row[i] for row in table["rows"]] for i, name in enumerate(table["columns"])}
    assert column["vocabulary"] == names
    assert column["tokens"][1:4] == [256, 300, 540] and column["tokens"][4] == theirs.get_vocab_size()
    seen = column["characters seen, M"]
    assert max(seen) - min(seen) <= 0.3 * max(seen), "equal, as far as whole steps allow"
    contexts = column["context, characters"]
    assert max(contexts) <= 1.6 * min(contexts)
    assert len(set(column["body"])) == 1
    best = min(range(len(names)), key=lambda i: float(column["bits per character"][i]))
    assert column["against the best"][best] == "the best" and table["best"] == best
    assert column["vocabulary"][best] in page["answer"][0]
    caplog.clear()
    assert run() == where
    assert not [line for line in caplog.messages if line.startswith("train_leg") and "done" in line]


@pytest.mark.slow
@pytest.mark.usefixtures("answers")
def test_an_equal_time_is_a_number_of_steps_that_stays_the_same(caplog: pytest.LogCaptureFixture) -> None:
    def run() -> Any:
        return compare_vocabularies(["own"], ["char", "bytes"], "tiny", Overrides.model_validate(SMALL), "time", 0.1)

    where = run()
    [table] = page_of("experiments/compare-vocabularies")["parts"][0]["tables"]
    assert all(row[table["columns"].index("steps")] >= 20 for row in table["rows"])
    caplog.clear()
    assert run() == where, "tried again, steps would take another time"
    assert not [line for line in caplog.messages if line.startswith("train_leg") and "done" in line]


def test_what_else_the_machine_does_costs_no_vocabulary_its_steps() -> None:
    quiet = [0.02, 0.01]
    for disturbed in ([0.1, 0.01], [0.02, 0.4], [0.1, 0.4]):
        assert steps_of_the_fastest([disturbed, quiet, disturbed], 4.0) == [200, 400]
    assert steps_of_the_fastest([[5.0], [9.0]], 4.0) == [20]


def test_what_trained_for_another_time_than_was_meant_is_told() -> None:
    assert strayed({"char": 60.0, "bytes": 68.9, "bpe": 51.1}, 60) == ""
    said = strayed({"char": 60.0, "bytes": 70.0, "bpe": 40.4}, 60)
    assert "counted out for 60 s" in said and said.endswith("more or less: bytes 70 s, bpe 40 s.")


@pytest.mark.slow
@pytest.mark.usefixtures("answers")
def test_a_ladder_stops_by_itself_where_a_larger_model_no_longer_pays() -> None:
    scaling_ladder("own", "tiny", Overrides.model_validate(SMALL | {"width": 48}), 3, 10.0, 2)
    page = page_of("experiments/scaling-ladder-own")
    [part] = page["parts"]
    [table] = part["tables"]
    assert [row[0] for row in table["rows"]] == ["2 x 48", "2 x 64", "3 x 80"]
    assert "Stopped by itself: 2 rungs in a row did not pay." in page["answer"][1]
    assert "3 layers of width 112" in page["answer"][2]


@pytest.mark.slow
@pytest.mark.usefixtures("answers")
def test_a_wrong_vocabulary_is_refused_before_anything_starts(project: Path) -> None:
    for name in ("words", "bpe", "bpe-12", "bpe-many", "char-100", "wordpiece-511", "unigram", "file-300"):
        with pytest.raises(NoSuchVocabulary, match="bpe-SIZE"):
            compare_vocabularies(["own"], ["char", name])
    with pytest.raises(VocabularyError, match=r"none\.json is not a file"):
        compare_vocabularies(["own"], ["char", "none.json"])
    assert not (project / "home" / "objects").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("answers")
def test_a_search_resumes_where_it_was_interrupted_and_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    space: Any = {"learning_rate": Range(low=1e-4, high=1e-1, log=True), "heads": [1, 2, 3]}
    quick = Overrides.model_validate(SMALL | {"steps": 4, "leg_steps": 2})

    def run(trials: int) -> Any:
        return search("own", "tiny", quick, space, trials)

    calls: list[int] = []

    def dies_at_the_third(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train_and_evaluate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("bardflow.flows.search.train_and_evaluate", dies_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            run(5)
    [log] = (home() / "searches").glob("*.log")

    def tried() -> list[Any]:
        storage = JournalStorage(JournalFileBackend(str(log)))
        return [trial.params for trial in optuna.load_study(study_name=log.stem, storage=storage).trials]

    begun = tried()
    where = run(5)
    assert tried()[: len(begun)] == begun, "what was tried stays tried"
    page = page_of("experiments/search-own")
    rows = page["parts"][0]["tables"][0]["rows"]
    # Width 16 has no three heads: such a trial counts, and has no score.
    assert 1 <= len(rows) <= 5
    assert [float(row[1]) for row in rows] == sorted(float(row[1]) for row in rows)
    assert not any("heads=3" in row[0] for row in rows)
    ended = tried()
    assert run(5) == where and tried() == ended
    assert run(6) is not None and len(tried()) == len(ended) + 1


@pytest.mark.slow
@pytest.mark.usefixtures("answers")
def test_a_hopeless_trial_stops_early_also_where_the_recipe_has_one_leg(caplog: pytest.LogCaptureFixture) -> None:
    # After four trials to compare with, each of the others learns nothing, or next to nothing.
    rates: Any = {"learning_rate": [1e-2, 3e-2, 1e-9, 1e-8]}
    quick = Overrides.model_validate(SMALL | {"steps": 8, "leg_steps": 8, "optimizer": "adamw"})
    search("own", "tiny", quick, rates, 10)
    rows = page_of("experiments/search-own")["parts"][0]["tables"][0]["rows"]
    stopped = [row for row in rows if row[2] == "stopped early"]
    assert stopped and "1e-0" in stopped[-1][0]
    assert float(stopped[-1][1]) > float(rows[0][1])
    assert not any("after step 8 of 8" in line for line in caplog.messages)


@pytest.mark.slow
@pytest.mark.usefixtures("answers")
def test_each_trials_error_is_its_own_ending_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    # No text of 20,000 characters has a window of 60,000; a vocabulary of 300 is no alphabet and merges less.
    space: Any = {"context": [16, 60_000], "heads": [1, 3]}
    quick = Overrides.model_validate(SMALL | {"steps": 4, "leg_steps": 2})
    where = search("own", "tiny", quick, space, 8)
    [part] = page_of("experiments/search-own")["parts"]
    scored = [row[0] for row in part["tables"][0]["rows"]]
    assert scored and set(scored) == {"context=16 heads=1"}
    assert any("context=60000" in said and "needs 60,001" in said for said in part["findings"])
    assert any("heads=3" in said and "not divisible" in said for said in part["findings"])
    assert len(scored) + len(part["findings"]) == 8
    caplog.clear()
    assert search("own", "tiny", quick, space, 8) == where, "what was tried stays tried, errors too"
    assert not [line for line in caplog.messages if line.startswith("trial ")]


@pytest.mark.slow
@pytest.mark.usefixtures("answers")
def test_a_search_in_which_every_trial_fails_says_why_and_ends() -> None:
    quick = Overrides.model_validate(SMALL | {"steps": 4, "leg_steps": 2})
    for _ in range(2):
        with pytest.raises(BardError, match=r"(?s)None of the 2 trials could be trained.*needs 60,001"):
            search("own", "tiny", quick, {"context": [60_000]}, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("answers")
def test_a_trial_that_ends_its_process_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = Overrides.model_validate(SMALL | {"steps": 4, "leg_steps": 2})
    deaths: list[int] = []

    def dies(run: Any, text: Any, chosen: Any, **kwargs: Any) -> Any:
        if chosen.training.learning_rate == 0.5:
            deaths.append(1)
            raise MemoryError("as good as a kill: the process does not come to write anything down")
        return train_and_evaluate(run, text, chosen, **kwargs)

    monkeypatch.setattr("bardflow.flows.search.train_and_evaluate", dies)

    def run() -> Any:
        return search("own", "tiny", quick, {"learning_rate": [0.5]}, 2)

    for attempt in range(1, 4):
        with pytest.raises(MemoryError):
            run()
        assert len(deaths) == attempt
    with pytest.raises(MemoryError):
        run()  # the second trial's first attempt: the first one is given up
    [log] = (home() / "searches").glob("*.log")
    storage = JournalStorage(JournalFileBackend(str(log)))
    attempts = [t.user_attrs.get("attempt", 1) for t in optuna.load_study(study_name=log.stem, storage=storage).trials]
    assert attempts == [1, 2, 3, 1]


@pytest.mark.slow
@pytest.mark.usefixtures("answers")
def test_a_trial_that_patience_ended_is_complete_and_not_pruned() -> None:
    # At such rates each leg is worse than the one before.
    quick = Overrides.model_validate(
        SMALL | {"steps": 20, "leg_steps": 2, "patience": 1, "schedule": "constant", "optimizer": "adamw"}
    )
    search("own", "tiny", quick, {"learning_rate": [3.0, 4.0]}, 2)
    [table] = page_of("experiments/search-own")["parts"][0]["tables"]
    assert {row[2] for row in table["rows"]} == {"its loss no longer fell"}
    assert "0 were stopped early" in page_of("experiments/search-own")["answer"][0]
    [log] = (home() / "searches").glob("*.log")
    storage = JournalStorage(JournalFileBackend(str(log)))
    states = {trial.state.name for trial in optuna.load_study(study_name=log.stem, storage=storage).trials}
    assert states == {"COMPLETE"}


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.usefixtures("answers")
def test_garbage_collection_meanwhile_takes_nothing_from_an_experiment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collections: list[subprocess.Popen[str]] = []

    def then_collected(*args: Any, **kwargs: Any) -> Any:
        trained = train_and_evaluate(*args, **kwargs)
        if not collections:
            command = [sys.executable, "-m", "bardflow.commands.cli", "gc", "--json"]
            pipe = subprocess.PIPE
            collections.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=CHECKOUT))
            assert collections[0].stderr is not None
            collections[0].stderr.readline()  # it waits and says so, or it is done
        return trained

    monkeypatch.setattr("bardflow.flows.scaling_ladder.train_and_evaluate", then_collected)
    where = scaling_ladder("own", "tiny", Overrides.model_validate(SMALL | {"width": 48}), 3, 10.0, 2)
    _, err = collections[0].communicate()
    assert collections[0].returncode == 0, err
    assert Path(where).is_file()
    head = refs().head("experiments/scaling-ladder-own")
    assert head is not None
    for ancestor in lineage(store(), head.handle):
        assert store().damage(ancestor.handle) is None


def test_every_number_and_list_that_a_flow_takes_has_bounds() -> None:
    for flow in (train_gpt, evaluate_gpt, refresh_corpora, compare_vocabularies, scaling_ladder, search):
        properties = flow.parameters.properties
        for name, described in properties.items():
            for way in described.get("anyOf", [described]):
                if way.get("type") in ("integer", "number") and name != "memory_limit":  # that is read by itself
                    assert "minimum" in way or "exclusiveMinimum" in way, f"{flow.name}: {name}"
                if way.get("type") == "array":
                    assert way.get("minItems"), f"{flow.name}: {name}"


@pytest.mark.slow
@pytest.mark.usefixtures("answers")
@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda: compare_vocabularies([]), "corpora"),
        (lambda: compare_vocabularies(["own"], []), "vocabularies"),
        (lambda: compare_vocabularies(["own"], seconds=0), "seconds"),
        (lambda: compare_vocabularies(["own"], seconds=float("nan")), "seconds"),
        (lambda: compare_vocabularies(["own"], budget="characters", characters=0), "characters"),
        (lambda: scaling_ladder("own", steps=0), "steps"),
        (lambda: scaling_ladder("own", patience=0), "patience"),
        (lambda: scaling_ladder("own", most_rungs=0), "most_rungs"),
        (lambda: scaling_ladder("own", least_gain=-1), "least_gain"),
        (lambda: search("own", trials=0), "trials"),
        (lambda: search("own", seed=-1), "seed"),
        (lambda: evaluate_gpt([]), "corpora"),
        (lambda: refresh_corpora([]), "corpora"),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name_before_anything_starts(run: Any, said: str, project: Path) -> None:
    with pytest.raises(ParameterTypeError, match=rf"invalid parameters:\s+- {said}"):
        run()
    assert not (project / "home" / "objects").exists()


def test_what_an_experiment_makes_of_a_recipe_is_a_legal_recipe() -> None:
    small = RECIPES["small"]
    assert with_steps(small, 1).training.steps == 1
    for wrong in (lambda: with_steps(small, 0), lambda: of_size(small.changed(learning_rate=9.0), 2, 48)):
        with pytest.raises(RecipeError, match=r"steps|learning_rate"):
            wrong()


@pytest.mark.slow
@pytest.mark.usefixtures("answers")
@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "no field to search over"),
        ({"learning_rat": [1.0]}, "did you mean 'learning_rate'"),
        ({"steps": []}, "is empty"),
        ({"learning_rate": [-1.0]}, "learning_rate"),
    ],
)
def test_a_search_over_nothing_or_over_what_is_no_field_is_refused(space: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        search("own", "tiny", Overrides.model_validate(SMALL), space, 2)


@pytest.mark.parametrize(("low", "high", "log"), [(2, 1, False), (0, 1, True), (1, 1, False)])
def test_a_range_runs_upward(low: int, high: int, log: bool) -> None:
    with pytest.raises(ValidationError, match="lower to a higher"):
        Range(low=low, high=high, log=log)


def test_vocabularies_have_names() -> None:
    assert vocabulary_named("bytes").size == 256
    assert vocabulary_named("bpe-char-8192").kind == "bpe-char"
    assert vocabulary_named("unigram-2048") == VocabularySpec(kind="unigram", size=2048)
    assert vocabulary_named("theirs/tokenizer.json") == VocabularySpec(kind="file", file="theirs/tokenizer.json")


@settings(max_examples=30)
@given(
    floor=st.floats(0.5, 3),
    exponent=st.floats(0.1, 0.8),
    scale=st.floats(10, 1e5),
)
def test_a_power_law_is_found_again(floor: float, exponent: float, scale: float) -> None:
    sizes = [5e4 * 2**i for i in range(8)]
    losses = [floor + (scale / n) ** exponent for n in sizes]
    found = fit(sizes, losses)
    assert found is not None
    span = losses[0] - losses[-1]
    assert all(abs(found.at(n) - loss) < 0.02 * span for n, loss in zip(sizes, losses, strict=True))


def test_points_that_do_not_fall_have_no_fit() -> None:
    assert fit([1, 2, 4, 8], [1.0, 1.1, 1.2, 1.3]) is None
    assert fit([1, 2, 4], [3.0, 2.0, 1.5]) is None


def test_the_knee_is_where_twice_the_cost_brings_less_than_it_should() -> None:
    costs = [1.0, 2, 4, 8, 16]
    assert knee(costs, [3.0, 2.5, 2.2, 2.19, 2.185]) == 2
    assert knee(costs, [3.0, 2.5, 2.6, 2.2, 2.19]) == 3, "one unlucky rung ends nothing"
    assert knee(costs, [3.0, 2.9, 2.8, 2.7, 2.6]) == 4
    just = [2.0 * (1 - 2 * WORTH) ** i for i in range(5)]
    assert knee(costs, just) == 4


def test_a_knee_that_was_not_met_is_foreseen_where_the_fit_no_longer_pays() -> None:
    sizes = [1e5 * 2**i for i in range(6)]
    curve = Fit(2.0, 20.0, 0.32)
    seen = foreseen_knee(curve, sizes, [n / 1e4 for n in sizes])
    assert seen is not None
    size, cost = seen
    assert size > sizes[-1] and math.isclose(cost, size / 1e4, rel_tol=1e-6)
    assert 1 - curve.at(2 * size) / curve.at(size) < WORTH <= 1 - curve.at(2 * size / 1.03) / curve.at(size / 1.03)
    assert foreseen_knee(Fit(0.0, 20.0, 0.5), sizes, sizes) is None, "it always pays"


def test_each_rung_has_about_twice_the_body_of_the_one_before_and_heads_that_fit() -> None:
    sizes = [12 * layers * width**2 for layers, width in RUNGS]
    assert sizes[0] < 60_000 and sizes[-1] > 40_000_000
    for a, b in pairwise(sizes):
        assert 1.5 <= b / a <= 2.7
    for layers, width in RUNGS:
        assert width % heads_of(width) == 0 and (width // heads_of(width)) % 2 == 0
        assert larger(layers, width)[0] * larger(layers, width)[1] ** 2 > layers * width**2
    assert np.isclose(learning_rate_factor(48, 192), 2) and learning_rate_factor(192, 192) == 1
