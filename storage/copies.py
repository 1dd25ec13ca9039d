"""Copies: a second copy of each small file that nothing can make again, at the same path under `copies/`.

These are the manifests and origins of artifacts, the entries of names, the cached results of tasks and the layout
number. The first line of a copy is the sha256 of the rest. So a file that differs from its copy is damaged if the copy
is intact, and the copy shows that a file is missing.
"""

import shutil
from contextlib import suppress
from pathlib import Path

from bardflow.storage.disk import DRAFTS, sealed, unsealed, write_whole

COPIES = "copies"


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

    def remove(self, path: Path) -> None:
        """Delete the copy of a file, or of all files of a folder; no error if there is none."""
        place = self.place(path)
        if place.is_dir():
            shutil.rmtree(place)
        else:
            with suppress(FileNotFoundError, NotADirectoryError):
                place.unlink()
