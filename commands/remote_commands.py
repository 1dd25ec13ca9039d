"""Commands for the remote of a home: send, receive, verify."""

from typing import TYPE_CHECKING, Annotated

import typer

from bardflow.commands.console import AsJson, OptionalRef, found, opened, print_json, tell
from bardflow.errors import BardError
from bardflow.home import home

if TYPE_CHECKING:
    from bardflow.storage.remote import Remote
    from bardflow.storage.remote.syncing import Synced

remotes = typer.Typer()


@remotes.command()
def push(ref: OptionalRef = None, as_json: AsJson = False) -> None:
    """Send names, the artifacts that they need, and cached results to the remote; what is there is not sent again.

    With REF, only this artifact and all that it was made from.
    """
    from bardflow.storage.remote import syncing
    from bardflow.tasks.locks import using_store
    from bardflow.tasks.saying import Progress

    remote = required()
    with using_store(), Progress("sending", "B") as progress:
        remote.writable()
        only = None if ref is None else [found(ref)[1]]
        done = syncing.push(home(), remote, only, progress=progress.advance)
    show(done, "sent", remote, as_json)


@remotes.command()
def pull(
    ref: OptionalRef = None,
    names_only: Annotated[
        bool, typer.Option("--names-only", help="Only names and lineage; files are received when they are read.")
    ] = False,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Take the history of the name REF there; move ours to set-aside/."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Receive names, the artifacts that they need, and cached results from the remote; each file is verified.

    With REF, only this artifact and all that it was made from.
    """
    from bardflow.storage.remote import syncing
    from bardflow.tasks.locks import using_store
    from bardflow.tasks.saying import Progress

    if replace and (ref is None or "/" not in ref):
        raise BardError("--replace needs a name, such as `bard pull tiny-shakespeare/champion --replace`")
    remote = required()
    with using_store(), Progress("receiving", "B") as progress:
        if remote.known() is None:
            raise BardError(f"{remote.where} is empty: `bard push` in the home that has the artifacts fills it")
        if replace:
            from bardflow.storage.refs import Refs
            from bardflow.storage.remote.names import RemoteNames

            assert ref is not None
            for path in RemoteNames(Refs(home()), remote).replace(ref):
                tell(f"moved to {path.relative_to(home())}")
        only = None if ref is None else [found(ref)[1]]
        done = syncing.pull(home(), remote, only, records=names_only, progress=progress.advance)
    show(done, "received", remote, as_json)


def show(done: "Synced", word: str, remote: "Remote", as_json: bool) -> None:
    """Print what was sent or received.

    Raises:
        BardError: something could not be.
    """
    if as_json:
        counts = {"files": done.files, "bytes": done.bytes, "entries": done.entries, "results": done.results}
        print_json({"remote": remote.address, **counts, "problems": done.problems})
    else:
        print(f"{remote.where}: {done.line(word)}")
    if done.problems:
        raise BardError("\n".join(done.problems))


def verify_there(ref: str | None, repair: bool, as_json: bool) -> None:
    """Read and hash every file of the remote, and print what is wrong.

    Raises:
        BardError: something is damaged, and was not repaired.
    """
    from bardflow.storage.remote.syncing import Harm, repair_remote, verify_remote
    from bardflow.tasks.locks import using_store
    from bardflow.tasks.saying import Progress

    if ref is not None:
        raise BardError("`bard verify --remote` checks the whole remote; leave out the name")
    remote = required()

    def look() -> list[Harm]:
        with Progress("verifying the remote", "B") as progress:
            return list(verify_remote(home(), remote, checked=progress.advance))

    with using_store():
        harms = look()
        if repair and any(harm.harmful for harm in harms):
            for done in repair_remote(home(), remote, harms):
                tell(done)
            harms = look()
    harmful = sum(harm.harmful for harm in harms)
    if as_json:
        listed = [
            {
                "key": harm.key,
                "what": harm.what,
                "harmful": harm.harmful,
                "artifact": None if harm.handle is None else harm.handle.digest,
            }
            for harm in harms
        ]
        print_json({"remote": remote.address, "harmful": harmful, "findings": listed})
    else:
        for harm in harms:
            print(f"{harm.key} {harm.what}{'' if harm.handle is None else f': {harm.handle}'}")
        print(f"{remote.where}: {harmful} damaged or missing files, {len(harms) - harmful} harmless findings")
    if harmful:
        raise BardError(
            "these were not repaired: this home does not have them intact; run it in the home that made them"
            if repair
            else "`bard verify --remote --repair` sends what this home has intact again"
        )


def required() -> "Remote":
    """Return the remote of the home.

    Raises:
        BardError: BARDFLOW_REMOTE is not set.
    """
    remote = opened()[0].remote
    if remote is None:
        from bardflow.storage.remote import SCHEMES

        raise BardError(f"this home has no remote: set BARDFLOW_REMOTE to an address such as {SCHEMES}")
    return remote
