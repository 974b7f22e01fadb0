"""The canonical form of a query: two queries are AST-equal if and only if their forms are equal.

The fourteen rules of docs/metrics.md define which differences are ignored; all others count. A form is a tuple whose
first item names its kind. Comments give the number of each rule where it is applied.

Two restrictions keep AST-equal queries from having different results. An IN list is merged with equalities only if its
elements are constants (`x = y` compares with y's affinity, `x IN (y)` does not: https://sqlite.org/datatype3.html). And
parentheses are dropped only between operators whose precedence is beyond doubt.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import permutations, product
from math import factorial, prod
from typing import Any

from sqlglot import exp

from ftlab.sql.schema import Schema, affinity

Form = tuple[Any, ...]

# The most ways to number repeated uses of a table in a FROM that are tried; with more, the written order stays.
ARRANGEMENTS = 120

NULL: Form = ("null",)

# Kinds of outputs, besides casts, that may have an affinity; other expressions have none.
AFFINE = {"column", "ambiguous", "name", "output", "star", "query", "Collate"}

COMPARISONS = (exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE)
PREDICATES = (*COMPARISONS, exp.Like, exp.In, exp.Between, exp.Is, exp.NullSafeEQ, exp.NullSafeNEQ, exp.Glob, exp.Match)
NESTED = (*PREDICATES, exp.Escape, exp.Not)
ARITHMETIC = (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.Mod)
CONSTANT_OPERATORS = {"Neg", *(kind.__name__ for kind in ARITHMETIC)}
OPERATORS = (
    *ARITHMETIC,
    exp.DPipe,
    exp.BitwiseAnd,
    exp.BitwiseOr,
    exp.BitwiseLeftShift,
    exp.BitwiseRightShift,
    exp.Neg,
)
CONNECTORS = (exp.And, exp.Or, exp.Not)
ATOMS = (
    exp.Column,
    exp.Literal,
    exp.Anonymous,
    exp.Null,
    exp.Boolean,
    exp.Subquery,
    exp.Paren,
    exp.Case,
    exp.Exists,
    exp.Window,
)
BOOLEAN_FORMS = {"=", "<>", "<", "<=", "in", "notin", "in-query", "in-list", "like", "is", "not", "and", "or", "exists"}


class NotCanonical(Exception):
    """A construct that the canonical form does not support."""


def canonical(tree: exp.Query, schema: Schema) -> Form | None:
    """The form of a query over the schema's tables; None if it has an unsupported construct."""
    try:
        return Canonicaliser(tree, schema).query(tree, None, {})
    except NotCanonical:
        return None


@dataclass
class Source:
    """A table in a FROM. `columns` are the lower-case names in order, None if unknown. Columns of a base table are
    identified by name, those of a derived table by position (rule 5: output names do not matter). `schema` is that of
    a base table."""

    name: str
    form: Form
    columns: list[str | None] | None
    by_name: bool
    place: int = 0
    schema: str = ""

    def column(self, name: str) -> int | str | None:
        """How a form refers to a column; None if there is none of this name."""
        if self.columns is None or name not in self.columns:
            return None
        return name if self.by_name else self.columns.index(name)

    def has_nameless(self) -> bool:
        """Whether a column's name may be the text of its expression."""
        return not self.by_name and (self.columns is None or None in self.columns)


@dataclass
class Joined:
    """A source and how it is joined to those before it. `how` is "inner", "left" or another join as written."""

    source: Source
    how: str
    on: exp.Expr | None = None
    using: tuple[str, ...] = ()


@dataclass
class Scope:
    """Name resolution inside a SELECT. `outputs` maps aliases to output columns."""

    parent: "Scope | None"
    sources: list[Source] = field(default_factory=list)
    outputs: dict[str, int] = field(default_factory=dict)
    projections: list[Form] = field(default_factory=list)
    in_order: bool = False  # inside GROUP BY or ORDER BY, where a reference to an output stands for its expression

    def visible(self) -> Iterator[Source]:
        """The tables of this SELECT and of the enclosing ones."""
        scope: Scope | None = self
        while scope:
            yield from scope.sources
            scope = scope.parent


