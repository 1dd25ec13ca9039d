"""Write `commands/prefect_database.sql` for the installed version of Prefect."""

import asyncio
import os
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from bardflow.commands.prefect_database import END, SCHEMA, VERSION_LINE


def schema(file: Path) -> str:
    """Return the SQL that makes the tables, indexes and rows of an SQLite database."""
    with closing(sqlite3.connect(file)) as database:
        statements = [line for line in database.iterdump() if line not in ("BEGIN TRANSACTION;", "COMMIT;")]
    return "\n".join(statements)


def migrate(file: Path) -> str:
    """Let Prefect's migrations make a database, and return Prefect's version. Takes seconds; for a new process."""
    os.environ |= {
        "PREFECT_HOME": str(file.parent),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{file}",
    }
    import prefect
    from prefect.server.database import provide_database_interface

    async def create() -> None:
        interface = provide_database_interface()
        await interface.create_db()
        await (await interface.engine()).dispose()

    asyncio.run(create())
    return prefect.__version__


def write(to: Path) -> None:
    """Write the schema of the installed version of Prefect."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prefect.db"
        version = migrate(file)
        to.write_text(VERSION_LINE.format(version=version) + schema(file).removesuffix(END.strip()), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else SCHEMA)
