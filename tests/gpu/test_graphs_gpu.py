"""CUDA graphs of several batch shapes: right whatever came between, and all in the memory of one batch."""

import pytest
import torch
from torch import Tensor

from ftlab.fast import graphs as module
from ftlab.fast.graphs import Graphs
from ftlab.fast.layout import Layout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = torch.device("cuda", 0)
MIB = 2**20
BATCH = 256 * MIB


def run(packed: Tensor, layout: Layout) -> Tensor:
    """Needs `layout.tokens` MiB for a while."""
    held = [torch.empty(layout.tokens * MIB // 8, dtype=torch.uint8, device=DEVICE) for _ in range(8)]
    held[0][:8] = packed[0]
    return held[0][:8].float().sum() + layout.tokens


def give(graphs: Graphs, tokens: int, value: int) -> float:
    packed = torch.tensor([value], pin_memory=True)
    return float(graphs(packed, Layout(tokens, 1, 1)))


def shaped(graphs: Graphs, shapes: list[int]) -> None:
    for value, tokens in enumerate(shapes):
        assert give(graphs, tokens, value % 7) == 8 * (value % 7) + tokens


def reserved() -> int:
    torch.cuda.synchronize()
    return torch.cuda.memory_reserved()


def test_all_shapes_share_the_memory_of_the_largest() -> None:
    torch.cuda.empty_cache()
    before = reserved()
    graphs = Graphs(run, DEVICE)
    shaped(graphs, [256, 200, 256, 96, 200, 256, 96, 128, 96, 128, 200, 128, 256])
    assert len(graphs) == 4
    assert reserved() - before <= 1.3 * BATCH
    graphs.drop(forget=True)
    assert reserved() - before <= 0.1 * BATCH
    shaped(graphs, [64, 256, 64, 256, 64])
    del graphs
    torch.cuda.empty_cache()
    assert reserved() - before <= 0.1 * BATCH


def test_a_graph_that_gave_way_leaves_the_others_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    graphs = Graphs(run, DEVICE)
    shaped(graphs, [16, 16, 32, 32, 32, 48, 48, 48, 48, 16, 32, 48, 16, 32])
    assert len(graphs) == 2


def test_too_little_memory_while_capturing_says_so_and_leaves_the_others_right() -> None:
    graphs = Graphs(run, DEVICE)
    shaped(graphs, [64, 64, 128])
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((reserved() + 8 * MIB) / total)
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            give(graphs, 4096, 1)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            give(graphs, 4096, 1)
        shaped(graphs, [64, 128, 64, 128])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    shaped(graphs, [4096, 64, 4096, 128])
