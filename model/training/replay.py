"""A step recorded once as a CUDA graph and replayed: the graphics card no longer waits for Python between kernels."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

# Steps that are computed as they are, before one is recorded: libraries load, and optimizers make their state.
WARM_UP = 3


@functools.cache
def _stream() -> torch.cuda.Stream:
    """One for the process: libraries keep tens of megabytes of the card for each stream that they were used on."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


class Replayed:
    """A function without arguments, whose inputs lie at fixed addresses; it returns a scalar.

    It runs on a stream of its own from the start, because backward hooks stay with the stream that they were made on.
    """

    def __init__(self, compute: Callable[[], Tensor], *, recorded: bool) -> None:
        self._compute, self._recorded = compute, recorded
        self._stream = _stream()
        self._recording: tuple[torch.cuda.CUDAGraph, Tensor] | None = None
        self._calls = 0

    def __call__(self) -> Tensor:
        """Compute, or replay what was recorded, after all that was given to the current stream and before all else."""
        self._stream.wait_stream(torch.cuda.current_stream())
        if self._recorded and self._calls >= WARM_UP:
            graph, result = self._recording or self._record()
            with torch.cuda.stream(self._stream):
                graph.replay()
        else:
            with torch.cuda.stream(self._stream):
                result = self._compute()
        torch.cuda.current_stream().wait_stream(self._stream)
        self._calls += 1
        return result.clone()

    def _record(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = self._compute()
        self._recording = graph, result
        return self._recording
