"""The conditions and the computed values of a query, each as one expression over columns of tables.

A formula is SQL in which every column is written by its slot: which use of which table, and which column. So formulas
of two queries can be compared, and be tried out on rows: an aggregate is written as what it makes of a single row.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sqlglot import exp

from ftlab.sql import parse

# A table by lower-case name, which of its uses in the query, and a column.
Slot = tuple[str, int, str]
Resolve = Callable[[exp.Column], "Slot | exp.Expr | str | None"]

PREDICATES = (
    exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.Is, exp.Like, exp.Glob, exp.In, exp.Between, exp.Escape,
)  # fmt: skip
OF_ONE_ROW = {"COUNT", "AVG", "TOTAL", "SUM", "MIN", "MAX", "GROUP_CONCAT"}
COLUMN = "value of"
SLOT = "slot"
# Formulas of one part of a query; characters and nodes of one that is tried out.
MOST_FORMULAS = 40
LONGEST = 600
MOST_NODES = 150


@dataclass(frozen=True)
class Formula:
    """An expression in SQL and its slots. `must`: every row of the result (every group, in HAVING) fulfils it;
    `condition`: it is true or false; `plain`: it is one column and literals, without arithmetic and functions."""

    text: str
    slots: tuple[Slot, ...] = field(compare=False)
    must: bool = field(compare=False)
    condition: bool = field(compare=False)
    plain: bool = field(compare=False)
    tree: exp.Expr = field(compare=False)


class NotOfColumns(Exception):
    """An expression with a subquery, a window or a name that stands for no column."""


def alias(slot: Slot) -> str:
    return f"{slot[0]} {slot[1]} {slot[2]}"


def formulas(part: exp.Expr, must: bool, resolve: Resolve) -> Iterator[Formula]:
    """The formulas in a condition or an output; `resolve` gives a column's slot, the expression that an alias stands
    for, or the text that a quoted name is."""
    for node, needed, condition in islice(pieces(part, must), MOST_FORMULAS):
        if next(islice(node.walk(), MOST_NODES, None), None) is None:
            with suppress(NotOfColumns):
                found = formula(node, needed, condition, resolve)
                if found.slots and len(found.text) <= LONGEST:
                    yield found


def pieces(node: Any, must: bool) -> Iterator[tuple[exp.Expr, bool, bool]]:
    """(expression, must hold, is a condition): the conditions joined by AND and OR, whole values, and those inside."""
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
    """Raises NotOfColumns where an expression is more than columns, literals and functions of them."""
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
    """An expression in parentheses, with every column by its slot and every aggregate as of a single row."""
    root = exp.Paren(this=node.copy())
    for _ in range(3):  # an alias may stand for an expression with aliases
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
    """Put what aliases stand for in their places; whether there was one."""
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
    """What an aggregate makes of a single row; None where an expression is no aggregate."""
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
