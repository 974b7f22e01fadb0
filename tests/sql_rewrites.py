"""Random rewrites of a query that use only the fourteen rules by which two queries are AST-equal. Holds no tests.

A rewrite has three steps. *Named*: every table gets an alias of its own and every column that alias, so that parts of
the tree can be moved and copied. *Rearranged*: conditions, joins, groups, outputs, operands. *Spelled*: names are
chosen anew, the tree is written as text, and the text's words, blanks and quotes vary.

What the tree steps do not know (WITH, USING, NATURAL, a star in a subquery of FROM, COLLATE) is rewritten as text only.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any

from sqlglot import exp
from sqlglot.dialects.sqlite import SQLite

from ftlab.sql import parse
from ftlab.sql.schema import Schema

AGGREGATES = {"count", "sum", "avg", "min", "max", "total", "group_concat"}
BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
FLIPPED: dict[type, type] = {exp.EQ: exp.EQ, exp.NEQ: exp.NEQ, exp.GT: exp.LT, exp.LT: exp.GT} | {
    exp.GTE: exp.LTE,
    exp.LTE: exp.GTE,
}
PREDICATES = (*FLIPPED, exp.In, exp.Between, exp.Like, exp.Is, exp.Exists, exp.And, exp.Or)
ROWIDS = {"rowid", "oid", "_rowid_", ""}
TABLE_ALIASES = ("a", "b", "c", "x", "T1", "t2", "Left_one", "right_one", "src", "z9")


def rewrite(gold: str, schema: Schema, rng: Random, keep_choice: bool = True) -> str:
    """A query that the fourteen rules call equal to `gold`, which SQLite must take on the schema's tables.

    Some golds leave a choice that SQLite makes by the order in which it reads rows (`free_choice`). With
    `keep_choice` their joins, conditions and groups stay as they are, so that execution can be compared.
    """
    tree = parse.query(gold)
    text = gold
    if tree is not None and "COLLATE" not in gold.upper():
        try:
            text = Rewriter(tree.copy(), schema, rng, keep_choice).text()
        except OnlyText:
            text = gold
    return respelled(text, rng)


class OnlyText(Exception):
    """A query with something that the steps on the tree do not know."""


# --- scopes -------------------------------------------------------------------------------------------------


@dataclass
class Source:
    """A table of a FROM, the name that it goes by, and its columns."""

    node: Any
    name: str
    columns: set[str]


@dataclass
class Scope:
    """The tables of a SELECT, the columns written in it (not in its subqueries), and the names of its outputs."""

    select: exp.Select
    parent: "Scope | None"
    sources: list[Source] = field(default_factory=list)
    columns: list[exp.Column] = field(default_factory=list)

    @property
    def outputs(self) -> set[str]:
        return {output.alias.lower() for output in self.select.expressions if output.alias}


def scopes_of(node: Any, schema: Schema, parent: Scope | None = None) -> Iterator[Scope]:
    """The scopes of a query and of all queries in it."""
    while isinstance(node, exp.Subquery | exp.Paren):
        node = node.this
    if node.args.get("with_"):
        raise OnlyText
    if isinstance(node, exp.SetOperation):
        yield from scopes_of(node.this, schema, parent)
        yield from scopes_of(node.expression, schema, parent)
        return
    if not isinstance(node, exp.Select):
        raise OnlyText
    scope = Scope(node, parent)
    for table in tables_of(node):
        scope.sources.append(source(table, schema))
        if isinstance(table, exp.Subquery):
            yield from scopes_of(table.this, schema, parent)
    inner: list[Any] = []
    for part in parts_of(node):
        collect(part, scope.columns, inner)
    yield scope
    for query in inner:
        yield from scopes_of(query, schema, scope)


def tables_of(select: exp.Select) -> list[Any]:
    from_ = select.args.get("from_")
    joins = select.args.get("joins") or []
    tables = [*([from_.this] if from_ else []), *(join.this for join in joins)]
    simple = all(isinstance(table, exp.Table | exp.Subquery) and not table.args.get("joins") for table in tables)
    if not simple or any(join.args.get("using") or join.args.get("method") for join in joins):
        raise OnlyText
    return tables


def source(table: Any, schema: Schema) -> Source:
    if isinstance(table, exp.Table):
        known = schema.tables.get(table.name.lower())
        if known is None or table.db:
            raise OnlyText
        return Source(table, table.alias_or_name.lower(), set(known.columns))
    body = table.this
    while isinstance(body, exp.SetOperation | exp.Subquery):
        body = body.this
    if not isinstance(body, exp.Select) or any(output.is_star for output in body.expressions):
        raise OnlyText
    return Source(table, table.alias.lower(), {output.alias_or_name.lower() for output in body.expressions})


def parts_of(select: exp.Select) -> Iterator[Any]:
    yield from select.expressions
    yield from (join.args["on"] for join in select.args.get("joins") or [] if join.args.get("on"))
    yield from (part for key in ("where", "group", "having", "order", "limit") if (part := select.args.get(key)))


def collect(part: Any, columns: list[exp.Column], queries: list[Any]) -> None:
    """The columns of an expression, and the queries in it, which have scopes of their own."""
    stack = [part]
    while stack:
        node = stack.pop()
        if isinstance(node, exp.Query) and not isinstance(node, exp.Subquery):
            queries.append(node)
        elif isinstance(node, exp.Column):
            columns.append(node)
        else:
            stack += reversed(list(node.iter_expressions()))


def owner(column: exp.Column, scope: Scope | None) -> Source | None:
    """The table that a column belongs to, by SQLite's rules; None for the name of an output or for no name at all."""
    name, table = column.name.lower(), column.table.lower()
    while scope:
        if table:
            hits = [one for one in scope.sources if one.name == table]
        else:
            hits = [one for one in scope.sources if name in one.columns]
        if len(hits) == 1:
            return hits[0]
        if hits:
            raise OnlyText
        if not table and name in scope.outputs:
            return None
        scope = scope.parent
    return None


