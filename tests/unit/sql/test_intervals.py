"""Intervals and tests against published, hand-computed and simulated values."""

import math
import time
from fractions import Fraction

import numpy as np
import pytest

from ftlab.sql.intervals import clustered_bootstrap, mcnemar, wilson


@pytest.mark.parametrize(
    ("hits", "rows", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_known_values(hits: int, rows: int, low: float, high: float) -> None:
    assert wilson(hits, rows) == pytest.approx((low, high), abs=5e-5)


def test_no_row_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_more_rows_say_more() -> None:
    def width(rows: int) -> float:
        low, high = wilson(rows // 2, rows)
        return high - low

    assert width(1000) < width(100) < width(10)


# --- two scorers on the same rows ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 1, 1.0),
        (0, 5, 2 / 32),
        (1, 9, 22 / 1024),
        (9, 1, 22 / 1024),
        (10, 20, 0.0987371),  # R: binom.test(10, 30)$p.value
    ],
)
def test_mcnemar_is_the_two_sided_binomial(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(p, rel=1e-6)


@pytest.mark.parametrize("rows", [2, 3, 17, 60, 201, 1000])
def test_mcnemar_equals_the_sum_of_whole_numbers(rows: int) -> None:
    for fewer in range(0, (rows + 1) // 2, max(1, rows // 12)):
        exact = Fraction(2 * sum(math.comb(rows, i) for i in range(fewer + 1)), 2**rows)
        assert mcnemar(fewer, rows - fewer) == pytest.approx(float(min(exact, Fraction(1))), rel=1e-9)


def test_mcnemar_of_a_million_rows_takes_no_time() -> None:
    began = time.process_time()
    assert 0.04 < mcnemar(499_000, 501_000) < 0.05
    assert mcnemar(0, 1_000_000) == 0.0
    assert time.process_time() - began < 0.5
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 2)


def test_no_difference_has_no_interval() -> None:
    right = [True, False] * 50
    assert clustered_bootstrap(right, right, range(100), resamples=500) == (0.0, 0.0)


def test_a_clear_difference_is_told_with_its_sign() -> None:
    wrong, right = [False] * 80, [True] * 60 + [False] * 20
    low, high = clustered_bootstrap(wrong, right, range(80), resamples=2000)
    assert 0.6 < low < 0.75 < high < 0.9
    assert clustered_bootstrap(right, wrong, range(80), resamples=2000) == pytest.approx((-high, -low), abs=0.02)


def test_rows_of_one_cluster_count_as_one_piece_of_evidence() -> None:
    wrong, right = [False] * 400, ([True] * 20 + [False] * 20) * 10
    clustered = clustered_bootstrap(wrong, right, [i // 20 for i in range(400)], resamples=4000)
    single = clustered_bootstrap(wrong, right, range(400), resamples=4000)
    assert clustered[1] - clustered[0] > 3 * (single[1] - single[0])
    assert single == pytest.approx((0.45, 0.55), abs=0.01)


def test_the_same_rows_give_the_same_interval_and_lengths_must_agree() -> None:
    a, b = [i % 3 == 0 for i in range(90)], [i % 2 == 0 for i in range(90)]
    clusters = [f"CREATE TABLE t{i // 4}" for i in range(90)]
    assert clustered_bootstrap(a, b, clusters) == clustered_bootstrap(a, b, clusters)
    assert clustered_bootstrap(a, b, clusters) != clustered_bootstrap(a, b, clusters, seed=1)
    with pytest.raises(ValueError, match="shorter"):
        clustered_bootstrap(a, b, clusters[:-1])


@pytest.mark.parametrize("clusters", [[], ["one"] * 3])
def test_fewer_than_two_clusters_say_nothing(clusters: list[str]) -> None:
    assert clustered_bootstrap([False] * len(clusters), [True] * len(clusters), clusters) == (-1.0, 1.0)


def test_fifteen_thousand_rows_take_a_second() -> None:
    random = np.random.default_rng(0)
    a, b = (list(random.random(15_716) < share) for share in (0.7, 0.72))
    began = time.process_time()
    low, high = clustered_bootstrap(a, b, list(random.integers(0, 6000, 15_716)))
    assert time.process_time() - began < 1.5
    assert low < 0.02 < high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """200 draws of 60 schemas with 1 to 6 rows each, whose difficulty differs by schema; the truth is 0.1."""
    random = np.random.default_rng(7)
    covered = 0
    for seed in range(200):
        sizes = random.integers(1, 7, 60)
        clusters = np.repeat(np.arange(60), sizes)
        ease = np.repeat(random.uniform(0.2, 0.7, 60), sizes)
        gain = np.repeat(random.choice([-0.1, 0.3], 60), sizes)
        low, high = clustered_bootstrap(
            list(random.random(len(clusters)) < ease),
            list(random.random(len(clusters)) < ease + gain),
            list(clusters),
            resamples=400,
            seed=seed,
        )
        covered += low <= 0.1 <= high
    assert 0.90 <= covered / 200 <= 0.99
