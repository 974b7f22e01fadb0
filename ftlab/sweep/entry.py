"""What a report knows of a trial and of a parameter: plain data, no Optuna."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

State = Literal["complete", "pruned", "failed", "running", "waiting"]
MARKS: tuple[State, ...] = ("complete", "pruned", "failed", "running", "waiting")


@dataclass(frozen=True)
class Parameter:
    """A swept key, and how its values lie: names, or numbers on a straight or a logarithmic scale. `order` is that of
    the names."""

    key: str
    kind: Literal["choice", "linear", "log"] = "choice"
    order: tuple[str, ...] = ()

    def of(self, entries: "Sequence[Entry]") -> list[Any]:
        """The values of these trials, in the parameter's order."""
        values = [entry.params[self.key] for entry in entries if self.key in entry.params]
        return sorted(values, key=lambda value: self.order.index(text(value)) if text(value) in self.order else -1)


@dataclass(frozen=True)
class Answer:
    """Whether a row of validation was answered right, and the schema (or row) that it is drawn with."""

    right: bool
    cluster: str


@dataclass(frozen=True)
class Entry:
    """One trial."""

    number: int
    state: State
    values: tuple[float, ...] = ()  # an objective each; empty unless complete
    params: dict[str, Any] = field(default_factory=dict)
    rungs: dict[int, float] = field(default_factory=dict)  # by step, in the metric's own sign
    interval: tuple[float, float] | None = None  # 95 %, of the first objective
    answers: dict[str, Answer] = field(default_factory=dict)  # by row id; empty where none were written
    step: int | None = None  # optimizer steps done
    planned: int | None = None  # optimizer steps that it would have done
    started: float | None = None  # seconds since the epoch
    ended: float | None = None
    worker: str = ""
    folder: Path | None = None  # of its run; None where there is none
    cause: str = ""
    peak_gib: float | None = None  # GPU memory of a failed trial
    note: str = ""
    test: str = ""  # what it scored on test, in words
    own: bool = True  # not taken over from another study

    @property
    def scored(self) -> bool:
        """Whether it is complete with numbers that can be compared."""
        return bool(self.values) and all(map(math.isfinite, self.values))

    @property
    def seconds(self) -> float | None:
        """How long it ran; None while it does."""
        return None if self.started is None or self.ended is None else self.ended - self.started


def text(value: Any) -> str:
    """A parameter's value, short."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(text, value))}]"
    return str(value)


def ranked(entries: Sequence[Entry], directions: Sequence[str]) -> list[Entry]:
    """Complete trials, best first objective first (equal ones as they came); then the others by state and number."""
    sign = -1 if directions[0] == "maximize" else 1
    done = [entry for entry in entries if entry.scored]
    rest = [entry for entry in entries if not entry.scored]
    done.sort(key=lambda entry: (sign * entry.values[0], entry.number))
    return done + sorted(rest, key=lambda entry: (MARKS.index(entry.state), entry.number))


def front(entries: Sequence[Entry], directions: Sequence[str]) -> list[Entry]:
    """Complete trials that no other beats in one objective without losing in another, by the first objective."""
    signs = [-1 if direction == "maximize" else 1 for direction in directions]
    done = [entry for entry in ranked(entries, directions) if entry.scored]
    costs = {entry.number: [s * v for s, v in zip(signs, entry.values, strict=True)] for entry in done}

    def beaten(mine: list[float]) -> bool:
        return any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in costs.values())

    return [entry for entry in done if not beaten(costs[entry.number])]
