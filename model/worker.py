"""One thread's share of a step: a replica of the model, and the gradients of the windows that it was given."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor, nn

from model.dropout import Dropout
from model.execution import Execution
from model.gpt import GPT, replica
from model.loss import head_loss

T = TypeVar("T")


class Worker:
    """A replica of a model. Its gradients are summed in f32 over micro-batches, whatever they are computed in."""

    def __init__(self, gpt: GPT, dtype: torch.dtype) -> None:
        self.model, pairs = replica(gpt, dtype)
        self.ours = dict(pairs)
        self.sums: dict[nn.Parameter, Tensor] = {}
        for theirs, ours in pairs:
            if theirs.dtype != ours.dtype:
                theirs.register_post_accumulate_grad_hook(self._add)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over what the weights are now."""
        changed = [(theirs, ours) for theirs, ours in self.ours.items() if theirs.dtype != ours.dtype]
        if changed:
            torch._foreach_copy_([theirs for theirs, _ in changed], [ours for _, ours in changed])

    def gradients(
        self, inputs_BT: Tensor, targets_BT: Tensor, charged: int, execution: Execution, dropout: Dropout | None
    ) -> Tensor:
        """The share's part of the step's mean loss over `charged` tokens; its gradients are kept until `hand_over`."""
        self.refresh()
        device = self.model.tokens.weight.device
        loss = torch.zeros((), device=device)
        micro = execution.micro_batch
        for ids_BT, next_BT in zip(inputs_BT.split(micro), targets_BT.split(micro), strict=True):
            hidden_BTC = self.model.hidden(ids_BT.to(device, non_blocking=True), dropout, recompute=execution.recompute)
            micro_loss = head_loss(
                hidden_BTC.flatten(0, 1),
                self.model.head.weight,
                next_BT.to(device, non_blocking=True).flatten(),
                charged=charged,
                tokens=execution.loss_tokens,
            )
            micro_loss.backward()  # type: ignore[no-untyped-call]
            loss += micro_loss.detach()
        return loss

    def hand_over(self) -> None:
        """Add the gradients to those of the weights, and let go of them."""
        for theirs, ours in self.ours.items():
            found = self.sums.pop(theirs, theirs.grad)
            theirs.grad = None
            if found is None:
                continue
            if ours.grad is None:
                ours.grad = found
            else:
                ours.grad += found

    def _add(self, theirs: Tensor) -> None:
        assert isinstance(theirs, nn.Parameter) and theirs.grad is not None
        if theirs in self.sums:
            self.sums[theirs] += theirs.grad
        else:
            self.sums[theirs] = theirs.grad.to(self.ours[theirs].dtype)
        theirs.grad = None


class Crew:
    """So many threads, the calling one among them, that work at once with equal shares of torch's threads.

    For models of a few million parameters an operation takes some 20 us, which is what two threads need to share it out and meet
    again: threads that share the windows instead meet once a step (benchmarks/LOG.md).
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.pool = ThreadPoolExecutor(size - 1) if size > 1 else None

    def __call__(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """Do all jobs, each by the first thread that is free, and return what they return, in order."""
        if self.pool is None:
            return [job() for job in jobs]
        whole = torch.get_num_threads()
        results: dict[int, T] = {}
        waiting = iter(enumerate(jobs))

        def work() -> None:
            torch.set_num_threads(max(1, whole // self.size))  # of the calling thread alone
            for number, job in waiting:
                results[number] = job()

        others = [self.pool.submit(work) for _ in range(self.size - 1)]
        try:
            work()
        finally:
            torch.set_num_threads(whole)
            for other in others:
                other.result()
        return [results[number] for number in range(len(jobs))]
