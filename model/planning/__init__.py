"""Estimates of a training run before it starts: memory, time, disk space, and the price on a rented GPU."""

from bardflow.model.planning import cloud
from bardflow.model.planning.ladder import WORTH, Fit, fit, foreseen_knee, knee
from bardflow.model.planning.plan import (
    Machine,
    Parts,
    Plan,
    choose,
    disk_bytes,
    flops_per_step,
    flops_per_token,
    foresee,
    parameters,
    unlimited,
)
from bardflow.model.planning.timing import probe, settled_bytes, step_seconds

__all__ = [
    "WORTH",
    "Fit",
    "Machine",
    "Parts",
    "Plan",
    "choose",
    "cloud",
    "disk_bytes",
    "fit",
    "flops_per_step",
    "flops_per_token",
    "foresee",
    "foreseen_knee",
    "knee",
    "parameters",
    "probe",
    "settled_bytes",
    "step_seconds",
    "unlimited",
]
