"""Commands for artifacts and their names."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bardflow.commands.console import (
    LOOPBACK,
    AsJson,
    OptionalRef,
    Ref,
    found,
    opened,
    prepare_prefect,
    print_json,
    print_table,
    tell,
)
from bardflow.errors import BardError
from bardflow.home import home

if TYPE_CHECKING:
    from bardflow.storage.handles import Report

artifacts = typer.Typer()


@artifacts.command()
def path(ref: Ref) -> None:
    """Print the folder of an artifact."""
    store, handle = found(ref)
    print(store.folder(handle))


@artifacts.command()
def show(ref: OptionalRef = None, as_json: AsJson = False) -> None:
    """Show an artifact: its facts and files, and the history of its name. Without REF, list all names."""
    if ref is None:
        list_names(as_json)
        return
    store, handle = found(ref)
    manifest, history = store.manifest(handle), opened()[1].history(ref) if "/" in ref else []
    if as_json:
        print_json(
            {
                "kind": type(handle).__name__,
                "digest": handle.digest,
                "folder": str(store.folder(handle)),
                "facts": manifest.facts,
                "files": {name: file.model_dump() for name, file in manifest.files.items()},
                "history": [entry.model_dump(mode="json") for entry in history],
            }
        )
        return
    print(f"{type(handle).__name__} {handle.digest}\n{store.folder(handle)}")
    print_table("facts", manifest.facts)
    print_table("files", {name: f"{file.bytes:,} bytes" for name, file in manifest.files.items()})
    if history:
        print("history")
        for entry in history:
            print(f"  {entry.number:>3}  {entry.at[:16]}  {entry.handle}  {entry.by}: {entry.why}")


def list_names(as_json: bool, *, only: Sequence[str] = ()) -> None:
    """Print each name and its artifact; `only` limits the kinds of artifacts."""
    _, refs = opened()
    heads = {name: head for name in refs.names() if (head := refs.head(name)) and (not only or head.kind in only)}
    if as_json:
        print_json({name: entry.model_dump(mode="json") for name, entry in heads.items()})
        return
    if not heads:
        tell("There are no artifacts with a name yet: `bard train` makes the first ones.")
    width = max(map(len, heads), default=0)
    for name, entry in heads.items():
        print(f"{name:<{width}}  {entry.handle!s:<20} {entry.at[:16]}  {entry.by}")


@artifacts.command()
def explain(ref: Ref, as_json: AsJson = False) -> None:
    """Show what an artifact was made from, back to the address and sha256 of its source."""
    from bardflow.storage.handles import Model, Source
    from bardflow.storage.lineage import lineage, source_address

    store, handle = found(ref)
    ancestors = lineage(store, handle)
    if as_json:
        print_json(
            [
                {
                    "kind": type(a.handle).__name__,
                    "digest": a.handle.digest,
                    "files": {name: file.model_dump() for name, file in a.manifest.files.items()},
                    "origin": a.origin.model_dump(mode="json"),
                }
                for a in ancestors
            ]
        )
        return
    for a in ancestors:
        print(f"{type(a.handle).__name__:<12} {a.handle.short}  {a.origin.at[:16]}  {a.origin.task}")
        for name, spelled in a.origin.inputs.items():
            print(f"{'':<12} from {name} {spelled.partition('/')[2][:8]}")
        if isinstance(a.handle, Model) and (address := a.origin.measured.get("address")):
            print(f"{'':<12} from {address}")
        if isinstance(a.handle, Source):
            declared, came_from = source_address(a.origin), a.origin.measured["address"]
            print(f"{'':<12} from {declared}{f', by way of {came_from}' if came_from != declared else ''}")
            for name, file in a.manifest.files.items():
                print(f"{'':<12} {name}: {file.bytes:,} bytes, sha256 {file.sha256}")


@artifacts.command()
def rollback(
    corpus: Annotated[str, typer.Argument(help="The corpus whose champion changes.")],
    to: Annotated[
        str | None, typer.Option(help="A number or digest from `bard show NAME/champion`. [default: the one before]")
    ] = None,
    why: Annotated[str | None, typer.Option(help="The reason, for the history.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make an earlier champion the champion again; active runs are not affected."""
    prepare_prefect()
    from getpass import getuser

    from bardflow.tasks.champion import rollback as roll_back

    before, now = roll_back(corpus.removesuffix("/champion"), to=to, by=f"rollback ({getuser()})", why=why)
    if as_json:
        print_json({"before": before.model_dump(mode="json"), "now": now.model_dump(mode="json")})
        return
    print(f"{corpus.removesuffix('/champion')}/champion was {before.handle}, is {now.handle}")
    print(f"its {now.number} moves: bard show {corpus.removesuffix('/champion')}/champion")


