"""`bard notify`: addresses that are told of failures, new champions, changed texts and worse scores."""

import re
from typing import TYPE_CHECKING, Annotated
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit
from uuid import UUID

import typer

from bardflow.commands.console import AsJson, prepare_prefect, print_json, tell
from bardflow.errors import BardError
from bardflow.toml import closest

if TYPE_CHECKING:
    from prefect.automations import EventTrigger

notifications = typer.Typer(
    no_args_is_help=True, help="Hear of failures, new champions, changed texts and worse scores, by mail or chat."
)

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
MESSAGE = "{{ event.payload.message }}"
# What is told: the events that Prefect waits for, the subject and the text.
KINDS = {
    "failure": (
        ["prefect.flow-run.*"],
        "{{ flow.name }} {{ flow_run.state.name }}",
        "Run {{ flow_run.name }}: {{ flow_run.state.message }}\n{{ flow_run|ui_url }}",
    ),
    "champion": (["bardflow.champion.changed"], "New champion of {{ event.resource.name }}", MESSAGE),
    "text": (["bardflow.text.changed"], "The text of {{ event.resource.name }} changed", MESSAGE),
    "score": (["bardflow.score.worse"], "The champion of {{ event.resource.name }} got worse", MESSAGE),
    "budget": (["bardflow.budget.exceeded"], "The home is over its budget", MESSAGE),
}
Name = Annotated[str, typer.Argument(help="A name of your choice, such as me.")]


class NotifyError(BardError):
    """An address for notifications is not legal, does not exist, or was not reached."""


@notifications.command()
def add(
    name: Name,
    address: Annotated[
        str | None,
        typer.Argument(help="https://… or mailto://USER:PASSWORD@HOST?to=… [default: it is asked for]"),
    ] = None,
    on: Annotated[list[str], typer.Option(metavar="KIND", help=f"Only tell of: {', '.join(KINDS)}.")] = [],  # noqa: B006
) -> None:
    """Tell an address of failures, new champions, changed texts and worse scores, from now on."""
    prepare_prefect()
    for kind in on:
        if kind not in KINDS:
            raise NotifyError(f"--on {kind} is not one of {', '.join(KINDS)}{closest(kind, KINDS)}")
    if not NAME.fullmatch(name):
        raise NotifyError(f"{name!r} is not a name; a name has the letters a-z, digits and single hyphens, such as me")
    given = address or typer.prompt("Address (it is not shown)", hide_input=True, err=True)
    from prefect.automations import Automation, SendNotification
    from pydantic import SecretStr

    from bardflow.commands.notification_block import NotificationAddress
    from bardflow.commands.up import running_flows

    block = NotificationAddress(url=SecretStr(apprise_address(given)))
    with running_flows():
        identifier = block.save(name, overwrite=True)
        assert isinstance(identifier, UUID)  # not a coroutine: no event loop runs here
        delete_automations(name)
        for kind in on or KINDS:
            _, subject, body = KINDS[kind]
            Automation(
                name=title(name, kind),
                trigger=trigger(kind),
                actions=[SendNotification(block_document_id=identifier, subject=subject, body=body)],
            ).create()
    print(f"{name} is told of: {', '.join(on or KINDS)}. Send a message now: bard notify test {name}")


@notifications.command()
def test(name: Name) -> None:
    """Send a message to an address, to see that it arrives."""
    prepare_prefect()
    from prefect.blocks.abstract import NotificationError

    from bardflow.commands.notification_block import NotificationAddress
    from bardflow.commands.up import running_flows

    with running_flows():
        if name not in told():
            raise no_such(name)
        block = NotificationAddress.load(name)
        assert isinstance(block, NotificationAddress)
    with block.raise_on_failure():
        try:
            block.notify("This is a test: bardflow can reach this address.", subject="bardflow")
        except NotificationError as error:
            raise NotifyError(f"{name} was not reached: {error.log.strip()}") from error
    print(f"{name}: sent")


