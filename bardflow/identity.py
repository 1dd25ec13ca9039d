"""The part of a spec that belongs in cache keys: all fields except later ones whose value means "as before".

A spec's JSON is part of cache keys and of artifacts, so of their digests. A new field would change all of them, and
everything would be computed again. So a new field declares the value that means what the code did before the field
existed. With that value, the field is left out:

    label_smoothing: Annotated[float, AsBefore(0.0), Field(ge=0, lt=1)] = 0.1

That value never changes; the default may be different, and may change. Leaving out fields that equal their default
would return old results after a default changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class AsBefore:
    """Annotation of a field that was added later: the value that means what the code did before."""

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
