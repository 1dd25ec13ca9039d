"""`bard` and `python -m bardflow`: says on which systems it runs before anything is imported that others lack."""

import sys

WINDOWS = (
    "bard: bardflow runs on Linux and macOS. On Windows, install it in WSL 2 "
    "(https://learn.microsoft.com/windows/wsl/install) and run it there."
)


def main() -> None:
    """Run a command.

    Raises:
        SystemExit: this is Windows; the message says what to do.
    """
    if sys.platform == "win32":
        sys.exit(WINDOWS)
    from bardflow.commands.cli import main as run

    run()


if __name__ == "__main__":
    main()
