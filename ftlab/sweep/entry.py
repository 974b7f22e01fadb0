"""Trials and parameters as the report uses them: plain data, without Optuna."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

State = Literal["complete", "pruned", "failed", "running", "waiting"]
MARKS: tuple[State, ...] = ("complete", "pruned", "failed", "running", "waiting")


@dataclass(frozen=True)
class Parameter:
    """A searched key and the scale of its values: categories, or numbers on a linear or logarithmic axis. `order` is
    that of the categories."""

    key: str
    kind: Literal["choice", "linear", "log"] = "choice"
    order: tuple[str, ...] = ()

    def of(self, entries: "Sequence[Entry]") -> list[Any]:
        """The parameter's values in these trials, in the parameter's order."""
        values = [entry.params[self.key] for entry in entries if self.key in entry.params]
        return sorted(values, key=lambda value: self.order.index(text(value)) if text(value) in self.order else -1)


@dataclass(frozen=True)
class Answer:
    """The score of a validation row (right or wrong, or from 0 to 1), and its bootstrap cluster: schema or row."""

    hit: bool | float
    cluster: str


@dataclass(frozen=True)
class Entry:
    """One trial."""

    number: int
    state: State
    values: tuple[float, ...] = ()  # one per objective; empty unless complete
    params: dict[str, Any] = field(default_factory=dict)
    rungs: dict[int, float] = field(default_factory=dict)  # by step, in the metric's own sign
    interval: tuple[float, float] | None = None  # the 95 % interval of the first objective
    answers: dict[str, Answer] = field(default_factory=dict)  # by row id; empty where none are recorded
    step: int | None = None  # optimizer steps done
    planned: int | None = None  # optimizer steps without pruning
    started: float | None = None  # seconds since the epoch
    ended: float | None = None
    worker: str = ""
    folder: Path | None = None  # of its run; None where it was removed
    cause: str = ""
    peak_gib: float | None = None  # peak GPU memory of a failed trial
    note: str = ""
    test: str = ""  # its score on the test split, as text
    loss: float | None = None  # validation loss of the weights that were scored
    sources: Mapping[str, Any] = field(default_factory=dict)  # hashes of its data, template and tokenizer
    same_as: int | None = None  # the trial whose result it copied: this one was not run

    @property
    def scored(self) -> bool:
        """Whether it is complete with finite values."""
        return finite(self.values)

    @property
    def distinct(self) -> bool:
        """Whether it was run itself and is no duplicate; only such trials count in statistics."""
        return self.same_as is None

    @property
    def seconds(self) -> float | None:
        """Run time; None while it is running."""
        return None if self.started is None or self.ended is None else self.ended - self.started


def text(value: Any) -> str:
    """A parameter's value as short text."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(text, value))}]"
    return str(value)


# --- order ---------------------------------------------------------------------------------------------------


class Ranked(Protocol):
    """A trial that can be ranked: an `Entry`, or a row of the study's leaderboard."""

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
    """Whether there are values, all of them finite."""
    return bool(values) and all(map(math.isfinite, values or ()))


def costs(trial: Ranked, directions: Sequence[str]) -> tuple[float, ...]:
    """The trial's values with signs such that lower is better."""
    return tuple(-v if way == "maximize" else v for v, way in zip(trial.values or (), directions, strict=False))


Rank = tuple[tuple[float, ...], float, int]


def rank(trial: Ranked, directions: Sequence[str]) -> Rank:
    """The sort key of a scored trial, lower is better: its values, then its validation loss where known, then its
    number."""
    loss = trial.loss if trial.loss is not None and math.isfinite(trial.loss) else math.inf
    return costs(trial, directions), loss, trial.number


def ranked(trials: Sequence[T], directions: Sequence[str]) -> list[T]:
    """Scored trials by the first objective, best first; ties are broken as in `rank`."""
    return sorted((trial for trial in trials if trial.scored), key=lambda trial: rank(trial, directions))


def front(trials: Sequence[T], directions: Sequence[str]) -> list[T]:
    """The Pareto front in the order of `ranked`, without duplicates; with one objective the best trial and those equal
    to it."""
    done = [trial for trial in ranked(trials, directions) if trial.distinct]
    all_costs = {costs(trial, directions) for trial in done}

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in all_costs)

    return [trial for trial in done if not beaten(costs(trial, directions))]


def best_of(trials: Sequence[T], directions: Sequence[str]) -> T | None:
    """The best trial: the first of `ranked` that is no duplicate. It is on the Pareto front."""
    return next((trial for trial in ranked(trials, directions) if trial.distinct), None)
