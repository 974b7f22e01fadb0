"""Solves for values of columns at which an expression of them has a wanted value."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from sqlglot import exp

from ftlab.sql.shapes import dated
from ftlab.sql.values import Value, number_of

# Values of the columns that are not solved for: (plain columns, dates as Julian days: 2008-06-15 and later).
OTHERS = ((2.0, 2454632.5), (100.0, 2454642.5))
PASSED_THROUGH = {"CAST", "ROUND", "ABS", "SUM", "AVG", "TOTAL", "MIN", "MAX", "+"}
MOST_COLUMNS = 6

Assignment = list[tuple[exp.Column, Value]]
Name = tuple[str, str]


class Unsolvable(Exception):
    """An expression that is not arithmetic of columns and numbers."""


def points(subject: exp.Expr, wanted: float) -> Iterator[Assignment]:
    """Values of all columns of an expression at which it equals `wanted`; none if it is not linear in any column."""
    columns = {key(column): column for column in islice(subject.find_all(exp.Column), MOST_COLUMNS)}
    days = {key(call.expressions[0]) for call in subject.find_all(exp.Anonymous) if is_day(call)}
    for plain, day in OTHERS[: len(columns)]:
        at = {name: day if name in days else plain for name in columns}
        for name in columns:
            with suppress(Unsolvable, ZeroDivisionError, OverflowError):
                at[name] = root(subject, at, name, wanted)
                yield [(column, stored(at[other], other in days)) for other, column in columns.items()]
                break


def root(subject: exp.Expr, at: dict[Name, float], name: Name, wanted: float) -> float:
    """The solution for one column, with all others as in `at`."""
    low, high = value_of(subject, {**at, name: 1.0}), value_of(subject, {**at, name: 2.0})
    if low == high:
        raise Unsolvable
    found = round(1 + (wanted - low) / (high - low), 9)
    if abs(value_of(subject, {**at, name: found}) - wanted) > 1e-6:
        raise Unsolvable
    return found


def value_of(node: exp.Expr, at: dict[Name, float]) -> float:
    if isinstance(node, exp.Column):
        return at[key(node)]
    if isinstance(node, exp.Paren):
        return value_of(node.this, at)
    if isinstance(node, exp.Neg):
        return -value_of(node.this, at)
    if isinstance(node, exp.Literal) and (known := number_of(node.this)) is not None:
        return known
    if isinstance(node, exp.Add | exp.Sub | exp.Mul | exp.Div):
        left, right = value_of(node.this, at), value_of(node.expression, at)
        if isinstance(node, exp.Add | exp.Sub):
            return left + right if isinstance(node, exp.Add) else left - right
        return left * right if isinstance(node, exp.Mul) else left / right
    if isinstance(node, exp.Anonymous) and node.expressions:
        return value_of_call(node, at)
    raise Unsolvable


def value_of_call(call: exp.Anonymous, at: dict[Name, float]) -> float:
    """The value of a function call: functions that do not change suitable numbers pass them on, dates become days."""
    argument = call.expressions[0]
    if is_day(call) or call.name.upper() in PASSED_THROUGH:
        return value_of(argument, at)
    if call.name.upper() == "JULIANDAY":
        day = dated("JULIANDAY", *(literal.this for literal in call.expressions if isinstance(literal, exp.Literal)))
        if isinstance(day, int | float):
            return day
    raise Unsolvable


def is_day(call: exp.Anonymous) -> bool:
    """Whether a call is the Julian day of a column."""
    return (
        call.name.upper() == "JULIANDAY" and len(call.expressions) == 1 and isinstance(call.expressions[0], exp.Column)
    )


def stored(value: float, day: bool) -> Value:
    """The value that a column stores for its value in an expression."""
    if day:
        return dated("DATE" if value % 1 == 0.5 else "DATETIME", value)
    return int(value) if value.is_integer() else value


def key(column: exp.Column) -> Name:
    return column.table.lower(), column.name.lower()
