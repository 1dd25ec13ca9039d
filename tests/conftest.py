"""What several test files need: one Prefect server for all flows, and a project folder of its own for each test."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set before anything imports Prefect, as `bard` does for its own processes.
os.environ.update(
    DO_NOT_TRACK="1",
    PREFECT_PLUGINS_ENABLED="false",
    PREFECT_RESULTS_PERSIST_BY_DEFAULT="true",
    PREFECT_RESULTS_DEFAULT_SERIALIZER="json",
    PREFECT_LOGGING_TO_API_ENABLED="false",
    # The tests' models are so small that a second thread only waits, and on a busy machine it waits long.
    OMP_NUM_THREADS="1",
)

CHECKOUT = Path(__file__).resolve().parent.parent

SMALL_CORPUS = """
title = "A test's own text"
language = "en"
licence = "CC0-1.0"

[source]
path = "texts/own.txt"
"""


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real Prefect server with a database of its own; without the heartbeat, which costs each flow a second."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with one small corpus, `own`, and a home of its own: what BARDFLOW_PROJECT and _HOME name."""
    folder = tmp_path / "project"
    (folder / "corpora").mkdir(parents=True)
    (folder / "texts").mkdir()
    shutil.copy(CHECKOUT / "prefect.yaml", folder)
    (folder / "corpora" / "own.toml").write_text(SMALL_CORPUS)
    (folder / "texts" / "own.txt").write_text(own_text())
    monkeypatch.setenv("BARDFLOW_PROJECT", str(folder))
    monkeypatch.setenv("BARDFLOW_HOME", str(folder / "home"))
    monkeypatch.delenv("CORPORA_MIRROR", raising=False)
    return folder


def own_text() -> str:
    """About 20,000 characters with something to learn in them."""
    return "".join(f"Verse {n}: {'the old bard sings of flow ' * (1 + n % 3)}and {n * n} more.\n" for n in range(260))
