"""Tensors from a file into a model or an optimizer: name, shape and type are checked before any of them is copied."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bardflow.errors import BardError


class WrongWeights(BardError):
    """Tensors that are not those of the model or optimizer that they are to fill."""


def fill(into: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Copy the tensors of the same names.

    Raises:
        WrongWeights: as `require_alike`; nothing was copied.
    """
    require_alike(into, given)
    with torch.no_grad():
        # One by one: weights that still lie in a file are then never in memory twice.
        for name, tensor in into.items():
            tensor.copy_(given[name])


def require_alike(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], also: tuple[torch.dtype, ...] = ()
) -> None:
    """Refuse tensors that would not fill the expected ones one to one: `copy_` would stretch a row over a matrix.

    `also` are further types that tensors (not scalars) may have.

    Raises:
        WrongWeights: a name is missing or is none of the expected ones, or a shape or a type is another; the message
            has the file's path, where the tensors lie in one.
    """
    if missing := sorted(expected.keys() - given.keys()):
        raise WrongWeights(f"{_source(given)} has no {missing[0]}{_and_more(missing)}. {AGAIN}")
    if strange := sorted(given.keys() - expected.keys()):
        raise WrongWeights(f"{_source(given)} has {strange[0]}{_and_more(strange)}, which the model lacks. {AGAIN}")
    for name, tensor in expected.items():
        found = given[name]
        types = (tensor.dtype, *(also if tensor.dim() else ()))
        if found.shape != tensor.shape or found.dtype not in types:
            raise WrongWeights(
                f"{_source(given)}: {name} is {_described(found)}, but {_described(tensor)} is expected. {AGAIN}"
            )


AGAIN = "It was not written for this model, or was changed since: run the flow that makes it again."


def _source(given: Mapping[str, Tensor]) -> str:
    """Where the tensors lie, as far as they know."""
    return str(getattr(given, "path", "what is to be loaded"))


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
