"""The short form of `tests.faults.remote`: moves of one name from two homes, and a killed push and pull."""

import random
from pathlib import Path

import pytest

from tests.faults.remote import kills, moves
from tests.object_storage import CREDENTIALS, running_storage


def test_moves_from_two_homes_are_not_lost_and_a_killed_push_or_pull_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_storage(tmp_path / "served") as storage:
        for name, value in (CREDENTIALS | {"AWS_ENDPOINT": storage.url}).items():
            monkeypatch.setenv(name, value)
        moves(tmp_path, storage, 80)
        kills(tmp_path, storage, 4, random.Random(7))
