"""Confidence intervals of rates."""

import math


def wilson(hits: int, rows: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a rate, 95 % by default; (0, 1) where there is no row.

    Source: E. B. Wilson, Journal of the American Statistical Association 22 (1927), 209-212.
    """
    if rows == 0:
        return 0.0, 1.0
    rate = hits / rows
    denominator = 1 + z * z / rows
    centre = (rate + z * z / (2 * rows)) / denominator
    half = z * math.sqrt(rate * (1 - rate) / rows + z * z / (4 * rows * rows)) / denominator
    return max(0.0, centre - half), min(1.0, centre + half)
