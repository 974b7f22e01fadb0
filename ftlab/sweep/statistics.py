"""Statistics of a sweep: trials compared with the best, rungs with the final ranking, steps saved by pruning, parameter
importance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal

import numpy as np

from ftlab.sql.intervals import clustered_bootstrap, mcnemar
from ftlab.sweep.entry import Entry

LEVEL = 0.05
FEWEST = 5  # trials below which a rank correlation is not interpreted
STRONG = 0.6  # rank correlation from which a rung predicts the final ranking well
FEWEST_FOR_IMPORTANCE = 8

# 97.5 % quantiles of Student's t for 1 to 10 degrees of freedom; beyond them a series is as accurate.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Against:
    """A comparison with the best trial: whether the two are statistically tied, and by which data that was decided."""

    tie: bool
    by: Literal["rows", "intervals"]


def against(best: Entry, other: Entry) -> Against | None:
    """Whether `other` is significantly worse than `best` or statistically tied with it; None without intervals.

    Where answers of both to the same validation rows are recorded, the test is paired, as in `ftlab compare`: a tie
    unless the interval of the clustered bootstrap excludes 0 and, for answers that are right or wrong, McNemar's
    p < 0.05. Otherwise an interval of the difference is computed from the two intervals (`mover`). It treats the rows
    as independent samples, so it errs towards calling a difference a tie.
    """
    shared = [row for row in best.answers if row in other.answers]
    if shared:
        return Against(_paired_tie(best, other, shared), "rows")
    if best.interval is None or other.interval is None:
        return None
    low, high = mover(best.values[0], best.interval, other.values[0], other.interval)
    return Against(low <= 0 <= high, "intervals")


def _paired_tie(best: Entry, other: Entry, rows: list[str]) -> bool:
    a, b = ([entry.answers[row].hit for row in rows] for entry in (other, best))
    low, high = clustered_bootstrap(a, b, [best.answers[row].cluster for row in rows])
    if low <= 0 <= high or not all(isinstance(hit, bool) for hit in (*a, *b)):
        return low <= 0 <= high
    only_a, only_b = (sum(bool(x and not y) for x, y in zip(*pair, strict=True)) for pair in ((a, b), (b, a)))
    return mcnemar(only_a, only_b) >= LEVEL


def mover(a: float, interval_a: tuple[float, float], b: float, interval_b: tuple[float, float]) -> tuple[float, float]:
    """The 95 % interval of a - b from the 95 % intervals of two independent estimates (MOVER). With Wilson intervals it
    is Newcombe's method 10.

    Source: R. G. Newcombe, Statistics in Medicine 17 (1998), 873-890; G. Y. Zou and A. Donner, Statistics in Medicine
    27 (2008), 1693-1702.
    """
    below = math.hypot(a - interval_a[0], interval_b[1] - b)
    above = math.hypot(interval_a[1] - a, b - interval_b[0])
    return a - b - below, a - b + above


def over_seeds(
    mean: float, deviation: float, seeds: int, rows: Sequence[tuple[float, float]] = (), *, rate: bool = False
) -> tuple[float, float] | None:
    """The 95 % interval of a mean over seeds, for the variation of both seeds and rows; None where neither is known.

    Combines in quadrature the half-width by Student's t from the seeds' standard deviation with `rows`: how far each
    seed's own interval over its rows reaches below and above its value. All seeds answer the same rows, so more seeds
    do not reduce the sampling error of the rows, and the interval is never narrower than theirs. A rate stays between
    0 and 1.
    """
    if seeds < 2:
        return None
    half = student(seeds - 1) * deviation / math.sqrt(seeds)
    below, above = (fmean(reach) for reach in zip(*rows, strict=True)) if rows else (0.0, 0.0)
    low, high = mean - math.hypot(half, below), mean + math.hypot(half, above)
    if low == high:
        return None
    return (max(0.0, low), min(1.0, high)) if rate else (low, high)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t.

    Source: M. Abramowitz and I. A. Stegun, Handbook of Mathematical Functions (1964), 26.7.5.
    """
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z, n = 1.959964, freedom
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


# --- rungs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RungCheck:
    """Spearman's rank correlation of the metric at one rung with the final objective, above 0 if good predicts good."""

    step: int
    trials: int
    rho: float | None  # None: fewer than three trials, or all values equal
    low: float
    high: float

    @property
    def words(self) -> str:
        """Whether this rung predicts the final ranking, as pruning assumes."""
        if self.rho is None:
            return "not available: needs at least 3 trials with different values"
        if self.trials < FEWEST:
            return f"too few trials (needs at least {FEWEST})"
        if self.low <= 0:
            return "not established: the correlation may be due to chance"
        return "yes" if self.rho >= STRONG else "only weakly"


def rung_checks(entries: Sequence[Entry], metric_up: bool, direction: str) -> list[RungCheck]:
    """One check for each step at which complete trials (without duplicates) have a rung. Pruned trials have no final
    value and are left out, which narrows the range of values and so lowers the correlation."""
    done = [entry for entry in entries if entry.scored and entry.distinct]
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
    """The 95 % interval of Spearman's rho by Fisher's transform; (-1, 1) where it is unknown.

    Source: D. G. Bonett and T. A. Wright, Psychometrika 65 (2000), 23-28.
    """
    if rho is None or pairs < 4:
        return -1.0, 1.0
    rho = max(-0.999999, min(0.999999, rho))
    half = 1.96 * math.sqrt((1 + rho * rho / 2) / (pairs - 3))
    return math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)


# --- steps saved by pruning, and parameter importance -------------------------------------------------------


@dataclass(frozen=True)
class SavedSteps:
    """Optimizer steps of finished trials: those done, and those that they would have done without pruning."""

    done: int
    planned: int

    @property
    def share(self) -> float:
        return 1 - self.done / self.planned if self.planned else 0.0


def saved(entries: Sequence[Entry]) -> SavedSteps:
    """Steps done and planned. A pruned trial without a recorded plan counts with the median of the complete trials."""
    finished = [e for e in entries if e.distinct and e.state in ("complete", "pruned") and _steps(e)]
    usual = [_steps(entry) for entry in finished if entry.state == "complete"]
    done = planned = 0
    for entry in finished:
        steps = _steps(entry)
        done += steps
        fallback = round(median(usual)) if usual else steps
        planned += max(steps, entry.planned or fallback) if entry.state == "pruned" else steps
    return SavedSteps(done, planned)


def _steps(entry: Entry) -> int:
    return entry.step if entry.step is not None else max(entry.rungs, default=0)


def importance(study: Any) -> dict[str, float]:
    """Parameter importance by PED-ANOVA (shares that sum to 1), largest first; empty with too few complete trials or
    with equal values. `study` is Optuna's; duplicates and trials imported from another study are left out.

    Source: S. Watanabe, A. Bansal and F. Hutter, IJCAI 2023, arXiv:2304.10255.
    """
    import optuna

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    done = [trial for trial in complete if {"same_as", "from"}.isdisjoint(trial.user_attrs)]
    varied = {key for trial in done for key in trial.params if trial.params[key] != done[0].params.get(key)}
    if len(done) < FEWEST_FOR_IMPORTANCE or not varied or all(trial.values == done[0].values for trial in done):
        return {}
    distinct = optuna.create_study(directions=study.directions)
    distinct.add_trials(done)
    found = optuna.importance.get_param_importances(distinct, params=sorted(varied))
    return dict(sorted(found.items(), key=lambda item: -item[1]))