@dataclass(frozen=True)
class Cte:
    """A common table expression: the form with its number, and the names of its columns."""

    form: Form
    columns: list[str | None] | None


Ctes = dict[str, Cte]


class Canonicaliser:
    """Computes the forms of a query and of its subqueries."""

    def __init__(self, tree: exp.Query, schema: Schema) -> None:
        self.schema = schema
        self.whole = tree
        self.tables: dict[str, list[str | None]] = {name: list(table.columns) for name, table in schema.tables.items()}
        self.names = {column for columns in self.tables.values() for column in columns}
        self.names |= {node.alias_or_name.lower() for node in tree.find_all(exp.Alias, exp.TableAlias)}

    # --- queries --------------------------------------------------------------------------------------------

    def query(self, node: exp.Expr, parent: Scope | None, ctes: Ctes) -> Form:
        """The form of a SELECT or a set operation, with its WITH, ORDER BY and LIMIT."""
        while isinstance(node, (exp.Subquery, exp.Paren)) and not _has_modifiers(node):
            node = node.this  # rule 1
        if not isinstance(node, (exp.Select, exp.SetOperation)):
            raise NotCanonical(type(node).__name__)
        withs: tuple[Form, ...] = ()
        with_ = node.args.get("with_")
        if with_:
            ctes = self._visible(with_.expressions, ctes)
            withs = tuple((ctes[_alias(cte)].form, self.query(cte.this, parent, ctes)) for cte in with_.expressions)
        body = self._select(node, parent, ctes) if isinstance(node, exp.Select) else self._compound(node, parent, ctes)
        return ("with", withs, body) if withs else body

    def _visible(self, nodes: list[exp.Expr], ctes: Ctes) -> Ctes:
        """The common table expressions visible in a query that declares these; each of them sees all of them. They are
        numbered by depth and order, since their names do not matter, like table aliases (rule 4)."""
        depth = 1 + max((cte.form[1] for cte in ctes.values()), default=-1)
        ctes = {**ctes, **{_alias(node): Cte(("cte", depth, i), None) for i, node in enumerate(nodes)}}
        for node in nodes:
            named: list[str | None] = [_lower(column) for column in node.args["alias"].args.get("columns") or []]
            columns = named or self._output_names(node.this, ctes)
            ctes[_alias(node)] = Cte(ctes[_alias(node)].form, columns)
        return ctes

    def _compound(self, node: exp.SetOperation, parent: Scope | None, ctes: Ctes) -> Form:
        kind = type(node).__name__.lower() + ("" if node.args.get("distinct", True) else " all")
        operands = [self.query(operand, parent, ctes) for operand in _operands(node)]
        if kind in ("union", "intersect") and (node is self.whole or self._alike(operands)):
            operands.sort(key=repr)  # rule 14
        order = tuple(self._compound_key(node, term, parent, ctes) for term in _order_terms(node))
        return (kind, tuple(operands), order, *self._window_of_rows(node, Scope(parent), ctes))

    def _alike(self, operands: list[Form]) -> bool:
        """Whether all operands have the same affinities, so that their order cannot affect comparisons."""
        return len({self._affinities(operand) for operand in operands}) == 1

    def _affinities(self, form: Form) -> tuple[Any, ...]:
        """The affinity of each output of a query's form, or a key that represents it where it is unknown."""
        if form[0] == "with":
            return self._affinities(form[2])
        if form[0] != "select":
            return tuple(self._affinities(operand) for operand in form[1])
        found: list[Any] = []
        for output in form[2]:
            source: Form = form[3][output[2]][0] if output[0] == "column" and output[1] == 0 else ()
            table = self.schema.tables.get(source[1]) if source[:1] == ("table",) else None
            if table is not None and output[3] in table.columns:
                found.append(affinity(table.columns[output[3]].type))
            elif output[0] in AFFINE or output[:2] == ("call", "cast"):
                found.append((output[-1], form[3]))
            else:
                found.append(f"one {output[0]}" if output[0] in ("text", "number") else "")
        return tuple(found)

    def _compound_key(self, node: exp.SetOperation, term: exp.Expr, parent: Scope | None, ctes: Ctes) -> Form:
        """An ORDER BY key of a set operation: an output column, by position or as any of its SELECTs names it."""
        key = _unwrap(term.this)
        if isinstance(key, exp.Literal) and not key.is_string:
            return _ordered(("position", int(key.this) - 1), term)
        for select in _selects(node):
            names = self._output_names(select, ctes) or []
            if isinstance(key, exp.Column) and not key.table and key.name.lower() in names:
                return _ordered(("position", names.index(key.name.lower())), term)
            scope = Scope(parent, [joined.source for joined in self._joined(select, parent, ctes)])
            for place, source in enumerate(scope.sources):
                source.place = place
            wanted = self.value(key, scope, ctes)
            outputs = [self.value(projection, scope, ctes) for projection in select.expressions]
            if wanted in outputs:
                return _ordered(("position", outputs.index(wanted)), term)
        raise NotCanonical("an ORDER BY that names no output")

    def _select(self, node: exp.Select, parent: Scope | None, ctes: Ctes) -> Form:
        """The smallest form over all arrangements of its tables (rules 4 and 11)."""
        joined = self._joined(node, parent, ctes)
        forms = [self._arranged(node, order, parent, ctes) for order in _arrangements(joined, _has_star(node))]
        return forms[0] if len(forms) == 1 else min(forms, key=repr)

    def _arranged(self, node: exp.Select, joined: list[Joined], parent: Scope | None, ctes: Ctes) -> Form:
        scope = Scope(parent, [item.source for item in joined])
        for place, item in enumerate(joined):
            item.source.place = place
        tables, conditions = [], [node.args["where"].this] if node.args.get("where") else []
        in_place = any(item.how not in ("inner", "left") or item.using for item in joined)
        for item in joined:
            on: Form = ()
            if item.on is not None and item.how == "inner" and not in_place:
                conditions.append(item.on)  # rule 11
            elif item.on is not None:
                on = self.value(item.on, scope, ctes, truth=True)
            tables.append((item.source.form, item.how, on, item.using))
        scope.projections = [self.value(projection, scope, ctes) for projection in node.expressions]
        scope.outputs = {
            projection.alias.lower(): place
            for place, projection in reversed(list(enumerate(node.expressions)))
            if projection.alias
        }
        where = self._junction("and", [self.value(c, scope, ctes, truth=True) for c in conditions], truth=True)
        having = node.args.get("having")
        form: Form = (
            "select",
            "distinct" if node.args.get("distinct") else "all",
            tuple(scope.projections),
            tuple(tables),
            where,
            self._group(node, scope, ctes),
            self.value(having.this, scope, ctes, truth=True) if having else (),
            self._order(node, scope, ctes),
            *self._window_of_rows(node, scope, ctes),
        )
        windows = node.args.get("windows")
        return (*form, tuple(self._generic(window, scope, ctes) for window in windows)) if windows else form

    def _window_of_rows(self, node: exp.Expr, scope: Scope, ctes: Ctes) -> tuple[Form, Form]:
        """LIMIT and OFFSET; sqlglot already parses LIMIT m, n as LIMIT n OFFSET m (rule 12)."""
        limit, offset = node.args.get("limit"), node.args.get("offset")
        return (
            self.value(limit.expression, scope, ctes) if limit else (),
            self.value(offset.expression, scope, ctes) if offset else (),
        )

    def _group(self, node: exp.Select, scope: Scope, ctes: Ctes) -> Form:
        group = node.args.get("group")
        if not group:
            return ()
        if any(value for key, value in group.args.items() if key != "expressions"):
            raise NotCanonical("an extended GROUP BY")
        scope.in_order = True
        terms = {self._position(term, scope) or self.value(term, scope, ctes) for term in group.expressions}
        scope.in_order = False
        return tuple(sorted(terms, key=repr))  # rule 14

    def _order(self, node: exp.Select, scope: Scope, ctes: Ctes) -> Form:
        scope.in_order = True
        terms = []
        for term in _order_terms(node):
            key = _unwrap(term.this)
            if isinstance(key, exp.Collate) and isinstance(_unwrap(key.this), (exp.Column, exp.Literal)):
                raise NotCanonical("an output ordered by a collation")  # SQLite resolves the output name before COLLATE
            if isinstance(key, exp.Column) and not key.table and key.name.lower() in scope.outputs:
                # In ORDER BY an output name takes precedence over a column name; in GROUP BY it does not.
                form = scope.projections[scope.outputs[key.name.lower()]]
            else:
                form = self._position(key, scope) or self.value(key, scope, ctes)
            terms.append(_ordered(form, term))
        scope.in_order = False
        return tuple(terms)

    def _position(self, term: exp.Expr, scope: Scope) -> Form | None:
        """The output to which a number in GROUP BY or ORDER BY refers (rule 5); None if the term is not a number."""
        term = _unwrap(term)
        if not (isinstance(term, exp.Literal) and not term.is_string and term.this.isdigit()):
            return None
        outputs = self._expanded(scope)
        place = int(term.this) - 1
        return outputs[place] if outputs is not None and 0 <= place < len(outputs) else ("position", place)

    def _expanded(self, scope: Scope) -> list[Form] | None:
        """The outputs with every star replaced by its columns; None if those are unknown."""
        outputs: list[Form] = []
        for projection in scope.projections:
            if projection[0] != "star":
                outputs.append(projection)
                continue
            for source in scope.sources:
                if len(projection) == 1 or source.place == projection[1]:
                    if source.columns is None:
                        return None
                    names = source.columns if source.by_name else range(len(source.columns))
                    outputs += [("column", 0, source.place, name) for name in names]
        return outputs

    # --- tables ---------------------------------------------------------------------------------------------

    def _joined(self, node: exp.Select, parent: Scope | None, ctes: Ctes) -> list[Joined]:
        """The tables of FROM as written; parentheses around inner joins are redundant."""
        from_ = node.args.get("from_")
        if not from_:
            return []
        joined = list(self._tables(from_.this, "inner", None, (), parent, ctes))
        for join in [*(from_.this.args.get("joins") or []), *(node.args.get("joins") or [])]:
            joined += self._join(join, parent, ctes)
        return joined

    def _join(self, join: exp.Expr, parent: Scope | None, ctes: Ctes) -> Iterator[Joined]:
        side, kind, method = (str(join.args.get(key) or "").lower() for key in ("side", "kind", "method"))
        using = tuple(sorted(_lower(column) for column in join.args.get("using") or []))
        how = " ".join(word for word in (method, side, kind) if word)
        how = {"": "inner", "cross": "inner", "left outer": "left"}.get(how, how)  # rule 11
        yield from self._tables(join.this, how, join.args.get("on"), using, parent, ctes)

    def _tables(
        self,
        node: exp.Expr,
        how: str,
        on: exp.Expr | None,
        using: tuple[str, ...],
        parent: Scope | None,
        ctes: Ctes,
    ) -> Iterator[Joined]:
        """A table, or the tables of a parenthesised join."""
        if isinstance(node, (exp.Subquery, exp.Paren)) and isinstance(node.this, (exp.Table, exp.Paren)):
            joins = node.this.args.get("joins") or []
            if node.alias or (joins and how != "inner"):
                raise NotCanonical("a parenthesised join as one table")
            first, *rest = [*self._tables(node.this, how, on, using, parent, ctes)]
            yield from (first, *rest)
            for join in joins:
                yield from self._join(join, parent, ctes)
            return
        yield Joined(self._source(node, parent, ctes), how, on, using)

    def _source(self, node: exp.Expr, parent: Scope | None, ctes: Ctes) -> Source:
        alias = node.alias.lower()
        if isinstance(node, exp.Table) and isinstance(node.this, exp.Identifier):
            name = node.name.lower()
            if name in ctes and not node.db:
                return Source(alias or name, ctes[name].form, ctes[name].columns, by_name=False)
            key = self.schema.key(name, node.db)
            if key is None:
                key = f"{node.db.lower()}.{name}" if node.db else name
                return Source(alias or name, ("table", key), None, by_name=True, schema=node.db.lower())
            columns, schema = self.tables[key], self.schema.tables[key].schema
            return Source(alias or name, ("table", key), list(columns), by_name=True, schema=schema)
        if isinstance(node, exp.Subquery):
            form = ("query", self.query(node.this, parent, ctes))
            return Source(alias, form, self._output_names(node.this, ctes), by_name=False)
        raise NotCanonical("a table of another kind")

    def _output_names(self, node: exp.Expr, ctes: Ctes) -> list[str | None] | None:
        """The names of a query's output columns, None for expressions; None as a whole if a star cannot be expanded."""
        while True:
            if node.args.get("with_"):
                ctes = self._visible(node.args["with_"].expressions, ctes)
            if not isinstance(node, (exp.Subquery, exp.SetOperation)):
                break
            node = node.this
        if not isinstance(node, exp.Select):
            return None
        names: list[str | None] = []
        for projection in node.expressions:
            if not projection.is_star:
                column = _unwrap(projection)
                plain = column.name if isinstance(column, exp.Column) else ""
                names.append((projection.alias or plain).lower() or None)
                continue
            own = projection.table.lower() if isinstance(projection, exp.Column) else ""
            for item in self._joined(node, None, ctes):
                if own in ("", item.source.name):
                    if item.source.columns is None:
                        return None
                    names += item.source.columns
        return names

    # --- names ----------------------------------------------------------------------------------------------

    def _column(self, node: exp.Column, scope: Scope) -> Form:
        if isinstance(node.this, exp.Star):
            place = next((s.place for s in scope.sources if s.name == node.table.lower()), node.table.lower())
            return ("star", place)
        name = node.name.lower()
        found = self._qualified(node, scope) if node.table else self._unqualified(node, scope)
        return found or ("name", node.table.lower(), name)

    def _qualified(self, node: exp.Column, scope: Scope | None) -> Form | None:
        name, table, schema = node.name.lower(), node.table.lower(), node.db.lower()
        up = 0
        while scope:
            for source in scope.sources:
                if source.name == table and schema in ("", source.schema):
                    column = source.column(name)
                    return ("column", up, source.place, name if column is None else column)
            scope, up = scope.parent, up + 1
        return None

    def _unqualified(self, node: exp.Column, start: Scope) -> Form | None:
        """Resolves a name as SQLite does: columns of the innermost FROM, then its outputs, then the enclosing query."""
        name = node.name.lower()
        scope: Scope | None = start
        up = 0
        while scope:
            hits = [(source.place, source.column(name)) for source in scope.sources]
            hits = [(place, column) for place, column in hits if column is not None]
            if len(hits) == 1:
                return ("column", up, *hits[0])  # rule 4
            if hits:
                return ("ambiguous", up, name)
            if name in scope.outputs:
                output = scope.outputs[name]
                return scope.projections[output] if scope.in_order and not up else ("output", up, output)
            scope, up = scope.parent, up + 1
        if node.this.args.get("quoted"):  # a literal to SQLite; if it is a name elsewhere, rule 3 leaves it open
            if any(source.has_nameless() for source in start.visible()):
                raise NotCanonical("text in double quotes beside columns named by their expressions")
            return ("name" if name in self.names else "text", node.this.this)
        return ("column", 0, start.sources[0].place, name) if len(start.sources) == 1 else None

    # --- expressions ----------------------------------------------------------------------------------------

    def value(self, node: Any, scope: Scope, ctes: Ctes, truth: bool = False) -> Form:
        """The form of an expression. `truth`: only its truth value matters, as in WHERE."""
        node = _unwrap(node)
        form = self._value(node, scope, ctes, truth)
        return self._negate(form) if node.args.get("negate") else form

    def _value(self, node: exp.Expr, scope: Scope, ctes: Ctes, truth: bool) -> Form:
        if isinstance(node, PREDICATES) and any(isinstance(item, NESTED) for item in node.args.values()):
            raise NotCanonical(
                "a predicate in a predicate without parentheses"
            )  # sqlglot and SQLite group it differently
        if isinstance(node, exp.Column):
            return self._column(node, scope)
        if isinstance(node, exp.Literal):
            return ("text" if node.is_string else "number", node.this)
        if isinstance(node, exp.Alias):
            return self.value(node.this, scope, ctes)  # rule 5
        if isinstance(node, exp.Star):
            return ("star",)
        if isinstance(node, (exp.And, exp.Or)):
            items = [self.value(item, scope, ctes, truth=True) for item in _flat(node, type(node))]
            return self._junction("and" if isinstance(node, exp.And) else "or", items, truth)
        if isinstance(node, exp.Not):
            return self._negate(self.value(node.this, scope, ctes, truth=True))
        if isinstance(node, COMPARISONS):
            if node.this.find(exp.Collate) and node.expression.find(exp.Collate):
                raise NotCanonical("two collations")  # the left one would count
            left, right = self.value(node.this, scope, ctes), self.value(node.expression, scope, ctes)
            return _comparison(type(node), left, right)
        if isinstance(node, exp.Null):
            return NULL
        if isinstance(node, (exp.Query, exp.Subquery)):
            return ("query", self.query(node, scope, ctes))
        handler = HANDLERS.get(type(node))
        return handler(self, node, scope, ctes) if handler else self._generic(node, scope, ctes)

    def _call(self, node: exp.Anonymous, scope: Scope, ctes: Ctes) -> Form:
        arguments = tuple(self.value(argument, scope, ctes) for argument in node.expressions)
        name = str(node.name).lower()
        if name == "count" and arguments == (("number", "1"),):
            arguments = (("star",),)  # rule 13
        return ("call", name, arguments)

    def _in(self, node: exp.In, scope: Scope, ctes: Ctes) -> Form:
        value = self.value(node.this, scope, ctes)
        query = node.args.get("query")
        if query and isinstance(query.this, exp.Subquery):  # IN ((SELECT ...)) is a list of one scalar subquery
            return ("in-list", value, (self.value(query.this, scope, ctes),))
        if query:
            return ("in-query", value, self.query(query, scope, ctes))
        if node.args.get("field") or node.args.get("unnest"):
            raise NotCanonical("IN a table")
        elements = {self.value(element, scope, ctes) for element in node.expressions}
        if all(_is_constant(element) for element in elements):
            if len(elements) == 1 and _is_constant(value):
                return _comparison(exp.EQ, value, *elements)
            return ("in", value, tuple(sorted(elements, key=repr)))  # rule 9
        return ("in-list", value, tuple(sorted(elements, key=repr)))

    def _between(self, node: exp.Between, scope: Scope, ctes: Ctes) -> Form:
        value, low, high = (self.value(node.args[key], scope, ctes) for key in ("this", "low", "high"))
        bounds = [_comparison(exp.LTE, low, value), _comparison(exp.LTE, value, high)]
        return self._junction("and", bounds, truth=False)  # rule 10

    def _like(self, node: exp.Like, scope: Scope, ctes: Ctes) -> Form:
        return ("like", self.value(node.this, scope, ctes), self.value(node.expression, scope, ctes), ())

    def _escape(self, node: exp.Escape, scope: Scope, ctes: Ctes) -> Form:
        like = self.value(node.this, scope, ctes)
        escape = self.value(node.expression, scope, ctes)
        return ("not", (*like[1][:-1], escape)) if like[0] == "not" else (*like[:-1], escape)

    def _is(self, node: exp.Binary, scope: Scope, ctes: Ctes) -> Form:
        form: Form = ("is", self.value(node.this, scope, ctes), self.value(node.expression, scope, ctes))
        return self._negate(form) if isinstance(node, exp.NullSafeNEQ) else form

    def _exists(self, node: exp.Exists, scope: Scope, ctes: Ctes) -> Form:
        return ("exists", self.query(node.this, scope, ctes))

    def _case(self, node: exp.Case, scope: Scope, ctes: Ctes) -> Form:
        operand, default = node.args.get("this"), node.args.get("default")
        branches = tuple(
            (
                self.value(branch.this, scope, ctes, truth=operand is None),
                self.value(branch.args["true"], scope, ctes),
            )
            for branch in node.args["ifs"]
        )
        return (
            "case",
            self.value(operand, scope, ctes) if operand else (),
            branches,
            self.value(default, scope, ctes) if default else (),
        )

    def _term(self, node: exp.Ordered, scope: Scope, ctes: Ctes) -> Form:
        return _ordered(self.value(node.this, scope, ctes), node)

    def _generic(self, node: exp.Expr, scope: Scope, ctes: Ctes) -> Form:
        """The form of any other node: its kind and its arguments in order."""

        def argument(value: Any) -> Any:
            if isinstance(value, exp.Expr):
                return self.value(value, scope, ctes)
            if isinstance(value, list):
                return tuple(argument(item) for item in value)
            return value

        named = {key: argument(value) for key, value in node.args.items() if value is not None and key != "negate"}
        return (type(node).__name__, *sorted(named.items()))

    # --- connectives ----------------------------------------------------------------------------------------

    def _junction(self, kind: str, items: Iterable[Form], truth: bool) -> Form:
        """AND or OR as a set (rule 7). OR merges the constants that a value equals, AND those from which it differs
        (rules 8 and 9). A single item is returned as it is, unless AND would have turned its value into 0 or 1."""
        merged = "in" if kind == "or" else "notin"
        flat: set[Form] = set()
        constants: defaultdict[Form, set[Form]] = defaultdict(set)
        for item in items:
            for part in item[1] if item[0] == kind else (item,):
                if part[0] == merged:
                    constants[part[1]].update(part[2])
                else:
                    flat.add(part)
        flat |= {(merged, value, tuple(sorted(found, key=repr))) for value, found in constants.items()}
        if len(flat) == 1:
            (only,) = flat
            if truth or only[0] in BOOLEAN_FORMS:
                return only
        return (kind, tuple(sorted(flat, key=repr))) if flat else ()

    def _negate(self, form: Form) -> Form:
        """The negated form, with NOT pushed inward (rule 8)."""
        kind = form[0]
        if kind in ("and", "or"):
            opposites = [self._negate(item) for item in form[1]]
            return self._junction("or" if kind == "and" else "and", opposites, truth=True)
        if kind == "not" and form[1][0] in BOOLEAN_FORMS:
            return form[1]  # type: ignore[no-any-return]
        if kind in ("<", "<="):
            return ("<=" if kind == "<" else "<", form[2], form[1])
        opposite = {"=": "<>", "<>": "=", "in": "notin", "notin": "in"}.get(kind)
        return (opposite, *form[1:]) if opposite else ("not", form)


