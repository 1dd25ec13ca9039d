"""What makes a spec the question that it is: all its fields, but for those added later that say "as before".

A spec's JSON stands in cache keys and in artifacts, and so in their digests. A field that is added to it would change
them all, and everything would be computed again, although nothing else is asked than before. So a field that is added
says which of its values means what the code did before there was such a field; equal to that, it is left out:

    label_smoothing: Annotated[float, AsBefore(0.0), Field(ge=0, lt=1)] = 0.1

That value stays for ever; the default may be another, and may change. Leaving out whatever equals the default would
serve answers of the old default for questions with the new one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class AsBefore:
    """Stands in the annotation of a field that was added later: the value that means what was done before."""

    value: Any


def identity(spec: BaseModel) -> dict[str, Any]:
    """The spec as plain JSON types, without the fields that say "as before"; specs within it likewise."""
    before = _as_before(type(spec))
    dumped = spec.model_dump(mode="json")
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        if name in before and value == before[name]:
            del dumped[name]
        else:
            dumped[name] = _within(value, dumped[name])
    return dumped


def restored(kind: type[M], stored: Mapping[str, Any]) -> M:
    """The spec that `identity` gave: a field that is missing says "as before", whatever its default is today.

    Raises:
        pydantic.ValidationError: it is none.
    """
    filled = _as_before(kind) | dict(stored)
    for name, info in kind.model_fields.items():
        inner, value = info.annotation, filled.get(name)
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, Mapping):
            filled[name] = restored(inner, value)
    return kind.model_validate(filled)


def _as_before(kind: type[BaseModel]) -> dict[str, Any]:
    return {
        name: mark.value
        for name, info in kind.model_fields.items()
        for mark in info.metadata
        if isinstance(mark, AsBefore)
    }


def _within(value: Any, dumped: Any) -> Any:
    """What was dumped of a value, with the specs within it as `identity` gives them."""
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, list | tuple):
        return [_within(item, one) for item, one in zip(value, dumped, strict=True)]
    return dumped
