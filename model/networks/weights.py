"""Functions that copy tensors from a file into a model or an optimizer, and check name, shape and type first."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bardflow.errors import BardError


class WrongWeights(BardError):
    """Tensors do not match the model or optimizer."""


def fill(into: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Copy tensors to those with the same names.

    Raises:
        WrongWeights: as in `require_alike`; nothing was copied.
    """
    require_alike(into, given)
    with torch.no_grad():
        # One at a time, so that weights read from a file are never in memory twice.
        for name, tensor in into.items():
            tensor.copy_(given[name])


def require_alike(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], also: tuple[torch.dtype, ...] = ()
) -> None:
    """Check that tensors have the expected names, shapes and types; `copy_` alone would broadcast a row over a matrix.

    `also` lists further types that are allowed for tensors, but not for scalars.

    Raises:
        WrongWeights: a name is missing or unexpected, or a shape or type is wrong. If the tensors are from a file, the
            message has its path.
    """
    if missing := sorted(expected.keys() - given.keys()):
        raise WrongWeights(f"{source(given)} has no {missing[0]}{_and_more(missing)}. {AGAIN}")
    if strange := sorted(given.keys() - expected.keys()):
        raise WrongWeights(f"{source(given)} has {strange[0]}{_and_more(strange)}, which the model lacks. {AGAIN}")
    for name, tensor in expected.items():
        found = given[name]
        types = (tensor.dtype, *(also if tensor.dim() else ()))
        if found.shape != tensor.shape or found.dtype not in types:
            raise WrongWeights(
                f"{source(given)}: {name} is {_described(found)}, but {_described(tensor)} is expected. {AGAIN}"
            )


AGAIN = "It was not written for this model, or was changed since: run the flow that makes it again."


def source(given: Mapping[str, Tensor]) -> str:
    """Return the path of the tensors' file, if they have one."""
    return str(getattr(given, "path", "what is to be loaded"))


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
