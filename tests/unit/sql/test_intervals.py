"""Wilson's interval against published and hand-computed values."""

import pytest

from ftlab.sql import wilson


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
