"""Compares a result with the gold's: the rows as a multiset, in any order and selection that the gold query allows.

Columns are compared by position, not by name. 1 equals 1.0. Two numbers, one of them a float, are equal within a
relative tolerance of 1e-9. The number 1 and the text '1' differ, NULL equals NULL, and a blob equals no text.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ftlab.sql.probe import Key, Probe, read_probe

if TYPE_CHECKING:
    from ftlab.sql.engine import Rows

Row = tuple[Any, ...]

TOLERANCE = 1e-9
# Rows without an exact match are matched one by one with tolerance; more than this only in sorted order.
PAIRED_ROWS = 200

FOLDS: dict[str, Callable[[str], str]] = {
    "NOCASE": lambda text: "".join(c.lower() if c.isascii() else c for c in text),
    "RTRIM": lambda text: text.rstrip(" "),
}


class Comparison:
    """The results that a gold query allows. It is created once per pair; `same` is called for each database.

    Run `probe` instead of the gold query: it returns the rows without LIMIT, with the ORDER BY keys appended, so that
    ties between rows are visible. The prediction's rows are compared tie group by tie group: a group that is wholly
    within the LIMIT must match as a multiset; of a group that the LIMIT cuts, any selection of the right size matches.

    Without ORDER BY any order is right, and with a LIMIT any selection of rows. If SELECT DISTINCT is ordered by keys
    that it does not return, and a row has several keys, the gold's order is arbitrary, so any order is right. A LIMIT
    that is not a number is executed as written, and only its selection is right. If the engine refuses the probe (a key
    that computes with an alias), `plain` switches to the gold query itself; then only its own order, ties and selection
    are right.
    """

    def __init__(self, gold: str) -> None:
        self.gold = gold
        self.parts: Probe = read_probe(gold)
        self.exactly = False

    @property
    def probe(self) -> str:
        """The query to run on each database instead of the gold query."""
        return self.parts.text

    @property
    def ordered(self) -> bool:
        """Whether the gold query has an ORDER BY at its top level."""
        return bool(self.parts.keys)

    def plain(self) -> None:
        """Use the gold query itself from now on, because the engine refuses the probe."""
        self.parts = Probe(self.gold, self.parts.keys)
        self.exactly = True

    def same(self, gold: "Rows", pred: "Rows") -> str | None:
        """None if the gold query allows the prediction's rows, else one line that says why not.

        `gold` is the result of `probe`.
        """
        width = len(gold.columns) - self.parts.extras
        if width != len(pred.columns):
            return f"{counted(len(pred.columns), 'column')} instead of {width}"
        rows = self.rows(gold)
        groups = list(self.groups(gold, rows, width)) if len(rows) == len(gold.rows) else [(0, len(rows))]
        first, last = self.window(len(rows))
        if len(pred.rows) != last - first:
            return f"{counted(len(pred.rows), 'row')} instead of {last - first}"
        if rows[first:last] == pred.rows:
            return None
        for start, end in groups:
            low, high = max(start, first), min(end, last)
            if low < high and (found := difference(rows[start:end], pred.rows[low - first : high - first])):
                return found if len(groups) == 1 else f"{found}, at row {low - first + 1}"
        return None

    def returns_rows(self, gold: "Rows") -> bool:
        """Whether the gold query, with its LIMIT and OFFSET, returns a row; `gold` is the result of `probe`."""
        first, last = self.window(len(self.rows(gold)))
        return first < last

    def rows(self, gold: "Rows") -> list[Row]:
        """The probe's rows without the appended keys; without duplicates if the gold query is DISTINCT."""
        if not self.parts.extras:
            return gold.rows
        width = len(gold.columns) - self.parts.extras
        rows = [row[:width] for row in gold.rows]
        return list(dict.fromkeys(rows)) if self.parts.distinct else rows

    def window(self, count: int) -> tuple[int, int]:
        """The range (start, end) of `count` rows that LIMIT and OFFSET select."""
        offset, limit = self.parts.window
        first = min(offset, count)
        return first, count if limit is None else min(first + limit, count)

    def groups(self, gold: "Rows", rows: Sequence[Row], width: int) -> Iterator[tuple[int, int]]:
        """The ranges (start, end) of tied rows, within which any order is right."""
        if self.exactly and self.parts.keys:
            yield from ((at, at + 1) for at in range(len(rows)))
            return
        columns = [(key_column(key, gold.columns, width), FOLDS.get(key.collation)) for key in self.parts.keys]
        if not columns or any(column is None for column, _ in columns):
            yield 0, len(rows)
            return

        def tie(row: Row) -> Row:
            return tuple(
                fold(row[column]) if fold and isinstance(row[column], str) else row[column]
                for column, fold in columns
                if column is not None
            )

        start = 0
        for _, run in groupby(gold.rows, key=tie):
            end = start + sum(1 for _ in run)
            yield start, end
            start = end


def key_column(key: Key, columns: Sequence[str], width: int) -> int | None:
    """The column of the probe's rows that holds a key; None if no output has its name."""
    if key.extra is not None:
        return width + key.extra
    if key.column is not None:
        return key.column if 0 <= key.column < width else None
    names = [column.lower() for column in columns[:width]]
    return names.index(key.name) if key.name in names else None


def difference(allowed: Sequence[Row], found: Sequence[Row]) -> str | None:
    """Why `found` is not a selection of rows from `allowed`; None if it is."""
    if len(found) > len(allowed):
        return f"{counted(len(found), 'row')} instead of {len(allowed)}"
    rest, missing = Counter(found), Counter(allowed)
    rest.subtract(missing)
    surplus = [row for row, times in rest.items() for _ in range(times)]
    spare = [row for row, times in rest.items() for _ in range(-times)]
    unmatched = first_unmatched(spare, surplus)
    return None if unmatched is None else f"no row of the gold is {short(unmatched)}"


def first_unmatched(spare: list[Row], surplus: list[Row]) -> Row | None:
    """The first row of `surplus` without a close row in `spare`, each of which is used once; None if all have one."""
    if len(spare) == len(surplus):
        spare, surplus = sorted(spare, key=rank), sorted(surplus, key=rank)
        if all(close(a, b) for a, b in zip(spare, surplus, strict=True)):
            return None
    if len(surplus) > PAIRED_ROWS:
        return surplus[0]
    for row in surplus:
        match = next((at for at, other in enumerate(spare) if close(row, other)), None)
        if match is None:
            return row
        spare.pop(match)
    return None


def close(a: Row, b: Row) -> bool:
    return len(a) == len(b) and all(x == y or near(x, y) for x, y in zip(a, b, strict=True))


def near(x: Any, y: Any) -> bool:
    """Whether two values are numbers, at least one of them a float, and equal within the tolerance."""
    if not (isinstance(x, int | float) and isinstance(y, int | float)):
        return False
    return (isinstance(x, float) or isinstance(y, float)) and math.isclose(x, y, rel_tol=TOLERANCE)


def rank(row: Row) -> list[tuple[int, float, str]]:
    """A sort key that makes close rows neighbours: numbers are rounded to seven digits."""
    return [
        (0, 0.0, "")
        if value is None
        else (1, float(f"{float(value):.6e}"), "")
        if isinstance(value, int | float)
        else (2, 0.0, repr(value))
        for value in row
    ]


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def short(row: Row) -> str:
    text = "(" + ", ".join("NULL" if value is None else repr(value) for value in row) + ")"
    return text if len(text) <= 80 else text[:77] + "..."
