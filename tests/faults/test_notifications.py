"""A failed run, a new champion, a changed text and a worse score reach a web hook and a mailbox."""

import json
import random
import sys
import threading
from collections.abc import Callable, Iterator
from email import message_from_bytes
from email.header import decode_header, make_header
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller

from bardflow.commands import cli
from bardflow.commands.notify_commands import KINDS, NotifyError, apprise_address
from bardflow.commands.up import server
from bardflow.errors import BardError
from bardflow.flows.clean_up import clean_up
from bardflow.flows.evaluate_gpt import evaluate_gpt
from bardflow.flows.refresh_corpora import refresh_corpora
from bardflow.flows.train_gpt import train_gpt
from bardflow.tasks.recipes import Overrides
from tests.conftest import served_by
from tests.project_up import free_port, wait_for

SECRET = "open-sesame-7c1"
QUICK = Overrides.model_validate({"samples": 1, "sample_characters": 20})


class Hook:
    """A web hook on loopback that keeps what is posted to it."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.paths: list[str] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hook.paths.append(self.path)
                hook.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Keep the test's output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def said(self) -> list[str]:
        return [f"{post['title']}\n{post['message']}" for post in self.posts]


class Mailbox:
    """What an SMTP server on loopback was given."""

    def __init__(self) -> None:
        self.mails: list[bytes] = []

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:
        self.mails.append(envelope.content)
        return "250 OK"

    def said(self) -> list[str]:
        mails = [message_from_bytes(mail) for mail in self.mails]
        return [
            f"{make_header(decode_header(mail['Subject']))}\n"
            + "".join(str(part.get_payload(decode=True), "utf-8") for part in mail.walk() if not part.is_multipart())
            for mail in mails
        ]


@pytest.fixture
def hook() -> Iterator[Hook]:
    hook = Hook()
    yield hook
    hook.server.shutdown()
    hook.server.server_close()
    hook.thread.join()


@pytest.fixture
def mailbox() -> Iterator[tuple[Mailbox, int]]:
    mailbox, port = Mailbox(), free_port()
    controller = Controller(mailbox, hostname="127.0.0.1", port=port)
    controller.start()
    yield mailbox, port
    controller.stop()


@pytest.fixture
def bard(
    project: Path,
    prefect_server: None,
    answers: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Callable[..., int]]:
    """Type a `bard` command beside a running server with automations; returns its exit status."""
    from prefect.events.clients import NullEventsClient
    from prefect.events.worker import EventsWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    EventsWorker.set_client_override(None)

    def typed(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["bard", *arguments])
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BARDFLOW_HOME", str(tmp_path / "server"))
        serving = server()
        url = serving.__enter__()
    try:
        with temporary_settings({PREFECT_API_URL: url}), served_by(project / "home", url):
            yield typed
            EventsWorker.drain_all(timeout=60)  # a worker sends to the server of its first event
    finally:
        EventsWorker.set_client_override(NullEventsClient)
        monkeypatch.setenv("BARDFLOW_HOME", str(tmp_path / "server"))
        serving.__exit__(None, None, None)


def test_news_reach_a_web_hook_and_a_mailbox_and_secrets_no_file(
    project: Path,
    bard: Callable[..., int],
    hook: Hook,
    mailbox: tuple[Mailbox, int],
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    box, port = mailbox
    address = f"http://127.0.0.1:{hook.server.server_port}/hooks/{SECRET}?token={SECRET}"
    assert bard("notify", "add", "hook", address) == 0
    assert bard("notify", "add", "me", f"mailto://127.0.0.1:{port}?from=bard@example.org&to=me@example.org") == 0
    assert bard("notify", "add", "nobody", f"http://127.0.0.1:{free_port()}/{SECRET}", "--on", "text") == 0
    assert bard("notify", "test", "hook") == 0 and hook.said() == [
        "bardflow\nThis is a test: bardflow can reach this address."
    ]
    assert hook.paths == [f"/hooks/{SECRET}?token={SECRET}"]
    assert bard("notify", "test", "nobody") == 1
    capsys.readouterr()
    assert bard("notify", "list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"hook": list(KINDS), "me": list(KINDS), "nobody": ["text"]}

    with pytest.raises(BardError):
        train_gpt("owl", "tiny", QUICK)
    outcome = train_gpt("own", "tiny", QUICK)
    text = project / "texts" / "own.txt"
    letters = list(text.read_text())
    random.Random(1).shuffle(letters)
    text.write_text("".join(letters))
    refresh_corpora(["own"])
    evaluate_gpt(["own"])
    clean_up(keep_last=1, budget="1kB")
    wanted = [
        "train-gpt Failed\n",
        "New champion of own\n",
        "The text of own changed\n",
        "The champion of own got worse\n",
        "The home is over its budget\n",
    ]
    for said in (hook.said, box.said):
        for beginning in wanted:
            wait_for(
                lambda said=said, beginning=beginning: [one for one in said() if one.startswith(beginning)], beginning
            )
        [failed] = [one for one in said() if one.startswith(wanted[0])]
        assert "owl" in failed and "/runs/flow-run/" in failed
        [champion] = [one for one in said() if one.startswith(wanted[1])]
        assert f"{outcome.bits_per_character:.4f} bits per character" in champion

    # Again nothing is news.
    refresh_corpora(["own"])
    evaluate_gpt(["own"])
    with pytest.raises(BardError):
        train_gpt("owls", "tiny", QUICK)
    wait_for(lambda: [one for one in hook.said() if "owls" in one], "the second failure")
    assert len(hook.said()) == 1 + len(wanted) + 1

    base = tmp_path_factory.getbasetemp()
    holders = [path for path in base.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert holders == []
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err

    for name in ("hook", "me", "nobody"):
        assert bard("notify", "remove", name) == 0
    assert bard("notify", "remove", "me") == 1 and "There are: none yet" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [f"rubbish-{SECRET}", f"foo://{SECRET}", "mailto://", f"https://:{SECRET}@/"])
def test_what_is_no_address_is_refused_without_repeating_it(wrong: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotifyError, match="mailto://USER") as caught:
        apprise_address(wrong)
    said = capfd.readouterr()
    assert SECRET not in str(caught.value) + said.out + said.err


def test_the_query_of_a_web_hook_reaches_it_unchanged(hook: Hook) -> None:
    from apprise import Apprise

    address = f"http://127.0.0.1:{hook.server.server_port}/a/b?method=x&c=d%20e&empty="
    apprise = Apprise()
    apprise.add(apprise_address(address))
    assert apprise.notify("text")
    assert hook.paths == ["/a/b?method=x&c=d+e&empty="]