# --- the steps on the tree ----------------------------------------------------------------------------------


class Rewriter:
    """One rewrite of one tree, which it changes."""

    def __init__(self, tree: Any, schema: Schema, rng: Random, keep_choice: bool) -> None:
        self.tree, self.schema, self.rng, self.keep_choice = tree, schema, rng, keep_choice
        self.columns = {name for table in schema.tables.values() for name in table.columns}
        self.texts = {node.name.lower() for node in tree.find_all(exp.Literal, exp.Identifier)}
        self.made = 0

    def text(self) -> str:
        self.name()
        for select in reversed(list(self.tree.find_all(exp.Select))):
            self.rearrange(select)
        self.exchange_operands()
        self.rename()
        aliases = {node.alias_or_name.lower() for node in self.tree.find_all(exp.Alias, exp.TableAlias)}
        speller = Speller(dialect=parse.DIALECT)
        speller.rng, speller.taken = self.rng, self.columns | aliases | ROWIDS
        return speller.generate(self.tree)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def fresh(self, stem: str) -> str:
        """A name that nothing in the query or its tables has."""
        while True:
            self.made += 1
            name = f"{stem}{self.made}"
            if name.lower() not in self.texts | self.columns | set(self.schema.tables):
                return name

    # named

    def name(self) -> None:
        scopes = list(scopes_of(self.tree, self.schema))
        found = [(column, owner(column, scope), scope) for scope in scopes for column in scope.columns]
        for scope in scopes:
            for one in scope.sources:
                one.node.set("alias", exp.TableAlias(this=exp.to_identifier(self.fresh("u"))))
        for column, one, scope in found:
            if one is not None and not self.is_output(column, scope):
                column.set("table", exp.to_identifier(one.node.alias))
            elif not self.is_output(column, scope):
                self.literal(column, scope)
        for column, _, scope in found:
            if self.is_output(column, scope):
                named = next(o for o in scope.select.expressions if o.alias.lower() == column.name.lower())
                column.replace(named.this.copy())

    def is_output(self, column: exp.Column, scope: Scope) -> bool:
        """Whether a name stands for an output: as a key of ORDER BY before a column, of GROUP BY only after one."""
        if column.table or column.name.lower() not in scope.outputs:
            return False
        key = column.parent
        while isinstance(key, exp.Paren):
            key = key.parent
        if isinstance(key, exp.Ordered):
            return True
        if owner(column, scope) is not None:
            return False
        if isinstance(key, exp.Group):
            return True
        raise OnlyText

    def literal(self, column: exp.Column, scope: Scope) -> None:
        """Rule 3: "text" that names nothing is a literal."""
        if isinstance(column.this, exp.Star) or not column.this.args.get("quoted") or column.table:
            raise OnlyText
        aliases = {node.alias_or_name.lower() for node in self.tree.find_all(exp.Alias, exp.TableAlias)}
        if column.name.lower() in self.columns | aliases:
            raise OnlyText
        column.replace(exp.Literal.string(column.name))

    # rearranged

    def rearrange(self, select: exp.Select) -> None:
        if self.keep_choice and self.free_choice(select):
            for join in select.args.get("joins") or []:
                join.meta["as it is"] = True
        else:
            self.join_anew(select)
            self.conditions_anew(select)
            self.group_anew(select)
        self.refer_anew(select)

    def conditions_anew(self, select: exp.Select) -> None:
        joins = select.args.get("joins") or []
        for holder, key in [
            *((select.args.get(key), "this") for key in ("where", "having")),
            *((j, "on") for j in joins),
        ]:
            if holder and holder.args.get(key):
                holder.set(key, self.condition(holder.args[key]))

    def free_choice(self, select: exp.Select) -> bool:
        """Whether SQLite's plan chooses what it returns.

        So it does for a column beside GROUP BY that is not grouped, and in a subquery under LIMIT whose ORDER BY may
        tie. CROSS JOIN, NOT a <> b and a longer GROUP BY change plans.
        """
        if select.args.get("limit") and select is not self.tree:
            return True
        group = select.args.get("group")
        keys = {key.sql() for key in group.expressions} if group else set()
        parts = [*select.expressions, *(select.args[k] for k in ("having", "order") if select.args.get(k))]
        calls = [call for part in parts for call in part.find_all(exp.Anonymous) if call.name.lower() in AGGREGATES]
        if not group and not calls:
            return False
        columns = [column for part in parts for column in part.find_all(exp.Column)]
        return any(
            column.sql() not in keys
            and not any(isinstance(up, exp.Anonymous) and up.name.lower() in AGGREGATES for up in ancestors(column))
            for column in columns
        )

    def join_anew(self, select: exp.Select) -> None:
        """Rule 11: the tables in any order, their conditions in WHERE or in the ON of any later join."""
        joins = select.args.get("joins") or []
        sides = {str(join.side).upper() for join in joins}
        kinds = {str(join.kind).upper() for join in joins}
        if not joins or not sides <= {"", "LEFT"} or not kinds <= {"", "INNER", "CROSS", "OUTER"}:
            return
        tables = tables_of(select)
        conditions = self.pooled_conditions(select, joins)
        starred = any(output.is_star for output in select.expressions)
        if sides == {""} and not starred:
            self.rng.shuffle(tables)
            select.args["from_"].set("this", tables[0])
            for join, table in zip(joins, tables[1:], strict=True):
                join.set("this", table)
        rest = []
        for condition in conditions:
            place = self.place(condition, [table.alias for table in tables], joins)
            if place is None:
                rest.append(condition)
            else:
                on = place.args.get("on")
                place.set("on", exp.And(this=grouped(on), expression=grouped(condition)) if on else condition)
        select.set("where", exp.Where(this=self.junction(exp.And, rest)) if rest else None)

    def pooled_conditions(self, select: exp.Select, joins: list[Any]) -> list[Any]:
        """Takes the conditions of WHERE and of the inner joins out of the query."""
        where = select.args.get("where")
        pool = list(flat(where.this, exp.And)) if where else []
        for join in joins:
            if str(join.side).upper() != "LEFT":
                on = join.args.get("on")
                pool += flat(on, exp.And) if on else []
                join.set("on", None)
                join.set("kind", None)
        return [condition.copy() for condition in pool]

    def place(self, condition: Any, names: list[str], joins: list[Any]) -> Any:
        """A join that may take a condition: an inner one that stands after all tables of the condition."""
        own = [names.index(column.table) for column in condition.find_all(exp.Column) if column.table in names]
        nested = condition.find(exp.Select) is not None
        after = [
            join for at, join in enumerate(joins, 1) if at >= max(own, default=0) and str(join.side).upper() != "LEFT"
        ]
        if nested or not after or self.chance(0.4):
            return None
        return self.rng.choice(after)

    def group_anew(self, select: exp.Select) -> None:
        """Rule 14."""
        group = select.args.get("group")
        if group:
            keys = [key.copy() for key in group.expressions]
            if self.chance(0.3):
                keys.append(self.rng.choice(keys).copy())
            self.rng.shuffle(keys)
            group.set("expressions", keys)

    def refer_anew(self, select: exp.Select) -> None:
        """Rules 4, 5 and 12: outputs are named anew, and named or numbered where they are keys; ASC comes and goes."""
        self.spell_out_positions(select)
        if self.may_name_outputs(select):
            outputs = [self.named_output(output, select) for output in select.expressions]
            select.set("expressions", outputs)
        group, order = select.args.get("group"), select.args.get("order")
        for key in list(group.expressions) if group else []:
            self.refer(key, select, in_order=False)
        for term in order.expressions if order else []:
            self.refer(term.this, select, in_order=True)
            if not term.args.get("desc"):
                term.set("desc", False if self.chance(0.5) else None)

    def spell_out_positions(self, select: exp.Select) -> None:
        """A position in GROUP BY or ORDER BY becomes its expression."""
        if any(output.is_star for output in select.expressions) or self.chance(0.3):
            return
        group, order = select.args.get("group"), select.args.get("order")
        keys = [*(group.expressions if group else []), *(term.this for term in (order.expressions if order else []))]
        for key in keys:
            if isinstance(key, exp.Literal) and not key.is_string and key.this.isdigit():
                output = select.expressions[int(key.this) - 1]
                key.replace(bare(output).copy())

    def may_name_outputs(self, select: exp.Select) -> bool:
        """Not where the query around uses the names, as for a subquery in FROM and under an ORDER BY of a UNION."""
        for above in ancestors(select):
            if isinstance(above, exp.Subquery) and isinstance(above.parent, exp.From | exp.Join):
                return False
            if isinstance(above, exp.SetOperation):
                return False
            if not isinstance(above, exp.Subquery | exp.Paren):
                return True
        return True

    def named_output(self, output: Any, select: exp.Select) -> Any:
        inner = bare(output)
        if output.is_star or self.chance(0.4):
            return inner.copy()
        name = self.fresh("out_")
        if self.chance(0.2):  # as a trap the name of some column
            taken = {one.alias.lower() for one in select.expressions if one.alias}
            free = sorted(self.columns - taken - {text for text in self.texts if text not in self.columns})
            name = self.rng.choice([one for one in free if BARE.fullmatch(one)] or [name])
        return exp.Alias(this=inner.copy(), alias=exp.to_identifier(name, quoted=True))

    def refer(self, key: Any, select: exp.Select, in_order: bool) -> None:
        """A key that is an output becomes, at random, its position or its name."""
        outputs = select.expressions
        if any(output.is_star for output in outputs):
            return
        wanted = key.sql()
        places = [at for at, output in enumerate(outputs) if bare(output).sql() == wanted]
        if not places or isinstance(key, exp.Literal) or self.chance(0.4):
            return
        place = self.rng.choice(places)
        alias = outputs[place].alias
        names = [output.alias.lower() for output in outputs]
        usable = alias and names.count(alias.lower()) == 1 and (in_order or alias.lower() not in self.columns)
        if usable and self.chance(0.6):
            column = exp.Column(this=exp.to_identifier(alias, quoted=True))
            column.meta["output"] = True
            key.replace(column)
        else:
            key.replace(exp.Literal.number(place + 1))

    def exchange_operands(self) -> None:
        """Rule 14: the SELECTs of UNION and INTERSECT in any order."""
        for node in list(self.tree.find_all(exp.Union, exp.Intersect)):
            operands, at = [node.expression], node.this
            while type(at) is type(node) and at.args.get("distinct") and not at.args.get("order"):
                operands.append(at.expression)
                at = at.this
            operands.append(at)
            plain = all(isinstance(one, exp.Select) and not one.args.get("limit") for one in operands)
            ordered = node.args.get("order") or isinstance(node.parent, type(node))
            derived = isinstance(node.parent, exp.Subquery) and isinstance(node.parent.parent, exp.From | exp.Join)
            if plain and node.args.get("distinct") and not ordered and not derived:
                self.rng.shuffle(operands)
                body = operands[0]
                for operand in operands[1:-1]:
                    body = type(node)(this=body, expression=operand, distinct=True)
                node.set("this", body)
                node.set("expression", operands[-1])

    # conditions

    def condition(self, node: Any) -> Any:
        """Rules 6 to 10 on a condition and those in it; only whether it is true counts."""
        node = unwrapped(node)
        if isinstance(node, PREDICATES) and self.chance(0.08):
            return exp.Not(this=exp.Paren(this=self.negation(node)))
        if isinstance(node, exp.And | exp.Or):
            return self.junction(type(node), [self.condition(item) for item in flat(node, type(node))])
        if isinstance(node, exp.Not):
            return self.negation(unwrapped(node.this))
        if type(node) in FLIPPED:
            return self.comparison(node)
        if isinstance(node, exp.In) and node.expressions and not node.args.get("query"):
            return self.membership(node)
        if isinstance(node, exp.Between) and self.chance(0.5):
            low = exp.GTE(this=node.this.copy(), expression=node.args["low"].copy())
            high = exp.LTE(this=node.this.copy(), expression=node.args["high"].copy())
            return self.junction(exp.And, [self.comparison(low), self.comparison(high)])
        if isinstance(node, exp.Like | exp.Is) and node.args.get("negate") and self.chance(0.5):
            copy = node.copy()
            copy.set("negate", None)
            return exp.Not(this=copy)
        return node.copy()

    def negation(self, node: Any) -> Any:
        """NOT of a condition (rule 8)."""
        pushed = self.pushed(node)
        if pushed is not None and self.chance(0.5):
            return pushed
        inner = self.condition(node)
        wrapped = isinstance(inner, exp.And | exp.Or | exp.Not) or self.chance(0.3)
        return exp.Not(this=exp.Paren(this=inner) if wrapped else inner)

    def pushed(self, node: Any) -> Any:
        """NOT of a condition without the NOT, where a rule knows one."""
        if isinstance(node, exp.And | exp.Or):
            other = exp.Or if isinstance(node, exp.And) else exp.And
            items = [unwrapped(item) for item in flat(node, type(node))]
            return self.junction(other, [self.negation(item) for item in items])
        if isinstance(node, exp.Not) and isinstance(unwrapped(node.this), PREDICATES):
            return self.condition(node.this)
        if isinstance(node, exp.EQ | exp.NEQ):
            other = exp.NEQ if isinstance(node, exp.EQ) else exp.EQ
            return self.comparison(other(this=node.this.copy(), expression=node.expression.copy()))
        if isinstance(node, exp.Between):
            low = exp.LT(this=node.this.copy(), expression=node.args["low"].copy())
            high = exp.GT(this=node.this.copy(), expression=node.args["high"].copy())
            return self.junction(exp.Or, [self.comparison(low), self.comparison(high)])
        if isinstance(node, exp.Like | exp.Is):
            copy = node.copy()
            copy.set("negate", None if node.args.get("negate") else True)
            return copy
        if isinstance(node, exp.In) and is_list(node):
            return self.junction(exp.And, [self.unequal(node.this, item) for item in node.expressions])
        return None

    def unequal(self, value: Any, item: Any) -> Any:
        return self.comparison(exp.NEQ(this=value.copy(), expression=item.copy()))

    def comparison(self, node: Any) -> Any:
        left, right = node.this.copy(), node.expression.copy()
        if isinstance(node, exp.EQ | exp.NEQ) and is_constant(right) and not is_constant(left) and self.chance(0.15):
            inside = exp.In(this=grouped(left), expressions=[right])
            return inside if isinstance(node, exp.EQ) else exp.Not(this=inside)
        if self.chance(0.4):
            return FLIPPED[type(node)](this=right, expression=left)
        return type(node)(this=left, expression=right)

    def membership(self, node: Any) -> Any:
        """Rule 9: a list in any order, as several, as equalities."""
        items = [item.copy() for item in node.expressions]
        if self.chance(0.3):
            items.append(self.rng.choice(items).copy())
        self.rng.shuffle(items)
        cut = self.rng.randrange(len(items) + 1) if is_list(node) and len(items) < 50 and self.chance(0.6) else 0
        equal = [self.comparison(exp.EQ(this=node.this.copy(), expression=item)) for item in items[:cut]]
        rest = [exp.In(this=node.this.copy(), expressions=items[cut:])] if items[cut:] else []
        return self.junction(exp.Or, equal + rest)

    def junction(self, kind: Any, items: list[Any]) -> Any:
        """Rule 7: AND or OR of conditions in any order and nesting, some of them twice; and rules 9 and 10 back."""
        items = [part.copy() for item in items for part in flat(item, kind)]
        self.rng.shuffle(items)
        if self.chance(0.4):
            items = list(self.merged(kind, items))
        if len(items) > 1 and len(items) < 20 and self.chance(0.2):
            items.append(self.rng.choice(items).copy())
        self.rng.shuffle(items)
        while len(items) > 1:
            at = self.rng.randrange(len(items) - 1)
            left, right = (
                one if isinstance(one, kind) and self.chance(0.5) else grouped(one) for one in items[at:][:2]
            )
            items[at : at + 2] = [kind(this=left, expression=right)]
        return items[0]

    def merged(self, kind: Any, items: list[Any]) -> Iterator[Any]:
        """Equalities of one value under OR as an IN list, a lower and an upper bound under AND as BETWEEN."""
        rest = list(items)
        while rest:
            first = rest.pop(0)
            for other in rest:
                both = in_list(first, other) if kind is exp.Or else between(first, other)
                if both is not None:
                    rest.remove(other)
                    first = both
                    break
            yield first

    # spelled

    def rename(self) -> None:
        """Rule 4: table aliases are chosen anew, or left out; columns are qualified or not."""
        scopes = list(scopes_of(self.tree, self.schema))
        found = [
            (column, owner(column, scope), scope)
            for scope in scopes
            for column in scope.columns
            if not column.meta.get("output")
        ]
        for scope in scopes:
            self.choose_names(scope)
        for _, one, scope in found:
            if one is not None and not reached(one, scope):
                self.set_name(one, self.fresh("q"))
        for column, one, scope in found:
            if one is not None:
                column.set("table", identifier(one.node))
                if self.chance(0.6) and not isinstance(column.this, exp.Star):
                    self.unqualify(column, one, scope)

    def choose_names(self, scope: Scope) -> None:
        taken: set[str] = set()
        for one in scope.sources:
            plain = one.node.name.lower() if isinstance(one.node, exp.Table) else ""
            if plain and plain not in taken and self.chance(0.4):
                one.node.set("alias", None)
                one.name = plain
            else:
                free = [a for a in TABLE_ALIASES if a.lower() not in taken | self.texts | set(self.schema.tables)]
                free = [a for a in free if a.lower() not in self.columns]
                self.set_name(one, self.rng.choice(free) if free else self.fresh("q"))
            taken.add(one.name)

    def set_name(self, one: Source, name: str) -> None:
        one.node.set("alias", exp.TableAlias(this=exp.to_identifier(name)))
        one.name = name.lower()

    def unqualify(self, column: exp.Column, one: Source, scope: Scope) -> None:
        """Leaves the table out where the name alone means the same."""
        term = column.parent
        while isinstance(term, exp.Paren):
            term = term.parent
        if isinstance(term, exp.Ordered) and column.name.lower() in scope.outputs:
            return
        name, at = column.name.lower(), scope
        while True:
            hits = [other for other in at.sources if name in other.columns]
            if hits:
                break
            if name in at.outputs or at.parent is None:
                return
            at = at.parent
        if hits == [one]:
            column.set("table", None)


