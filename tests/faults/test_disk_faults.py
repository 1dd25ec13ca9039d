"""A disk that is full, read-only or not ours: a clear error at each stage, an intact home, and a rerun that completes.

The long form is `python -m tests.disk_faults`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bardflow.errors import BardError, DiskError, disk_error
from bardflow.flows.train_gpt import train_gpt
from bardflow.storage.handles import KINDS, Vocabulary
from bardflow.storage.manifests import Origin
from bardflow.storage.store import Store
from bardflow.storage.verifying import verify
from bardflow.tasks.recipes import Overrides
from tests.conftest import CHECKOUT, make_project
from tests.disk_faults import (
    QUICK,
    fill,
    mountable,
    require_intact,
    run_filled_before_each,
    run_while_full,
    small_disk,
)

cannot = mountable()
mounts = pytest.mark.skipif(cannot is not None, reason=f"needs a small disk: {cannot}")
ORIGIN = Origin(task="make@1", inputs={}, spec={}, run=None, commit=None, packages={}, at="", measured={})


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@mounts
@pytest.mark.usefixtures("prefect_server")
def test_a_run_that_fills_the_disk_again_and_again_ends_with_the_same_model(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(project: Path) -> str:
        return trained_in(project, monkeypatch)

    tight, steady = make_project(disk / "tight"), make_project(disk / "steady")
    failed = run_while_full(lambda: run(tight), disk, tight / "home", 400_000)
    assert failed.total() >= 3 and len(failed) >= 2, failed
    filled = run_filled_before_each(lambda: run(steady), disk, steady / "home")
    assert set(filled) == {kind.__name__ for kind in KINDS.values()} | {"own/text", "own/tiny", "own/champion"}
    assert run(tight) == run(steady) == run(make_project(tmp_path / "calm"))
    # Prefect may have left half of a failed flow's own result, which nothing reads.
    require_intact(tight / "home")
    require_intact(steady / "home")


def trained_in(project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Train in a project by the flow, and return the model."""
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    monkeypatch.setenv("BARDFLOW_PROJECT", str(project))
    monkeypatch.setenv("BARDFLOW_HOME", str(project / "home"))
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: project / "home" / "prefect" / "results"}):
        return train_gpt("own", "tiny", Overrides.model_validate(QUICK)).model


def keep(store: Store) -> Vocabulary:
    with store.draft() as draft:
        (draft.folder / "file").write_bytes(b"x" * 20_000)
        return store.keep(draft, Vocabulary, {}, ORIGIN)


@mounts
def test_a_full_disk_can_be_read_and_verified(disk: Path) -> None:
    store = Store(disk / "home")
    handle = keep(store)
    filler = fill(disk, 0)
    assert store.folder(handle).is_dir()
    assert [finding for finding in verify(store.root) if finding.harmful] == []
    with pytest.raises(DiskError, match=r"the disk is full: free some space .* run it again"), store.draft() as draft:
        (draft.folder / "file").write_bytes(b"y" * 20_000)
    filler.unlink()
    assert list(store.drafts.iterdir()) == [] and keep(store) == handle


@mounts
def test_a_read_only_home_is_read_and_what_would_change_it_is_refused(disk: Path) -> None:
    project = make_project(disk / "project")
    store = Store(project / "home")
    handle = keep(store)
    environment = os.environ | {"BARDFLOW_PROJECT": str(project), "BARDFLOW_HOME": str(store.root)}

    def bard(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bardflow", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert bard("path", handle.short).stdout.strip() == str(store.place(handle))
    for words in (["train", "own", "--recipe", "tiny"], ["gc"]):
        done = bard(*words)
        assert done.returncode == 1 and "the disk is read-only: make it writable" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert keep(store) == handle and [finding for finding in verify(store.root) if finding.harmful] == []


AS_ANOTHER = """
import os, sys
from pathlib import Path
from bardflow.commands import cli
# This user may not read Python's own files where the tests run as root, so all is imported before.
import bardflow.storage.backup, bardflow.tasks.locks
os.setgroups([]), os.setgid(65534), os.setuid(65534)  # nobody
os.environ["HOME"] = sys.argv[1]
sys.argv = ["bard", *sys.argv[2:]]
cli.main()
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root can become another user")
def test_a_home_of_another_user_is_read_and_not_changed() -> None:
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        project = make_project(Path(folder) / "project")
        handle = keep(Store(project / "home"))
        environment = os.environ | {"BARDFLOW_PROJECT": str(project), "BARDFLOW_HOME": str(project / "home")}
        environment |= {"PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"}

        def bard(*words: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", AS_ANOTHER, folder, *words]
            return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)

        assert bard("path", handle.short).stdout.strip() == str(Store(project / "home").place(handle))
        for words in (["backup", f"{folder}/x.tar"], ["restore", f"{folder}/x.tar"]):
            done = bard(*words)
            assert done.returncode == 1 and "this user may not write there" in done.stderr, done.stderr
            assert "Traceback" not in done.stderr and str(project / "home") in done.stderr
        file = Store(project / "home").place(handle) / "file"
        file.chmod(0)
        done = bard("path", handle.short)
        assert done.returncode == 1 and "file cannot be read: Permission denied" in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "/x"), "/x: the disk is full"),
        (RuntimeError("Error while serializing: IoError(Os { code: 28, message: No space left on device })"), "full"),
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), "/home: the disk is full"),
        (OSError(30, "Read-only file system", "/x"), "/x: the disk is read-only"),
        (PermissionError(13, "Permission denied", "/x"), "may not write there"),
        (ValueError("a mistake of ours"), None),
        (FileNotFoundError(2, "No such file", "/x"), None),
    ],
)
def test_errors_of_a_disk_are_told_apart_from_mistakes(error: Exception, words: str | None) -> None:
    known = disk_error(error, Path("/home"))
    assert (known is None) if words is None else (isinstance(known, BardError) and words in str(known))
