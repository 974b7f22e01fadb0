"""The conditions and computed values of a query, each as one expression over table columns.

A formula is SQL in which every column is written as its slot: which use of which table, and which column. So formulas
of two queries can be compared, and evaluated on rows: an aggregate is written as its value for a single row.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sqlglot import exp

from ftlab.sql import parse

# The lower-case name of a table, the number of its use in the query, and a column.
Slot = tuple[str, int, str]
Resolve = Callable[[exp.Column], "Slot | exp.Expr | str | None"]

PREDICATES = (
    exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.Is, exp.Like, exp.Glob, exp.In, exp.Between, exp.Escape,
)  # fmt: skip
OF_ONE_ROW = {"COUNT", "AVG", "TOTAL", "SUM", "MIN", "MAX", "GROUP_CONCAT"}
COLUMN = "value of"
SLOT = "slot"
# The most formulas of one part of a query; the most characters and nodes of a formula.
MOST_FORMULAS = 40
LONGEST = 600
MOST_NODES = 150


@dataclass(frozen=True)
class Formula:
    """An expression in SQL and its slots. `must`: every row of the result (in HAVING: every group) fulfils it;
    `condition`: it is true or false; `plain`: a predicate without arithmetic and functions."""

    text: str
    slots: tuple[Slot, ...] = field(compare=False)
    must: bool = field(compare=False)
    condition: bool = field(compare=False)
    plain: bool = field(compare=False)
    tree: exp.Expr = field(compare=False)


class NotOfColumns(Exception):
    """An expression with a subquery, a window or a name that is not a column."""


def alias(slot: Slot) -> str:
    return f"{slot[0]} {slot[1]} {slot[2]}"


def formulas(part: exp.Expr, must: bool, resolve: Resolve) -> Iterator[Formula]:
    """The formulas in a condition or an output. `resolve` returns the slot of a column, the expression of an alias, or
    the text of a quoted name."""
    for node, needed, condition in islice(pieces(part, must), MOST_FORMULAS):
        if next(islice(node.walk(), MOST_NODES, None), None) is None:
            with suppress(NotOfColumns):
                found = formula(node, needed, condition, resolve)
                if found.slots and len(found.text) <= LONGEST:
                    yield found


def pieces(node: Any, must: bool) -> Iterator[tuple[exp.Expr, bool, bool]]:
    """(expression, must hold, is a condition): conditions joined by AND and OR, whole values, and conditions inside."""
    if isinstance(node, exp.Paren | exp.Ordered | exp.Alias):
        yield from pieces(node.this, must)
    elif isinstance(node, exp.Connector):
        if not isinstance(node, exp.And):
            yield node, must, True
        for part in node.flatten():
            yield from pieces(part, must and isinstance(node, exp.And))
    elif isinstance(node, (exp.Not, *PREDICATES)):
        yield node, must, True
        yield from inside(node)
    elif isinstance(node, exp.Expr) and not isinstance(node, exp.Column | exp.Literal | exp.Query | exp.Star):
        yield node, False, must
        yield from inside(node)


def inside(node: exp.Expr) -> Iterator[tuple[exp.Expr, bool, bool]]:
    """The conditions inside an expression."""
    for child in node.iter_expressions():
        if isinstance(child, exp.Connector):
            yield from pieces(child, False)
        elif isinstance(child, (exp.Not, *PREDICATES)):
            yield child, False, True
            yield from inside(child)
        elif not isinstance(child, exp.Query):
            yield from inside(child)


def formula(node: exp.Expr, must: bool, condition: bool, resolve: Resolve) -> Formula:
    """The formula of an expression. Raises NotOfColumns if it has more than columns, literals and functions of them."""
    root = written(node, resolve)
    names = [part.name.upper() for part in node.find_all(exp.Anonymous)]
    slots = dict.fromkeys(column.meta[SLOT] for column in root.find_all(exp.Column))
    plain = isinstance(node, (exp.Not, *PREDICATES)) and next(filter(computes, root.walk()), None) is None
    return Formula(
        root.this.sql(dialect=parse.DIALECT), tuple(slots), must and "COUNT" not in names, condition, plain, root
    )


def computes(node: exp.Expr) -> bool:
    return isinstance(node, exp.Anonymous | exp.Binary | exp.Case) and not isinstance(node, PREDICATES)


def written(node: exp.Expr, resolve: Resolve) -> exp.Paren:
    """An expression in parentheses, with every column as its slot and every aggregate for a single row."""
    root = exp.Paren(this=node.copy())
    for _ in range(3):  # the expression of an alias may contain aliases
        if not expand(root, resolve):
            break
    for part in reversed(list(root.walk(bfs=False))):
        if isinstance(part, exp.Query | exp.Window | exp.Placeholder):
            raise NotOfColumns
        if isinstance(part, exp.Column):
            if SLOT not in part.meta:
                part.replace(of_slot(part, resolve))
        elif (one := of_one_row(part)) is not None:
            part.replace(one)
    return root


def expand(root: exp.Expr, resolve: Resolve) -> bool:
    """Replace aliases by their expressions; whether there was any."""
    found = False
    for column in list(root.find_all(exp.Column)):
        if SLOT not in column.meta and isinstance(meaning := resolve(column), exp.Expr):
            column.replace(exp.Paren(this=meaning.copy()))
            found = True
    return found


def of_slot(column: exp.Column, resolve: Resolve) -> exp.Expr:
    meaning = resolve(column)
    if isinstance(meaning, str):
        return exp.Literal.string(meaning)
    if not isinstance(meaning, tuple):
        raise NotOfColumns
    found = exp.column(exp.to_identifier(COLUMN, quoted=True), table=exp.to_identifier(alias(meaning), quoted=True))
    found.meta[SLOT] = meaning
    return found


def of_one_row(call: exp.Expr) -> exp.Expr | None:
    """The value of an aggregate for a single row, as an expression; None for other expressions."""
    name = call.name.upper() if isinstance(call, exp.Anonymous) else ""
    if name not in OF_ONE_ROW or not call.expressions or (name in ("MIN", "MAX") and len(call.expressions) > 1):
        return None
    inner = call.expressions[0]
    if isinstance(inner, exp.Distinct):
        return exp.Paren(this=inner.expressions[0].copy())
    if isinstance(inner, exp.Star):
        return exp.Literal.number(1)
    paren = exp.Paren(this=inner.copy())
    if name == "COUNT":
        return exp.Paren(this=exp.Not(this=exp.Is(this=paren, expression=exp.Null())))
    if name in ("AVG", "TOTAL"):
        return exp.Paren(this=exp.Mul(this=paren, expression=exp.Literal.number("1.0")))
    return paren