def reached(one: Source, scope: Scope | None) -> bool:
    """Whether the table's name, said in a scope, means that table and no nearer one."""
    while scope:
        for other in scope.sources:
            if other.name == one.name:
                return other is one
        scope = scope.parent
    return False


def identifier(node: Any) -> exp.Identifier:
    alias = node.args.get("alias")
    return (alias.this if alias else node.this).copy()


def bare(output: Any) -> Any:
    return output.this if isinstance(output, exp.Alias) else output


def ancestors(node: Any) -> Iterator[Any]:
    while (node := node.parent) is not None:
        yield node


def unwrapped(node: Any) -> Any:
    while isinstance(node, exp.Paren):
        node = node.this
    return node


def grouped(node: Any) -> Any:
    """In parentheses where another operator may stand beside it."""
    needed = isinstance(node, exp.And | exp.Or | exp.Not | exp.Binary | exp.In | exp.Between)
    return exp.Paren(this=node) if needed else node


def flat(node: Any, kind: Any) -> Iterator[Any]:
    stack = [node]
    while stack:
        top = unwrapped(stack.pop())
        if type(top) is kind:
            stack += [top.expression, top.this]
        else:
            yield top


def is_constant(node: Any) -> bool:
    if isinstance(node, exp.Neg):
        return isinstance(node.this, exp.Literal) and not node.this.is_string
    return isinstance(node, exp.Literal | exp.Null)


