"""An empty database for Prefect's server, without the seconds that its migrations take.

`prefect_database.sql` is what the migrations of one version of Prefect make of an empty SQLite file.
`python -m tests.prefect_database` writes it for the installed version, and a test compares the two.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

SCHEMA = Path(__file__).with_name("prefect_database.sql")
# The first line, and what ends a statement.
VERSION_LINE, END = "-- Prefect {version}, SQLite\n", ";\n"


def ensure_database(file: Path, version: str) -> None:
    """Make the tables of Prefect's server in `file`, if it has none and the schema is for this version of Prefect.

    Otherwise nothing is done, and the server migrates the database itself, as it does with one of an older Prefect.
    """
    first_line, _, schema = SCHEMA.read_text(encoding="utf-8").partition("\n")
    if f"{first_line}\n" != VERSION_LINE.format(version=version):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file, isolation_level=None, timeout=60)) as database:
        if not is_empty(database):
            return
        database.execute("PRAGMA journal_mode = WAL")  # as the server sets it
        database.execute("BEGIN IMMEDIATE")
        if is_empty(database):  # no other server was first
            for statement in schema.split(END):
                database.execute(statement)
        database.execute("COMMIT")


def is_empty(database: sqlite3.Connection) -> bool:
    """Say whether a database has no tables."""
    return database.execute("SELECT 1 FROM sqlite_master").fetchone() is None
