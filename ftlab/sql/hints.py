"""Hints from a query: what its columns are compared with, and so the values at which similar queries differ.

One walk over the tree collects, for each use of a table, the tests on its columns; which columns are equated; the group
sizes that HAVING asks for; and how many rows LIMIT asks for. Hints need not be exact: a wrong one only wastes a row.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain, islice
from typing import Any

from sqlglot import exp

from ftlab.sql import parse
from ftlab.sql.equations import points
from ftlab.sql.formulas import Resolve, Slot, written
from ftlab.sql.schema import Kind, Schema
from ftlab.sql.shapes import dated, shapes, spellings
from ftlab.sql.values import Value, around, fit, listed, matching

Ref = tuple[str, str]

COMPARISONS: dict[type[exp.Expr], str] = {
    exp.EQ: "=", exp.NEQ: "<>", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">=", exp.Is: "=",
    exp.Like: "like", exp.Glob: "glob",
}  # fmt: skip
MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
NEGATED = {"=": "<>", "<>": "=", "<": ">=", "<=": ">", ">": "<=", ">=": "<", "like": "not like", "glob": "not glob"}
NUMERIC = {"SUM", "AVG", "TOTAL", "ROUND", "ABS"}
OF_A_GROUP = {"SUM", "AVG", "TOTAL", "MIN", "MAX"}
DATE_PARTS = {
    "%Y": "{}-06-15", "%m": "2008-{}-15", "%d": "2008-06-{}", "%Y-%m": "{}-15", "%H": "2008-06-15 {}:30:00",
}  # fmt: skip
COMPUTED = (exp.Add, exp.Sub, exp.Mul, exp.Div)
COMPUTES = {
    exp.Anonymous, *COMPUTED, exp.Mod, exp.DPipe, exp.Case, exp.JSONExtract, exp.JSONExtractScalar, exp.CurrentDate,
    exp.CurrentTimestamp,
}  # fmt: skip
CONDITIONS = (exp.Case, exp.Predicate, exp.Connector)
# Functions whose results are compared with columns as text.
AS_WRITTEN = {"DATE", "DATETIME", "TIME", "STRFTIME"}
LARGEST_GROUP = 1000
LARGEST_LIMIT = 1000
# The most joint values of several columns from comparisons between them.
MOST_POINTS = 12
# The most tests of a column in a role; x = 1 OR x = 2 OR ... may have thousands.
MOST_TESTS = 40


@dataclass(frozen=True)
class Test:
    """A condition on a column: values that fulfil it, and values that just miss it.

    `holds` decides for other values if the column itself is compared; it is None if an expression of it is compared.
    """

    name: tuple[str, Any]
    hits: tuple[Value, ...]
    misses: tuple[Value, ...]
    holds: Callable[[Value], bool] | None = field(default=None, compare=False)


@dataclass(eq=False)
class Role:
    """One use of a table in a query (the first is 0), the tests on its columns, and joint values of columns that are
    compared with each other."""

    table: str
    use: int = 0
    tests: dict[str, list[Test]] = field(default_factory=dict)
    joint: list[tuple[tuple[str, Value], ...]] = field(default_factory=list)

    def all_tests(self) -> Iterator[tuple[str, Test]]:
        return ((column, test) for column, tests in self.tests.items() for test in tests)


Cell = tuple[Role, str]


class Cells(list[Cell]):
    """The table columns that go into an output; `origin` is the expression that computes it, with its scopes."""

    origin: "tuple[exp.Expr, list[AliasScope]] | None" = None


SourceCells = dict[str, list[Cell]]
OutputCells = tuple[str, list[Cell]]


@dataclass
class AliasScope:
    """The tables that a SELECT reads, by alias, and the expressions behind the aliases of its outputs."""

    sources: dict[str, SourceCells]
    aliases: dict[str, exp.Expr]


@dataclass
class Hints:
    """The hints of one query. `listed`: values that IN and = ask for. `planted`: literals inside functions and other
    values worth trying. `shaped`: values that distinguish functions of a column. `limits`: the row count of each LIMIT.
    `parts`: the conditions (True if every row must fulfil them) and outputs, with a resolver for their columns.
    `computed`: some part has functions or arithmetic. `conditional`: an aggregate has a condition inside. `width`: the
    most tables that are joined. `either`: tests are joined by OR."""

    roles: list[Role] = field(default_factory=list)
    links: list[tuple[Ref, Ref]] = field(default_factory=list)
    listed: dict[Ref, set[Value]] = field(default_factory=dict)
    planted: dict[Ref, list[Value]] = field(default_factory=dict)
    shaped: dict[Ref, list[Value]] = field(default_factory=dict)
    numeric: set[Ref] = field(default_factory=set)
    grouped: set[Ref] = field(default_factory=set)
    sizes: set[int] = field(default_factory=set)
    limits: set[int] = field(default_factory=set)
    parts: list[tuple[exp.Expr, bool, Resolve]] = field(default_factory=list)
    computed: bool = False
    conditional: bool = False
    width: int = 1
    either: bool = False


def read_hints(tree: exp.Query, schema: Schema) -> Hints:
    """The hints of a query; of a too deeply nested one, those found so far."""
    reader = Reader(schema)
    with suppress(RecursionError):
        reader.query(tree, [], {})
    return reader.hints


@lru_cache(maxsize=64)
def query_of_view(text: str) -> exp.Query | None:
    """The tree of a view's query, cached for further uses of the view."""
    return parse.query(text)