def is_list(node: exp.In) -> bool:
    return bool(node.expressions) and not node.args.get("query") and all(map(is_constant, node.expressions))


def elements(node: Any) -> tuple[str, Any, list[Any]] | None:
    """The value and the constants of `x = 5`, `5 = x` or `x IN (5, 6)`."""
    node = unwrapped(node)
    if isinstance(node, exp.In) and is_list(node):
        return node.this.sql(), node.this, node.expressions
    if isinstance(node, exp.EQ) and is_constant(node.this) != is_constant(node.expression):
        value, constant = (node.expression, node.this) if is_constant(node.this) else (node.this, node.expression)
        return unwrapped(value).sql(), unwrapped(value), [constant]
    return None


def in_list(first: Any, second: Any) -> Any:
    ours, theirs = elements(first), elements(second)
    if ours is None or theirs is None or ours[0] != theirs[0]:
        return None
    return exp.In(this=grouped(ours[1].copy()), expressions=[item.copy() for item in (*ours[2], *theirs[2])])


def bound(node: Any) -> tuple[type, Any, Any] | None:
    node = unwrapped(node)
    if not isinstance(node, exp.GTE | exp.LTE):
        return None
    if is_constant(node.this):
        return FLIPPED[type(node)], node.expression, node.this
    return type(node), node.this, node.expression


