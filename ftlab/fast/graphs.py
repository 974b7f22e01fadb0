"""CUDA graphs of a step, one a batch shape: the host launches one graph instead of thousands of kernels."""

from collections.abc import Callable

import torch
from torch import Tensor

from ftlab.fast.layout import Layout

# More shapes than this run without a graph; their memory is shared, capturing each takes a second or so.
MOST = 32

Run = Callable[[Tensor, Layout], Tensor]


class Graphs:
    """Runs `run(packed, layout)` on a GPU: a shape's first batch as it is, which compiles and loads its kernels, its
    second by capturing, the others by replaying. Graphs share one pool of memory, since no two run at once."""

    def __init__(self, run: Run, device: torch.device) -> None:
        self.run, self.device = run, device
        self.seen: set[Layout] = set()
        self._captured: dict[Layout, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __len__(self) -> int:
        return len(self._captured)

    def __call__(self, packed: Tensor, layout: Layout) -> Tensor:
        """The loss of a batch; `packed` lies in pinned memory of the host."""
        if layout not in self._captured:
            if layout not in self.seen or len(self._captured) == MOST:
                self.seen.add(layout)
                return self.run(packed.to(self.device, non_blocking=True), layout)
            self._captured[layout] = self._capture(packed, layout)
        graph, static, loss = self._captured[layout]
        static.copy_(packed, non_blocking=True)
        graph.replay()
        return loss.clone()

    def _capture(self, packed: Tensor, layout: Layout) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        static = packed.to(self.device)
        graph = torch.cuda.CUDAGraph()
        loss, failure = None, None
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            try:
                loss = self.run(static, layout)
            except torch.cuda.OutOfMemoryError as error:  # raised once the capture has ended, else that fails in turn
                failure = error.with_traceback(None)
        if loss is None:
            raise failure or RuntimeError("a capture without result")
        return graph, static, loss

    def drop(self, *, forget: bool = False) -> None:
        """Give their memory back; shapes seen before are captured when they come next, or run as they are first where
        they are forgotten too."""
        self._captured.clear()
        if forget:
            self.seen.clear()
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()
