"""Data parallelism: several processes take the same steps, each computes a part of a batch's windows.

Every worker has the whole model and its optimizer state, as in PyTorch's DDP. The sum of the workers' gradients is the
gradient of the whole batch, so each of them makes the same update.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from bardflow.errors import BardError

# Gradients with fewer elements are added up together, in buffers of up to this many (4 MB): each sum over a network
# has a delay, whatever its size.
TOGETHER = 2**20
# The time for which a worker waits for another. One that is killed closes its connections, which is seen at once; this
# is for one that hangs.
WAITING = timedelta(minutes=30)


class TooManyWorkers(BardError):
    """A batch has fewer windows than there are workers."""


@dataclass(frozen=True)
class Team:
    """This process as one of `workers`; `rank` is its number, from 0. Make one with `joined`."""

    rank: int
    workers: int

    def rows(self, batch: int) -> slice:
        """Return the rows of a batch of `batch` windows that this worker computes; they differ by at most one.

        Raises:
            TooManyWorkers: there are more workers than rows.
        """
        require_rows(batch, self.workers)
        return slice(self.rank * batch // self.workers, (self.rank + 1) * batch // self.workers)

    @torch.no_grad()
    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each f32 tensor by its sum over all workers, in place. All workers give the same shapes in order."""
        for together in buffers(tensors):
            if len(together) == 1:
                dist.all_reduce(together[0])
                continue
            flat = torch.cat([tensor.flatten() for tensor in together])
            dist.all_reduce(flat)
            begins = 0
            for tensor in together:
                tensor.copy_(flat[begins : begins + tensor.numel()].view_as(tensor))
                begins += tensor.numel()


def require_rows(batch: int, workers: int) -> None:
    """Check that each worker gets a window of a batch.

    Raises:
        TooManyWorkers: it does not.
    """
    if workers > batch:
        raise TooManyWorkers(
            f"{workers:,} workers were given for a batch of {batch:,} windows, and each of them computes one or more; "
            f"give at most {batch:,} workers or a larger batch"
        )


def buffers(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the tensors in groups: small ones together up to TOGETHER elements, large contiguous ones alone."""
    group: list[Tensor] = []
    for tensor in tensors:
        if tensor.numel() >= TOGETHER and tensor.is_contiguous():
            yield [tensor]
            continue
        if group and sum(one.numel() for one in group) + tensor.numel() > TOGETHER:
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group


@contextmanager
def joined(rank: int, workers: int, address: str, *, cuda: bool = False) -> Iterator[Team]:
    """Join the workers that meet at `address` (`tcp://host:port`, where rank 0 listens); waits until all are there.

    The sums are computed by gloo, and by NCCL for tensors on NVIDIA GPUs.
    """
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=workers, timeout=WAITING)
    try:
        yield Team(rank, workers)
    finally:
        dist.destroy_process_group()