@artifacts.command()
def report(
    ref: Annotated[
        str | None, typer.Argument(metavar="REF", help="NAME/champion, NAME/RECIPE or a digest. [default: the index]")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Serve the index and all reports until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option(help="Where --serve listens.")] = 4201,
    host: Annotated[
        str, typer.Option(help="The address where --serve listens; others than 127.0.0.1 need a password.")
    ] = LOOPBACK,
) -> None:
    """Print the path of a report. Without REF, write the index of all reports and print its path."""
    prepare_prefect()
    if serve:
        from bardflow.commands.processes import reachable, require_free, require_password

        require_password(host)
        require_free(host, port)
        from bardflow.commands.web import reports_app
        from bardflow.commands.web import serve as serve_app

        print(f"reports: http://{reachable(host)}:{port} (Ctrl-C stops it)", flush=True)
        serve_app(reports_app(), host, port)
        return
    from bardflow.tasks.index import write_index
    from bardflow.tasks.reporting import html_of

    page = write_index() if ref is None else html_of(report_of(ref))
    print(page)
    if open_:
        import webbrowser

        if not webbrowser.open(page.as_uri()):
            raise BardError(f"no browser was found to open {page}")


@artifacts.command()
def metrics(
    ref: OptionalRef = None,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write them as a TensorBoard run there instead.")
    ] = None,
) -> None:
    """Print a run's loss curve as JSON lines: step, seconds, losses in nats per token, learning rate.

    Without REF, list the names that have one.
    """
    if ref is None:
        list_names(False, only=("model", "report"))
        return
    prepare_prefect()
    from bardflow.tasks.reporting import METRICS, page_of, write_tensorboard

    handle = report_of(ref)
    if tensorboard is not None:
        print(write_tensorboard(page_of(handle), tensorboard.expanduser()))
        return
    store, _ = found(handle.digest)
    print((store.folder(handle) / METRICS).read_text(encoding="utf-8"), end="")


