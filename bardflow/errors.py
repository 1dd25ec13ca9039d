"""The base class of errors for users. The command line catches it and prints only the message."""

from pathlib import Path


class BardError(Exception):
    """An error that the user can correct. The message says what was given, what was expected and what to do."""


def installing(extra: str) -> str:
    """Return the command that installs an extra of this package, in a checkout or elsewhere."""
    if (Path(__file__).resolve().parent.parent / "constraints.txt").is_file():
        return f".venv/bin/pip install -c constraints.txt -e '.[{extra}]'"
    return f"pip install 'bardflow[{extra}]'"
