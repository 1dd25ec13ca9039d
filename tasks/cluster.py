"""How a run is spread over processes and machines: the number of workers and the cluster, which are in no cache key."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TypeVar

import torch

from bardflow.engine.cluster import Cluster, ClusterError, connected
from bardflow.engine.folders import Folder
from bardflow.model.training import TrainingSpec, require_rows
from bardflow.storage.handles import Handle
from bardflow.tasks.run import store

WORKERS_VARIABLE = "BARDFLOW_WORKERS"
CLUSTER_VARIABLE = "BARDFLOW_CLUSTER"

T = TypeVar("T")
R = TypeVar("R")


class Unwanted(BaseException):
    """The result of a training is no longer wanted. No Exception, because nothing is wrong with the training."""


# Set when the trainings of `at_once` are to end.
_ENDED: ContextVar[threading.Event | None] = ContextVar("ended", default=None)
# The cluster of this run and the workers of a training; also in the threads of `at_once`, which copy the context.
_SPREAD: ContextVar[tuple[Cluster, int] | None] = ContextVar("spread", default=None)


def checked_workers(given: int | None, training: TrainingSpec | None = None) -> int:
    """Return the number of workers of a training, from the argument or BARDFLOW_WORKERS; 1 if neither is given.

    Raises:
        ClusterError: it is not a positive number.
        TooManyWorkers: a batch of this training has fewer windows.
    """
    named = given if given is not None else os.environ.get(WORKERS_VARIABLE) or "1"
    try:
        workers = int(named)
    except ValueError:
        workers = 0
    if workers < 1:
        raise ClusterError(f"the number of workers is {named!r}, but a positive whole number is expected, such as 2")
    if training is not None:
        require_rows(training.batch, workers)
    return workers


@contextmanager
def spread(workers: int | None = None, *, trainings: int = 1) -> Iterator[Cluster | None]:
    """Use a cluster in this block: the current one, that of BARDFLOW_CLUSTER, or a local one if there is more than one
    worker. Yield None if all is computed in this process.

    `trainings` is the number of trainings that run at once, each with `workers`.

    Raises:
        EngineMissing: Ray is needed and is not installed.
        ClusterError: the cluster cannot be reached, or `workers` is not a positive number.
    """
    if (current := _SPREAD.get()) is not None:
        yield current[0]
        return
    each, address = checked_workers(workers), os.environ.get(CLUSTER_VARIABLE) or None
    if each * trainings == 1 and address is None:
        yield None
        return
    with connected(each * trainings, torch.get_num_threads(), address) as cluster:
        token = _SPREAD.set((cluster, each))
        try:
            yield cluster
        finally:
            _SPREAD.reset(token)


def workers_of_a_training() -> int:
    """Return the number of workers that share each step of a training in this run."""
    current = _SPREAD.get()
    return 1 if current is None else current[1]


def cluster_of_run() -> Cluster | None:
    """Return the cluster that this run uses."""
    current = _SPREAD.get()
    return None if current is None else current[0]


def folder_of(cluster: Cluster, handle: Handle) -> Folder:
    """Return an artifact's folder, for workers of a cluster."""
    return Folder(str(store().folder(handle)), handle.digest, cluster.node)


def at_once(work: Callable[[T], R], items: Iterable[T], number: int) -> list[R]:
    """Return `work` of each item, in order, with up to `number` at once in threads. The first error ends them all.

    The trainings are computed on the cluster, in processes of their own; a thread only waits for them.
    """
    if number == 1:
        return [work(item) for item in items]
    ended = threading.Event()
    within = copy_context()
    within.run(_ENDED.set, ended)
    with ThreadPoolExecutor(number) as threads:
        futures = [threads.submit(within.copy().run, work, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            ended.set()  # and leaving the block waits until the threads have noticed
            threads.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def require_wanted() -> None:
    """Stop waiting for a training if another one of `at_once` failed, or the run was cancelled.

    Raises:
        Unwanted: so it is.
    """
    ended = _ENDED.get()
    if ended is not None and ended.is_set():
        raise Unwanted
