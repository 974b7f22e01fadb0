"""CUDA streams beside the main one."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def side_stream(device: torch.device) -> Any:
    """Return the second stream of a device. There is only one, since cuBLAS keeps a workspace for every stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@cache
def graph_stream(device: torch.device) -> Any:
    """Return the stream of batches that run as CUDA graphs or will be captured."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class SideStream:
    """Runs work on a second CUDA stream if nothing in the same layer depends on it; on a CPU, immediately.

    Small matrix products do not fill a GPU, so two at a time cost little more than one. The tensors that the work reads
    are kept alive until the main stream has waited for it. Otherwise their memory could be reused too early.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self._held: list[Any] = []
        self._before: tuple[Any, list[Any]] | None = None

    def __call__(self, work: Callable[[], None], *reads: Any) -> None:
        """Run `work`, which reads the tensors `reads`."""
        if not self.cuda:
            work()
            return
        side = side_stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            work()
        self._held.append(reads)

    def end_layer(self) -> None:
        """Mark the end of a layer: the main stream now waits for the work of the layer before it."""
        self._wait()
        if self._held:  # a graph capture must not wait for a side stream that is not part of it
            self._before = side_stream(self.device).record_event(), self._held
            self._held = []

    def join(self) -> None:
        """Let the main stream wait for all of the work."""
        self.end_layer()
        self._wait()

    def _wait(self) -> None:
        if self._before is not None:
            torch.cuda.current_stream(self.device).wait_event(self._before[0])
        self._before = None
