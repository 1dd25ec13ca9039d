"""Folders of artifacts on the machines that need them: read where the home is shared, else copied through Ray."""

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bardflow.engine.cluster import ClusterError
from bardflow.storage.manifests import MANIFEST, Manifest

# Bytes that are sent at once.
PIECE = 16 * 2**20


@dataclass(frozen=True)
class Folder:
    """An artifact's folder on a node of the cluster. `path` ends with the digest, so equal paths have equal files."""

    path: str
    digest: str
    node: str

    def here(self, cache: Path) -> Path:
        """Return the folder on this machine: the same path if it is there (a shared disk), else a copy in `cache`.

        Raises:
            ClusterError: as `copied`.
        """
        path = Path(self.path)
        return path if _digest(path) == self.digest else self.copied(cache)

    def copied(self, cache: Path) -> Path:
        """Return the copy of the folder in `cache`, which is fetched from its node if it is not there.

        Raises:
            ClusterError: a file came with another sha256 than its manifest says.
        """
        copy = cache / self.digest
        if _digest(copy) == self.digest:
            return copy
        cache.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".", dir=cache))
        try:
            fetch(self.node, Path(self.path), draft, [MANIFEST])
            require_sha256(draft / MANIFEST, self.digest)
            manifest = Manifest.model_validate_json((draft / MANIFEST).read_bytes())
            fetch(self.node, Path(self.path), draft, sorted(manifest.files))
            for name, facts in manifest.files.items():
                require_sha256(draft / name, facts.sha256)
            try:
                draft.rename(copy)
            except OSError:  # another worker of this machine was first
                if _digest(copy) != self.digest:
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return copy


def _digest(folder: Path) -> str | None:
    """Return the digest of the artifact in a folder, or None if there is none."""
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def require_sha256(path: Path, expected: str) -> None:
    """Check a file that came from another machine.

    Raises:
        ClusterError: it has another sha256.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ClusterError(f"{path.name} came with sha256 {found} from another machine, but it has {expected} there")


def fetch(node: str, folder: Path, into: Path, names: list[str]) -> None:
    """Copy files of a folder on a node of the cluster into a folder of this machine."""
    for name in names:
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        with (into / name).open("wb") as file:
            for piece in pieces(node, str(folder / name)):
                file.write(piece)


def pieces(node: str, path: str) -> Iterator[bytes]:
    """Yield the bytes of a file on a node; two pieces are on their way at once."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    read: Any = ray.remote(num_cpus=0, scheduling_strategy=there)(read_piece)
    offset, ahead = 0, read.remote(path, 0)
    while True:
        now, ahead = ahead, read.remote(path, offset + PIECE)
        piece: bytes = ray.get(now)
        if not piece:
            return
        yield piece
        offset += PIECE


def read_piece(path: str, offset: int) -> bytes:
    """Return up to PIECE bytes of a file."""
    with Path(path).open("rb") as file:
        file.seek(offset)
        return file.read(PIECE)


def cache_folder() -> Path:
    """Return this user's folder for copies of artifacts on a machine without the home.

    Raises:
        ClusterError: another user made a folder of this name.
    """
    folder = Path(tempfile.gettempdir()) / f"bardflow-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ClusterError(f"{folder} belongs to another user; delete it, or set TMPDIR on this machine")
    return folder
