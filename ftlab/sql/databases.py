"""Generates databases on which two queries are likely to give different results, from what the queries compare.

Every use of a table in either query is a role. A *base* row fulfils all tests of a role, a *near* row all but one, and
a *free* row is random. Columns that are equated share a small pool of keys, so that joins match and some keys stay
unmatched. The recipes vary everything else: group sizes, ties, duplicates, NULL, empty tables.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, cycle, islice
from random import Random
from typing import TypeVar

from ftlab.sql.blueprint import (
    COMBINATIONS,
    LARGEST_GROUP,
    Blueprint,
    Change,
    ColumnBlueprint,
    TableBlueprint,
    make_blueprint,
)
from ftlab.sql.recipes import CALLED_FOR, LARGE, POINTS, RECIPES, Recipe
from ftlab.sql.schema import Schema
from ftlab.sql.tryouts import Point
from ftlab.sql.values import Value, fit

# The most distinct rows of a group; the most groups of crossed rows.
DISTINCT_ROWS = 16
CROSSED_GROUPS = 6
# The most rows of a table that are drawn from tried values, and the most rows from points.
ROWS_OF_POOLS = 40
ROWS_OF_POINTS = 400

T = TypeVar("T")
ValueRow = tuple[Value, ...]
Database = dict[str, list[ValueRow]]


def databases(gold: str, pred: str, schema: Schema, count: int = 32) -> Iterator[Database]:
    """Databases as rows by lower-case table name; those most likely to distinguish the two queries come first.

    A row has the columns of its table in order; tables that neither query names are left out. The same pair always
    gives the same databases.
    """
    rng = Random(zlib.crc32(f"{gold}\0{pred}".encode("utf-8", "surrogatepass")))
    blueprint = make_blueprint(gold, pred, schema)
    for index, recipe in enumerate(islice(cycle(recipes_of(blueprint)), count)):
        yield Maker(blueprint, recipe, index, rng).database()


def recipes_of(blueprint: Blueprint) -> list[Recipe]:
    """The usual recipes, with recipes for these queries inserted after the first in place of the last ones."""
    points, unmet = list[Recipe](), list[Recipe]()
    tryouts = blueprint.tryouts
    if tryouts and tryouts.telling:
        points = [recipe for recipe in POINTS if recipe.points != "twins" or recipe.first < 2 * len(tryouts.twins)]
    if tryouts and tryouts.unmet:
        unmet = [Recipe("aligned", points="unmet", first=at) for at in range(len(tryouts.unmet) + 1)]
        unmet += [Recipe("aligned", points="shares")] if tryouts.shares else []
    large = LARGE if 0 < sum(blueprint.large) < LARGEST_GROUP * 3 // 2 else ()
    called = [*points[:2], *unmet, *large, *points[2:]][:CALLED_FOR]
    if not called:
        return list(RECIPES)
    usual = len(RECIPES) - len(called)
    return [RECIPES[0], *called, *RECIPES[1 : usual - 1], RECIPES[-1], *RECIPES[usual - 1 : -1]]


class Maker:
    """Generates one database by a recipe."""

    def __init__(self, blueprint: Blueprint, recipe: Recipe, index: int, rng: Random) -> None:
        self.blueprint, self.recipe, self.index, self.rng = blueprint, recipe, index, rng
        self.serial = 0
        self.large = recipe.large > 0 and bool(blueprint.large)
        self.nulls = 0 if self.large else recipe.nulls
        self.sizes = self.group_sizes()

    def database(self) -> Database:
        tables = self.blueprint.tables
        if self.recipe.empty == "all" or not tables:
            return {}
        every = self.large or sum(self.sizes) ** self.blueprint.width <= COMBINATIONS
        many = (
            len(tables)
            if every and (self.large or self.recipe.keys == "twisted")
            else self.index % (len(tables) + every)
        )
        made = {table.name: self.rows(table, at, many in (at, len(tables))) for at, table in enumerate(tables)}
        if self.recipe.empty == "one":
            made[tables[-1 - self.index % len(tables)].name] = []
        return made

    def group_sizes(self) -> list[int]:
        """How many rows have key 0, 1, 2 ...: sizes around HAVING's thresholds, else sizes with one largest group."""
        if self.large:
            return self.blueprint.large
        sizes = [*self.blueprint.sizes, 3, 1, 2][: max(3, len(self.blueprint.sizes))]
        sizes += [1 + at % 2 for at in range(self.blueprint.groups - len(sizes))]
        if self.recipe.paired and 2 * len(sizes) <= self.blueprint.cap:
            return [size for size in sizes for _ in range(2)]
        if self.index and not self.recipe.null_group:
            self.rng.shuffle(sizes)
        return sizes

    def rows(self, table: TableBlueprint, position: int, many: bool) -> list[ValueRow]:
        """The rows of a table; if the recipe has group sizes, `many` or one per group."""
        recipe, groups = self.recipe, len(self.sizes)
        if recipe.keys == "twisted":
            self.sizes = [*self.sizes[1:], self.sizes[0]]
            linked = [at for at, column in enumerate(table.columns) if column.linked]
            self.turns = {id(table.columns[at]): turn for turn, at in enumerate(linked)}
        self.shift = position if recipe.keys == "shifted" else 0
        # Some tables lack the last keys, so that those keys of other tables stay unmatched.
        self.reach = max(1, max(self.blueprint.groups, recipe.keys_used) - self.rng.randrange(3))
        if self.large:
            self.orders = [self.order(at, column) for at, column in enumerate(table.columns)]
        self.halved = [self.is_halved(column) for column in table.columns]
        if recipe.points:
            rows = list(self.rows_of_points(table))
        elif recipe.crossed:
            rows = self.crossed_rows(table)
        elif recipe.lone:
            rows = self.lone_rows(table, position)
        else:
            rows = self.base_rows(table, many)
            rows += self.near_rows(table, min(recipe.near, self.room(rows)))
        for at in range(min(recipe.free, self.room(rows)) if not recipe.points else 0):
            rows.append(self.row(table, None, groups + position if at % 2 else self.any_of(range(groups))))
        if recipe.double:
            rows += rows[: self.room(rows)]
        if self.index and recipe.points != "twins":
            self.rng.shuffle(rows)
        return [tuple(row) for row in rows]

    def order(self, at: int, column: ColumnBlueprint) -> list[int]:
        """For each group of a large database, the group whose key it has in a column. It is the group itself for
        equated columns; else, by the recipe, a permutation, or in half of the columns a draw with repetitions."""
        groups = range(len(self.sizes))
        if column.linked or self.recipe.large == 1:
            return list(groups)
        half, turn = divmod(self.recipe.large - 3, 2)
        if self.recipe.large > 2 and not column.keys and (at >> half % 2) % 2 == turn:
            few = groups if self.recipe.large < 5 else groups[: 1 + len(groups) // 3]
            return [self.any_of(few) for _ in groups]
        return self.rng.sample(groups, len(groups))

    def is_halved(self, column: ColumnBlueprint) -> bool:
        """Whether neighbouring groups share the values of a column."""
        if self.recipe.crossed:
            return not column.linked and (self.recipe.crossed == 1 or self.rng.random() < 0.7)
        return self.recipe.paired and not column.joined and self.rng.random() < 0.5

    def room(self, rows: Sequence[object]) -> int:
        return max(0, self.blueprint.cap - len(rows))

    def base_rows(self, table: TableBlueprint, many: bool) -> list[list[Value]]:
        if self.recipe.sized or self.large:
            at = self.index % len(table.roles)
            make = partial(self.large_row, table, at) if self.large else partial(self.row, table, table.roles[at])
            return [row for entity, size in enumerate(self.sizes) for row in self.group(make, entity, size, many)]
        least = max(min(self.recipe.base, self.blueprint.cap), self.blueprint.groups)
        wanted = self.recipe.base if self.recipe.base < 3 else least
        return [self.row(table, table.roles[at % len(table.roles)], at) for at in range(wanted)]

    def group(self, make: Callable[[int], list[Value]], entity: int, size: int, many: bool) -> Iterator[list[Value]]:
        """The rows of one group, a single one unless `many`; large groups repeat a few distinct rows."""
        rows = []
        for self.serial in range(min(size, DISTINCT_ROWS) if many else 1):
            rows.append(make(entity))
        self.serial = 0
        return islice(cycle(rows), size if many else 1)

    def crossed_rows(self, table: TableBlueprint) -> list[list[Value]]:
        """One row per group: each role in turn, then a row that just misses the first."""
        rows = []
        for entity in range(min(self.blueprint.cap, CROSSED_GROUPS)):
            role = entity % (len(table.roles) + 1)
            row = self.row(table, table.roles[role % len(table.roles)], entity)
            if role == len(table.roles) and table.breaks[0]:
                change(row, table.breaks[0][0])
            rows.append(row)
        return rows

    def rows_of_points(self, table: TableBlueprint) -> Iterator[list[Value]]:
        """For each point of the recipe's kind a row of each use of the table; other values fulfil the role's tests."""
        before = None
        for entity, point in self.points():
            for use in range(table.uses):
                if entity == before and not any(slot[:2] == (table.name, use) for slot in point):
                    continue
                row = self.row(table, table.roles[use % len(table.roles)], entity)
                for at, (name, column) in enumerate(zip(table.names, table.columns, strict=True)):
                    if (table.name, use, name) in point:
                        row[at] = point[table.name, use, name]
                    elif (
                        self.recipe.points == "pool" and column.tried and not column.linked and self.rng.random() < 0.7
                    ):
                        row[at] = None if self.rng.random() < self.nulls else self.any_of(column.tried)
                yield row
            before = entity

    def points(self) -> list[tuple[int, Point]]:
        """The points of the recipe's kind, each with the number of its group."""
        tryouts, first = self.blueprint.tryouts, self.recipe.first
        if tryouts is None:
            return []
        match self.recipe.points:
            case "pool":
                most = max(4, min(ROWS_OF_POOLS, int(COMBINATIONS ** (1 / self.blueprint.width))))
                found = [tryouts.base if self.rng.random() < 0.5 else {} for _ in range(most)]
            case "telling":
                chosen = tryouts.telling[first - 1 : first] if first else tryouts.telling
                found = [{**tryouts.base, **point} for point in chosen]
            case "twins":
                found = list(chain(*tryouts.twins[first // 2 : first // 2 + 1]))[:: -1 if first % 2 else 1]
            case "shares":
                return tryouts.groups()
            case _:
                found = tryouts.missing(first)
        times = max([*self.blueprint.sizes, 2]) if self.recipe.sized else 1
        return [(entity, point) for entity, point in enumerate(found) for _ in range(times)][:ROWS_OF_POINTS]

    def lone_rows(self, table: TableBlueprint, position: int) -> list[list[Value]]:
        """For the table whose turn it is, a row per change: alone with its key, and again next to a row of each other
        role. For the other tables, rows of two roles for each key."""
        turn, chosen = divmod(self.recipe.lone - 1, len(self.blueprint.tables))
        roles, rows = table.roles, list[list[Value]]()
        skipped = turn * max(1, self.blueprint.cap // (2 * len(roles) - 1) // len(roles))
        for entity in range(self.blueprint.cap):
            if position != chosen:
                rows += [self.row(table, role, entity) for role in roles[:2]]
                continue
            at, met = divmod(entity, len(roles))
            nth, role = divmod(at, len(roles))
            row = self.row(table, roles[role], entity)
            if breaks := table.breaks[role]:
                change(row, breaks[(skipped + nth) % len(breaks)])
            rows.append(row)
            if met:
                beside = roles[(role + met) % len(roles)]
                rows.append([hits[0] if hits else value for hits, value in zip(beside, row, strict=True)])
        return rows[: self.blueprint.cap]

    def near_rows(self, table: TableBlueprint, count: int) -> list[list[Value]]:
        """Rows of each role in turn with one change each; more useful changes are more frequent."""
        if not any(table.changes) and self.recipe.base:
            return []
        rows = []
        for at in range(count):
            role, turn = at % len(table.roles), at // len(table.roles)
            changes = (table.changes if self.recipe.base else table.breaks)[role] or [()]
            entity = self.any_of(range(len(self.sizes))) if self.recipe.base else at % len(self.sizes)
            chosen = int(self.rng.random() ** 2 * len(changes)) if self.index else turn
            row = self.row(table, table.roles[role], entity)
            change(row, changes[chosen % len(changes)])
            rows.append(row)
        return rows

    def large_row(self, table: TableBlueprint, role: int, entity: int) -> list[Value]:
        """A row of a large database: keys where they pass the role's tests, else values that pass them."""
        row = []
        for at, column in enumerate(table.columns):
            key = self.key(column, self.orders[at][entity])
            hits, tests = table.roles[role][at], table.tests[role][at]
            passes = all(test.holds is not None and test.holds(key) for test in tests)
            loose = self.recipe.large > 4 and self.rng.random() < 0.4
            row.append(key if passes or loose or not hits else self.any_of(hits))
        return row

    def row(self, table: TableBlueprint, role: Sequence[Sequence[Value]] | None, entity: int) -> list[Value]:
        """A row of a role; without a role each column is random."""
        recipe, random = self.recipe, self.rng.random
        row: list[Value] = []
        for position, column in enumerate(table.columns):
            if role is not None and (hits := role[position]):
                row.append(hits[0] if random() < 0.6 else self.any_of(hits))
            elif role is None and len(column.near) > 2 and random() < 0.7:
                row.append(self.any_of(column.near))
            elif random() < self.nulls or (recipe.null_group and entity == 0 and not column.joined):
                row.append(None)
            elif column.shaped and not column.keys and random() < 0.5:
                row.append(self.any_of(column.shaped))
            elif column.keys:
                row.append(self.key(column, self.shared(entity) if self.halved[position] else entity))
            elif self.halved[position]:
                free = column.free[recipe.domain]
                row.append(free[self.shared(entity) % len(free)])
            else:
                row.append(self.any_of(column.free[recipe.domain]))
        return row

    def shared(self, entity: int) -> int:
        """The number of the pair of neighbouring groups to which a group belongs."""
        return (entity + (self.recipe.crossed == 2)) // 2

    def key(self, column: ColumnBlueprint, entity: int) -> Value:
        """The key of a group in a column, as the recipe's `keys` says."""
        if self.recipe.keys == "mixed" and not self.large:
            entity = int(self.rng.random() * self.reach)
        elif self.recipe.keys == "one":
            entity = 0
        elif self.recipe.keys == "twisted" and (turn := self.turns.get(id(column), 0)):
            entity = (entity + turn + self.serial) % len(self.sizes)
        elif column.joined:
            entity += self.shift
        if column.pool == "json":
            return column.free["unique"][entity % len(column.free["unique"])]
        if entity < len(column.keys):
            return column.keys[entity]
        return (
            f"k{entity}"
            if column.pool == "text"
            else fit(100 + entity, "text" if column.pool == "numeral" else "number")
        )

    def any_of(self, values: Sequence[T]) -> T:
        return values[int(self.rng.random() * len(values))]


def change(row: list[Value], to: Change) -> None:
    for column, value in to:
        row[column] = value
