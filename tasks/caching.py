"""The cache policy of tasks: a cached result is used again for the same task, version and inputs."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from prefect import Task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from pydantic import BaseModel

from bardflow.identity import identity


@dataclass
class CacheByInputs(CachePolicy):
    """A cache policy whose key consists of the task's name, its version and its inputs.

    Prefect's own `INPUTS` omits the name, so two tasks with equal inputs would share results. `ignored` names arguments
    that do not change the result, such as a memory limit.
    """

    ignored: tuple[str, ...] = ()

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        """Return `<task>-<version>-<sha256 of the inputs as canonical JSON>`."""
        return self.key_of(task_ctx.task, inputs)

    def key_of(self, task: Task[..., Any], arguments: dict[str, Any]) -> str:
        """Return the key for a call of the task with these arguments."""
        key = json.dumps(
            {name: canonical(value) for name, value in arguments.items() if name not in self.ignored},
            sort_keys=True,
            allow_nan=False,
        )
        return f"{task.name}-{task.version}-{hashlib.sha256(key.encode()).hexdigest()}"

    def ignoring(self, *arguments: str) -> "CacheByInputs":
        """Return the same policy without these arguments in the key."""
        return replace(self, ignored=arguments)


def canonical(value: Any) -> Any:
    """Convert an input to JSON with its class name, so that a corpus and a vocabulary with the same digest differ.

    Raises:
        TypeError: the input is neither a pydantic model nor made of JSON types.
    """
    if isinstance(value, BaseModel):
        return {"class": type(value).__name__, "value": identity(value)}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    raise TypeError(f"a task's input is a handle, a spec, or a list of them, not {type(value).__name__}")


CACHE_BY_INPUTS = CacheByInputs()
