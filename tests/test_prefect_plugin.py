"""`prefect deployment run <flow>` means its default deployment, and every other command line stays as it is."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import prefect
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bardflow.commands.prefect_plugin import is_prefect, rewrite

PREFECT = str(Path(sys.executable).with_name("prefect"))


@pytest.mark.parametrize(
    "line",
    [
        "deployment run <train-gpt>",
        "deployments run <train-gpt>",
        "deployment run <train-gpt> --watch",
        "deployment run --watch <train-gpt>",
        "deployment run -p recipe=tiny <train-gpt>",
        "deployment run --param recipe=tiny --tag x <train-gpt>",
        "deployment run --param=recipe=tiny <train-gpt> --watch-timeout 5",
        'deployment run --params {"recipe":"tiny"} <train-gpt>',
        "deployment run --start-in 5m --flow-run-name mine -jv a=1 <train-gpt>",
        "deployment run -- <train-gpt>",
        "--no-prompt deployment run <train-gpt>",
        "-p default deployment run <train-gpt>",
        "--profile default deployment run <train-gpt>",
        "--profile=default deployment run <train-gpt>",
    ],
)
def test_a_bare_flow_name_is_read_as_its_default_deployment(line: str) -> None:
    typed = line.replace("<", "").replace(">", "").split()
    meant = line.replace("<", "").replace(">", "/default").split()
    assert rewrite([PREFECT, *typed]) == [PREFECT, *meant]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "deployment",
        "deployment run",
        "deployment run --help",
        "deployment run train-gpt/three-kingdoms",
        "deployment run --watch train-gpt/default",
        "deployment run --id 3aec13bb-1eea-494b-b1e1-4c6e461914a1",
        "deployment run --tag train-gpt",
        "deployment run --an-option-of-a-later-version train-gpt",
        "deployment run --",
        "deployment ls train-gpt",
        "deployment inspect train-gpt",
        "deployment --help run train-gpt",
        "flow-run ls run train-gpt",
        "work-pool create deployment run train-gpt",
        "--profile deployment run train-gpt",
    ],
)
def test_every_other_command_line_stays_as_it_is(line: str) -> None:
    assert rewrite([PREFECT, *line.split()]) == [PREFECT, *line.split()]


@given(st.lists(st.sampled_from(["deployment", "run", "a", "a/b", "-p", "--", "--watch", "--tag=x", "--x", "", "x=1"])))
def test_at_most_one_word_changes_and_reading_twice_is_reading_once(words: list[str]) -> None:
    once = rewrite([PREFECT, *words])
    changed = [(before, after) for before, after in zip([PREFECT, *words], once, strict=True) if before != after]
    assert [after for _, after in changed] == [f"{before}/default" for before, _ in changed][:1]
    assert rewrite(once) == once


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        (["/env/bin/prefect", "version"], ["/env/bin/python", "/env/bin/prefect", "version"], True),
        (["prefect.exe", "version"], ["prefect.exe", "version"], True),
        (["-m", "version"], ["python", "-m", "prefect", "version"], True),
        (["-m", "version"], ["python", "-X", "dev", "-mprefect", "version"], True),
        (["-m", "deployment", "run", "x"], ["python", "-m", "mine", "deployment", "run", "x"], False),
        (["-m", "prefect"], ["python", "-m", "mine", "prefect"], False),
        (["prefect.py", "version"], ["python", "prefect.py", "version"], False),
        (["-c", "version"], ["python", "-c", "import prefect", "version"], False),
        ([""], ["python"], False),
        ([], [], False),
    ],
)
def test_only_the_prefect_command_is_meant(argv: list[str], orig_argv: list[str], expected: bool) -> None:
    assert is_prefect(argv, orig_argv) is expected


class Recorder(BaseHTTPRequestHandler):
    """Answers as a server that has no deployment, and keeps what it was asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        known = {"/api/admin/version": f'"{prefect.__version__}"'.encode(), "/api/health": b"true"}
        body = known.get(self.path, b'{"detail": "Not found"}')
        self.send_response(200 if self.path in known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def recorder() -> Iterator[ThreadingHTTPServer]:
    handler = type("Handler", (Recorder,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "command", [[PREFECT], [sys.executable, "-m", "prefect"]], ids=["prefect", "python -m prefect"]
)
def test_the_real_command_asks_the_server_for_the_default_deployment(
    command: list[str], recorder: ThreadingHTTPServer, tmp_path: Path
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        f'[tool.prefect]\napi = {{ url = "http://127.0.0.1:{recorder.server_port}/api" }}\n'
        "[tool.prefect.plugins]\nenabled = true\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    done = subprocess.run(
        [*command, "deployment", "run", "-p", "recipe=tiny", "train-gpt"],
        cwd=tmp_path,
        env={**environment, "PREFECT_HOME": str(tmp_path / "home"), "DO_NOT_TRACK": "1", "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "/api/deployments/name/train-gpt/default" in recorder.RequestHandlerClass.asked  # type: ignore[attr-defined]
    assert done.returncode == 1
    assert done.stdout.split("\n")[-2:] == ["Deployment 'train-gpt/default' not found!", ""], done.stdout
    assert done.stderr == ""


def test_the_plugin_imports_neither_torch_nor_the_project() -> None:
    above = ("torch", "bardflow.model", "bardflow.commands.up")
    code = f"import sys, bardflow.commands.prefect_plugin; print([m for m in {above} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PREFECT_PLUGINS_ENABLED": "false"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout.strip() == "[]", done.stderr
