"""CUDA graphs of a step, one per batch shape: the host launches one graph instead of thousands of kernels."""

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ftlab.fast.layout import Layout
from ftlab.fast.streams import graph_stream
from ftlab.out_of_memory import is_out_of_memory

# The maximum number of graphs. Each takes some driver memory, and time to capture.
MOST = 32
# A shape replaces the rarest captured one if it has occurred this many times as often.
OFTENER = 2

Compute = Callable[[Tensor, Layout], Tensor]


class Graphs:
    """Runs `run(packed, layout)` on a GPU. A shape's first batch runs without a graph, which compiles and loads its
    kernels. The second one captures a graph, and later ones replay it.

    All batches, captured or not, use one stream and one memory pool. Since no two batches run at the same time, all of
    them share the memory of the largest one.
    """

    def __init__(self, run: Compute, device: torch.device) -> None:
        self.run, self.device, self.stream = run, device, graph_stream(device)
        self.uses: Counter[Layout] = Counter()
        self._captured: dict[Layout, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._pool = torch.cuda.MemPool()

    def __len__(self) -> int:
        return len(self._captured)

    def __call__(self, packed: Tensor, layout: Layout) -> Tensor:
        """Return the loss of a batch. `packed` lies in pinned memory of the host."""
        self.uses[layout] += 1
        if layout not in self._captured:
            if self.uses[layout] == 1 or not self._room(layout):
                return self._uncaptured(packed, layout)
            self._captured[layout] = self._capture(packed, layout)
        graph, static, loss = self._captured[layout]
        static.copy_(packed, non_blocking=True)
        graph.replay()
        return loss.clone()

    def _room(self, layout: Layout) -> bool:
        """Whether one more graph may be captured. The rarest one is dropped for a shape that is much more frequent."""
        if len(self._captured) < MOST:
            return True
        rarest = min(self._captured, key=self.uses.__getitem__)
        if self.uses[layout] < OFTENER * self.uses[rarest]:
            return False
        del self._captured[rarest]
        return True

    def _uncaptured(self, packed: Tensor, layout: Layout) -> Tensor:
        main = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(main)
        with torch.cuda.stream(self.stream), torch.cuda.use_mem_pool(self._pool, self.device):
            loss = self.run(packed.to(self.device, non_blocking=True), layout)
        main.wait_stream(self.stream)
        return loss.clone()

    def _capture(self, packed: Tensor, layout: Layout) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        static = packed.to(self.device)
        graph = torch.cuda.CUDAGraph()
        pool: Any = self._pool.id
        loss, failure = None, None
        with (
            warnings.catch_warnings(),
            torch.cuda.graph(graph, pool, self.stream, capture_error_mode="thread_local"),
        ):
            warnings.filterwarnings("ignore", "The CUDA Graph is empty")  # as after an immediate OOM
            try:
                loss = self.run(static, layout)
            except RuntimeError as error:  # raised after the capture has ended: ending it would fail otherwise
                if not is_out_of_memory(error):
                    raise
                failure = error.with_traceback(None)
        if loss is None:
            raise failure or RuntimeError("the CUDA graph capture returned no loss")
        return graph, static, loss

    def drop(self, *, forget: bool = False) -> None:
        """Free all graphs and their memory. A known shape is captured at its next batch; with `forget`, its next batch
        runs without a graph first."""
        self._captured.clear()
        if forget:
            self.uses.clear()
        self._pool = torch.cuda.MemPool()
        torch.cuda.empty_cache()
