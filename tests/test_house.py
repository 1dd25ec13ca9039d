"""The house stands: who may import whom, what must not exist, and every task has a version and a key."""

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from prefect import Flow, Task
from pydantic import BaseModel

from bardflow.storage.handles import Corpus, Vocabulary
from bardflow.tasks.caching import CACHE_BY_INPUTS, CacheByInputs, canonical
from bardflow.tasks.vocabulary import learn_vocabulary

CHECKOUT = Path(__file__).resolve().parent.parent
# From the ground up: a room imports from those before it that stand beside its name, and from the ground.
ROOMS: dict[str, set[str]] = {
    "bardflow": set(),
    "model": set(),
    "storage": set(),
    "sources": set(),
    "pages": set(),
    "engine": {"model", "storage", "sources"},
    "tasks": {"engine", "model", "storage", "sources", "pages"},
    "flows": {"tasks", "engine", "model", "storage", "sources", "pages"},
    "commands": {"flows", "tasks", "engine", "model", "storage", "sources", "pages"},
}
# The same within `model`.
MODEL: dict[str, set[str]] = {
    "vocabulary": set(),
    "machine": set(),
    "networks": {"machine"},
    "training": {"machine", "networks"},
    "sampling": {"machine", "networks", "vocabulary"},
    "scoring": {"machine", "networks", "training", "sampling"},
    "leg": {"machine", "training", "scoring"},
    "planning": {"machine", "networks", "training", "scoring"},
}
GROUND = {"code_points", "errors", "files", "home", "identity", "outcome", "toml"}
# Only errors and identities are for everyone; where things lie is decided above these rooms.
WITHOUT_A_HOME = {"model", "storage", "sources", "pages", "engine"}
# `python -m bardflow` and the Python API lie on the ground because Python wants them there.
ROOF = {"bardflow/__init__.py", "bardflow/__main__.py", "bardflow/api.py"}
THEIRS = {
    "prefect": {"flows", "tasks", "commands"},
    "torch": {"model", "tasks", "engine"},
    "tokenizers": {"model", "tasks", "engine"},
    "ray": {"engine"},
    "sentencepiece": {"model"},
    "pyarrow": {"storage", "sources"},
    "obstore": {"storage"},
    "datasets": {"sources"},
    "httpx": {"sources", "commands", "bardflow"},
    "matplotlib": {"pages"},
    "jinja2": {"pages"},
    "typer": {"commands"},
}
FORBIDDEN_FILES = {"utils.py", "helpers.py", "common.py", "base.py", "misc.py"}


def modules(room: str) -> list[Path]:
    return sorted(path for path in (CHECKOUT / room).rglob("*.py") if not path.parent.is_symlink())