@artifacts.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    keep_last: Annotated[int, typer.Option(min=1, help="How many last runs of each recipe are kept.")] = 1,
    keep_days: Annotated[float, typer.Option(min=0, help="What is younger than this number of days is kept.")] = 0,
    budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Delete only until the home fits, oldest first: 20GB.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Delete artifacts that no name refers to (garbage collection); waits until no run is active."""
    prepare_prefect()
    from bardflow.tasks.housekeeping import clean_up_home, policy_of

    done = clean_up_home(policy_of(keep_last, keep_days, budget), dry_run=dry_run)
    collected = done.collected
    if as_json:
        print_json(
            {
                "objects": [str(handle) for handle in collected.objects],
                "records": [str(handle) for handle in collected.records],
                "results": len(done.results),
                "bytes": collected.bytes,
                "left": collected.left,
                "over_budget": done.exceeded is not None,
                "dry_run": dry_run,
            }
        )
    else:
        for handle in collected.objects:
            print(handle)
        for handle in collected.records:
            print(f"{handle}: its files; its record stays")
        print(done.line("would be deleted" if dry_run else "deleted"))
    if done.exceeded:
        tell(f"Over the budget: {done.exceeded}")


@artifacts.command()
def verify(
    ref: OptionalRef = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make damaged artifacts again; move foreign files to set-aside/.")
    ] = False,
    remote: Annotated[
        bool, typer.Option("--remote", help="Check the remote instead; --repair sends what is damaged there again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the files of the home against their sha256; the exit status is 1 if something is damaged.

    With REF, only this artifact and what it was made from.
    """
    if remote:
        from bardflow.commands.remote_commands import verify_there

        verify_there(ref, repair, as_json)
        return
    prepare_prefect()
    from bardflow.storage.verifying import line, repaired
    from bardflow.tasks.locks import using_store
    from bardflow.tasks.verification import look

    with using_store():
        only = None if ref is None else found(ref)[1]
        findings = look(only)
        if repair and findings:
            if any(finding.repair == "make again" for finding in findings):
                from bardflow.commands.up import running_flows
                from bardflow.flows.verify_home import Damaged, verify_home

                with running_flows(), suppress(Damaged):  # what is left is listed below, and was logged with the reason
                    verify_home(ref, repair=True)
            else:
                for done in repaired(home(), findings):
                    tell(done)
            findings = look(only)
    harmful = sum(finding.harmful for finding in findings)
    if as_json:
        listed = [
            {
                "path": finding.path.as_posix(),
                "what": finding.what,
                "harmful": finding.harmful,
                "repair": finding.repair,
                "artifact": None if finding.handle is None else finding.handle.digest,
                "needed_by": finding.needed_by,
            }
            for finding in findings
        ]
        print_json({"harmful": harmful, "findings": listed})
    else:
        for finding in findings:
            print(line(finding))
        print(f"{harmful} damaged or missing files, {len(findings) - harmful} harmless findings")
    if harmful:
        raise BardError(
            "these cannot be repaired: what they were made from is gone or changed"
            if repair
            else "`bard verify --repair` repairs what can be repaired"
        )


ArchiveFile = Annotated[Path, typer.Argument(metavar="FILE", help="The backup, such as bardflow.tar.zst.")]


@artifacts.command()
def backup(file: ArchiveFile, as_json: AsJson = False) -> None:
    """Write a backup of all names and what they need to one file, and verify it."""
    from bardflow.storage.backup import back_up
    from bardflow.tasks.locks import using_store
    from bardflow.tasks.saying import Progress

    file = file.expanduser().absolute()
    with using_store(), Progress("backing up", "B") as progress:
        index = back_up(home(), file, progress=progress.advance)
    told = {"file": str(file), "files": len(index.files), "bytes": file.stat().st_size}
    if as_json:
        print_json(told)
    else:
        print(f"{file}: {len(index.files):,} files in {told['bytes']:,} bytes, verified")


@artifacts.command()
def restore(file: ArchiveFile, as_json: AsJson = False) -> None:
    """Restore a backup into a home without names; each file is verified before any is visible."""
    from bardflow.storage.backup import restore as restored
    from bardflow.tasks.locks import collecting_garbage
    from bardflow.tasks.saying import Progress

    with collecting_garbage(), Progress("restoring", "B") as progress:
        index = restored(file.expanduser().absolute(), home(), progress=progress.advance)
    if as_json:
        print_json({"home": str(home()), "files": len(index.files)})
    else:
        print(f"{home()}: {len(index.files):,} files restored and verified")
        list_names(False)


def report_of(ref: str) -> "Report":
    """Return the report of a run, given by name or digest.

    Raises:
        BardError: the artifact is not a report and has none.
    """
    from bardflow.storage.handles import Model, Report

    _, handle = found(ref)
    entry = opened()[1].head(ref) if "/" in ref else None
    if isinstance(handle, Model) and entry is not None:
        handle = Report(digest=entry.notes["report"])
    if not isinstance(handle, Report):
        raise BardError(
            f"{ref} is a {type(handle).__name__}, which has no page of its own; give NAME/champion, NAME/RECIPE, "
            "the digest of a Report, or nothing for the index"
        )
    return handle
