"""README and docs: links lead somewhere, commands are legal, and the Python example runs."""

import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from bardflow.commands.cli import app
from tests.conftest import CHECKOUT, served_by
from tests.test_deployments import DEPLOYMENTS, flow_of

PAGES = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").glob("*.md")])
# The changelog tells of commands that are no more.
TODAY = [page for page in PAGES if page.name not in ("CHANGELOG.md", "LOG.md")]


def commands() -> Iterator[tuple[str, str]]:
    """Each command line of a block marked `sh`, with its page."""
    for page in TODAY:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.lstrip().startswith("#"):
                    yield page.name, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, heading = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


@pytest.mark.parametrize("words", [["trian"], ["train", "--recipee", "tiny"], ["corpus", "ad"], ["show", "a", "b"]])
def test_a_wrong_command_in_a_page_would_be_noticed(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"no command|[Nn]o such option|unexpected extra argument"):
        require_legal(words)


@pytest.mark.parametrize(("page", "line"), list(commands()))
def test_commands_are_legal(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, *rest = words or [""]
    if Path(program).name == "bard":
        require_legal(rest)
    elif program == "make":
        targets = set(re.findall(r"^([a-z]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
        for word in rest:
            assert word in targets or re.match(r"(CORPUS|RECIPE|SET|PORT|PYTHON)=", word), line
    elif Path(program).name == "prefect" and rest[:2] == ["deployment", "run"]:
        require_deployment(rest[2], [rest[i + 1] for i, word in enumerate(rest) if word in ("-p", "--param")])


def require_legal(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name, *words = words
        assert name in command.commands, f"bard has no command {name}"
        command = command.commands[name]
    if words and words[0] not in ("--help", "--version"):
        command.make_context(command.name, list(words))


def require_deployment(name: str, parameters: list[str]) -> None:
    flow_name, _, deployment = name.partition("/")
    found = [d for d in DEPLOYMENTS if d.name == (deployment or "default") and flow_of(d).name == flow_name]
    assert found, name
    known = inspect.signature(flow_of(found[0]).fn).parameters
    for parameter in parameters:
        assert parameter.partition("=")[0] in known, parameter


@pytest.mark.slow
def test_the_python_example_runs(
    project: Path, server_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    (project / "corpora" / "synthetic.toml").write_bytes((CHECKOUT / "corpora" / "synthetic.toml").read_bytes())
    [example] = re.findall(r"^```python\n(.*?)^```", (CHECKOUT / "docs" / "python.md").read_text(), re.M | re.DOTALL)
    with served_by(project / "home", server_url):
        exec(compile(example, "docs/python.md", "exec"), {})
    said = capsys.readouterr().out
    assert "report.html" in said and re.search(r"\d\.\d{3} nats per token, \d\.\d{3} bits per character\n$", said)
