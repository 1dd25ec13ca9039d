"""Making artifacts again after damage: the origin of each names its task, its inputs and its settings."""

import inspect
from types import UnionType
from typing import Any, get_args, get_type_hints

import torch
from prefect import Task
from pydantic import BaseModel, TypeAdapter, ValidationError

from bardflow.errors import BardError
from bardflow.identity import restored
from bardflow.model.machine import Execution
from bardflow.model.planning import Machine, Parts, Plan
from bardflow.storage.handles import Handle, Model
from bardflow.storage.lineage import handle_of
from bardflow.storage.manifests import ORIGIN, Origin
from bardflow.tasks import (
    base_model,
    comparing,
    corpus,
    evaluation,
    ladder,
    models_compared,
    pretrained,
    reporting,
    searching,
    training,
    vocabulary,
)
from bardflow.tasks.importing import IMPORT, import_again
from bardflow.tasks.run import Run, store

MODULES = (
    base_model, comparing, corpus, evaluation, ladder, models_compared, pretrained, reporting, searching, training,
    vocabulary,
)  # fmt: skip
TASKS: dict[str, Task[Any, Any]] = {
    task.name: task for module in MODULES for task in vars(module).values() if isinstance(task, Task)
}


class CannotMake(BardError):
    """An artifact cannot be made again; the message says why."""


def make_again(run: Run, handle: Handle) -> None:
    """Run the task that made an artifact, with the same inputs and settings, so that the artifact is there again.

    The origin is read from its copy. The artifact keeps it.

    Raises:
        CannotMake: the origin is lost, the task changed or failed, or the artifact has another digest now.
    """
    content = store().copies.read(store().place(handle) / ORIGIN)
    if content is None:
        raise CannotMake(f"nothing says what {handle} was made from: its origin is lost, and has no copy")
    origin = Origin.model_validate_json(content)
    name, _, version = origin.task.partition("@")
    try:
        if name == IMPORT:
            made: Handle = import_again(origin.measured["address"])
        else:
            task = TASKS.get(name)
            if task is None or str(task.version) != version:
                now = "no longer exists" if task is None else f"has version {task.version} now"
                raise CannotMake(f"{handle} was made by {origin.task}, and that task {now}; train again instead")
            if threads := origin.measured.get("threads"):
                # Sums depend on it. Several workers share the threads of this process.
                torch.set_num_threads(threads * origin.measured.get("execution", {}).get("workers", 1))
            made = run(task.with_options(refresh_cache=True), **arguments(task, origin))
    except CannotMake:
        raise
    except (BardError, OSError, LookupError, ValidationError) as error:
        raise CannotMake(f"{handle} cannot be made again by {origin.task}: {error}") from error
    if made != handle:
        why = "its source changed since" if not origin.inputs else "this machine or its packages compute another result"
        raise CannotMake(f"{handle} cannot be made again: {origin.task} gives {made} now, because {why}")


def arguments(task: Task[Any, Any], origin: Origin) -> dict[str, Any]:
    """Rebuild the arguments of a task from the origin of its artifact."""
    hints, found = get_type_hints(task.fn), dict[str, Any]()
    for name in inspect.signature(task.fn).parameters:
        hint = hints[name]
        listed = [key for key in origin.inputs if key.startswith(f"{name}.")]
        if name in origin.inputs:
            found[name] = handle_of(origin.inputs[name])
        elif listed:
            found[name] = [handle_of(origin.inputs[f"{name}.{i}"]) for i in range(len(listed))]
        elif hint is Plan:
            found[name] = plan_as_before(origin)
        elif name in origin.spec:
            found[name] = _value(hint, origin.spec[name])
        elif name == "folder":  # of `evaluate_pretrained`, whose cache key has the sha256 of the folder
            folder = base_model.located(base_model.BaseSpec(model=origin.measured["address"]))
            if isinstance(folder, Model):
                raise CannotMake(f"{origin.measured['address']} is no folder of a model any more")
            found[name] = str(folder)
        elif name == "address":
            found[name] = origin.measured["address"]
    return found


def plan_as_before(origin: Origin) -> Plan:
    """The plan of a leg, with the execution that it had: another one changes the result by rounding."""
    measured = origin.measured
    parts = dict.fromkeys(Parts.model_fields, 0) | {"program": measured["planned_peak_bytes"]}
    return Plan(
        execution=Execution.model_validate(measured["execution"]),
        machine=Machine(device=measured["device"], precision=measured["precision"], base=0),
        moments={"as before": Parts(**parts)},
    )


def _value(hint: Any, stored: Any) -> Any:
    options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseModel) and isinstance(stored, dict):
            return restored(option, stored)
    return TypeAdapter(hint).validate_python(stored)
