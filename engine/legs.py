"""A leg of training on several workers of a cluster, begun again from its checkpoint if a worker dies."""

import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bardflow.engine.cluster import Cluster, ClusterError, WorkersLost, require_alike, versions_here
from bardflow.engine.folders import Folder, cache_folder, fetch, require_sha256
from bardflow.errors import BardError
from bardflow.model.leg import Leg, LegRun
from bardflow.model.machine import Device, Execution, device, large_tensors_mapped
from bardflow.model.training import Team, Training, TrainingSpec, joined, load_snapshot, save_snapshot
from bardflow.storage.manifests import file_facts
from bardflow.storage.shards import read_shards

# A leg is begun at most this often.
ATTEMPTS = 4
# The seconds between two notes of progress, and for which a dead worker is looked for once another one failed: Ray
# notices the end of a machine after up to 13 s (benchmarks/LOG.md).
LOOKED = 1.0
EXPLAINED = 60.0
# The seconds for which the workers of an attempt wait for room in the cluster, before the room is counted again.
WAITED = 60.0

# Called with the steps taken and the last loss.
Watch = Callable[[int, float], None]
# Called with a message for the log.
Say = Callable[[str], None]


class Died(Exception):
    """A worker died in an attempt; the message has Ray's words."""


@dataclass(frozen=True)
class Job:
    """A leg: from a checkpoint to step `until`. What is computed does not depend on the number of workers."""

    checkpoint: Folder
    shards: Folder
    spec: TrainingSpec
    until: int
    execution: Execution


@dataclass(frozen=True)
class Progress:
    """Where a leg is: the steps taken, and the last loss."""

    step: int
    loss: float


@dataclass(frozen=True)
class Done:
    """A finished leg on rank 0: its measurements, and the folder with the new snapshot, with each file's sha256."""

    leg: Leg
    folder: str
    files: dict[str, str]


def meet() -> tuple[str, str, dict[str, str]]:
    """Return a free address of this machine, its node and its versions."""
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    host = ray.util.get_node_ip_address()
    address = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
    return address, ray.get_runtime_context().get_node_id(), versions_here()


def work(job: Job, rank: int, workers: int, address: str, threads: int) -> Iterator[Progress | Done | BardError]:
    """Train the leg as one of the workers, in a process of the cluster.

    Rank 0 yields where it is and at last what the leg gave. An error that trying again would not change is yielded too.
    """
    torch.set_num_threads(threads)
    try:
        place = device.choose(job.spec.precision)
        cuda = place.name == "cuda"
        with (
            nullcontext() if workers == 1 else joined(rank, workers, address, cuda=cuda) as team,
            large_tensors_mapped(place) if job.execution.sharded else nullcontext(),
        ):
            yield from _worked(job, place, team)
    except BardError as error:
        yield error


def _worked(job: Job, place: Device, team: Team | None) -> Iterator[Progress | Done]:
    shards = job.shards.here(cache_folder())
    noted = 0.0
    with tempfile.TemporaryDirectory(prefix="bardflow-leg-") as copies:
        leg = LegRun(
            lambda: Training(load_snapshot(job.checkpoint.here(Path(copies))), job.spec, place, job.execution, team),
            read_shards(shards, "train"),
            read_shards(shards, "validation"),
            job.until,
            place,
        )
        for step in leg.steps():
            if leg.leads and time.monotonic() - noted > LOOKED:
                noted = time.monotonic()
                yield Progress(step.number, step.loss.item())
        done = leg.finished()
    state = leg.training.state(keep=leg.leads)  # with shards, all workers put it together
    if leg.leads:
        folder = Path(tempfile.mkdtemp(prefix="bardflow-leg-"))
        save_snapshot(state, folder)
        yield Done(done, str(folder), {path.name: file_facts(path).sha256 for path in folder.iterdir()})


def forget(folder: str) -> None:
    """Delete a snapshot that was copied."""
    shutil.rmtree(folder, ignore_errors=True)


