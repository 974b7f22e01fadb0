"""Rates of verdicts: what is a hit, what is a row, and what is left out."""

from dataclasses import replace

import pytest

from ftlab.sql.intervals import wilson
from ftlab.sql.rates import RECORDED, Rate, by_bucket, rate, read_back, recorded
from ftlab.sql.verdict import Verdict

RIGHT = Verdict(True, True, True, True, None, False, 0, "equal text", ("single_table",))
WRONG = Verdict(False, False, False, True, False, False, 3, "told apart", ("multi_table", "nested"))
BROKEN = replace(WRONG, exec_equal=None, vacuous=None, gold_broken=True, buckets=("single_table",))
VACUOUS = replace(WRONG, exec_equal=True, vacuous=True, buckets=("order",))
ALL = [RIGHT, RIGHT, WRONG, BROKEN, VACUOUS]


@pytest.mark.parametrize(
    ("field", "hits", "rows"),
    [("exact_string", 2, 5), ("ast_equal", 2, 5), ("valid", 5, 5), ("exec_equal", 2, 3)],
)
def test_broken_and_vacuous_golds_are_no_rows_of_exec_and_misses_of_the_others(
    field: str, hits: int, rows: int
) -> None:
    assert rate(field, ALL) == Rate(hits, rows)


def test_a_rate_has_wilsons_interval_and_no_row_is_zero() -> None:
    assert (Rate(2, 5).value, Rate(2, 5).interval) == (0.4, wilson(2, 5))
    assert (rate("exec_equal", [BROKEN]).value, rate("exec_equal", []).interval) == (0.0, (0.0, 1.0))


def test_buckets_with_rows_come_in_order() -> None:
    found = {name: len(rows) for name, rows in by_bucket(ALL)}
    assert list(found.items()) == [("single_table", 3), ("multi_table", 1), ("order", 1), ("nested", 1)]


@pytest.mark.parametrize("verdict", ALL)
def test_a_recorded_verdict_is_read_back(verdict: Verdict) -> None:
    row = recorded(verdict, "base_")
    assert tuple(row) == tuple(f"base_{name}" for name in RECORDED)
    assert read_back(row, "base_") == replace(verdict, buckets=())
    with pytest.raises(KeyError):
        read_back(row)
