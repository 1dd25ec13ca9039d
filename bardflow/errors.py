"""The base class of errors for users. The command line catches it and prints only the message."""

import errno
import re
from pathlib import Path

# Errors of a disk that takes no more bytes or no changes, with what to do.
DISK_ERRORS = {
    errno.ENOSPC: "the disk is full: free some space (`bard gc` deletes what no name refers to)",
    errno.EDQUOT: "your disk quota is used up: free some space (`bard gc` deletes what no name refers to)",
    errno.EROFS: "the disk is read-only: make it writable",
    errno.EACCES: "this user may not write there: change the owner or the mode of the folder, or the user",
    errno.EPERM: "this user may not change that: change the owner or the mode of the folder, or the user",
    errno.EIO: "the disk reports an error: check it (`dmesg`, `smartctl`)",
}
# Libraries in Rust and C++ give only a text, and SQLite has words of its own.
DISK_WORDS = {
    r"No space left on device|os error 28\b|database or disk is full": errno.ENOSPC,
    r"Read-only file system|os error 30\b|readonly database": errno.EROFS,
    r"Permission denied|os error 13\b": errno.EACCES,
}


class BardError(Exception):
    """An error that the user can correct. The message says what was given, what was expected and what to do."""


def installing(extra: str) -> str:
    """Return the command that installs an extra of this package, in a checkout or elsewhere."""
    if (Path(__file__).resolve().parent.parent / "constraints.txt").is_file():
        return f".venv/bin/pip install -c constraints.txt -e '.[{extra}]'"
    return f"pip install 'bardflow[{extra}]'"


class DiskError(BardError):
    """A file could not be written or read: the disk is full, read-only or broken, or permission is missing."""


def disk_error(error: BaseException, root: Path) -> DiskError | None:
    """Return an error for the user if this one, or its cause, is one of a disk; it names `root` if no path is known."""
    known: BaseException | None = error
    while known is not None and not isinstance(known, BardError):
        number = known.errno if isinstance(known, OSError) else None
        if number not in DISK_ERRORS:
            number = next((found for words, found in DISK_WORDS.items() if re.search(words, str(known))), None)
        if number is not None:
            path = getattr(known, "filename", None) or root
            return DiskError(f"{path}: {DISK_ERRORS[number]}, and run it again. Finished work is kept. ({known})")
        known = known.__cause__ or known.__context__
    return None
