"""What the trials of a sweep tell, and how surely: noise against the best, rungs against the end, steps saved."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np

from ftlab.sql.intervals import clustered_bootstrap, mcnemar
from ftlab.sweep.entry import Entry

LEVEL = 0.05
FEWEST = 5  # trials below which a rank correlation is not judged
STRONG = 0.6  # rank correlation from which a rung is a fair judge
FEWEST_FOR_IMPORTANCE = 8

# 97.5 % quantiles of Student's t for 1 to 10 degrees of freedom; above them the normal's is used.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Against:
    """How a trial stands against the best: whether the difference is noise, and what says so."""

    tie: bool
    by: Literal["rows", "intervals"]


def against(best: Entry, other: Entry) -> Against | None:
    """Whether `other` is worse than `best` beyond noise; None where nothing says how sure the two values are.

    Where both answered the same rows of validation on record, those are paired, as `ftlab compare` does: noise unless
    the clustered bootstrap leaves out 0 and McNemar's p < 0.05. Otherwise the two intervals give one of the difference
    (`mover`), which treats the rows as if they were others for each trial and so calls too much a tie rather than
    too little.
    """
    shared = [row for row in best.answers if row in other.answers]
    if shared:
        return Against(_paired_tie(best, other, shared), "rows")
    if best.interval is None or other.interval is None:
        return None
    low, high = mover(best.values[0], best.interval, other.values[0], other.interval)
    return Against(low <= 0 <= high, "intervals")


def _paired_tie(best: Entry, other: Entry, rows: list[str]) -> bool:
    a, b = ([entry.answers[row].right for row in rows] for entry in (other, best))
    only_a, only_b = (sum(x and not y for x, y in zip(*pair, strict=True)) for pair in ((a, b), (b, a)))
    low, high = clustered_bootstrap(a, b, [best.answers[row].cluster for row in rows])
    return low <= 0 <= high or mcnemar(only_a, only_b) >= LEVEL


def mover(a: float, interval_a: tuple[float, float], b: float, interval_b: tuple[float, float]) -> tuple[float, float]:
    """The interval of a - b from those of two independent estimates; with Wilson's it is Newcombe's method 10.

    Source: R. G. Newcombe, Statistics in Medicine 17 (1998), 873-890; G. Y. Zou and A. Donner, Statistics in Medicine
    27 (2008), 1693-1702.
    """
    below = math.hypot(a - interval_a[0], interval_b[1] - b)
    above = math.hypot(interval_a[1] - a, b - interval_b[0])
    return a - b - below, a - b + above


def over_seeds(mean: float, deviation: float, seeds: int) -> tuple[float, float] | None:
    """The 95 % interval of a mean over seeds (Student's t); None for a single one."""
    if seeds < 2:
        return None
    t = STUDENT[seeds - 2] if seeds - 2 < len(STUDENT) else 1.96
    half = t * deviation / math.sqrt(seeds)
    return mean - half, mean + half


# --- rungs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RungCheck:
    """Spearman's rank correlation of the metric at one rung with the final objective, better with better above 0."""

    step: int
    trials: int
    rho: float | None  # None: fewer than three trials, or all alike
    low: float
    high: float

    @property
    def words(self) -> str:
        """Whether pruning at this rung is to be trusted."""
        if self.rho is None:
            return "cannot be told: fewer than 3 trials, or all alike"
        if self.trials < FEWEST:
            return f"too few trials to tell (fewer than {FEWEST})"
        if self.low <= 0:
            return "not to be trusted yet: may be chance"
        return "fair judge of the end" if self.rho >= STRONG else "weak judge of the end"


def rung_checks(entries: Sequence[Entry], metric_up: bool, direction: str) -> list[RungCheck]:
    """One for each step at which complete trials have a rung. Pruned trials have no end to compare with: they are left
    out, which narrows the range of what is compared and so lowers the correlation."""
    done = [entry for entry in entries if entry.scored]
    sign = 1 if metric_up == (direction == "maximize") else -1
    checks = []
    for step in sorted({step for entry in done for step in entry.rungs}):
        pairs = [(sign * entry.rungs[step], entry.values[0]) for entry in done if step in entry.rungs]
        pairs = [pair for pair in pairs if all(map(math.isfinite, pair))]
        rho = spearman(*(zip(*pairs, strict=True))) if pairs else None
        checks.append(RungCheck(step, len(pairs), rho, *rho_interval(rho, len(pairs))))
    return checks


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson's correlation of average ranks; None for fewer than three pairs or where one side is constant."""
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, times = np.unique(np.array(values), return_inverse=True, return_counts=True)
    last = np.cumsum(times)
    return [float(last[i] - (times[i] - 1) / 2) for i in place]


def rho_interval(rho: float | None, pairs: int) -> tuple[float, float]:
    """The 95 % interval of Spearman's rho by Fisher's transform; (-1, 1) where it cannot be told.

    Source: D. G. Bonett and T. A. Wright, Psychometrika 65 (2000), 23-28.
    """
    if rho is None or pairs < 4:
        return -1.0, 1.0
    rho = max(-0.999999, min(0.999999, rho))
    half = 1.96 * math.sqrt((1 + rho * rho / 2) / (pairs - 3))
    return math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)


# --- what pruning saved, and what mattered ------------------------------------------------------------------


@dataclass(frozen=True)
class Saved:
    """Optimizer steps of finished trials: done, and what they would have been without pruning."""

    done: int
    planned: int

    @property
    def share(self) -> float:
        return 1 - self.done / self.planned if self.planned else 0.0


def saved(entries: Sequence[Entry]) -> Saved:
    """Steps that pruned trials did not take. A pruned trial that does not say what it planned would have done as many
    as the median complete one."""
    finished = [e for e in entries if e.own and e.state in ("complete", "pruned") and _steps(e)]
    usual = [_steps(entry) for entry in finished if entry.state == "complete"]
    done = planned = 0
    for entry in finished:
        steps = _steps(entry)
        done += steps
        fallback = round(median(usual)) if usual else steps
        planned += max(steps, entry.planned or fallback) if entry.state == "pruned" else steps
    return Saved(done, planned)


def _steps(entry: Entry) -> int:
    return entry.step if entry.step is not None else max(entry.rungs, default=0)


def importance(study: Any) -> dict[str, float]:
    """Shares of the parameters in what makes the best trials differ from all (PED-ANOVA), largest first; empty where
    too few complete trials or equal values say nothing. `study` is Optuna's.

    Source: S. Watanabe, A. Bansal and F. Hutter, IJCAI 2023, arXiv:2304.10255.
    """
    import optuna

    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    varied = {key for trial in done for key in trial.params if trial.params[key] != done[0].params.get(key)}
    if len(done) < FEWEST_FOR_IMPORTANCE or not varied or all(trial.values == done[0].values for trial in done):
        return {}
    found = optuna.importance.get_param_importances(study, params=sorted(varied))
    return dict(sorted(found.items(), key=lambda item: -item[1]))
