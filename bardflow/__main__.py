"""Entry point of `bard` and `python -m bardflow`. It rejects Windows before it imports what Windows lacks."""

import sys

WINDOWS = (
    "bard: bardflow runs on Linux and macOS. On Windows, install it in WSL 2 "
    "(https://learn.microsoft.com/windows/wsl/install) and run it there."
)


def main() -> None:
    """Run the command line.

    Raises:
        SystemExit: the system is Windows; the message says what to do.
    """
    if sys.platform == "win32":
        sys.exit(WINDOWS)
    from bardflow.commands.cli import main as run

    run()


if __name__ == "__main__":
    main()
