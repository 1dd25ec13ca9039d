"""A training run on a disk that is full again and again: `python -m tests.disk_faults [STEP]`.

The disk is a small tmpfs with a filler file. Each time the run fails for want of space, the home is verified, the
filler gives STEP bytes (default 4,096) back, and the run is started again, until it completes. So it fails at each
stage. It needs root, to mount. The Prefect server and its database are on another disk.
"""

import os
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from bardflow.errors import DiskError, disk_error
from bardflow.storage.garbage import stale_drafts
from bardflow.storage.refs import Entry, Refs
from bardflow.storage.store import Draft, H, Store
from bardflow.storage.verifying import verify

DISK_BYTES = 16 * 2**20
STEP_BYTES = 4096
QUICK = {"steps": 4, "leg_steps": 2, "width": 16, "context": 16, "batch": 4, "samples": 1, "sample_characters": 20}


def mountable() -> str | None:
    """Why nothing can be mounted here, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root on Linux can mount a tmpfs"
    done = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/tmp"], capture_output=True, text=True
    )
    return done.stderr.strip() or None if done.returncode else None


@contextmanager
def small_disk(at: Path, size: int = DISK_BYTES) -> Iterator[Path]:
    """A tmpfs of this many bytes at the path."""
    at.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "none", str(at)], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill a disk with a file until this many bytes are free."""
    filler = disk / "filler"
    found = os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - leave)
    return filler


def run_while_full(run: Callable[[], object], disk: Path, home: Path, step: int) -> Counter[str]:
    """Run again and again with `step` bytes more each time, and return where it failed how often.

    Each error must be one of a full disk, and the home must be intact each time.
    """
    filler, failed = fill(disk, 0), Counter[str]()
    while (error := error_of(run, home)) is not None:
        failed[where(error)] += 1
        os.truncate(filler, max(0, filler.stat().st_size - step))
        require_intact(home)
    return failed


def run_filled_before_each(run: Callable[[], object], disk: Path, home: Path) -> list[str]:
    """Run until it completes, on a disk that fills up just before each kind of artifact and each name is written.

    Returns the kinds and names before which the disk was full. The checks are those of `run_while_full`.
    """
    filled: list[str] = []

    def fill_before(what: str) -> None:
        if what not in filled:
            filled.append(what)
            fill(disk, 0)

    keep, move = Store.keep, Refs.move

    def filled_keep(self: Store, draft: Draft, kind: type[H], *more: Any, **named: Any) -> H:
        fill_before(kind.__name__)
        return keep(self, draft, kind, *more, **named)

    def filled_move(self: Refs, name: str, *more: Any, **named: Any) -> Entry:
        fill_before(name)
        return move(self, name, *more, **named)

    with patch.object(Store, "keep", filled_keep), patch.object(Refs, "move", filled_move):
        while error_of(run, home) is not None:
            (disk / "filler").unlink()
            require_intact(home)
    return filled


def error_of(run: Callable[[], object], home: Path) -> Exception | None:
    """Run, and return the error of a full disk; None if it completed. Any other error is raised."""
    try:
        run()
    except Exception as error:
        known = error if isinstance(error, DiskError) else disk_error(error, home)
        if known is None or "the disk is full" not in str(known):
            raise
        return error
    return None


def require_intact(home: Path) -> None:
    """Check that no file of the home is damaged and no draft is left."""
    harmful = [finding for finding in verify(home) if finding.harmful]
    assert not harmful, harmful
    assert stale_drafts(home / "drafts") == []


def where(error: Exception) -> str:
    """The task in which an error was raised, or else the function of ours."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    in_tasks = [frame.name for frame in frames if frame.filename.rpartition("/tasks/")[1]]
    return (in_tasks or [frame.name for frame in frames])[-1]


def main(step: int) -> None:
    """Run the long form, and print where it failed, and whether the model is that of an undisturbed run."""
    from bardflow.commands.up import server
    from tests.conftest import make_project

    with TemporaryDirectory() as folder, small_disk(Path(folder) / "disk") as disk:
        calm, tight = make_project(Path(folder) / "calm"), make_project(disk / "project")
        os.environ["BARDFLOW_PROJECT"] = str(calm)
        os.environ["BARDFLOW_HOME"] = str(calm / "home")
        with server() as url:
            os.environ["PREFECT_API_URL"] = url
            from prefect.settings import PREFECT_API_URL, PREFECT_LOCAL_STORAGE_PATH, temporary_settings

            from bardflow.flows.train_gpt import train_gpt
            from bardflow.tasks.recipes import Overrides

            def run(project: Path) -> str:
                os.environ["BARDFLOW_PROJECT"] = str(project)
                os.environ["BARDFLOW_HOME"] = str(project / "home")
                results = project / "home" / "prefect" / "results"
                try:
                    with temporary_settings({PREFECT_API_URL: url, PREFECT_LOCAL_STORAGE_PATH: results}):
                        return train_gpt("own", "tiny", Overrides.model_validate(QUICK)).model
                finally:
                    os.environ["BARDFLOW_HOME"] = str(calm / "home")

            expected = run(calm)
            failed = run_while_full(lambda: run(tight), disk, tight / "home", step)
            for name, count in sorted(failed.items()):
                print(f"{count:>5}  {name}")
            same = run(tight) == expected
            print(f"{failed.total()} failures, then completed; the same model as undisturbed: {same}")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else STEP_BYTES)
