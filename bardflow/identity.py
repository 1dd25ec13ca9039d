"""The part of a spec that belongs in cache keys: all fields except newer ones whose value means "as before".

The JSON of a spec is part of cache keys and of artifacts, and so of digests. A new field would change all of them, and
everything would be computed again. So a new field declares the value that means what the code did before the field
existed. A field with that value is left out of the JSON:

    label_smoothing: Annotated[float, AsBefore(0.0), Field(ge=0, lt=1)] = 0.1

The declared value never changes. The default may be different, and may change. Fields are not left out just because
they equal their default: after a change of the default, old results would be returned.
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
    """Return the spec as JSON types without the fields that mean "as before", and nested specs likewise."""
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
    """Rebuild a spec from the output of `identity`; a missing field gets its `AsBefore` value, not its default.

    Raises:
        pydantic.ValidationError: `stored` is not a valid spec of this class.
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
    """Return a dumped value in which each nested spec is replaced by its `identity`."""
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, list | tuple):
        return [_within(item, one) for item, one in zip(value, dumped, strict=True)]
    return dumped
