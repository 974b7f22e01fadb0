"""The blueprint of the generated databases for a pair of queries: the pools from which column values are drawn."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ftlab.sql import parse
from ftlab.sql.hints import Hints, Ref, Role, Test, read_hints, tables_in
from ftlab.sql.recipes import FREE
from ftlab.sql.schema import Kind, Schema
from ftlab.sql.tryouts import Tryouts, try_out
from ftlab.sql.values import Value, fit

T = TypeVar("T")
Change = Sequence[tuple[int, Value]]

# The approximate limit of the product of the row counts of all joined tables.
COMBINATIONS = 20_000
LARGEST_TABLE = 24
# Groups and limits up to these sizes shape every database; larger ones have a database of their own.
LARGEST_GROUP = 250
LARGEST_LIMIT = 40
LARGEST_SUM = 4_100
# The most rows of each of two joined tables for a large LIMIT.
LARGEST_JOIN = 300
NEAR_VALUES = 12
PLANTED_VALUES = 6
SHAPED_VALUES = 12
SHAPED_KEYS = 4
DATE = re.compile(r"\d{4}-\d\d-\d\d.*")
SOME_DATE = "2008-06-15"

KEYS: dict[Kind, tuple[Value, ...]] = {
    "number": (1, 2, 3, 10, 4, 20, 5, 6),
    "text": ("1", "2", "10", "a", "3", "B", "4", "5"),
    "any": (1, 2, 3, 10, 4, 20, 5, 6),
}


@dataclass
class ColumnBlueprint:
    """A column of a table in either query. `pool`: the kind of its values; `free`: values by domain; `keys`: its keys
    if it is grouped or equated; `joined`: other columns share these keys; `linked`: a query equates it with them;
    `shaped`: values that distinguish functions of it; `near`: values that fulfil or just miss its tests; `tried`:
    values that were tried."""

    pool: str
    free: Mapping[str, Sequence[Value]]
    keys: tuple[Value, ...] = ()
    joined: bool = False
    linked: bool = False
    shaped: tuple[Value, ...] = ()
    near: list[Value] = field(default_factory=list)
    tried: Sequence[Value] = ()


@dataclass
class TableBlueprint:
    """A table in either query, which no query uses more than `uses` times. A role lists the fulfilling values of each
    column, () without a test. For each role there are its tests and the changes that may violate it, each of one or
    more (column, value); `breaks` has the same changes, with certain violations first."""

    name: str
    names: list[str]
    columns: list[ColumnBlueprint]
    uses: int = 1
    roles: list[list[tuple[Value, ...]]] = field(default_factory=list)
    tests: list[list[list[Test]]] = field(default_factory=list)
    changes: list[list[Change]] = field(default_factory=list)
    breaks: list[list[Change]] = field(default_factory=list)


@dataclass
class Blueprint:
    """What all generated databases of a pair share. `sizes`: group sizes to build; `groups`: the least number of
    groups; `cap`: the most rows of a table unless a size or limit asks for more; `width`: how many tables are joined;
    `large`: group sizes of databases with more rows, if the queries ask for them; `tryouts`: the result of trying
    values, if that was needed."""

    tables: list[TableBlueprint]
    sizes: list[int]
    groups: int
    cap: int
    width: int
    large: list[int]
    tryouts: Tryouts | None


def make_blueprint(gold: str, pred: str, schema: Schema) -> Blueprint:
    both = [hints_of(text, schema) for text in (gold, pred)]
    names = list(dict.fromkeys(role.table for hints in both for role in hints.roles))
    tests = tests_by_column(both)
    classes = classes_of(both, names, schema)
    tryouts = try_out(both, schema)
    tables = [table_blueprint(name, both, schema, tests, classes, tryouts) for name in names]
    bounds = sorted(set().union(*(hints.sizes for hints in both)))
    sizes = [size for bound in bounds if bound <= LARGEST_GROUP for size in (bound + 1, bound, bound - 1) if size > 0]
    limits = set().union(*(hints.limits for hints in both))
    width = max(hints.width for hints in both)
    cap = int(COMBINATIONS ** (1 / width))
    usual = [min(limit, LARGEST_LIMIT) for limit in limits if limit <= LARGEST_LIMIT or width > 1]
    groups = min(max(usual, default=0) + 2, max(3, cap))
    large = large_sizes(bounds, limits, width, cap)
    return Blueprint(tables, list(dict.fromkeys(sizes)), groups, max(3, min(LARGEST_TABLE, cap)), width, large, tryouts)


def large_sizes(bounds: Sequence[int], limits: set[int], width: int, cap: int) -> list[int]:
    """The group sizes of large databases: sizes around HAVING's thresholds for a single table, and more groups than
    the largest LIMIT, as long as joins stay small."""
    sizes: list[int] = []
    wanted = [size for bound in bounds if bound > LARGEST_GROUP for size in (bound, bound + 1)]
    for size in dict.fromkeys(wanted if width == 1 else ()):
        if sum(sizes) + size <= LARGEST_SUM:
            sizes.append(size)
    limit = max(limits, default=0)
    if limit > LARGEST_LIMIT:
        rows = limit * 3 // 2 if limit <= LARGEST_GROUP else limit + 2
        sizes += [1] * (min(rows, max(cap, LARGEST_JOIN) if width == 2 else cap) - len(sizes))
    return [*sizes, 1] if sizes else []


def hints_of(text: str, schema: Schema) -> Hints:
    """The hints of a text. If it does not parse: the tables that it names, with its words as values of every column."""
    tree = parse.query(text)
    if tree is not None:
        return read_hints(tree, schema)
    words = [token.text for token in parse.tokens(text)]
    tables = tables_in(text, schema)
    planted = {(name, column): list[Value](words) for name in tables for column in schema.tables[name].columns}
    return Hints(roles=[Role(name) for name in tables], planted=planted)


def tests_by_column(both: Sequence[Hints]) -> dict[Ref, list[Test]]:
    """All tests of each column, starting with those of only one of the queries."""
    gold, pred = (
        {((role.table, column), test.name): test for role in hints.roles for column, test in role.all_tests()}
        for hints in both
    )
    found: dict[Ref, list[Test]] = {}
    for part, test in sorted({**gold, **pred}.items(), key=lambda item: item[0] in gold and item[0] in pred):
        found.setdefault(part[0], []).append(test)
    return found


def classes_of(both: Sequence[Hints], names: Sequence[str], schema: Schema) -> dict[Ref, list[Ref]]:
    """Each key column with all columns that share its keys: equated ones, grouped ones, and those with the same name
    in several tables."""
    parent: dict[Ref, Ref] = {}

    def root(ref: Ref) -> Ref:
        while (above := parent.setdefault(ref, ref)) != ref:
            ref = above
        return ref

    first: dict[str, Ref] = {}
    for name in names:
        for column in schema.tables[name].columns:
            if column in first:
                parent[root((name, column))] = root(first[column])
            first.setdefault(column, (name, column))
    for hints in both:
        for ours, theirs in hints.links:
            parent[root(ours)] = root(theirs)
        for ref in hints.grouped:
            root(ref)
    members: dict[Ref, list[Ref]] = {}
    for ref in sorted(parent):
        members.setdefault(root(ref), []).append(ref)
    return {ref: found for found in members.values() for ref in found}


def table_blueprint(
    name: str,
    both: Sequence[Hints],
    schema: Schema,
    tests: dict[Ref, list[Test]],
    classes: dict[Ref, list[Ref]],
    tryouts: Tryouts | None,
) -> TableBlueprint:
    columns = schema.tables[name].columns
    table = TableBlueprint(
        name,
        list(columns),
        [column_blueprint((name, column), both, schema, tests, classes, tryouts) for column in columns],
    )
    table.uses = max(sum(role.table == name for role in hints.roles) for hints in both)
    either = any(hints.either for hints in both)
    seen = set()
    for role in (role for hints in both for role in hints.roles if role.table == name):
        key = frozenset((column, test.name) for column, test in role.all_tests())
        if key not in seen:
            seen.add(key)
            json = tryouts.json if tryouts else set[Ref]()
            own = [role.tests.get(column, []) if (name, column) not in json else [] for column in columns]
            breaks = breaks_of(own)
            table.tests.append(own)
            base = [tryouts.base.get((name, role.use, column)) if tryouts else None for column in columns]
            table.roles.append([led_by(value, fulfilling(found)) for value, found in zip(base, own, strict=True)])
            table.changes.append(changes_of(own, table.columns, breaks, either))
            table.breaks.append(breaks)
    places = {column: at for at, column in enumerate(columns)}
    joint = [point for hints in both for role in hints.roles if role.table == name for point in role.joint]
    solved = [[(places[column], value) for column, value in point] for point in dict.fromkeys(joint)]
    table.changes = [[*solved, *changes] for changes in table.changes]
    table.breaks = [[*breaks, *changes] for breaks, changes in zip(table.breaks, table.changes, strict=True)]
    return table


def column_blueprint(
    ref: Ref,
    both: Sequence[Hints],
    schema: Schema,
    tests: dict[Ref, list[Test]],
    classes: dict[Ref, list[Ref]],
    tryouts: Tryouts | None,
) -> ColumnBlueprint:
    kind = schema.tables[ref[0]].columns[ref[1]].kind
    tried = tryouts.pools.get(ref, ()) if tryouts else ()
    if tryouts and ref in tryouts.json:
        texts = known_of(tried)
        domains = {"unique": texts, "small": texts[:3], "constant": texts[:1], "mirror": texts}
        return ColumnBlueprint("json", domains, shaped=tuple(texts), near=[*texts[:NEAR_VALUES], None], tried=tried)
    own = tests.get(ref, [])
    numeric = any(ref in hints.numeric for hints in both) or any(
        isinstance(test.name[1], int | float) for test in own if test.name[0] != "in"
    )
    pool = "numeral" if kind == "text" and numeric else kind
    differing = both[0].listed.get(ref, set()) ^ both[1].listed.get(ref, set())
    near = [
        *sorted(differing, key=repr)[: NEAR_VALUES // 2],
        *in_turn([[*test.hits, *test.misses] for test in own]),
    ]
    extra = [fit(value, kind) for hints in both for value in hints.planted.get(ref, ())]
    shaped = [fit(value, kind) for value in in_turn([hints.shaped.get(ref, ()) for hints in both])]
    telling = known_of(shaped)[:SHAPED_VALUES]
    known = known_of(near)
    late = known_of([*extra, *telling])[: max(PLANTED_VALUES, NEAR_VALUES - len(known))]
    known = known[: NEAR_VALUES - len(late)]
    column = ColumnBlueprint(
        pool,
        FREE[pool],
        tried=tried,
        near=[*known_of([*known, *late]), None, FREE[pool]["unique"][0]],
        shaped=tuple(telling),
    )
    if ref in classes:
        column.joined = len(classes[ref]) > 1
        column.linked = any(ref in link for hints in both for link in hints.links)
        column.keys = keys_of(classes[ref], kind, schema, tests, () if column.joined else telling[:SHAPED_KEYS])
    return column


def known_of(values: Iterable[Value]) -> list[Value]:
    """Each value once, without NULL."""
    return [value for value in dict.fromkeys(values) if value is not None]


def in_turn(lists: Sequence[Sequence[T]]) -> Iterator[T]:
    """The first members of all lists, then the second ones, and so on."""
    for at in range(max(map(len, lists), default=0)):
        yield from (values[at] for values in lists if at < len(values))


def keys_of(
    members: Sequence[Ref], kind: Kind, schema: Schema, tests: dict[Ref, list[Test]], telling: Sequence[Value]
) -> tuple[Value, ...]:
    """The keys of a column, in the same order for all columns that share them: first values with which they are
    compared, then those that distinguish functions of it."""
    kinds = {schema.tables[table].columns[column].kind for table, column in members}
    compared = [test for ref in members for test in tests.get(ref, ())]
    found = [values[0] for values in (*(t.hits for t in compared), *(t.misses for t in compared)) if values][:4]
    plain = KEYS["text"] if kinds == {"text"} else KEYS["number"]
    keys = [fit(value, kind) for value in dict.fromkeys([*found, *telling, *plain])]
    return tuple(value if value is not None else -at for at, value in enumerate(keys))


def fulfilling(tests: Sequence[Test]) -> tuple[Value, ...]:
    """Values that pass all tests of a column, or if there are none, values that pass any."""
    hits = list(dict.fromkeys(value for test in tests for value in test.hits))
    every = [v for v in hits if all(test.holds(v) if test.holds else v in test.hits for test in tests)]
    if not every and len(tests) > 1 and (date := overlaid([test.hits for test in tests])):
        every = [date]
    return tuple((every or hits)[:4])


def led_by(value: Value, values: tuple[Value, ...]) -> tuple[Value, ...]:
    return values if value is None else (value, *values)


def overlaid(lists: Sequence[Sequence[Value]]) -> str | None:
    """One date that combines the parts in which the first date of each list differs from `SOME_DATE`."""
    dates = [values[0] for values in lists if values and isinstance(values[0], str) and DATE.fullmatch(values[0])]
    if len(dates) < len(lists):
        return None
    merged = SOME_DATE
    for date in dates:
        merged = "".join(
            new if new != old else so_far for new, old, so_far in zip(date, SOME_DATE, merged, strict=False)
        )
    return merged


def breaks_of(tests: Sequence[Sequence[Test]]) -> list[Change]:
    """Changes that violate a role: in each tested column alone, in all of them, and in all but one."""
    tested = [at for at, found in enumerate(tests) if found]
    misses = [(at, next((miss for test in tests[at] for miss in test.misses), None)) for at in tested]
    several = [misses] if len(tested) > 1 else []
    if len(tested) > 2:
        several += [[miss for miss in misses if miss[0] != at] for at in tested]
    return [*([miss] for miss in misses), *several]


def changes_of(
    tests: Sequence[Sequence[Test]], columns: Sequence[ColumnBlueprint], breaks: Sequence[Change], either: bool
) -> list[Change]:
    """The changes of a role: the most useful value of each tested column, then the next ones; and violations in several
    columns, which come first if `either` of two tests suffices."""
    tested = [at for at, found in enumerate(tests) if found]
    ranked = list(in_turn([[((at, value),) for value in columns[at].near] for at in tested]))
    start = 0 if either else len(tested)
    return [*ranked[:start], *breaks[len(tested) :], *ranked[start:]]