@notifications.command("list")
def list_addresses(as_json: AsJson = False) -> None:
    """List the addresses by name, and what each is told of."""
    prepare_prefect()
    from bardflow.commands.up import running_flows

    with running_flows():
        found = told()
    if as_json:
        print_json(found)
        return
    if not found:
        tell("Nobody is told of anything yet: `bard notify add NAME` adds an address.")
    for name, kinds in found.items():
        print(f"{name:<20}  {', '.join(kinds) or 'nothing'}")


@notifications.command()
def remove(name: Name) -> None:
    """Forget an address."""
    prepare_prefect()
    from bardflow.commands.notification_block import NotificationAddress
    from bardflow.commands.up import running_flows

    with running_flows():
        if name not in told():
            raise no_such(name)
        delete_automations(name)
        NotificationAddress.delete(name)
    print(f"{name} is told of nothing any more")


def title(name: str, kind: str) -> str:
    """Return the name of an automation."""
    return f"Tell {name}: {kind}"


def trigger(kind: str) -> "EventTrigger":
    """Return the trigger of an automation."""
    from prefect.automations import EventTrigger, Posture, ResourceSpecification

    match: dict[str, str | list[str]] = {}
    if kind == "failure":
        match = {"prefect.resource.id": "prefect.flow-run.*", "prefect.state-type": ["FAILED", "CRASHED"]}
    return EventTrigger(
        posture=Posture.Reactive, expect=set(KINDS[kind][0]), match=ResourceSpecification(match), threshold=1
    )


def told() -> dict[str, list[str]]:
    """Return the names of all addresses, and what each is told of."""
    from prefect.client.orchestration import get_client

    from bardflow.commands.notification_block import NotificationAddress

    slug = NotificationAddress.get_block_type_slug()
    with get_client(sync_client=True) as client:
        titles = {automation.name for automation in client.read_automations() if automation.enabled}
        blocks = client.read_block_documents_by_type(slug, limit=200)
    names = sorted(block.name for block in blocks if block.name)
    return {name: [kind for kind in KINDS if title(name, kind) in titles] for name in names}


def delete_automations(name: str) -> None:
    """Delete the automations of an address."""
    from prefect.client.orchestration import get_client

    titles = {title(name, kind) for kind in KINDS}
    with get_client(sync_client=True) as client:
        for automation in client.read_automations():
            if automation.name in titles:
                client.delete_automation(automation.id)


def no_such(name: str) -> NotifyError:
    """Return the error for a name without an address."""
    names = ", ".join(told()) or "none yet"
    return NotifyError(f"{name} is not an address for notifications; `bard notify add` adds one. There are: {names}")


def apprise_address(given: str) -> str:
    """Return an address in the form of Apprise (https://appriseit.com/services/), which also sends to other web hooks.

    Raises:
        NotifyError: it is not an address. The message does not contain it, because it may have a password.
    """
    from apprise import Apprise
    from apprise.logger import logger

    logger.disabled = True  # it would print an address that it does not know
    address = given.strip()
    parts = urlsplit(address)
    if parts.scheme in ("http", "https") and Apprise.instantiate(address) is None:
        # Apprise takes a query as its own settings, except names with a hyphen before them.
        pairs = [(f"-{name}", value) for name, value in parse_qsl(parts.query, keep_blank_values=True)]
        query = urlencode(pairs, quote_via=quote)
        address = urlunsplit(("jsons" if parts.scheme == "https" else "json", parts.netloc, parts.path, query, ""))
    elif parts.scheme in ("mailto", "mailtos") and "format=" not in parts.query:
        address += f"{'&' if parts.query else '?'}format=text"
    if Apprise.instantiate(address) is None:
        raise NotifyError(
            f"this is not an address for notifications (its scheme: {parts.scheme or 'none'}); give https://… for a "
            "web hook, mailto://USER:PASSWORD@HOST?to=ADDRESS for mail, or another address of "
            "https://appriseit.com/services/"
        )
    return address
