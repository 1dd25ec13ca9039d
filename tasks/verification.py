"""Verification of the home with a progress bar."""

from contextlib import suppress

from bardflow.home import home, remote_address
from bardflow.storage.garbage import size
from bardflow.storage.handles import Handle
from bardflow.storage.lineage import lineage
from bardflow.storage.manifests import StoreError
from bardflow.storage.remote import remote_of
from bardflow.storage.store import Store
from bardflow.storage.verifying import Finding, verify
from bardflow.tasks.saying import Progress


def look(only: Handle | None) -> list[Finding]:
    """Verify the home, or one artifact and all that it was made from; with a progress bar.

    What only the remote has is in the home as a record, and is not damage.
    """
    root = home()
    there = remote_of(root, *remote_address())
    if only is not None and there is not None:
        with suppress(StoreError):  # what is missing is found below
            lineage(Store(root, there), only)
    with Progress("verifying", "B", size(root / "objects") if only is None and root.is_dir() else None) as progress:
        return list(verify(root, only, checked=progress.advance))
