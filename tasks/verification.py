"""Verification of the home with a progress bar."""

from bardflow.home import home
from bardflow.storage.garbage import size
from bardflow.storage.handles import Handle
from bardflow.storage.verifying import Finding, verify
from bardflow.tasks.saying import Progress


def look(only: Handle | None) -> list[Finding]:
    """Verify the home, or one artifact and all that it was made from; with a progress bar."""
    root = home()
    with Progress("verifying", "B", size(root / "objects") if only is None and root.is_dir() else None) as progress:
        return list(verify(root, only, checked=progress.advance))
