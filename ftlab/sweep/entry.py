"""What a report knows of a trial and of a parameter: plain data, no Optuna."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

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
    """A row of validation: right or wrong, or how right from 0 to 1, and the schema (or row) that it is drawn with."""

    hit: bool | float
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
    loss: float | None = None  # validation loss of the weights that were scored
    sources: Mapping[str, Any] = field(default_factory=dict)  # hashes of what it was trained and scored on, by part
    same_as: int | None = None  # the trial that lent its values: this one was not run

    @property
    def scored(self) -> bool:
        """Whether it is complete with numbers that can be compared."""
        return finite(self.values)

    @property
    def distinct(self) -> bool:
        """Whether it is a run of its own, which counts in every statistic."""
        return self.same_as is None

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


# --- order ---------------------------------------------------------------------------------------------------


class Ranked(Protocol):
    """A trial that can have a place among others: an `Entry`, or a row of the study's leaderboard."""

    @property
    def number(self) -> int: ...
    @property
    def values(self) -> Sequence[float] | None: ...
    @property
    def loss(self) -> float | None: ...
    @property
    def scored(self) -> bool: ...
    @property
    def distinct(self) -> bool: ...


T = TypeVar("T", bound=Ranked)


def finite(values: Sequence[float] | None) -> bool:
    """Whether there are values, and all of them can be compared."""
    return bool(values) and all(map(math.isfinite, values or ()))


def costs(trial: Ranked, directions: Sequence[str]) -> tuple[float, ...]:
    """The trial's values, less is better in each."""
    return tuple(-v if way == "maximize" else v for v, way in zip(trial.values or (), directions, strict=False))


Rank = tuple[tuple[float, ...], float, int]


def rank(trial: Ranked, directions: Sequence[str]) -> Rank:
    """What a scored trial is ordered by, less is better: its values, its validation loss where one is known, its
    number."""
    loss = trial.loss if trial.loss is not None and math.isfinite(trial.loss) else math.inf
    return costs(trial, directions), loss, trial.number


def ranked(trials: Sequence[T], directions: Sequence[str]) -> list[T]:
    """Scored trials, best first objective first; the next objectives part equal ones, then `rank`'s."""
    return sorted((trial for trial in trials if trial.scored), key=lambda trial: rank(trial, directions))


def front(trials: Sequence[T], directions: Sequence[str]) -> list[T]:
    """Distinct scored trials that no other beats in one objective without losing in another, in the order of `ranked`;
    with one objective the best and its equals."""
    done = [trial for trial in ranked(trials, directions) if trial.distinct]
    all_costs = {costs(trial, directions) for trial in done}

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in all_costs)

    return [trial for trial in done if not beaten(costs(trial, directions))]


def best_of(trials: Sequence[T], directions: Sequence[str]) -> T | None:
    """The one best trial, which is on the front: nothing beats the first in the order of `ranked`."""
    return next((trial for trial in ranked(trials, directions) if trial.distinct), None)
