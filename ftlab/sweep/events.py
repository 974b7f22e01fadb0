"""What a worker tells while it works."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ftlab.sweep.study import TrialRow


@dataclass(frozen=True)
class Event:
    """A trial `started` (its params), passed a `rung` (optimizer step, `sweep.rung_metric`), or `ended` (its row; one
    that was given back has the state failed and the user attribute surplus)."""

    kind: Literal["started", "rung", "ended"]
    number: int
    params: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    value: float | None = None
    row: "TrialRow | None" = None


Listener = Callable[[Event], None]


def unheard(event: Event) -> None:
    """Nobody listens."""