Handler = Callable[[Canonicaliser, Any, Scope, Ctes], Form]
HANDLERS: dict[type[exp.Expr], Handler] = {
    exp.Anonymous: Canonicaliser._call,
    exp.In: Canonicaliser._in,
    exp.Between: Canonicaliser._between,
    exp.Like: Canonicaliser._like,
    exp.Escape: Canonicaliser._escape,
    exp.Is: Canonicaliser._is,
    exp.NullSafeEQ: Canonicaliser._is,
    exp.NullSafeNEQ: Canonicaliser._is,
    exp.Exists: Canonicaliser._exists,
    exp.Case: Canonicaliser._case,
    exp.Ordered: Canonicaliser._term,
}


def _comparison(kind: type[exp.Expr], left: Form, right: Form) -> Form:
    """A comparison by `<`, `<=`, `=` or `<>` only (rule 6); with a constant, `=` becomes an IN list of one (rule 9)."""
    if kind is exp.GT:
        return ("<", right, left)
    if kind is exp.GTE:
        return ("<=", right, left)
    if kind in (exp.LT, exp.LTE):
        return ("<" if kind is exp.LT else "<=", left, right)
    equal = kind is exp.EQ
    if _is_constant(left) != _is_constant(right):
        value, constant = (right, left) if _is_constant(left) else (left, right)
        return ("in" if equal else "notin", value, (constant,))
    return ("=" if equal else "<>", *sorted((left, right), key=repr))


