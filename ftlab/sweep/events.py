"""Events that a worker reports through a callback while it works."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ftlab.sweep.study import TrialRow


@dataclass(frozen=True)
class Event:
    """A trial `started` (with its params), reached a `rung` (with the optimizer step and `sweep.rung_metric`), or
    `ended` (with its row; a discarded trial has the state failed and the user attribute surplus)."""

    kind: Literal["started", "rung", "ended"]
    number: int
    params: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    value: float | None = None
    row: "TrialRow | None" = None


Listener = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """The callback that does nothing."""
