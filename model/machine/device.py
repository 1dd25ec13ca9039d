"""The device and the precision of its matrix products, which are not part of a cache key."""

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from bardflow.errors import BardError

LOGGER = logging.getLogger("bardflow")

Precision = Literal["auto", "f32", "bf16", "f16"]


class NoSuchDevice(BardError):
    """BARDFLOW_DEVICE names a device that this machine does not have."""


@dataclass(frozen=True)
class Device:
    """A torch device and the precision of its matrix products; weights and sums stay in f32."""

    name: str
    precision: Literal["f32", "bf16", "f16"]

    @property
    def is_card(self) -> bool:
        """Whether it is a GPU, which computes while Python continues, so that Python should not wait for it."""
        return self.name != "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """The type of matrix products."""
        return {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[self.precision]


def choose(precision: Precision) -> Device:
    """Choose the first available of CUDA, Apple's MPS and CPU, unless BARDFLOW_DEVICE is set, and a fast precision.

    A GPU for which this build of PyTorch has no kernels is not chosen; a warning says so. NVIDIA GPUs from before
    Ampere multiply f16 in hardware, but not bf16 (CUDA C++ Programming Guide, "Compute Capabilities"). On a CPU, bf16
    is chosen only with bf16 instructions (2 cores of an AMD EPYC 9005: 963 GFLOP/s instead of 217 in 2048 x 2048
    products); without them it is slower than f32.

    Raises:
        NoSuchDevice: BARDFLOW_DEVICE is set to a device that torch cannot use here.
    """
    available = [n for n, there in (("cuda", cuda_is_usable()), ("mps", torch.backends.mps.is_available())) if there]
    available.append("cpu")
    name = os.environ.get("BARDFLOW_DEVICE") or available[0]
    if name not in available:
        raise NoSuchDevice(
            f"BARDFLOW_DEVICE is {name!r}, but this machine has {', '.join(available)}; unset it or name one"
        )
    if precision == "auto":
        half = name == "cuda" and torch.cuda.get_device_capability() >= (7, 0)
        return Device(name, "bf16" if bf16_is_fast(name) else "f16" if half else "f32")
    return Device(name, precision)


@cache
def cuda_is_usable() -> bool:
    """Whether there is an NVIDIA GPU for which this build of PyTorch has kernels; logs a warning if it has none."""
    if not torch.cuda.is_available():
        return False
    capability, architectures = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    if torch.version.hip is not None or has_kernels(capability, architectures):
        return True
    LOGGER.warning(
        f"The GPU {torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]}, and this "
        f"PyTorch has kernels for {', '.join(architectures)} only, so the CPU is used. A PyTorch built for this GPU is "
        "needed: see https://pytorch.org/get-started."
    )
    return False


def has_kernels(capability: tuple[int, int], architectures: Iterable[str]) -> bool:
    """Whether one of the architectures that PyTorch was built for, such as sm_90, runs on a GPU of this capability.

    Machine code (sm_) runs on GPUs with the same major version and no smaller minor one, and intermediate code
    (compute_) on all later GPUs. With a suffix, as in sm_90a, it runs on exactly that capability, or, with f, within
    its major version (CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility").
    """
    for architecture in architectures:
        kind, _, version = architecture.partition("_")
        digits = version.rstrip("af")
        built = int(digits[:-1]), int(digits[-1])
        exact = version.endswith("a")
        if built == capability or (not exact and built[0] == capability[0] and built <= capability):
            return True
        if kind == "compute" and digits == version and built <= capability:
            return True
    return False


def bf16_is_fast(name: str) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if name == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if name == "cpu":
        capabilities = torch.cpu.get_capabilities()
        # ARM's bf16 instructions are used through oneDNN, which builds for macOS do not have.
        on_arm = capabilities.get("bf16") and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or on_arm)
    return False


def compiles(device: Device) -> bool:
    """Whether `torch.compile` works for the device: on CUDA, with Triton and a C compiler to build its launchers."""
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang")
    return (
        device.name == "cuda"
        and importlib.util.find_spec("triton") is not None
        and any(shutil.which(name) for name in compilers if name)
    )