def _is_constant(form: Form) -> bool:
    """Whether a form is a literal, or arithmetic with literals."""
    if form[0] in CONSTANT_OPERATORS:
        return all(_is_constant(operand) for name, operand in form[1:] if name in ("this", "expression"))
    return form[0] in ("number", "text", "null")


def _ordered(form: Form, term: exp.Expr) -> Form:
    """A key with its direction; ASC is the default (rule 12). By default NULLs come first in ASC and last in DESC."""
    desc, nulls_first = bool(term.args.get("desc")), bool(term.args.get("nulls_first"))
    return (form, "desc" if desc else "asc", "" if nulls_first != desc else f"nulls first {nulls_first}")


def _unwrap(node: Any) -> Any:
    """The node without redundant parentheses (rule 1)."""
    while isinstance(node, exp.Paren) and _is_redundant(node):
        node = node.this
    return node


def _is_redundant(node: exp.Paren) -> bool:
    inner, outer = node.this, node.parent
    while isinstance(inner, exp.Paren):
        inner = inner.this
    while isinstance(outer, exp.Paren):
        outer = outer.parent
    if isinstance(inner, ATOMS) or not isinstance(outer, (exp.Binary, exp.Unary, exp.In, exp.Between)):
        return True
    if isinstance(outer, CONNECTORS):
        return isinstance(inner, (*CONNECTORS, *PREDICATES, *OPERATORS))
    return isinstance(outer, (*PREDICATES, *OPERATORS)) and isinstance(inner, OPERATORS)


