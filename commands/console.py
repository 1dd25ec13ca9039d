"""Functions for all commands: set up Prefect, find an artifact, print."""

import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bardflow.home import home, prefect_environment, remote_address

if TYPE_CHECKING:
    from bardflow.storage.handles import Handle
    from bardflow.storage.refs import Refs
    from bardflow.storage.store import Store

# Commands import heavy modules inside their functions. So `bard --help` and `bard path` are fast, and Prefect is
# imported only after its settings are in the environment.

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Ref = Annotated[str, typer.Argument(metavar="REF", help="A name such as three-kingdoms/champion, or a digest's start.")]
OptionalRef = Annotated[
    str | None, typer.Argument(metavar="REF", help="A name such as three-kingdoms/champion, or a digest's start.")
]
LOOPBACK = "127.0.0.1"


def prepare_prefect() -> None:
    """Set up this process before Prefect is imported: Prefect's settings, and logging to the terminal."""
    os.environ.update(prefect_environment())
    # The terminal shows what the logger `bardflow` logs; Prefect's own lines go to its database.
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("bardflow")
    logger.addHandler(handler)
    logger.propagate = False


def found(ref: str) -> "tuple[Any, Handle]":
    """Return the store, and the handle that a REF refers to."""
    from bardflow.storage.refs import resolve

    store, refs = opened()
    return store, resolve(store, refs, ref)


def opened() -> "tuple[Store, Refs]":
    """Return the store and the names of the home, with its remote, without importing Prefect."""
    from bardflow.storage.refs import Refs
    from bardflow.storage.remote import remote_of
    from bardflow.storage.store import Store

    remote = remote_of(home(), *remote_address())
    return Store(home(), remote), Refs(home(), remote)


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(title: str, rows: dict[str, Any]) -> None:
    """Print a title, and a line for each name and value."""
    print(title)
    for name, value in rows.items():
        print(f"  {name:<24} {json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value}")


def tell(message: str) -> None:
    """Print a line on standard error."""
    print(message, file=sys.stderr)
