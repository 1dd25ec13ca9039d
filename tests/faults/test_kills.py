"""The short form of `tests/faults`: a few kills, two trainings at once, and several writers of one history."""

import random
from pathlib import Path

from tests.conftest import served_by
from tests.faults.kills import LEGS, Project, trained_by_command
from tests.faults.pairs import make_twin, moves, train_both, weights_of

SEED = 7


def test_killed_trainings_end_as_undisturbed_ones_and_two_at_once_train_each_leg_once(
    tmp_path: Path, server_url: str
) -> None:
    plain, killed = Project(tmp_path / "plain"), Project(tmp_path / "killed")
    make_twin(plain)
    with served_by(plain.home, server_url):
        [undisturbed] = train_both(plain, 1)
    assert plain.require_nothing_left()["legs"] == LEGS
    with served_by(killed.home, server_url):
        model, kills = trained_by_command(killed, 1, 2, random.Random(SEED))
    assert weights_of(killed, model) == undisturbed, f"seed {SEED}: {kills}"
    assert killed.require_nothing_left()["legs"] <= LEGS


def test_eight_processes_that_write_one_history_lose_no_entry(tmp_path: Path) -> None:
    moves(tmp_path, 8, 25)
