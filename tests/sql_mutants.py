"""Queries that differ from a given one by a single edit, as a model's near-misses do. Holds no tests."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from sqlglot import exp

from ftlab.sql import parse
from ftlab.sql.schema import Schema

Edit = tuple[str, exp.Expr]

COMPARISONS: dict[type[exp.Expr], tuple[type[exp.Expr], ...]] = {
    exp.GT: (exp.GTE, exp.LT), exp.GTE: (exp.GT, exp.EQ), exp.LT: (exp.LTE, exp.GT), exp.LTE: (exp.LT, exp.EQ),
    exp.EQ: (exp.NEQ, exp.GTE, exp.GT), exp.NEQ: (exp.EQ, exp.LT),
}  # fmt: skip
AGGREGATES = ("COUNT", "SUM", "AVG", "MIN", "MAX")
SET_OPERATIONS: tuple[type[exp.SetOperation], ...] = (exp.Union, exp.Intersect, exp.Except)


def mutants(gold: str, schema: Schema, rng: Random) -> Iterator[tuple[str, str]]:
    """(kind of edit, text) of the one-edit mutants of a query, in random order; some may not be valid SQL."""
    tree = parse.query(gold)
    if tree is None:
        return
    places = [(at, edit) for at, _ in enumerate(tree.walk()) for edit in EDITS]
    rng.shuffle(places)
    seen = {tree.sql(dialect=parse.DIALECT)}
    for at, edit in places:
        copy = tree.copy()
        node = next(node for i, node in enumerate(copy.walk()) if i == at)
        for kind in edit(node, schema, rng):
            text = copy.sql(dialect=parse.DIALECT)
            if text not in seen:
                seen.add(text)
                yield kind, text
            break


def operator(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if type(node) in COMPARISONS:
        swap(node, rng.choice(COMPARISONS[type(node)]))
        yield "having" if in_having(node) else "join operator" if in_on(node) else "operator"


def literal(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if isinstance(node, exp.Literal) and not node.find_ancestor(exp.Limit, exp.Offset):
        if node.is_string:
            node.set("this", changed(node.this, rng))
        else:
            node.set("this", plus(node.this, rng.choice((1, -1))))
        yield "having" if in_having(node) else "literal"
    elif isinstance(node, exp.Column) and node.this.args.get("quoted") and not in_schema(node.name, schema):
        node.this.set("this", changed(node.name, rng))
        yield "literal"


def changed(text: str, rng: Random) -> str:
    choices = [text + "s", text[:-1], text.swapcase(), text.replace(" ", "", 1), text[1:]]
    return rng.choice([choice for choice in choices if choice != text])


def plus(text: str, step: int) -> str:
    return str(float(text) + step) if "." in text else str(int(text) + step)


def connector(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if isinstance(node, exp.And | exp.Or) and not in_on(node):
        swap(node, exp.Or if isinstance(node, exp.And) else exp.And)
        yield "and/or"


def conjunct(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if isinstance(node, exp.And | exp.Or):
        node.replace(rng.choice((node.this, node.expression)).copy())
        yield "condition dropped"
    elif isinstance(node, exp.Where | exp.Having) and isinstance(node.parent, exp.Select):
        node.parent.set(node.arg_key, None)
        yield f"{node.key} dropped"


def column(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if not isinstance(node, exp.Column) or not isinstance(node.this, exp.Identifier):
        return
    owners = [table.columns for table in schema.tables.values() if node.name.lower() in table.columns]
    others = [other.name for table in owners for other in table.values() if other.name.lower() != node.name.lower()]
    if others:
        node.set("this", exp.to_identifier(rng.choice(others), quoted=False))
        place = node.find_ancestor(exp.Group, exp.Order, exp.Having, exp.Where, exp.Join, exp.Select)
        yield f"column in {place.key if place else 'query'}"


def aggregate(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if not isinstance(node, exp.Anonymous) or node.name.upper() not in AGGREGATES:
        return
    inner = node.expressions[0]
    if not isinstance(inner, exp.Star):
        node.set("this", rng.choice([name for name in AGGREGATES if name != node.name.upper()]))
        yield "aggregate"


def counted(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if not isinstance(node, exp.Anonymous) or node.name.upper() != "COUNT":
        return
    columns = list(node.root().find_all(exp.Column))
    if isinstance(node.expressions[0], exp.Star):
        if columns:
            node.set("expressions", [rng.choice(columns).copy()])
            yield "count(*) to count(x)"
    else:
        node.set("expressions", [exp.Star()])
        yield "count(x) to count(*)"


def distinct(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if isinstance(node, exp.Select):
        node.set("distinct", None if node.args.get("distinct") else exp.Distinct())
        yield "distinct"
    elif isinstance(node, exp.Anonymous) and node.name.upper() in AGGREGATES:
        inner = node.expressions[0]
        if isinstance(inner, exp.Distinct):
            node.set("expressions", [inner.expressions[0]])
        elif not isinstance(inner, exp.Star):
            node.set("expressions", [exp.Distinct(expressions=[inner.copy()])])
        else:
            return
        yield "distinct in aggregate"


def order(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if isinstance(node, exp.Ordered):
        node.set("desc", not node.args.get("desc"))
        node.set("nulls_first", not node.args.get("desc"))
        yield "order direction"
    elif isinstance(node, exp.Order) and node.parent is not None:
        node.parent.set("order", None)
        yield "order dropped"


def limit(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if isinstance(node, exp.Limit | exp.Offset) and node.parent is not None:
        if rng.random() < 0.2:
            node.parent.set(node.key, None)
            yield f"{node.key} dropped"
        elif isinstance(node.expression, exp.Literal):
            node.set("expression", exp.Literal.number(plus(node.expression.this, 1)))
            yield node.key


def join(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if isinstance(node, exp.Join) and node.args.get("on") is not None:
        node.set("side", None if node.side else "LEFT")
        yield "left join"


def join_dropped(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if isinstance(node, exp.Join):
        node.pop()
        yield "join dropped"


def table(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    others = [table.name for key, table in schema.tables.items() if key != node.name.lower()]
    if isinstance(node, exp.Table) and others:
        node.set("this", exp.to_identifier(rng.choice(others)))
        yield "table"


def set_operation(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if isinstance(node, exp.SetOperation):
        if rng.random() < 0.25:
            node.replace(rng.choice((node.this, node.expression)).copy())
            yield "set operation dropped"
        else:
            other = rng.choice([kind for kind in SET_OPERATIONS if not isinstance(node, kind)])
            swap(node, other)
            yield "set operation"


def negation(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if isinstance(node, exp.Not):
        node.replace(node.this.copy())
        yield "not dropped"
    elif isinstance(node, exp.In | exp.Like | exp.Between) and not isinstance(node.parent, exp.Not):
        node.replace(exp.Not(this=node.copy()))
        yield "not added"


def group(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if isinstance(node, exp.Group) and node.parent is not None and node.expressions:
        if len(node.expressions) > 1:
            node.expressions[rng.randrange(len(node.expressions))].pop()
            yield "group key dropped"
        else:
            node.parent.set("group", None)
            yield "group dropped"


def pattern(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if isinstance(node, exp.Like):
        text = node.expression.name
        other = rng.choice((text.strip("%"), f"%{text.strip('%')}%", f"{text.strip('%')}%", f"%{text.strip('%')}"))
        node.set("expression", exp.Literal.string(other))
        yield "pattern"


def outputs(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if isinstance(node, exp.Select) and len(node.expressions) > 1:
        expressions = [expression.copy() for expression in node.expressions]
        if rng.random() < 0.5:
            expressions = expressions[1:] + expressions[:1]
            node.set("expressions", expressions)
            yield "outputs exchanged"
        else:
            expressions.pop(rng.randrange(len(expressions)))
            node.set("expressions", expressions)
            yield "output dropped"


EDITS: tuple[Callable[[Any, Schema, Random], Iterator[str]], ...] = (
    operator, literal, connector, conjunct, column, aggregate, counted, distinct, order, limit, join, join_dropped,
    table, set_operation, negation, group, pattern, outputs,
)  # fmt: skip


def swap(node: exp.Expr, kind: type[exp.Expr]) -> None:
    node.replace(kind(**{key: value for key, value in node.args.items() if value is not None}))


def in_having(node: exp.Expr) -> bool:
    return node.find_ancestor(exp.Having, exp.Select) is not None and isinstance(
        node.find_ancestor(exp.Having, exp.Select), exp.Having
    )


def in_on(node: exp.Expr) -> bool:
    return isinstance(node.find_ancestor(exp.Join, exp.Select), exp.Join)


def in_schema(name: str, schema: Schema) -> bool:
    return any(name.lower() in table.columns for table in schema.tables.values())
