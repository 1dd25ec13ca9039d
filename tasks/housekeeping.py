"""Housekeeping: deleting what a policy does not keep, and cached results that are of no more use."""

import json
import re
import time
from pathlib import Path
from typing import NamedTuple

from prefect.settings import get_current_settings

from bardflow.errors import BardError
from bardflow.home import HISTORY_DAYS, home
from bardflow.model.machine import parsed_bytes
from bardflow.storage.garbage import Collected, Policy, collect_garbage
from bardflow.storage.handles import KINDS, Handle
from bardflow.storage.refs import Refs
from bardflow.storage.store import Store
from bardflow.tasks.locks import collecting_garbage
from bardflow.tasks.run import store

CLASSES = {kind.__name__: kind for kind in KINDS.values()}
# The name of a cached result (tasks/caching.py). Results with other names belong to one run.
CACHED = re.compile(r"\w+-\d+-[0-9a-f]{64}")


class PolicyError(BardError):
    """A clean-up's budget is not a size."""


class CleanUp(NamedTuple):
    """What a clean-up deleted: artifacts, and files of Prefect's results."""

    collected: Collected
    results: list[Path]
    policy: Policy

    @property
    def exceeded(self) -> str | None:
        """Say that what the policy keeps is larger than the budget; None if it fits."""
        left, budget = self.collected.left, self.policy.budget
        if left is None or budget is None or left <= budget:
            return None
        return (
            f"the home has {in_size(left)}, and the budget is {in_size(budget)}. All of it is kept by the policy "
            f"(champions, the last {self.policy.keep_last} of each name, what is younger than "
            f"{self.policy.keep_days:g} days): lower keep_last or keep_days, or raise the budget"
        )

    def line(self, done: str) -> str:
        """Return a summary in one line; `done` is a word such as `deleted`."""
        collected = self.collected
        parts = [f"{len(collected.objects)} artifacts"]
        parts += [f"{len(collected.drafts)} unfinished ones"] if collected.drafts else []
        parts += [f"{len(self.results)} cached results"] if self.results else []
        parts += (
            [f"the files of {len(collected.records)} artifacts behind former champions"] if collected.records else []
        )
        left = "" if collected.left is None else f"; the home has {in_size(collected.left)}"
        return f"{', '.join(parts)}, {collected.bytes:,} bytes, {done}{left}"


def policy_of(keep_last: int, keep_days: float, budget: str | None) -> Policy:
    """Return the policy with these values.

    Raises:
        PolicyError: the budget is not a size such as 20GB.
    """
    size = None if budget is None else parsed_bytes(budget)
    if size == 0:
        raise PolicyError(f"the budget is {budget!r}, but a size such as 20GB, 500MB or 1.5TiB is expected")
    return Policy(keep_last=keep_last, keep_days=keep_days, budget=size)


def clean_up_home(policy: Policy, *, dry_run: bool = False) -> CleanUp:
    """Delete what the policy does not keep and cached results without their artifact; waits for active runs to end.

    Only this home changes, not its remote.

    Raises:
        storage.manifests.StoreError: an entry or an origin cannot be read. Nothing is deleted then.
    """
    with collecting_garbage():
        collected = collect_garbage(Store(home()), Refs(home()), policy, dry_run=dry_run)
        folder = get_current_settings().results.local_storage_path
        useless = [path for path in files_in(folder) if is_useless(path, set(collected.objects))]
        if not dry_run:
            for path in useless:
                path.unlink(missing_ok=True)
    return CleanUp(collected, useless, policy)


def files_in(folder: Path) -> list[Path]:
    """Return the files of a folder, sorted; none if it does not exist."""
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def is_useless(result: Path, deleted: set[Handle]) -> bool:
    """Return whether a result's artifact is gone or in `deleted`, or its run is older than Prefect's history."""
    handle = handle_in(result)
    if handle is not None and (handle in deleted or not store().place(handle).exists()):
        return True
    return not CACHED.fullmatch(result.name) and time.time() - result.stat().st_mtime > HISTORY_DAYS * 86_400


def handle_in(result: Path) -> Handle | None:
    """Return the handle in one of Prefect's result files; None if it has another value or cannot be read."""
    try:
        value = json.loads(json.loads(result.read_bytes())["result"])
        return CLASSES[value["__class__"].rpartition(".")[2]].model_validate(value["data"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def in_size(count: int) -> str:
    """Format bytes with three digits and a unit, such as `1.23 GB`."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"
