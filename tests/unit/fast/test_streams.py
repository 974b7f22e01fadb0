"""Work beside the main stream: who waits for whom, with streams that only take notes."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from ftlab.fast import streams
from ftlab.fast.streams import SideStream


class Stream:
    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes, self.events = name, notes, 0

    def wait_stream(self, other: "Stream") -> None:
        self.notes.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> str:
        self.events += 1
        return f"event {self.events}"

    def wait_event(self, event: str) -> None:
        self.notes.append(f"{self.name} waits for {event}")


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    main, side = Stream("main", found), Stream("side", found)
    monkeypatch.setattr(streams, "side_stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    return found


def test_the_main_stream_waits_for_the_work_of_the_layer_before(notes: list[str]) -> None:
    side, done = SideStream(torch.device("cuda")), list[Any]()
    for layer in range(3):
        side(lambda layer=layer: done.append(layer))  # type: ignore[misc]
        side.end_layer()
    side.join()
    assert done == [0, 1, 2]
    fork, waits = "side waits for main", [f"main waits for event {number}" for number in (1, 2, 3)]
    assert notes == [fork, fork, waits[0], fork, waits[1], waits[2]]


def test_without_work_nobody_waits(notes: list[str]) -> None:
    """A stream that was not asked for anything is no part of a graph that is being captured."""
    side = SideStream(torch.device("cuda"))
    side.end_layer()
    side.end_layer()
    side.join()
    assert notes == []


def test_layers_without_work_between_others(notes: list[str]) -> None:
    side = SideStream(torch.device("cuda"))
    side.end_layer()
    side(lambda: None)
    for _ in range(3):
        side.end_layer()
    side.join()
    assert notes == ["side waits for main", "main waits for event 1"]