def _flat(node: exp.Expr, kind: type[exp.Expr]) -> list[exp.Expr]:
    """The operands of a chain of AND or OR, without recursion, since chains can be long."""
    items, stack = [], [node]
    while stack:
        top = _unwrap(stack.pop())
        if type(top) is kind:
            stack += [top.expression, top.this]
        else:
            items.append(top)
    return items


def _operands(node: exp.SetOperation) -> list[exp.Expr]:
    """The operands of a chain of the same set operation, from left to right."""
    operands: list[exp.Expr] = []
    at: exp.Expr = node
    while True:
        operands.append(at.args["expression"])
        left = at.this
        while isinstance(left, (exp.Subquery, exp.Paren)) and not _has_modifiers(left):
            left = left.this
        same = type(left) is type(node) and left.args.get("distinct") == node.args.get("distinct")
        if not same or isinstance(node, exp.Except) or _has_modifiers(left):
            return [left, *reversed(operands)]
        at = left


def _selects(node: exp.Expr) -> Iterator[exp.Select]:
    """The SELECTs of a query at its own level, from left to right."""
    stack = [node]
    while stack:
        top = stack.pop()
        if isinstance(top, exp.Select):
            yield top
        elif isinstance(top, (exp.Subquery, exp.Paren)):
            stack.append(top.this)
        elif isinstance(top, exp.SetOperation):
            stack += [top.args["expression"], top.this]