def trained(
    cluster: Cluster, job: Job, into: Path, watch: Watch, say: Say, require_wanted: Callable[[], None] = lambda: None
) -> Leg:
    """Train a leg on the cluster and write the new snapshot into a folder.

    If a worker or its node dies, the leg is begun again from its checkpoint, with as many of the workers as there is
    room for. Ray starts the processes, places them and notices when one dies. `require_wanted` is called each second;
    if it raises an exception, the workers end.

    Raises:
        WorkersLost: workers died in each of the attempts.
        ClusterError: the cluster has no room for a worker, or a node has other versions.
        BardError: as `model.leg.LegRun`.
    """
    why = ""
    for attempt in range(1, ATTEMPTS + 1):
        workers = min(job.execution.workers, cluster.room())
        if workers < 1:
            raise ClusterError(
                f"a worker takes {cluster.resources()}, but no living node of the cluster has that; add a node or give "
                "more workers, each of which takes less"
            )
        if workers < job.execution.workers:
            say(f"the cluster has room for {workers:,} of {job.execution.workers:,} workers, and these train")
        try:
            return _attempt(cluster, job, workers, into, watch, require_wanted)
        except Died as died:
            why = str(died)
            if attempt < ATTEMPTS:
                say(f"{why}; beginning the leg again from its checkpoint (attempt {attempt + 1} of {ATTEMPTS})")
    raise WorkersLost(
        f"the leg to step {job.until:,} was begun {ATTEMPTS} times, and each time a worker died, the last time so: "
        f"{why}. If memory was short, give --memory-limit or fewer workers; then run it again: it resumes from the "
        "last checkpoint"
    )


def _attempt(
    cluster: Cluster, job: Job, workers: int, into: Path, watch: Watch, require_wanted: Callable[[], None]
) -> Leg:
    """Train the leg once.

    Raises:
        Died: a worker died, or the cluster has no room for all of them after WAITED seconds, or no longer.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    takes = cluster.resources()
    group = ray.util.placement_group([takes] * workers)
    running: list[Any] = []

    def placed(function: Callable[..., Any], rank: int, **options: Any) -> Any:
        where = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        remote: Any = ray.remote(num_cpus=takes["CPU"], num_gpus=takes.get("GPU", 0), max_retries=0)(function)
        return remote.options(scheduling_strategy=where, **options)

    try:
        placed_all, until = group.ready(), time.monotonic() + WAITED
        while not ray.wait([placed_all], timeout=LOOKED)[0]:
            require_wanted()
            if cluster.room() < workers or time.monotonic() > until:
                raise Died(f"{workers:,} workers found no room in the cluster")
        met = ray.get([placed(meet, rank).remote() for rank in range(workers)])
        for _, node, versions in met:
            require_alike(versions, node)
        address, node, _ = met[0]
        running += [
            placed(work, rank, num_returns="streaming").remote(job, rank, workers, address, cluster.cpus)
            for rank in range(workers)
        ]
        done = _watched(running, watch, require_wanted)
        if node == cluster.node:
            for name in done.files:
                shutil.move(Path(done.folder) / name, into / name)
        else:
            fetch(node, Path(done.folder), into, sorted(done.files))
            for name, sha256 in done.files.items():
                require_sha256(into / name, sha256)
        ray.get(placed(forget, 0).remote(done.folder))
        return done.leg
    except RayTaskError as error:
        # A worker sees a closed connection when another one died, which may be known sooner than the death.
        dead = _dead(running) if workers > 1 else None
        if dead is None:
            raise
        raise Died(_words(dead)) from error
    except RayError as error:
        raise Died(_words(error)) from error
    finally:
        for worker in running:
            ray.cancel(worker, force=True)
        ray.util.remove_placement_group(group)


def _watched(running: list[Any], watch: Watch, require_wanted: Callable[[], None]) -> Done:
    """Wait for all workers and return what rank 0 gave.

    Raises:
        BardError: a worker yielded it.
        RayError: a worker died or failed.
    """
    import ray

    waiting = list(running)
    done: Done | None = None
    while waiting:
        require_wanted()
        for worker in ray.wait(waiting, num_returns=1, timeout=LOOKED)[0]:
            try:
                said = ray.get(next(worker))
            except StopIteration:
                waiting.remove(worker)
                continue
            match said:
                case BardError():
                    raise said
                case Done():
                    done = said
                case Progress():
                    watch(said.step, said.loss)
    assert done is not None
    return done


def _dead(running: list[Any]) -> Exception | None:
    """Return the error of a worker that died; None if all ended otherwise, or live after EXPLAINED seconds."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    waiting, until = list(running), time.monotonic() + EXPLAINED
    while waiting and time.monotonic() < until:
        for worker in ray.wait(waiting, num_returns=1, timeout=1.0)[0]:
            try:
                ray.get(next(worker))
            except (StopIteration, RayTaskError):
                waiting.remove(worker)
            except RayError as error:
                found: Exception = error
                return found
    return None


def _words(error: Exception) -> str:
    """Return in one line how Ray says that a worker died."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"a worker died ({type(error).__name__}: {lines[0][:300].rstrip('.') if lines else 'no more is known'})"
