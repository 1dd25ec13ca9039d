"""The empty database for Prefect's server is what Prefect's own migrations make."""

import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import prefect
import pytest

from bardflow.commands.prefect_database import END, SCHEMA, ensure_database
from tests.prefect_database import schema

# What to do when Prefect's version changes.
REMEDY = "run `python -m tests.prefect_database`"


def without_order(file: Path) -> list[list[str]]:
    """The lines of each statement, sorted: the migrations make constraints and indexes in any order."""
    return sorted(sorted(line.strip(", \t") for line in text.splitlines()) for text in file.read_text().split(END))


@pytest.mark.faults  # it waits for the migrations
def test_the_schema_is_what_the_migrations_of_the_installed_version_make(tmp_path: Path) -> None:
    written = tmp_path / "schema.sql"
    subprocess.run([sys.executable, "-m", "tests.prefect_database", str(written)], check=True)
    assert without_order(SCHEMA) == without_order(written), REMEDY


def test_a_new_file_gets_the_schema_of_the_installed_version(tmp_path: Path) -> None:
    file = tmp_path / "prefect" / "prefect.db"
    ensure_database(file, prefect.__version__)
    assert schema(file) == SCHEMA.read_text().partition("\n")[2] + ";", REMEDY
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_database_with_tables_stays_as_it_is_and_for_another_version_none_is_made(tmp_path: Path) -> None:
    file = tmp_path / "prefect.db"
    ensure_database(file, "3.0.0")
    assert not file.exists()
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE flow (name TEXT)")
    ensure_database(file, prefect.__version__)
    assert schema(file) == "CREATE TABLE flow (name TEXT);"


@pytest.mark.slow
def test_a_damaged_database_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").write_text("no database")
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_API_HOST": "127.0.0.1"}
    environment.pop("PREFECT_API_DATABASE_CONNECTION_URL", None)
    command = [sys.executable, "-m", "bardflow.commands.prefect_server", "server", "start"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{tmp_path}/prefect.db cannot be used: file is not a database" in done.stderr
    assert "move it away" in done.stderr


def test_servers_that_start_at_once_make_one_database(tmp_path: Path) -> None:
    file = tmp_path / "prefect.db"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: ensure_database(file, prefect.__version__), range(16)))
    assert schema(file).count("CREATE TABLE") == SCHEMA.read_text().count("CREATE TABLE")
