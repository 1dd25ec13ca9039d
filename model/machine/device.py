"""The device and the precision of its matrix products, which are not part of a cache key."""

import importlib.util
import os
import shutil
from dataclasses import dataclass
from typing import Literal

import torch

from bardflow.errors import BardError

Precision = Literal["auto", "f32", "bf16"]


class NoSuchDevice(BardError):
    """BARDFLOW_DEVICE names a device that this machine does not have."""


@dataclass(frozen=True)
class Device:
    """A torch device and the precision of its matrix products; weights and sums stay in f32."""

    name: str
    precision: Literal["f32", "bf16"]

    @property
    def is_card(self) -> bool:
        """Whether it is a GPU, which computes while Python continues, so that Python should not wait for it."""
        return self.name != "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """The type of matrix products."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def choose(precision: Precision) -> Device:
    """Choose the first available of CUDA, Apple's MPS and CPU, unless BARDFLOW_DEVICE is set, and bf16 if it is faster.

    On a CPU, bf16 is chosen only with bf16 instructions (2 cores of an AMD EPYC 9005: 963 GFLOP/s instead of 217 in
    2048 x 2048 products); without them it is slower than f32.

    Raises:
        NoSuchDevice: BARDFLOW_DEVICE is set to a device that torch cannot use here.
    """
    available = [
        n for n, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())) if there
    ]
    available.append("cpu")
    name = os.environ.get("BARDFLOW_DEVICE") or available[0]
    if name not in available:
        raise NoSuchDevice(
            f"BARDFLOW_DEVICE is {name!r}, but this machine has {', '.join(available)}; unset it or name one"
        )
    if precision == "auto":
        return Device(name, "bf16" if bf16_is_fast(name) else "f32")
    return Device(name, precision)


def bf16_is_fast(name: str) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if name == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if name == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def compiles(device: Device) -> bool:
    """Whether `torch.compile` works for the device: on CUDA, with Triton and a C compiler to build its launchers."""
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    return (
        device.name == "cuda"
        and importlib.util.find_spec("triton") is not None
        and any(shutil.which(name) for name in compilers if name)
    )
