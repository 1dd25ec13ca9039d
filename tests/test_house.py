"""The house stands: who may import whom, what must not exist, and every task has a version and a key."""

import ast
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from prefect import Flow, Task
from pydantic import BaseModel

from storage.handles import Corpus, Vocabulary
from tasks.caching import SAME_QUESTION, SameQuestion, spelled
from tasks.vocabulary import learn_vocabulary

CHECKOUT = Path(__file__).resolve().parent.parent
ROOMS = ("flows", "tasks", "model", "storage", "sources", "pages", "bard")

FOR_EVERYONE = ("bard.errors", "bard.identity")
# What each room may import of ours beside that, and of what the others are for.
OURS = {
    "flows": {"flows", "tasks", "storage", "sources", "model", "pages", "bard.home"},
    "tasks": {"tasks", "model", "storage", "sources", "pages", "bard.home"},
    "model": {"model"},
    "storage": {"storage"},
    "sources": {"sources"},
    "pages": {"pages"},
    "bard": set(ROOMS) | {"bard.home"},
}
THEIRS = {
    "prefect": {"flows", "tasks", "bard"},
    "torch": {"model", "tasks"},
    "tokenizers": {"model", "tasks"},
    "pyarrow": {"storage"},
    "datasets": {"sources"},
    "httpx": {"sources", "bard"},
    "matplotlib": {"pages"},
    "jinja2": {"pages"},
    "typer": {"bard"},
}
FORBIDDEN_FILES = {"utils.py", "helpers.py", "common.py", "base.py", "misc.py"}


def modules(room: str) -> list[Path]:
    return sorted((CHECKOUT / room).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_in_one_direction(room: str) -> None:
    for path in modules(room):
        for name in imports(path):
            top = name.partition(".")[0]
            if top in ROOMS and name != "bard" and not name.startswith(FOR_EVERYONE):
                allowed = any(name == a or name.startswith(f"{a}.") for a in OURS[room])
                assert allowed, f"{path.relative_to(CHECKOUT)} imports {name}"
            if top in THEIRS:
                assert room in THEIRS[top], f"{path.relative_to(CHECKOUT)} imports {name}"


def test_model_imports_neither_prefect_nor_storage() -> None:
    names = [f"model.{path.stem}" for path in modules("model") if path.stem != "__init__"]
    above = ("prefect", "storage", "pyarrow", "datasets")
    check = f"import sys, {', '.join(names)}; print([m for m in sys.modules if m.partition('.')[0] in {above}])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert done.stdout.strip() == "[]"


def test_there_is_no_drawer() -> None:
    for room in ROOMS:
        for path in modules(room):
            assert path.name not in FORBIDDEN_FILES
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    assert not node.name.endswith(("Manager", "Factory")), f"{path}: {node.name}"


def members(room: str, kind: type) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in modules(room):
        module = importlib.import_module(f"{room}.{path.stem}" if path.stem != "__init__" else room)
        found |= {name: value for name, value in vars(module).items() if isinstance(value, kind)}
    return found


def test_every_task_has_a_version_and_a_policy_of_ours() -> None:
    tasks = members("tasks", Task)
    assert len(tasks) >= 10
    for name, task in tasks.items():
        assert isinstance(task, Task)
        assert task.version, name
        # Asked each time: only the source knows whether it changed, and only the machine what it has free.
        assert isinstance(task.cache_policy, SameQuestion) == (name not in ("fetch_source", "plan_training")), name


def test_what_is_left_out_of_a_key_is_an_argument_of_its_task() -> None:
    left_out = {}
    for name, task in members("tasks", Task).items():
        assert isinstance(task, Task)
        if isinstance(task.cache_policy, SameQuestion):
            assert set(task.cache_policy.circumstances) <= set(inspect.signature(task.fn).parameters), name
            left_out[name] = task.cache_policy.circumstances
    assert {name: arguments for name, arguments in left_out.items() if arguments} == {"train_leg": ("plan",)}


def test_a_circumstance_is_in_no_key_and_everything_else_is() -> None:
    def key(policy: SameQuestion, **inputs: Any) -> str | None:
        return policy.compute_key(SimpleNamespace(task=learn_vocabulary), inputs, {})  # type: ignore[arg-type]

    policy = SAME_QUESTION.apart_from("threads")
    assert key(policy, seed=1, threads=2) == key(policy, seed=1, threads=3) == key(SAME_QUESTION, seed=1)
    assert key(policy, seed=1, threads=2) != key(policy, seed=2, threads=2)
    assert key(policy, seed=1, threads={2}) == key(policy, seed=1, threads=2), "what is left out needs no spelling"
    assert SAME_QUESTION.circumstances == ()


def test_every_flow_is_deployed() -> None:
    deployed = (CHECKOUT / "prefect.yaml").read_text()
    for name, flow in members("flows", Flow).items():
        assert isinstance(flow, Flow)
        assert f"entrypoint: flows.{flow.fn.__module__.partition('.')[2]}:{flow.fn.__name__}" in deployed, name


KEY = """
import json, sys
from model.vocabulary import VocabularySpec
from storage.handles import Corpus
from tasks.caching import SAME_QUESTION
from tasks.vocabulary import learn_vocabulary
from types import SimpleNamespace
inputs = {"corpus": Corpus(digest="0" * 64), "spec": VocabularySpec(kind="bpe", size=512)}
print(SAME_QUESTION.compute_key(SimpleNamespace(task=learn_vocabulary), inputs, {}))
"""


def test_a_key_is_the_same_in_two_processes() -> None:
    keys = {
        subprocess.run(
            [sys.executable, "-c", KEY], capture_output=True, text=True, check=True, cwd=CHECKOUT,
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin", "PREFECT_PLUGINS_ENABLED": "false"},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(keys) == 1
    assert keys.pop().startswith("learn_vocabulary-1-")


def test_handles_of_different_kinds_ask_different_questions() -> None:
    digest = "ab" * 32
    assert json.dumps(spelled(Corpus(digest=digest))) != json.dumps(spelled(Vocabulary(digest=digest)))


def test_an_input_without_one_spelling_is_refused() -> None:
    with pytest.raises(TypeError, match="set"):
        spelled({1, 2})


def test_specs_are_frozen_and_closed() -> None:
    for room in ("model", "storage", "sources", "tasks"):
        for name, spec in members(room, type).items():
            if name.endswith("Spec") and isinstance(spec, type) and issubclass(spec, BaseModel):
                assert spec.model_config.get("frozen") and spec.model_config.get("extra") == "forbid", name


def test_no_test_has_a_deadline() -> None:
    assert settings().deadline is None
    assert HealthCheck.too_slow in settings().suppress_health_check
    for path in (CHECKOUT / "tests").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "deadline":
                assert path.name == "conftest.py", f"{path.name}:{node.value.lineno} sets a deadline"
