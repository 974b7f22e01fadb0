"""Work beside the main stream of a GPU."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def side_stream(device: torch.device) -> Any:
    """One stream for all of it: cuBLAS keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@cache
def graph_stream(device: torch.device) -> Any:
    """The stream on which batches run that are, or will be, CUDA graphs."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class SideStream:
    """Runs what nothing of the same layer waits for beside the main stream; on a CPU, at once.

    Small products do not fill a GPU, so two at a time cost little more than one. What the work reads is held until the
    main stream has waited for it, else its memory could be given away too early.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self._held: list[Any] = []
        self._before: tuple[Any, list[Any]] | None = None

    def __call__(self, work: Callable[[], None], *reads: Any) -> None:
        """Run `work`, which reads these tensors."""
        if not self.cuda:
            work()
            return
        side = side_stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            work()
        self._held.append(reads)

    def end_layer(self) -> None:
        """A layer is done: from here on the main stream has waited for the work of the layer before."""
        self._settle()
        if self._held:  # else the side stream may not be part of a capture, which then must not wait for it
            self._before = side_stream(self.device).record_event(), self._held
            self._held = []

    def join(self) -> None:
        """From here on the main stream has waited for all of it."""
        self.end_layer()
        self._settle()

    def _settle(self) -> None:
        if self._before is not None:
            torch.cuda.current_stream(self.device).wait_event(self._before[0])
        self._before = None
