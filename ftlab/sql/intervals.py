"""Confidence intervals of rates, and tests of the difference between two scorers' rates on the same rows."""

import math
from collections.abc import Hashable, Sequence

import numpy as np

DRAWN_AT_ONCE = 2_000_000  # random numbers that the bootstrap keeps in memory at a time


def wilson(hits: int, rows: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a rate, 95 % by default; (0, 1) without rows.

    Source: E. B. Wilson, Journal of the American Statistical Association 22 (1927), 209-212.
    """
    if rows == 0:
        return 0.0, 1.0
    rate = hits / rows
    denominator = 1 + z * z / rows
    centre = (rate + z * z / (2 * rows)) / denominator
    half = z * math.sqrt(rate * (1 - rate) / rows + z * z / (4 * rows * rows)) / denominator
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p value of McNemar's test: if two scorers were equally good, the probability that the rows
    which only one of them gets right split at least as unevenly as `only_a` to `only_b`. 1 without such rows.

    The binomial tail is summed from its largest term down, so that a million rows take milliseconds. A p value below
    the smallest float is 0. Raises ValueError for a negative count.

    Source: Q. McNemar, Psychometrika 12 (1947), 153-157; exact form: A. L. Edwards, Psychometrika 13 (1948),
    185-187.
    """
    if min(only_a, only_b) < 0:
        raise ValueError(f"counts of rows must not be negative: {only_a}, {only_b}")
    rows, fewer = only_a + only_b, min(only_a, only_b)
    if only_a == only_b:
        return 1.0
    ways = math.lgamma(rows + 1) - math.lgamma(fewer + 1) - math.lgamma(rows - fewer + 1)
    term = math.exp(ways - rows * math.log(2))
    tail = 0.0
    for i in range(fewer, -1, -1):
        tail += term
        if term <= tail * 1e-18:
            break
        term *= i / (rows - i + 1)
    return min(1.0, 2 * tail)


def clustered_bootstrap(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable],
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % percentile interval of the difference of two rates on the same rows: rate of `b` minus rate of `a`. Each
    row is right or wrong, or has a value from 0 to 1.

    Rows of one cluster (such as a schema) are correlated, so whole clusters are resampled with replacement, as many as
    there are. Clusters of equal size and equal difference are interchangeable, so the counts of each such kind are
    drawn from a multinomial distribution. With fewer than two clusters the interval is (-1, 1). The same arguments give
    the same interval. Raises ValueError for sequences of different lengths.

    Source: B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; clusters: A. C.
    Davison and D. V. Hinkley, Bootstrap Methods and their Application (1997), section 3.8.
    """
    gains: dict[Hashable, list[float]] = {}
    for right_a, right_b, cluster in zip(a, b, clusters, strict=True):
        total = gains.setdefault(cluster, [0, 0])
        total[0] += float(right_b) - float(right_a)
        total[1] += 1
    if len(gains) < 2:
        return -1.0, 1.0
    kinds, times = np.unique(np.array(list(gains.values())), axis=0, return_counts=True)
    random = np.random.default_rng(seed)
    differences = []
    step = max(1, DRAWN_AT_ONCE // len(kinds))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = random.multinomial(len(gains), times / len(gains), size=size) @ kinds
        differences.append(drawn[:, 0] / drawn[:, 1])
    low, high = np.quantile(np.concatenate(differences), (0.025, 0.975))
    return float(low), float(high)
