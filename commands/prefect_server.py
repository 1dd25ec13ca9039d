"""Prefect's command line, for a server that refuses requests of other web sites and knows our block.

Call it as `python -m bardflow.commands.prefect_server server start`.

Prefect's server takes a request without a Content-Type for JSON, which a browser sends to it from any page, and takes
any Host header. So a web page could start runs or clear the database.
"""

import os
import sqlite3
from pathlib import Path
from typing import Any

import prefect
import prefect.server.api.server as prefect_server
from prefect.cli import app
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_API_DATABASE_MIGRATE_ON_START
from sqlalchemy.engine import make_url

# The server looks for a block's class when an automation sends a notification.
from bardflow.commands.notification_block import NotificationAddress
from bardflow.commands.prefect_database import ensure_database
from bardflow.commands.web_guard import checked

__all__ = ["NotificationAddress"]

create_app = prefect_server.create_app


def create_checked_app(*given: Any, **named: Any) -> Any:
    """Return Prefect's server behind the checks; the UI may be opened by any name of this machine's own.

    Only the app that is served is asked for with `final`. The server itself uses the app in its own process, without
    checks and by a host name of its own: for the actions of automations, such as notifications.
    """
    app = create_app(*given, **named)
    if not named.get("final"):
        return app
    origins = os.environ.get("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "").split(",")
    return checked(app, os.environ["PREFECT_SERVER_API_HOST"], origins)


def database_file() -> Path | None:
    """Return the path of the server's SQLite database, or None if it has another database or may not migrate it."""
    address = PREFECT_API_DATABASE_CONNECTION_URL.value()
    url = make_url(address.get_secret_value() if hasattr(address, "get_secret_value") else address)
    is_file = url.get_backend_name() == "sqlite" and url.database and not url.database.startswith((":", "file:"))
    return Path(url.database) if is_file and PREFECT_API_DATABASE_MIGRATE_ON_START.value() else None


if __name__ == "__main__":
    if file := database_file():
        try:
            ensure_database(file, prefect.__version__)
        except sqlite3.Error as error:
            raise SystemExit(
                f"Prefect's database {file} cannot be used: {error}. If it is damaged, stop `bard up` and move it "
                "away; artifacts and names do not need it."
            ) from error
    prefect_server.create_app = create_checked_app
    app()
