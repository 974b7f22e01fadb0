"""Kinds of queries (buckets), for which rates are reported separately."""

from sqlglot import exp

AGGREGATES = {"count", "sum", "avg", "min", "max", "total", "group_concat"}


def buckets(tree: exp.Query | None) -> tuple[str, ...]:
    """The buckets of `ftlab.sql.verdict.BUCKETS` to which a query belongs, in their order; none without a tree.

    `single_table` and `multi_table`: the query names one table or several (a table joined with itself counts once).
    `aggregate`: it has GROUP BY or an aggregate function. `order`: it has an ORDER BY. `nested`: it contains a subquery
    or a set operation.
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
    """Whether a call is an aggregate; MIN and MAX of several values are not (https://sqlite.org/lang_corefunc.html)."""
    name = call.name.lower()
    return name in AGGREGATES and not (name in ("min", "max") and len(call.expressions) > 1)
