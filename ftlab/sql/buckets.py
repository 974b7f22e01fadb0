"""Kinds of queries, so that a rate can be looked at kind by kind."""

from sqlglot import exp

AGGREGATES = {"count", "sum", "avg", "min", "max", "total", "group_concat"}


def buckets(tree: exp.Query | None) -> tuple[str, ...]:
    """Which of `ftlab.sql.verdict.BUCKETS` a query belongs to, in their order; none without a tree.

    `single_table` and `multi_table`: the query names one table, or more than one (one table joined with itself is
    one). `aggregate`: GROUP BY, or an aggregate function. `order`: an ORDER BY. `nested`: a query inside the query, or
    a set operation.
    """
    if tree is None:
        return ()
    tables: set[str] = set()
    selects = aggregates = orders = 0
    for node in tree.walk():
        if isinstance(node, exp.Table):
            tables.add(node.name.lower())
        elif isinstance(node, exp.Select):
            selects += 1
        elif isinstance(node, exp.Order):
            orders += 1
        elif isinstance(node, exp.Group) or (isinstance(node, exp.Anonymous) and is_aggregate(node)):
            aggregates += 1
    found = {
        "single_table": len(tables) <= 1,
        "multi_table": len(tables) > 1,
        "aggregate": aggregates > 0,
        "order": orders > 0,
        "nested": selects > 1,
    }
    return tuple(name for name, holds in found.items() if holds)


def is_aggregate(call: exp.Anonymous) -> bool:
    """MIN and MAX of several values are no aggregates (https://sqlite.org/lang_corefunc.html)."""
    name = call.name.lower()
    return name in AGGREGATES and not (name in ("min", "max") and len(call.expressions) > 1)