def between(first: Any, second: Any) -> Any:
    ours, theirs = bound(first), bound(second)
    if ours is None or theirs is None or ours[0] is theirs[0] or ours[1].sql() != theirs[1].sql():
        return None
    low, high = (ours, theirs) if ours[0] is exp.GTE else (theirs, ours)
    return exp.Between(this=grouped(low[1].copy()), low=grouped(low[2].copy()), high=grouped(high[2].copy()))


# --- text ---------------------------------------------------------------------------------------------------


class Speller(SQLite.Generator):  # type: ignore[misc, name-defined]
    """Writes a tree with the choices that the text has and the tree has not. `taken`: names that "x" would mean."""

    rng: Random
    taken: set[str]

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def identifier_sql(self, expression: exp.Identifier) -> str:
        """Rule 2."""
        name = expression.name
        if name.isascii():
            name = self.rng.choice((name, name, name.lower(), name.upper(), name.title()))
        styles = ['"{}"', "`{}`"]
        if "]" not in name:
            styles.append("[{}]")
        if not expression.args.get("quoted") or re.fullmatch(r"out_\d+", name):
            styles += ["{}"] * 6
        return self.rng.choice(styles).format(name) if not set(name) & set('"`') else super().identifier_sql(expression)

    def literal_sql(self, expression: exp.Literal) -> str:
        """Rule 3, and parentheses (rule 1)."""
        text = expression.this
        if expression.is_string and text.lower() not in self.taken and self.chance(0.5):
            return '"' + text.replace('"', '""') + '"'
        return "'" + text.replace("'", "''") + "'" if expression.is_string else text

    def column_sql(self, expression: exp.Column) -> str:
        text = super().column_sql(expression)
        nowhere = isinstance(expression.this, exp.Star) or isinstance(expression.parent, exp.Tuple)
        return text if nowhere or not self.chance(0.08) else f"({text})"

    def alias_sql(self, expression: exp.Alias) -> str:
        return self.sql(expression, "this") + self.rng.choice((" AS ", " ")) + self.sql(expression, "alias")

    def table_sql(self, expression: exp.Table, sep: str = " AS ") -> str:
        return super().table_sql(expression, sep=self.rng.choice((" AS ", " ")))

    def join_sql(self, expression: exp.Join, join_op: str | None = None) -> str:
        """Rule 11."""
        known = (
            str(expression.side).upper() in ("", "LEFT") and not expression.args.get("using") and not expression.method
        )
        if not known or expression.meta.get("as it is"):
            return super().join_sql(expression, join_op)
        on = expression.args.get("on")
        if expression.side:
            word = self.rng.choice((" LEFT JOIN ", " LEFT OUTER JOIN "))
        else:
            word = self.rng.choice((" JOIN ", " INNER JOIN ", " CROSS JOIN ", *([] if on else [", ", ", "])))
        return word + self.sql(expression, "this") + (f" ON {self.sql(on)}" if on else "")

    def anonymous_sql(self, expression: exp.Anonymous) -> str:
        """Rule 13; casts and unary plus are functions of these names (ftlab.sql.parse)."""
        name, arguments = expression.name, [self.sql(argument) for argument in expression.expressions]
        if name == "CAST":
            return f"CAST({arguments[0]} AS {arguments[1]})"
        if name == "+":
            return f"+{arguments[0]}"
        if name.upper() == "COUNT" and arguments in (["*"], ["1"]):
            arguments = [self.rng.choice(("*", "1"))]
        return f"{name}({', '.join(arguments)})"

    def not_sql(self, expression: exp.Not) -> str:
        """Rule 8: x NOT IN, x NOT BETWEEN, x NOT LIKE, x IS NOT NULL."""
        inner = unwrapped(expression.this)
        if self.chance(0.4) or not isinstance(inner, exp.In | exp.Between | exp.Like | exp.Is):
            return f"NOT {self.sql(expression, 'this')}"
        copy = inner.copy()
        if isinstance(inner, exp.Is | exp.Like):
            if inner.args.get("negate"):
                return f"NOT ({self.sql(inner)})"
            copy.set("negate", True)
        else:
            copy.set("this", exp.Var(this=f"{self.sql(inner.this)} NOT"))
        return self.sql(copy)

    def paren_sql(self, expression: exp.Paren) -> str:
        text = f"({self.sql(expression, 'this')})"
        return f"({text})" if self.chance(0.1) else text