def _order_terms(node: exp.Expr) -> list[exp.Expr]:
    order = node.args.get("order")
    return list(order.expressions) if order else []


def _has_modifiers(node: exp.Expr) -> bool:
    return any(node.args.get(key) for key in ("order", "limit", "offset", "with_"))


def _has_star(node: exp.Select) -> bool:
    return any(projection.is_star for projection in node.expressions)


def _alias(node: exp.Expr) -> str:
    return str(node.alias).lower()


def _lower(node: exp.Expr) -> str:
    return str(node.name).lower()


def _arrangements(joined: list[Joined], star: bool) -> Iterator[list[Joined]]:
    """The orders in which the tables may be numbered.

    Inner-joined tables come in the order of their forms, then outer-joined ones as written. If a `*` or a kind of join
    depends on the order, all tables stay as written (rule 11). Repeated uses of a table are numbered in every possible
    order.
    """
    if star or len(joined) < 2 or any(item.how not in ("inner", "left") or item.using for item in joined):
        yield joined
        return
    groups: defaultdict[str, list[Joined]] = defaultdict(list)
    for item in joined:
        if item.how == "inner":
            groups[repr(item.source.form)].append(item)
    outer = [item for item in joined if item.how != "inner"]
    ordered = [groups[key] for key in sorted(groups)]
    if prod(factorial(len(group)) for group in ordered) > ARRANGEMENTS:
        yield [item for group in ordered for item in group] + outer
        return
    for choice in product(*(permutations(group) for group in ordered)):
        yield [item for group in choice for item in group] + outer
