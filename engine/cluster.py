"""A Ray cluster: the one whose address is given, or a local one for as long as it is used."""

import importlib.metadata
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from bardflow.errors import BardError, installing

# Memory for objects on their way between processes of a local cluster; what does not fit goes to disk.
OBJECT_BYTES = 256 * 2**20
CONNECTING_SECONDS = 10.0
# What workers and the driver must have alike: pickled values name its modules.
ALIKE = ("bardflow", "ray", "torch", "numpy")


class EngineMissing(BardError):
    """Ray is not installed."""


class ClusterError(BardError):
    """A cluster cannot be reached, or cannot run the work; the message says why."""


class WorkersLost(ClusterError):
    """Workers died again and again."""


@dataclass(frozen=True)
class Cluster:
    """A connected cluster. `processes` work at once, with `cpus` cores each and a GPU each if it has GPUs.

    `node` is the node of this process.
    """

    processes: int
    cpus: int
    node: str

    def resources(self) -> dict[str, float]:
        """Return what a worker takes of the cluster, by Ray's names."""
        gpus = any(node["Resources"].get("GPU", 0) >= 1 for node in _nodes())
        return {"CPU": float(self.cpus)} | ({"GPU": 1.0} if gpus else {})

    def nodes(self) -> int:
        """Return the number of living nodes."""
        return len(_nodes())

    def room(self) -> int:
        """Return for how many workers the living nodes have room."""
        takes = self.resources().items()
        return sum(min(int(node["Resources"].get(name, 0) // each) for name, each in takes) for node in _nodes())


def require_ray() -> ModuleType:
    """Import Ray.

    Raises:
        EngineMissing: it is not installed.
    """
    # Ray sends statistics of its use to its makers unless this is set before it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A worker gets the accelerators that Ray assigns to it; without one it would hide those that the machine has.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # How often Ray tries to reach a cluster that `auto` finds in its files but that has ended.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "3")
    try:
        import ray
    except ImportError as error:
        raise EngineMissing(
            f"several workers, or a cluster, need Ray, which is not installed ({error}); install it with "
            f"{installing('cluster')}"
        ) from error
    module: ModuleType = ray
    return module


@contextmanager
def connected(processes: int, threads: int, address: str | None = None) -> Iterator[Cluster]:
    """Start a local cluster for this many processes, which share `threads` cores, or connect to the one at `address`.

    The local one ends with the block. An address is `host:port` of the head node, or `auto` on one of its nodes; this
    machine has to be a node of the cluster.

    Raises:
        EngineMissing: Ray is not installed.
        ClusterError: there is no cluster at the address.
    """
    ray = require_ray()
    if address is not None and "://" in address:
        raise ClusterError(
            f"the address of a cluster is {address!r}, but HOST:PORT of its head node is expected, or `auto`; make "
            "this machine a node of the cluster (`ray start --address HOST:PORT`)"
        )
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "namespace": "bardflow"}
    with _own_signals():
        if address is None:
            ray.init(
                num_cpus=max(processes, threads),
                include_dashboard=False,
                object_store_memory=OBJECT_BYTES,
                **quiet,
            )
        else:
            try:
                _require_listening(address)
                ray.init(address=address, **quiet)
            except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise ClusterError(
                    f"no cluster answers at {address} from this machine: {str(error).splitlines()[0]}; start one with "
                    f"`ray start --head`, and make this machine a node of it with `ray start --address {address}`"
                ) from error
    try:
        total = [int(node["Resources"].get("CPU", 0)) for node in _nodes()]
        cpus = threads // processes if address is None else min(sum(total) // processes, max(total))
        yield Cluster(processes, max(1, cpus), ray.get_runtime_context().get_node_id())
    finally:
        with _own_signals():
            ray.shutdown()


def _require_listening(address: str) -> None:
    """Connect to the port of a head node once, because Ray tries for more than 7 minutes.

    Raises:
        OSError, ValueError: nothing listens there, or it is no address.
    """
    if address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), CONNECTING_SECONDS).close()


def versions_here() -> dict[str, str]:
    """Return the versions that driver and workers must have alike."""
    return {"python": sys.version.split()[0]} | {name: importlib.metadata.version(name) for name in ALIKE}


def require_alike(theirs: dict[str, str], node: str) -> None:
    """Check the versions of a worker.

    Raises:
        ClusterError: they differ from those of this process.
    """
    if differences := {n: v for n, v in theirs.items() if v != versions_here()[n]}:
        said = ", ".join(f"{name} {version} (here {versions_here()[name]})" for name, version in differences.items())
        raise ClusterError(f"node {node} of the cluster has {said}; install the same versions on all machines")


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's signal handlers: Ray's would end a flow without the exception by which it is cancelled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            with suppress(TypeError):  # None: a handler that Python did not set
                signal.signal(number, handler)