def respelled(text: str, rng: Random) -> str:
    """Rules 1, 6 and 12 on the words of a text: case, blanks, comments, operators, LIMIT, semicolons."""
    pieces = list(pieces_of(text))
    if not pieces:
        return text
    words = [rule(piece, rng) for _, piece in pieces]
    words = limits(words, rng)
    joined = words[0]
    for before, word in pairwise(words):
        joined += gap(before, word, rng) + word
    return rng.choice(("", "", " ", "\n")) + joined + rng.choice(("", "", ";", " ;", ";; \n", " -- done"))


def pieces_of(text: str) -> Iterable[tuple[Any, str]]:
    return ((token, text[token.start : token.end + 1]) for token in parse.tokens(text))


def rule(piece: str, rng: Random) -> str:
    if piece in ("=", "=="):
        return rng.choice(("=", "=="))
    if piece in ("<>", "!="):
        return rng.choice(("<>", "!="))
    if BARE.fullmatch(piece) and rng.random() < 0.3:
        choice: Callable[[str], str] = rng.choice((str.lower, str.upper, str.title))
        return choice(piece)
    return piece


def limits(words: list[str], rng: Random) -> list[str]:
    """LIMIT n OFFSET m as LIMIT m, n."""
    for at in range(len(words) - 3):
        if words[at].upper() == "LIMIT" and words[at + 2].upper() == "OFFSET" and rng.random() < 0.5:
            return [*words[: at + 1], words[at + 3], ",", words[at + 1], *words[at + 4 :]]
    return words


def gap(before: str, word: str, rng: Random) -> str:
    """What stands between two words: something wherever they would run together."""
    tight = before in ("(", ",", ".") or word in ("(", ")", ",", ".")
    if tight and rng.random() < 0.7:
        return ""
    return rng.choice((*[" "] * 30, "  ", "\n", "\t", " /* why */ ", " -- so\n"))