def imports(path: Path) -> set[str]:
    """The dotted names that a file imports, a name from a module as part of the module's name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def wrong_imports(path: str, names: Iterable[str]) -> list[str]:
    """What a file of ours (its path in the checkout) may not import."""
    room, *inner = Path(path).with_suffix("").parts
    if path in ROOF:
        return []
    wrong = []
    for name in names:
        top, *below = name.split(".")
        if top in THEIRS and room not in THEIRS[top]:
            wrong.append(name)
        if top != "bardflow":
            wrong += [name] if top in ROOMS else []
        elif below[0] in GROUND:
            wrong += [name] if below[0] == "home" and room in WITHOUT_A_HOME else []
        elif below[0] not in ROOMS or (below[0] != room and below[0] not in ROOMS[room]):
            wrong.append(name)
        elif below[0] == "model" and len(below) > 1:
            here = inner[0] if room == "model" else None
            door = CHECKOUT / "model" / below[1] / "__init__.py"
            if here != below[1] and (
                (here is not None and below[1] not in MODEL[here]) or (door.is_file() and len(below) > 3)
            ):
                wrong.append(name)
    return wrong


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down_and_through_doors(room: str) -> None:
    for path in modules(room):
        here = path.relative_to(CHECKOUT).as_posix()
        assert not wrong_imports(here, imports(path)), here


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("bardflow/home.py", "bardflow.storage.store.Store"),
        ("model/networks/gpt.py", "bardflow.model.training.Training"),
        ("model/vocabulary/files.py", "bardflow.home.home"),
        ("storage/store.py", "bardflow.tasks.run.store"),
        ("tasks/index.py", "bardflow.flows.training.Trained"),
        ("flows/train_gpt.py", "bardflow.commands.up.server"),
        ("flows/train_gpt.py", "bardflow.model.training.loop.Training"),
        ("flows/train_gpt.py", "storage.store.Store"),
        ("pages/run.py", "torch"),
    ],
)
def test_an_import_up_past_a_door_or_by_another_name_is_found(path: str, name: str) -> None:
    assert wrong_imports(path, [name]) == [name]


def test_model_imports_neither_prefect_nor_storage() -> None:
    names = list(map(module_name, modules("model")))
    above = ("prefect", "storage", "pyarrow", "datasets")
    check = f"import sys, {', '.join(names)}; print([m for m in sys.modules if m.partition('.')[0] in {above}])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=CHECKOUT, check=True)
    assert done.stdout.strip() == "[]"


ELSEWHERE = """
from datetime import UTC, datetime
from pathlib import Path
import bardflow.flows.train_gpt
from bardflow.commands.project import create_project
from bardflow.model.planning import cloud
from bardflow.pages.index import IndexPage, render
from bardflow.tasks.recipes import load_recipe
create_project(Path.cwd())
page = render(IndexPage(created=datetime.now(UTC), boards=(), experiments=(), schedule=()))
print(len(cloud.cards({})) > 0, load_recipe("tiny").recipe.name, page.splitlines()[0])
"""


@pytest.mark.slow
def test_what_the_package_needs_is_found_from_any_working_directory(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "True tiny <!doctype html>\n", done.stderr


def test_there_is_no_drawer() -> None:
    for room in ROOMS:
        for path in modules(room):
            assert path.name not in FORBIDDEN_FILES
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    assert not node.name.endswith(("Manager", "Factory")), f"{path}: {node.name}"


def module_name(path: Path) -> str:
    return ".".join(("bardflow", *path.relative_to(CHECKOUT).with_suffix("").parts)).removesuffix(".__init__")


def members(room: str, kind: type) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in modules(room):
        module = importlib.import_module(module_name(path))
        found |= {name: value for name, value in vars(module).items() if isinstance(value, kind)}
    return found


def test_every_task_has_a_version_and_a_policy_of_ours() -> None:
    tasks = members("tasks", Task)
    assert len(tasks) >= 10
    for name, task in tasks.items():
        assert isinstance(task, Task)
        assert task.version, name
        # Asked each time: only a source or a file knows whether it changed, and only the machine what it has free.
        always = ("fetch_source", "fetch_base", "import_vocabulary", "plan_training")
        assert isinstance(task.cache_policy, CacheByInputs) == (name not in always), name


def test_what_is_left_out_of_a_key_is_an_argument_of_its_task() -> None:
    left_out = {}
    for name, task in members("tasks", Task).items():
        assert isinstance(task, Task)
        if isinstance(task.cache_policy, CacheByInputs):
            assert set(task.cache_policy.ignored) <= set(inspect.signature(task.fn).parameters), name
            left_out[name] = task.cache_policy.ignored
    assert {name: arguments for name, arguments in left_out.items() if arguments} == {
        "train_leg": ("plan",),
        "evaluate_pretrained": ("folder", "address"),
    }


def test_an_ignored_argument_is_in_no_key_and_everything_else_is() -> None:
    def key(policy: CacheByInputs, **inputs: Any) -> str | None:
        return policy.compute_key(SimpleNamespace(task=learn_vocabulary), inputs, {})

    policy = CACHE_BY_INPUTS.ignoring("threads")
    assert key(policy, seed=1, threads=2) == key(policy, seed=1, threads=3) == key(CACHE_BY_INPUTS, seed=1)
    assert key(policy, seed=1, threads=2) != key(policy, seed=2, threads=2)
    assert key(policy, seed=1, threads={2}) == key(policy, seed=1, threads=2), "what is left out needs no spelling"
    assert CACHE_BY_INPUTS.ignored == ()


def test_every_flow_is_deployed() -> None:
    deployed = (CHECKOUT / "prefect.yaml").read_text()
    for name, flow in members("flows", Flow).items():
        assert isinstance(flow, Flow)
        assert f"entrypoint: {flow.fn.__module__}:{flow.fn.__name__}" in deployed, name


KEY = """
import json, sys
from bardflow.model.vocabulary import VocabularySpec
from bardflow.storage.handles import Corpus
from bardflow.tasks.caching import CACHE_BY_INPUTS
from bardflow.tasks.vocabulary import learn_vocabulary
from types import SimpleNamespace
inputs = {"corpus": Corpus(digest="0" * 64), "spec": VocabularySpec(kind="bpe", size=512)}
print(CACHE_BY_INPUTS.compute_key(SimpleNamespace(task=learn_vocabulary), inputs, {}))
"""


def test_a_key_is_the_same_in_two_processes(capsys: pytest.CaptureFixture[str]) -> None:
    exec(KEY, {})
    here = capsys.readouterr().out
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    there = subprocess.run(
        [sys.executable, "-c", KEY], capture_output=True, text=True, check=True, cwd=CHECKOUT,
        env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin", "PREFECT_PLUGINS_ENABLED": "false"},
    ).stdout  # fmt: skip
    assert here == there and here.startswith("learn_vocabulary-1-")


def test_handles_of_different_kinds_ask_different_questions() -> None:
    digest = "ab" * 32
    assert json.dumps(canonical(Corpus(digest=digest))) != json.dumps(canonical(Vocabulary(digest=digest)))


def test_an_input_without_one_spelling_is_refused() -> None:
    with pytest.raises(TypeError, match="set"):
        canonical({1, 2})


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
