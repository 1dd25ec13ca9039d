"""Recording of a step as a CUDA graph, which is then replayed, so that the GPU does not wait for Python."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

# The number of steps before one is recorded, in which libraries load and optimizers create their state.
WARM_UP = 3


@functools.cache
def _stream() -> torch.cuda.Stream:
    """The stream of this process. There is only one, because libraries keep tens of MB of GPU memory per stream."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


class Replayed:
    """A function without arguments that returns a scalar; its inputs must be at fixed addresses.

    It runs on its own stream from the first call, because backward hooks stay on the stream where they were created.
    """

    def __init__(self, compute: Callable[[], Tensor], *, recorded: bool) -> None:
        self._compute, self._recorded = compute, recorded
        self._stream = _stream()
        self._recording: tuple[torch.cuda.CUDAGraph, Tensor] | None = None
        self._calls = 0

    def __call__(self) -> Tensor:
        """Compute or replay, after all earlier work of the current stream and before all later work."""
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
