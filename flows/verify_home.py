"""Verify all files of the home, and make damaged artifacts again."""

from prefect import flow

from bardflow.errors import BardError
from bardflow.home import home
from bardflow.storage.garbage import names_that_need
from bardflow.storage.handles import Handle
from bardflow.storage.manifests import ObjectMissing
from bardflow.storage.refs import resolve
from bardflow.storage.verifying import forget, line, repaired, to_make
from bardflow.tasks.remaking import CannotMake, make_again
from bardflow.tasks.run import Run, refs, store
from bardflow.tasks.saying import say
from bardflow.tasks.verification import look


class Damaged(BardError):
    """The home has damaged or missing files."""


@flow(name="verify-home", description="Check all files of the home; make damaged artifacts again if asked to.")
def verify_home(ref: str | None = None, repair: bool = False) -> str:
    """Hash all files of the home, and return in words what was found.

    Args:
        ref: The digest of an artifact, to check only it and what it was made from. If left out, everything.
        repair: Restore, copy or make again what is damaged, and move foreign files to `set-aside/`.

    Raises:
        Damaged: something is damaged, and not repaired; the message lists it.
    """
    with Run() as run:
        only = None if ref is None else resolve(store(), refs(), ref)
        findings = look(only)
        if repair and findings:
            for done in repaired(home(), findings):
                say(done)
            lost = remade(run, to_make(home(), findings))
            findings = look(only)
            reasons = "".join(f"\n{why}" for why in lost.values())
        else:
            reasons = ""
    if harmful := [finding for finding in findings if finding.harmful]:
        advice = "" if repair else "\n`bard verify --repair` repairs what can be repaired"
        raise Damaged("\n".join(map(line, harmful)) + reasons + advice)
    return "\n".join(["all files are as they were stored", *map(line, findings)]) + reasons


def remade(run: Run, handles: list[Handle]) -> dict[Handle, str]:
    """Make artifacts again in the order of their lineage; return those that cannot be, with the reasons."""
    lost: dict[Handle, str] = {}
    for handle in handles:
        try:
            if store().damage(handle) is not None:  # another one may have made it meanwhile
                make_again(run, handle)
            elif (remote := store().remote_artifacts) is not None:
                remote.fetch(handle)
        except (CannotMake, ObjectMissing) as error:
            lost[handle] = str(error)
            say(str(error))
            if not names_that_need(store(), handle):
                forget(home(), handle)
    return lost
