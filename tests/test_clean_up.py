"""The clean-up flow: what it keeps is served, what it deletes is made again, and champions stay explained."""

import os
from pathlib import Path

import pytest

from bardflow.flows.clean_up import clean_up
from bardflow.storage.handles import Model
from bardflow.storage.lineage import lineage
from bardflow.tasks.housekeeping import PolicyError, handle_in, policy_of
from bardflow.tasks.run import refs, store
from tests.quick import run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quickly_answered")]


def test_after_a_clean_up_what_it_kept_is_served_and_what_it_deleted_is_made_again(project: Path) -> None:
    first, other = run(), run(learning_rate=1e-9)
    text = project / "texts" / "own.txt"
    content = text.read_text()
    text.write_text(content + "!")
    second = run()
    assert second.champion_moved, "the former champion cannot spell this text"
    results = project / "home" / "results"
    orphan, fresh = results / ("0" * 32), results / ("1" * 32)
    for path in (orphan, fresh):
        path.write_bytes(b"a value that only one run refers to")
    os.utime(orphan, (0, 0))
    assert "0 artifacts, 1 cached results" in clean_up(keep_last=3, keep_days=14), "all runs are recent"
    assert not orphan.exists() and fresh.exists()

    assert "deleted" in clean_up(keep_last=1, keep_days=0)
    assert Model(digest=other.model) not in set(store().handles())
    kept = {handle_in(path) for path in results.iterdir()} - {None}
    assert Model(digest=second.model) in kept and kept <= set(store().handles())

    state = clean_up(keep_last=1, keep_days=0, budget="10 kB", return_state=True)
    assert state.name == "OverBudget" and "raise the budget" in str(state.message)
    for entry in refs().history("own/champion"):
        assert store().damage(entry.handle) is None
        assert lineage(store(), entry.handle)[0].handle.kind == "source"
    again = run()
    assert not again.trained and again.model == second.model
    text.write_text(content)
    back = run()
    assert back.trained and back.model == first.model and "a record" in back.why


def test_a_budget_that_is_no_size_is_refused() -> None:
    assert policy_of(1, 0, "1.5 GB").budget == 1_500_000_000
    for wrong in ("1,5GB", "much", "-1GB", "0"):
        with pytest.raises(PolicyError, match="20GB"):
            policy_of(1, 0, wrong)
