"""Which batch shapes are captured. What capturing does is shown on a GPU (tests/gpu)."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ftlab.fast import graphs as module
from ftlab.fast.graphs import Graphs
from ftlab.fast.layout import Layout

PACKED = torch.zeros(1)


class Recorded(Graphs):
    """Records what would be done."""

    def __init__(self) -> None:
        self.did: list[tuple[str, int]] = []
        super().__init__(lambda packed, layout: packed, torch.device("cpu"))

    def _uncaptured(self, packed: Tensor, layout: Layout) -> Tensor:
        self.did.append(("run", layout.tokens))
        return packed

    def _capture(self, packed: Tensor, layout: Layout) -> Any:
        self.did.append(("capture", layout.tokens))

        class Graph:
            def replay(graph) -> None:
                self.did.append(("replay", layout.tokens))

        return Graph(), torch.zeros(1), torch.zeros(1)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    monkeypatch.setattr(module, "graph_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "MemPool", object)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(module, "MOST", 2)
    return Recorded()


def give(graphs: Recorded, *shapes: int) -> list[tuple[str, int]]:
    graphs.did.clear()
    for tokens in shapes:
        graphs(PACKED, Layout(tokens, 1, 1))
    return graphs.did


def test_a_shape_is_captured_when_it_comes_again(recorded: Recorded) -> None:
    assert give(recorded, 1, 1, 1) == [("run", 1), ("capture", 1), ("replay", 1), ("replay", 1)]


def test_no_more_than_so_many_are_held(recorded: Recorded) -> None:
    give(recorded, 1, 1, 2, 2)
    assert give(recorded, 3, 3, 3) == [("run", 3)] * 3
    assert len(recorded) == 2


def test_a_shape_that_comes_much_more_often_takes_the_rarest_ones_place(recorded: Recorded) -> None:
    give(recorded, 1, 1, 2, 2, 2)
    assert give(recorded, 3, 3, 3, 3) == [("run", 3)] * 3 + [("capture", 3), ("replay", 3)]
    assert give(recorded, 1) == [("run", 1)]
    assert give(recorded, 2) == [("replay", 2)]
    assert len(recorded) == 2


def test_dropped_shapes_are_captured_again_and_forgotten_ones_run_first(recorded: Recorded) -> None:
    give(recorded, 1, 1)
    recorded.drop()
    assert give(recorded, 1) == [("capture", 1), ("replay", 1)]
    recorded.drop(forget=True)
    assert give(recorded, 1) == [("run", 1)]
