"""Databases on which two queries would part if they can: built from what the queries compare.

Every use of a table in either query is a role. A *base* row fulfils all tests of a role, a *near* row all but one,
a *free* row is drawn at large. Columns that are equated share one small pool of keys, so that joins meet and some
keys stay unmatched. The recipes vary all the rest: group sizes, ties, duplicates, NULL, empty tables.
"""

import zlib
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from random import Random
from typing import TypeVar

from ftlab.sql.plan import COMBINATIONS, Column, Plan, Table, make_plan
from ftlab.sql.recipes import FREE, RECIPES, Recipe
from ftlab.sql.schema import Schema
from ftlab.sql.values import Value, fit

T = TypeVar("T")
Row = tuple[Value, ...]
Database = dict[str, list[Row]]


def databases(gold: str, pred: str, schema: Schema, count: int = 32) -> Iterator[Database]:
    """Databases of the schema's tables by lower-case name, those most likely to part the two queries first.

    A row has its table's columns in their order; tables that neither query names are left out. The same pair always
    gives the same databases.
    """
    rng = Random(zlib.crc32(f"{gold}\0{pred}".encode("utf-8", "surrogatepass")))
    plan = make_plan(gold, pred, schema)
    for index, recipe in enumerate(islice(cycle(RECIPES), count)):
        yield Maker(plan, recipe, index, rng).database()


class Maker:
    """Makes one database after a recipe."""

    def __init__(self, plan: Plan, recipe: Recipe, index: int, rng: Random) -> None:
        self.plan, self.recipe, self.index, self.rng = plan, recipe, index, rng
        self.sizes = self.group_sizes()

    def database(self) -> Database:
        tables = self.plan.tables
        if self.recipe.empty == "all" or not tables:
            return {}
        every = sum(self.sizes) ** self.plan.width <= COMBINATIONS
        many = self.index % (len(tables) + every)
        made = {table.name: self.rows(table, at, many in (at, len(tables))) for at, table in enumerate(tables)}
        if self.recipe.empty == "one":
            made[tables[-1 - self.index % len(tables)].name] = []
        return made

    def group_sizes(self) -> list[int]:
        """How many rows of a table have key 0, 1, 2 ...: those that HAVING tells apart, else one group the largest."""
        sizes = [*self.plan.sizes, 3, 1, 2][: max(3, len(self.plan.sizes))]
        sizes += [1 + at % 2 for at in range(self.plan.groups - len(sizes))]
        if self.recipe.paired and 2 * len(sizes) <= self.plan.cap:
            return [size for size in sizes for _ in range(2)]
        if self.index and not self.recipe.null_group:
            self.rng.shuffle(sizes)
        return sizes

    def rows(self, table: Table, position: int, many: bool) -> list[Row]:
        """The rows of a table: many a group or one a group, if the recipe sizes them."""
        recipe, groups = self.recipe, len(self.sizes)
        self.shift = position if recipe.keys == "shifted" else 0
        # Some tables lack the last keys, so that those of others stay unmatched.
        self.reach = max(1, max(self.plan.groups, recipe.keys_used) - self.rng.randrange(3))
        self.halved = [recipe.paired and not column.joined and self.rng.random() < 0.5 for column in table.columns]
        rows = self.base_rows(table, many)
        rows += self.near_rows(table, min(recipe.near, self.room(rows)))
        for at in range(min(recipe.free, self.room(rows))):
            rows.append(self.row(table, None, groups + position if at % 2 else self.any_of(range(groups))))
        if recipe.double:
            rows += rows[: self.room(rows)]
        if self.index:
            self.rng.shuffle(rows)
        return [tuple(row) for row in rows]

    def room(self, rows: Sequence[object]) -> int:
        return max(0, self.plan.cap - len(rows))

    def base_rows(self, table: Table, many: bool) -> list[list[Value]]:
        if self.recipe.sized:
            role = table.roles[self.index % len(table.roles)]
            return [
                self.row(table, role, entity)
                for entity, size in enumerate(self.sizes)
                for _ in range(size if many else 1)
            ]
        wanted = (
            self.recipe.base if self.recipe.base < 3 else max(min(self.recipe.base, self.plan.cap), self.plan.groups)
        )
        return [self.row(table, table.roles[at % len(table.roles)], at) for at in range(wanted)]

    def near_rows(self, table: Table, count: int) -> list[list[Value]]:
        """Rows of each role in turn with one change, the more telling ones more often."""
        if not any(table.changes) and self.recipe.base:
            return []
        rows = []
        for at in range(count):
            role, turn = at % len(table.roles), at // len(table.roles)
            changes = table.changes[role] or [()]
            entity = self.any_of(range(len(self.sizes))) if self.recipe.base else at % len(self.sizes)
            chosen = int(self.rng.random() ** 2 * len(changes)) if self.index else turn
            row = self.row(table, table.roles[role], entity)
            for column, value in changes[chosen % len(changes)]:
                row[column] = value
            rows.append(row)
        return rows

    def row(self, table: Table, role: Sequence[Sequence[Value]] | None, entity: int) -> list[Value]:
        """A row of a role; without one each column takes what it pleases."""
        recipe, random = self.recipe, self.rng.random
        row: list[Value] = []
        for position, column in enumerate(table.columns):
            if role is not None and (hits := role[position]):
                row.append(hits[0] if random() < 0.6 else self.any_of(hits))
            elif role is None and len(column.near) > 2 and random() < 0.7:
                row.append(self.any_of(column.near))
            elif random() < recipe.nulls or (recipe.null_group and entity == 0 and not column.joined):
                row.append(None)
            elif column.keys:
                row.append(self.key(column, entity // 2 if self.halved[position] else entity))
            else:
                row.append(self.any_of(FREE[column.pool][recipe.domain]))
        return row

    def key(self, column: Column, entity: int) -> Value:
        """The key of a group; two groups never share one."""
        if self.recipe.keys == "mixed":
            entity = int(self.rng.random() * self.reach)
        elif self.recipe.keys == "one":
            entity = 0
        elif column.joined:
            entity += self.shift
        if entity < len(column.keys):
            return column.keys[entity]
        return (
            f"k{entity}"
            if column.pool == "text"
            else fit(100 + entity, "text" if column.pool == "numeral" else "number")
        )

    def any_of(self, values: Sequence[T]) -> T:
        return values[int(self.rng.random() * len(values))]
