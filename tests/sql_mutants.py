"""Queries that differ from a given one by a single edit, as a model's near-misses do. Holds no tests."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
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


def analysts_golds() -> list[tuple[str, str]]:
    """(context, query) of tests/sql_golds.txt: blocks of a context and its queries."""
    text = Path(__file__).with_name("sql_golds.txt").read_text(encoding="utf-8")
    blocks = [block.splitlines() for block in text.split("\n\n")[1:]]
    return [(block[0], query) for block in blocks for query in block[1:]]


def mutants(gold: str, schema: Schema, rng: Random, computed: bool = False) -> Iterator[tuple[str, str]]:
    """(kind of edit, text) of the one-edit mutants of a query, in random order; some may not be valid SQL. With
    `computed` also edits of arithmetic, CASE, dates and text functions."""
    edits = (*EDITS, *COMPUTED_EDITS) if computed else EDITS
    tree = parse.query(gold)
    if tree is None:
        return
    places = [(at, edit) for at, _ in enumerate(tree.walk()) for edit in edits]
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


def division(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    """a / b and a * 1.0 / b; 100 and 100.0."""
    if isinstance(node, exp.Div):
        left = node.this
        if isinstance(left, exp.Mul) and left.expression.name == "1.0":
            node.set("this", left.this.copy())
        elif call_name(left) == "CAST":
            node.set("this", left.expressions[0].copy())
        else:
            node.set("this", exp.Mul(this=exp.paren(left.copy()), expression=exp.Literal.number("1.0")))
        yield "integer division"
    elif isinstance(node, exp.Literal) and node.this in ("100", "100.0") and isinstance(node.parent, exp.Mul):
        node.set("this", "100.0" if node.this == "100" else "100")
        yield "integer division"


def cast(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if call_name(node) == "CAST":
        if rng.random() < 0.5:
            node.expressions[1].set("this", "INTEGER" if node.expressions[1].name == "REAL" else "REAL")
        else:
            node.replace(node.expressions[0].copy())
        yield "cast"


def threshold(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if isinstance(node, exp.Literal) and not node.is_string and isinstance(node.parent, tuple(COMPARISONS)):
        value = float(node.this)
        other = round(value + rng.choice((0.1, -0.1)), 6) if "." in node.this else int(value) + rng.choice((2, 10, -2))
        node.set("this", str(other))
        yield "threshold"


def date_format(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if isinstance(node, exp.Literal) and node.is_string and "%" in node.this and call_name(node.parent) == "STRFTIME":
        node.set("this", rng.choice([text for text in FORMATS if text != node.this]))
        yield "date format"


def modifier(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    found = STEP.fullmatch(node.this) if isinstance(node, exp.Literal) and node.is_string else None
    if found:
        sign, count, unit = found.groups()
        other = {"day": "month", "month": "year", "year": "month"}[unit.rstrip("s")]
        flipped = "-" if sign == "+" else "+"
        texts = (f"{sign}{int(count) + 1} {unit}", f"{sign}{count} {other}s", f"{flipped}{count} {unit}")
        node.set("this", rng.choice(texts))
        yield "date modifier"


def separator(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    names = ("REPLACE", "TRIM", "LTRIM", "RTRIM", "INSTR")
    if isinstance(node, exp.Literal) and node.is_string and call_name(node.parent) in names and len(node.this) <= 4:
        node.set("this", rng.choice([text for text in SEPARATORS if text != node.this]))
        yield "separator"


def text_function(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    name = call_name(node)
    if name in ("TRIM", "LTRIM", "RTRIM"):
        if rng.random() < 0.5:
            node.set("this", rng.choice([other for other in ("TRIM", "LTRIM", "RTRIM") if other != name]))
        else:
            node.set("expressions", node.expressions[:1])
        yield "trim"
    elif name in ("REPLACE", "UPPER", "LOWER"):
        node.replace(node.expressions[0].copy())
        yield "text function dropped"


def case(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    if isinstance(node, exp.Case):
        if node.args.get("default") is not None:
            node.set("default", None)
            yield "else dropped"
        else:
            node.set("default", exp.Literal.number("0"))
            yield "else added"
    elif call_name(node) == "IIF":
        condition, then, other = node.expressions
        node.set("expressions", [condition.copy(), other.copy(), then.copy()])
        yield "iif exchanged"


def case_and_where(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    """SUM(CASE WHEN c THEN v ELSE 0 END) as SUM(v) WHERE c, and back."""
    if not isinstance(node, exp.Select):
        return
    calls = [call for output in node.expressions for call in output.find_all(exp.Anonymous)]
    for call in (call for call in calls if call_name(call) in ("SUM", "MAX", "COUNT", "AVG")):
        inner, where = call.expressions[0], node.args.get("where")
        if isinstance(inner, exp.Case) and inner.this is None and len(inner.args["ifs"]) == 1:
            branch = inner.args["ifs"][0]
            condition, value = branch.this.copy(), branch.args["true"].copy()
            call.set("expressions", [value])
            both = exp.And(this=exp.paren(where.this.copy()), expression=exp.paren(condition)) if where else condition
            node.set("where", exp.Where(this=both))
            yield "case to where"
        elif where and call_name(call) == "SUM" and not isinstance(inner, exp.Case) and not where.find(exp.Query):
            branch = exp.If(this=where.this.copy(), true=inner.copy())
            call.set("expressions", [exp.Case(ifs=[branch], default=exp.Literal.number("0"))])
            node.set("where", None)
            yield "where to case"
        else:
            continue
        return


def window(node: Any, schema: Schema, rng: Random) -> Iterator[str]:
    """LIMIT and OFFSET one less, or exchanged by another sort key."""
    if isinstance(node, exp.Limit | exp.Offset) and isinstance(node.expression, exp.Literal):
        node.set("expression", exp.Literal.number(str(max(0, int(node.expression.this) - 1))))
        yield f"{node.key} less"
    elif isinstance(node, exp.Ordered) and isinstance(node.this, exp.Column):
        columns = [table.columns for table in schema.tables.values() if node.this.name.lower() in table.columns]
        others = [other.name for table in columns for other in table.values() if other.name != node.this.name]
        if others:
            node.this.set("this", exp.to_identifier(rng.choice(others)))
            yield "sort key"


def call_name(node: Any) -> str:
    return node.name.upper() if isinstance(node, exp.Anonymous) else ""


FORMATS = ("%Y", "%m", "%d", "%Y-%m", "%j", "%H", "%w")
SEPARATORS = ("-", ",", " ", "_", ":", "$", ".", "")
STEP = re.compile(r"([+-])(\d+) (days?|months?|years?)")
COMPUTED_EDITS: tuple[Callable[[Any, Schema, Random], Iterator[str]], ...] = (
    division, cast, threshold, date_format, modifier, separator, text_function, case, case_and_where, window,
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