def tables_in(text: str, schema: Schema) -> list[str]:
    """The keys of the tables that the words of a text name, directly or through views."""
    texts, views, tables = [text], set[str](), dict[str, None]()
    while texts:
        for key in (schema.key(token.text) for token in parse.tokens(texts.pop())):
            if key in schema.views and key not in views:
                views.add(key)
                texts.append(schema.views[key].query)
            elif key is not None and key not in schema.views:
                tables[key] = None
    return list(tables)


class Reader:
    """The walk over a tree. `scopes` lists the enclosing scopes, innermost last."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.hints = Hints()

    def kind(self, cell: Cell) -> Kind:
        return self.schema.tables[cell[0].table].columns[cell[1]].kind

    # Queries and their sources

    def query(self, node: exp.Expr, scopes: list[AliasScope], known: dict[str, SourceCells]) -> list[OutputCells]:
        """Read a query. Returns its output columns as (name, the table columns that go into it)."""
        while isinstance(node, exp.Subquery | exp.Paren):
            self.limit(node)
            node = node.this
        known = self.common_tables(node, scopes, known)
        if isinstance(node, exp.Select):
            return self.select(node, scopes, known)
        if not isinstance(node, exp.SetOperation):
            return []
        left, right = self.query(node.this, scopes, known), self.query(node.expression, scopes, known)
        for (_, ours), (_, theirs) in zip(left, right, strict=False):
            self.link(ours, theirs)
            self.hints.grouped.update(ref(cell) for cell in ours if ref(cell) in map(ref, theirs))
        self.limit(node)
        return left

    def common_tables(
        self, node: exp.Expr, scopes: list[AliasScope], known: dict[str, SourceCells]
    ) -> dict[str, SourceCells]:
        with_ = node.args.get("with_")
        for cte in with_.expressions if with_ else ():
            source: SourceCells = {}
            known = {**known, cte.alias.lower(): source}
            outputs = self.query(cte.this, scopes, known)
            names = [name.name for name in (cte.args["alias"].args.get("columns") or ())]
            source.update(named(outputs, names))
        return known

    def select(self, node: exp.Select, scopes: list[AliasScope], known: dict[str, SourceCells]) -> list[OutputCells]:
        joins = node.args.get("joins") or []
        from_ = node.args.get("from_")
        scope = AliasScope({}, {e.alias.lower(): e.this for e in node.expressions if isinstance(e, exp.Alias)})
        inner = [*scopes, scope]
        for relation in [*([from_.this] if from_ else ()), *(join.this for join in joins)]:
            self.source(relation, scope, scopes, known)
        self.hints.width = max(self.hints.width, sum(len(around.sources) for around in inner))
        for join in joins:
            self.using(join, scope)
            self.visit(join.args.get("on"), inner, known)
        for clause in ("where", "having"):
            if condition := node.args.get(clause):
                self.visit(condition.this, inner, known)
        self.parts(node, inner)
        if group := node.args.get("group"):
            for key in group.expressions:
                self.visit(key, inner, known)
                self.hints.grouped.update(ref(cell) for cell in self.cells(self.output(key, node), inner))
        for expression in [*node.expressions, *(node.args["order"].expressions if node.args.get("order") else ())]:
            self.visit(expression, inner, known)
        self.limit(node)
        return [output for expression in node.expressions for output in self.outputs(expression, inner)]

    def parts(self, node: exp.Select, scopes: list[AliasScope]) -> None:
        """Keep the conditions and outputs of a SELECT, in case values are to be tried on them."""
        resolve = partial(meaning, scopes=scopes)
        joins = [join.args.get("on") for join in node.args.get("joins") or ()]
        clauses = [node.args[clause].this for clause in ("where", "having") if node.args.get(clause)]
        self.hints.parts += [(part, True, resolve) for part in (*joins, *clauses) if part is not None]
        lists = [node.args[clause].expressions for clause in ("group", "order") if node.args.get(clause)]
        self.hints.parts += [(part, False, resolve) for part in chain(node.expressions, *lists)]

    def source(
        self, relation: exp.Expr, scope: AliasScope, scopes: list[AliasScope], known: dict[str, SourceCells]
    ) -> None:
        """Add a table or subquery of FROM to the scope."""
        alias = relation.alias_or_name.lower() or f" {len(scope.sources)}"
        if isinstance(relation, exp.Subquery) and isinstance(relation.this, exp.Table):
            self.source(relation.this, scope, scopes, known)
        elif isinstance(relation, exp.Subquery):
            scope.sources[alias] = named(self.query(relation.this, scopes, known), [])
        elif isinstance(relation, exp.Table):
            key = self.schema.key(relation.name, relation.db)
            if relation.name.lower() in known and not relation.db:
                scope.sources[alias] = known[relation.name.lower()]
            elif key is not None:
                scope.sources[alias] = self.table(key)
        for join in relation.args.get("joins") or ():
            self.source(join.this, scope, scopes, known)

    def table(self, key: str) -> SourceCells:
        """The columns of a table in a new role; those of a view are the outputs of its query."""
        if view := self.schema.views.get(key):
            tree = query_of_view(view.query)
            if tree is not None:
                return named(self.query(tree, [], {}), list(view.names))
            self.hints.roles.extend(map(Role, tables_in(view.query, self.schema)))
            return {}
        role = Role(key, sum(role.table == key for role in self.hints.roles))
        self.hints.roles.append(role)
        return {name: [(role, name)] for name in self.schema.tables[key].columns}

    def using(self, join: exp.Expr, scope: AliasScope) -> None:
        """Link the columns of equal names that USING and NATURAL equate."""
        names = [name.name.lower() for name in join.args.get("using") or ()]
        if join.args.get("method") == "NATURAL":
            names = [name for source in scope.sources.values() for name in source]
        for name in names:
            found = [source[name] for source in scope.sources.values() if name in source]
            for cells in found[1:]:
                self.link(found[0], cells)

    def outputs(self, expression: exp.Expr, scopes: list[AliasScope]) -> list[OutputCells]:
        column = expression.unalias()
        if isinstance(column, exp.Star) or (isinstance(column, exp.Column) and isinstance(column.this, exp.Star)):
            qualifier = column.text("table").lower()
            sources = scopes[-1].sources.items()
            return [pair for alias, source in sources if qualifier in ("", alias) for pair in source.items()]
        cells = Cells(self.cells(expression, scopes))
        if not isinstance(column, exp.Column):
            cells.origin = column, scopes
        return [(expression.alias_or_name.lower(), cells)]

    def output(self, key: exp.Expr, select: exp.Select) -> exp.Expr:
        """The output to which a GROUP BY key refers by position, else the key itself."""
        position = literal(key)
        outputs: list[exp.Expr] = select.expressions
        return outputs[position - 1] if isinstance(position, int) and 0 < position <= len(outputs) else key

    def limit(self, node: exp.Expr) -> None:
        bounds = [literal(node.args[name].expression) for name in ("limit", "offset") if node.args.get(name)]
        asked = sum(bound for bound in bounds if isinstance(bound, int))
        if 0 < asked <= LARGEST_LIMIT:
            self.hints.limits.add(asked)

    # Conditions

    def visit(self, node: Any, scopes: list[AliasScope], known: dict[str, SourceCells], negated: bool = False) -> None:
        """Collect the tests in an expression; `negated` under an odd number of NOTs."""
        while isinstance(node, exp.Connector):
            self.hints.either = self.hints.either or isinstance(node, exp.And) == negated
            self.visit(node.expression, scopes, known, negated)
            node = node.this
        if isinstance(node, exp.Not | exp.Paren | exp.Escape):
            self.visit(node.this, scopes, known, negated != isinstance(node, exp.Not))
            return
        if isinstance(node, exp.Query):
            self.query(node, scopes, known)
            return
        if type(node) in COMPARISONS:
            operator = COMPARISONS[type(node)]
            self.compare(NEGATED[operator] if negated else operator, node.this, node.expression, scopes, known)
        elif isinstance(node, exp.In):
            self.membership(node, scopes, known, negated)
            return
        elif isinstance(node, exp.Between):
            self.compare("<" if negated else ">=", node.this, node.args["low"], scopes, known)
            self.compare(">" if negated else "<=", node.this, node.args["high"], scopes, known)
        elif isinstance(node, exp.Case) and node.this is not None:
            for branch in node.args["ifs"]:
                self.compare("=", node.this, branch.this, scopes, known)
        elif isinstance(node, exp.Anonymous):
            self.function(node, scopes)
        if type(node) in COMPUTES:
            self.note_computed(node)
        if isinstance(node, exp.Expr) and not isinstance(node, exp.Column | exp.Literal):
            for child in node.iter_expressions():
                self.visit(child, scopes, known)

    def note_computed(self, node: Any) -> None:
        """Whether a node computes a value, and whether it is a condition inside an aggregate."""
        if isinstance(node, exp.Anonymous):
            name = node.name.upper()
            inner = node.expressions[0] if node.expressions else None
            self.hints.computed |= name not in OF_A_GROUP and name != "COUNT"
            self.hints.conditional |= name in OF_A_GROUP and inner is not None and inner.find(*CONDITIONS) is not None
            self.hints.conditional |= name == "COUNT" and isinstance(inner, exp.Case)
        else:
            self.hints.computed = True

    def function(self, node: exp.Anonymous, scopes: list[AliasScope]) -> None:
        """Note numeric arguments of a function, values that distinguish it from other functions, and the texts among
        its arguments."""
        cells = self.cells(node, scopes)
        name = node.name.upper()
        if name in NUMERIC:
            self.hints.numeric.update(map(ref, cells))
        if cells and (telling := list(shapes(name, [literal(argument) for argument in node.expressions]))):
            for cell in cells:
                self.hints.shaped.setdefault(ref(cell), []).extend(telling)
        for argument in node.expressions:
            text = self.constant(argument, scopes)
            if isinstance(text, str) and "%" not in text:
                self.plant(cells, (text, f"p{text}q"))

    def membership(self, node: exp.In, scopes: list[AliasScope], known: dict[str, SourceCells], negated: bool) -> None:
        """x IN (a, b) and x IN (SELECT ...)."""
        cells = self.cells(node.this, scopes)
        self.visit(node.this, scopes, known)
        if query := node.args.get("query"):
            outputs = self.query(query, scopes, known)
            self.link(cells, outputs[0][1] if outputs else [])
            return
        values = [self.constant(element, scopes) for element in node.expressions]
        self.plant(cells, islice(filter(None, map(unusual, node.expressions)), 4))
        for cell in cells:
            fitting: list[Value] = [v for v in (fit(value, self.kind(cell)) for value in values) if v is not None]
            self.hints.listed.setdefault(ref(cell), set()).update(fitting)
            self.note(cell, inclusion(fitting, negated))

    def compare(
        self, operator: str, left: Any, right: Any, scopes: list[AliasScope], known: dict[str, SourceCells]
    ) -> None:
        value, subject = self.constant(right, scopes), left
        if value is None:
            value, subject = self.constant(left, scopes), right
            operator = MIRRORED.get(operator, operator)
        if value is None:
            self.link(self.compared(left, scopes, known), self.compared(right, scopes, known))
            if isinstance(left, COMPUTED) or isinstance(right, COMPUTED):
                self.solve(exp.Sub(this=exp.paren(left), expression=exp.paren(right)), 0, scopes)
            return
        outer, subject = subject, self.inner(subject, scopes)
        name = function_name(subject)
        if name == "COUNT" or is_count(subject, scopes):
            self.sizes(value)
            return
        if isinstance(value, int | float) and (outer is not subject or not isinstance(subject, exp.Column)):
            self.plant((cell for cell in self.cells(subject, scopes) if self.kind(cell) != "number"), spellings(value))
        self.plant(self.cells(subject, scopes), filter(None, map(unusual, (left, right))))
        if isinstance(subject, COMPUTED) and isinstance(value, int | float):
            self.solve(subject, value, scopes)
        if isinstance(subject, exp.Column) or name in OF_A_GROUP:
            for cell in self.cells(subject, scopes):
                self.note(cell, direct(operator, value, self.kind(cell)))
                if operator == "=" and (fitting := fit(value, self.kind(cell))) is not None:
                    self.hints.listed.setdefault(ref(cell), set()).add(fitting)
        else:
            for cell in self.cells(subject, scopes):
                self.note(cell, indirect(operator, value, subject, self.kind(cell)))

    def plant(self, cells: Iterable[Cell], values: Iterable[Value]) -> None:
        worth = list(values)
        for cell in cells:
            self.hints.planted.setdefault(ref(cell), []).extend(worth)

    def solve(self, subject: exp.Expr, wanted: float, scopes: list[AliasScope]) -> None:
        """Note values of columns at which an expression of them equals a value or misses it by one."""
        for near in (wanted, wanted + 1, wanted - 1):
            for point in points(subject, near):
                solved = [(cell, fit(value, self.kind(cell))) for c, value in point for cell in resolve(c, scopes)]
                for role in dict.fromkeys(cell[0] for cell, _ in solved):
                    own = tuple((cell[1], value) for cell, value in solved if cell[0] is role and value is not None)
                    if len(role.joint) < MOST_POINTS:
                        role.joint.append(own)

    def inner(self, subject: Any, scopes: list[AliasScope]) -> Any:
        """The core of an operand: without parentheses and casts, with scalar subqueries and aliases resolved."""
        for _ in range(8):
            if isinstance(subject, exp.Paren | exp.Collate) or function_name(subject) == "CAST":
                subject = subject.expressions[0] if isinstance(subject, exp.Anonymous) else subject.this
            elif isinstance(subject, exp.Subquery) and isinstance(subject.this, exp.Select):
                subject = subject.this.expressions[0].unalias()
            elif isinstance(subject, exp.Column) and not resolve(subject, scopes):
                subject = alias_of(subject, scopes) or subject
            else:
                break
        return subject

    def compared(self, node: Any, scopes: list[AliasScope], known: dict[str, SourceCells]) -> list[Cell]:
        """The table columns from which an operand takes its value; of a subquery those of its output."""
        if isinstance(node, exp.Subquery | exp.Paren) and isinstance(node.this, exp.Query):
            shadow = Reader(self.schema)
            outputs = shadow.query(node, scopes, known)
            return outputs[0][1] if outputs else []
        return self.cells(node, scopes)

    def cells(self, node: Any, scopes: list[AliasScope]) -> list[Cell]:
        """The table columns in an expression, without those in subqueries and in COUNT."""
        found: list[Cell] = []
        stack = [node]
        while stack:
            node = stack.pop()
            if isinstance(node, exp.Column):
                found += resolve(node, scopes)
            elif isinstance(node, exp.Expr) and not isinstance(node, exp.Query) and function_name(node) != "COUNT":
                stack.extend(node.iter_expressions())
        return found

    def constant(self, node: Any, scopes: list[AliasScope]) -> Value:
        """The value of a literal operand, including "text" that names no column; None for other operands."""
        if isinstance(node, exp.Column):
            free = node.this.args.get("quoted") and not node.table
            return node.name if free and not resolve(node, scopes) and alias_of(node, scopes) is None else None
        if isinstance(node, exp.Anonymous) and node.expressions:
            if self.cells(node, scopes):
                return None
            values = [self.constant(argument, scopes) for argument in node.expressions]
            date = dated(node.name.upper(), *values) if node.name.upper() in AS_WRITTEN else None
            return values[0] if date is None else date
        if isinstance(node, exp.DPipe):
            parts = [self.constant(part, scopes) for part in (node.this, node.expression)]
            return None if None in parts else "".join(map(str, parts))
        return literal(node)

    def note(self, cell: Cell, test: Test) -> None:
        tests = cell[0].tests.setdefault(cell[1], [])
        if len(tests) < MOST_TESTS and test not in tests:
            tests.append(test)

    def sizes(self, bound: Value) -> None:
        if isinstance(bound, int | float) and 0 <= bound <= LARGEST_GROUP:
            self.hints.sizes.add(int(bound))

    def link(self, ours: list[Cell], theirs: list[Cell]) -> None:
        self.hints.links.extend((ref(a), ref(b)) for a in ours for b in theirs if ref(a) != ref(b))


def ref(cell: Cell) -> Ref:
    return cell[0].table, cell[1]


def named(outputs: list[OutputCells], names: list[str]) -> SourceCells:
    """The columns of a subquery by name; `names` are those given in a WITH clause."""
    return {
        (names[at].lower() if at < len(names) else name): cells for at, (name, cells) in reversed([*enumerate(outputs)])
    }


def resolve(column: exp.Column, scopes: list[AliasScope]) -> list[Cell]:
    """The table columns to which a name refers, in the innermost scope that has it."""
    name, table = column.name.lower(), column.table.lower()
    for scope in reversed(scopes):
        for alias, source in scope.sources.items():
            if name in source and table in ("", alias):
                return source[name]
    return []


def is_count(node: Any, scopes: list[AliasScope]) -> bool:
    """Whether a name is an output of a view or subquery without table columns, which is usually a COUNT."""
    if not isinstance(node, exp.Column) or resolve(node, scopes):
        return False
    name, table = node.name.lower(), node.table.lower()
    return any(name in source for scope in scopes for alias, source in scope.sources.items() if table in ("", alias))


def meaning(column: exp.Column, scopes: list[AliasScope]) -> Slot | exp.Expr | str | None:
    """What a column in a formula refers to: a slot, the expression of an alias, or a quoted text. For a subquery's
    output it is the expression in slots. Raises NotOfColumns if that has none."""
    cells = resolve(column, scopes)
    if isinstance(cells, Cells) and cells.origin is not None:
        expression, inner = cells.origin
        return written(expression, partial(meaning, scopes=inner))
    if cells:
        return (cells[0][0].table, cells[0][0].use, cells[0][1]) if len(cells) == 1 else None
    alias = alias_of(column, scopes)
    quoted = column.this.args.get("quoted") and not column.table
    return column.name if alias is None and quoted else alias


def alias_of(column: exp.Column, scopes: list[AliasScope]) -> exp.Expr | None:
    return scopes[-1].aliases.get(column.name.lower()) if scopes and not column.table else None


def function_name(node: Any) -> str:
    return node.name.upper() if isinstance(node, exp.Anonymous) else ""


def literal(node: Any) -> Value:
    """The value of a literal, which may be negative or in parentheses; None for other nodes."""
    if isinstance(node, exp.Paren):
        return literal(node.this)
    if isinstance(node, exp.Neg):
        value = literal(node.this)
        return -value if isinstance(value, int | float) else None
    if isinstance(node, exp.Boolean):
        return int(node.this)
    if not isinstance(node, exp.Literal):
        return None
    return node.this if node.is_string else number(node.this)


def unusual(node: Any) -> str | None:
    """The text of a number that SQLite would write differently; None for other nodes."""
    return (
        node.this if isinstance(node, exp.Literal) and not node.is_string and str(literal(node)) != node.this else None
    )


def number(text: str) -> int | float | None:
    """The value of a numeric literal, if SQLite can store it exactly, else None."""
    try:
        if text.startswith("0x"):
            value: int | float = int(text, 16)
        else:
            value = float(text) if re.search(r"[.eE]", text) else int(text)
    except ValueError:
        return None
    return value if abs(value) < 2**53 else None


def inclusion(values: list[Value], negated: bool) -> Test:
    """The test of a column against a list of values."""
    inside = frozenset(values)
    hits, misses = listed(values)
    if negated:
        hits, misses = misses, hits
    return Test(("in", (negated, inside)), hits, misses, lambda value: (value in inside) != negated)


def direct(operator: str, value: Value, kind: Kind) -> Test:
    """The test of a column against a literal."""
    points = [point for point in around(operator, value, kind) if point is not None]
    bound = fit(value, kind, strict=False)

    def holds(point: Value) -> bool:
        return matching(operator, point, bound)

    hits = tuple(point for point in points if holds(point))
    misses = tuple(point for point in points if not holds(point))
    return Test((operator, value), hits, misses, holds)


def indirect(operator: str, value: Value, subject: exp.Expr, kind: Kind) -> Test:
    """The test of an expression against a literal, as a test of a column in it: values are mapped back through it."""
    test = direct(operator, value, "text" if isinstance(value, str) else "number")
    back = inverse(subject)
    hits, misses = ([fit(old, kind) for point in points for old in back(point)] for points in (test.hits, test.misses))
    return Test(test.name, tuple(v for v in hits if v is not None), tuple(v for v in misses if v is not None))


def inverse(subject: exp.Expr) -> Callable[[Value], Iterable[Value]]:
    """A function from a value of an expression to values of its column that may give it."""
    name = function_name(subject)
    arguments = subject.expressions if name else []
    constants = [literal(argument) for argument in arguments]
    start = constants[1] if len(constants) > 1 else None
    if name == "LENGTH":
        return lambda value: ["x" * int(value)] if isinstance(value, int | float) and 0 <= value < 200 else []
    if name == "STRFTIME" and isinstance(constants[0], str):
        pattern = DATE_PARTS.get(constants[0], "{}")
        return lambda value: [pattern.format(value)]
    if name in ("SUBSTR", "SUBSTRING") and isinstance(start, int):
        return lambda value: [
            "p" * min(start - 1, 99) + str(value),
            "p" * min(start - 1, 99) + str(value) + "q" * (start > 0),
        ]
    if name == "ABS":
        return lambda value: [value, -value] if isinstance(value, int | float) else [value]
    if name == "ROUND":
        digits = start if isinstance(start, int) and 0 <= start < 9 else 0
        return lambda value: rounded(value, digits)
    if name in ("TRIM", "LTRIM", "RTRIM"):
        return lambda value: [value, f" {value}", f"{value} "]
    if name in ("DATE", "DATETIME"):
        return lambda value: [value, f"{value} 10:30:00"]
    if name in ("LOWER", "UPPER"):
        return lambda value: [value, str(value).lower(), str(value).upper()]
    if isinstance(subject, exp.Binary):
        numbers = [n for n in (literal(subject.this), literal(subject.expression)) if isinstance(n, int | float)]
        return lambda value: [*alone(subject, value), *arithmetic(value, numbers[0] if numbers else 1)]
    return lambda value: [value]


def alone(subject: exp.Expr, value: Value) -> Iterator[Value]:
    """Values of the only column of an expression at which the expression has a value."""
    for point in points(subject, value) if isinstance(value, int | float) else ():
        if len(point) == 1:
            yield point[0][1]


def rounded(value: Value, digits: int) -> list[Value]:
    """Values that round to a value."""
    step = 10.0**-digits
    return (
        [value, round(value + step * 0.4, 9), round(value + step * 0.04, 9)]
        if isinstance(value, int | float)
        else [value]
    )


def arithmetic(value: Value, other: float) -> Iterator[Value]:
    """Values from which one operation with another number may give a value."""
    yield value
    if isinstance(value, int | float):
        yield from (value - other, value + other, value * other)
        if other:
            yield value / other
