"""Copies: a second copy of each small file that nothing can make again, at the same path under `copies/`.

These are the manifests and origins of artifacts, the entries of names, the cached results of tasks and the layout
number. The first line of a copy is the sha256 of the rest. So a file that differs from its copy is damaged if the copy
is intact, and the copy shows that a file is missing.
"""

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import mkstemp

DRAFTS = "drafts"
COPIES = "copies"


def sealed(content: bytes) -> bytes:
    """Return the content after a line with its sha256."""
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def unsealed(content: bytes) -> bytes | None:
    """Return what `sealed` was given, or None if a byte of it was changed since."""
    digest, _, rest = content.partition(b"\n")
    return rest if hashlib.sha256(rest).hexdigest().encode() == digest else None


def write_whole(path: Path, content: bytes, drafts: Path) -> None:
    """Write a file so that readers see all of it or nothing; `drafts` is a folder on the same file system.

    This does not call fsync: what is written so can be made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    drafts.mkdir(parents=True, exist_ok=True)
    number, draft = mkstemp(dir=drafts, prefix=f"{os.getpid()}-writing-")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            with suppress(OSError):  # some file systems have no modes
                os.fchmod(number, 0o644)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink()
        raise


class Copies:
    """The copies of a home's files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / COPIES

    def place(self, path: Path) -> Path:
        """The path of the copy of a file or folder of the home."""
        return self.folder / path.relative_to(self.root)

    def write(self, path: Path, content: bytes) -> None:
        """Store the content that a file of the home should have, unless the same copy is there."""
        if self.read(path) != content:
            write_whole(self.place(path), sealed(content), self.root / DRAFTS)

    def read(self, path: Path) -> bytes | None:
        """The content that a file of the home should have; None if there is no copy or the copy is damaged."""
        try:
            return unsealed(self.place(path).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def differs(self, path: Path, content: bytes) -> bool:
        """Whether there is an intact copy of a file, with other content."""
        return self.read(path) not in (None, content)

    def names(self, folder: Path, pattern: str) -> set[str]:
        """The names of the files of a folder that have a copy."""
        return {path.name for path in self.place(folder).glob(pattern)}

    def remove(self, path: Path) -> None:
        """Delete the copy of a file, or of all files of a folder; no error if there is none."""
        place = self.place(path)
        if place.is_dir():
            shutil.rmtree(place)
        else:
            with suppress(FileNotFoundError, NotADirectoryError):
                place.unlink()
