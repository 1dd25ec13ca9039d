"""The device, its memory, and how a step is computed."""

from bardflow.model.machine import device, memory
from bardflow.model.machine.device import Device, Precision, compiles
from bardflow.model.machine.execution import Execution, compiled
from bardflow.model.machine.memory import (
    forget_peak,
    give_back,
    large_tensors_mapped,
    limit_bytes,
    parsed_bytes,
    peak_bytes,
    resident_bytes,
)

__all__ = [
    "Device",
    "Execution",
    "Precision",
    "compiled",
    "compiles",
    "device",
    "forget_peak",
    "give_back",
    "large_tensors_mapped",
    "limit_bytes",
    "memory",
    "parsed_bytes",
    "peak_bytes",
    "resident_bytes",
]
