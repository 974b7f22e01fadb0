"""Column values found by trial: where formulas of two queries differ, and where a condition holds or does not.

Thresholds on quotients, date differences and cleaned-up texts are hard to solve for. So SQLite evaluates the formulas
at all combinations of a few values of each of their columns, and returns the combinations that distinguish them.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import cycle, islice, product, zip_longest

from sqlglot import exp

from ftlab.sql import parse
from ftlab.sql.engine import Engine, EngineError
from ftlab.sql.formulas import COLUMN, SLOT, Formula, Slot, alias, formulas
from ftlab.sql.hints import Hints, Ref, literal
from ftlab.sql.pools import Usage, pool
from ftlab.sql.schema import Schema, quoted
from ftlab.sql.values import Value

Point = dict[Slot, Value]

# The most combinations of values at which a formula is evaluated, and the most columns of a formula.
COMBINATIONS = 2_500
MOST_SLOTS = 4
# Points taken from one trial, and how many of its results are read.
POINTS = 4
SEEN = 60
MOST_FORMULAS = 60
MOST_PAIRS = 6
# Added to the number of a table's use to refer to a second row of it.
TWIN = 1000
MOST_CONDITIONS = 6
# Aggregates that grow with each row.
PER_ROW = {"SUM", "TOTAL", "COUNT"}
# The most numbers that are taken as thresholds on a share of a group's rows, and the most rows of such groups.
MOST_THRESHOLDS = 4
LARGEST_SUM = 300


@dataclass(frozen=True)
class Tryouts:
    """The results of trials with the formulas of two queries. A point assigns values to slots.

    base: values that fulfil the conditions on every row. telling: distinguishing points, at which formulas of the two
    queries differ, or a condition holds or does not. twins: pairs of points for which one formula has different values
    and its other version equal ones. met, unmet: for each condition a point at which it holds, and points at which it
    does not. pools: the tried values. json: columns that the gold query reads as JSON, which fails on other texts.
    shares: (hits, rows) of groups with shares near numbers of the queries, which may be thresholds.
    """

    base: Point
    telling: list[Point]
    twins: list[tuple[Point, Point]]
    met: list[Point]
    unmet: list[list[Point]]
    pools: dict[Ref, list[Value]]
    json: set[Ref]
    shares: list[tuple[int, int]]

    def groups(self) -> list[tuple[int, Point]]:
        """Groups in which the share of rows that fulfil all conditions is near a possible threshold."""
        found = []
        for entity, (condition, (hits, size)) in enumerate(product(range(len(self.unmet)), self.shares)):
            missing = islice(cycle(self.missing(condition)), size - hits)
            found += [(entity, point) for point in (*[merged([self.base, *self.met])] * hits, *missing)]
        return found[:LARGEST_SUM]

    def missing(self, condition: int) -> list[Point]:
        """Points at which all conditions hold but one; none holds if `condition` is the number after the last."""
        if condition == len(self.unmet):
            return [merged([self.base, *points]) for points in zip_longest(*self.unmet, fillvalue={})]
        others = [point for at, point in enumerate(self.met) if at != condition]
        return [merged([self.base, *others, point]) for point in self.unmet[condition]]


def shares(numbers: Iterable[float]) -> list[tuple[int, int]]:
    """(hits, size) of small groups whose share equals a number, as a fraction or in percent, or just misses it."""
    found: dict[tuple[int, int], None] = {}
    for number in islice(dict.fromkeys(numbers), MOST_THRESHOLDS):
        share = number if abs(number) < 1 else number / 100
        if 0 < share <= 1:
            for low, high in ((share, share), (share, share + 0.01), (share - 0.01, share)):
                inside = (
                    (hits, size) for size in range(1, 60) for hits in range(1, size + 1) if fits(hits / size, low, high)
                )
                found.update(dict.fromkeys(islice(inside, 1)))
    return list(found)


def fits(share: float, low: float, high: float) -> bool:
    return abs(share - low) < 1e-9 if low == high else low + 1e-9 < share < high - 1e-9


def merged(points: Iterable[Point]) -> Point:
    """All points merged; of several values of a slot the last one counts."""
    return {slot: value for point in points for slot, value in point.items()}


def try_out(both: Sequence[Hints], schema: Schema) -> Tryouts | None:
    """Trials for two queries; None if neither computes anything or has a condition inside an aggregate."""
    if not any(hints.computed or hints.conditional for hints in both):
        return None
    gold, pred = map(read, both)
    usages = usages_of([*gold.values(), *pred.values()])
    pools = {ref: pool(schema.tables[ref[0]].columns[ref[1]].kind, usage) for ref, usage in usages.items()}
    tables = {key: table for key, table in schema.tables.items() if key not in schema.views}
    with closing(Engine(Schema(tables))) as engine:
        engine.fill(columns_side_by_side(pools, schema))
        trial = Tryout(engine, [found for text, found in gold.items() if found.must and text in pred])
        conditions = [*gold.values(), *(found for text, found in pred.items() if text not in gold)]
        conditions = [found for found in conditions if found.condition and not joins(found)]
        conditional = any(hints.conditional for hints in both)
        asked = conditions[:MOST_CONDITIONS] if conditional else []
        counted = dict.fromkeys(slot for hints in both for slot in averaged(hints))
        ones = [{slot: one_of(pools[slot[0], slot[2]])} for slot in counted if (slot[0], slot[2]) in pools]
        nothings: list[list[Point]] = [
            [{slot: 0 if value == 1 else None}] for one in ones for slot, value in one.items()
        ]
        alone = {text: found for text, found in {**gold, **pred}.items() if (text in gold) != (text in pred)}
        pairs = list(islice(versions(gold, pred, set(alone)), MOST_PAIRS))
        return Tryouts(
            trial.base(),
            list(trial.telling(pairs, list(alone.values()), conditions)),
            [twins for pair in pairs if not pair[0].condition for twins in trial.twins(*pair)],
            [*(next(iter(trial.points(found, f"({found.text})")), {}) for found in asked), *ones],
            [*map(trial.misses, asked), *nothings],
            pools,
            {ref for ref, usage in usages_of(gold.values()).items() if usage.is_json},
            shares(number for usage in usages.values() for number in usage.numbers) if conditional or ones else [],
        )


def averaged(hints: Hints) -> Iterator[Slot]:
    """Columns whose sum or count is part of a quotient with COUNT. Rows of 1 and rows of 0 (or of a value and NULL) can
    give such a quotient any share, where a single row gives whole numbers only."""
    for part, _, resolve in hints.parts:
        for quotient in part.find_all(exp.Div):
            calls = list(quotient.find_all(exp.Anonymous))
            if any(call.name.upper() == "COUNT" for call in calls):
                columns = (call.expressions[0] for call in calls if call.name.upper() in PER_ROW and call.expressions)
                found = (resolve(column) for column in columns if isinstance(column, exp.Column))
                yield from (slot for slot in found if isinstance(slot, tuple))


def one_of(values: Iterable[Value]) -> Value:
    """1 if it is among the values of a column, else its first value."""
    return next((value for value in (*[v for v in values if v == 1], *values) if value is not None), 1)


def read(hints: Hints) -> dict[str, Formula]:
    """The formulas of a query, by text."""
    found: dict[str, Formula] = {}
    with suppress(RecursionError):
        for one in (one for part in hints.parts for one in formulas(*part)):
            if one.must or one.text not in found:
                found[one.text] = one
            if len(found) == MOST_FORMULAS:
                break
    return found


class Tryout:
    """An engine whose tables contain the pools of the columns, and the conditions that both queries have."""

    def __init__(self, engine: Engine, musts: Sequence[Formula]) -> None:
        self.engine = engine
        self.musts = musts

    def base(self) -> Point:
        found: Point = {}
        for must in self.musts:
            if not must.plain:
                point = next(iter(self.points(must, f"({must.text})")), {})
                found = {**point, **found}
        return found

    def telling(
        self, pairs: Sequence[tuple[Formula, Formula]], alone: Sequence[Formula], conditions: Sequence[Formula]
    ) -> Iterator[Point]:
        """Points at which pairs of formulas differ, then points of unpaired formulas and of conditions."""
        for one, other in pairs:
            yield from self.points(one, f"({one.text}) IS NOT ({other.text})", other)
        paired = {found.text for pair in pairs for found in pair}
        for lone in (found for found in alone if found.text not in paired):
            if lone.must:
                yield from self.points(lone, f"NOT COALESCE(({lone.text}), 0)", *self.beside(lone))
            elif not lone.condition:
                yield from self.points(lone, f"({lone.text}) IS NOT {named(lone.slots[0])}")
        computed = [found for found in conditions if not found.plain]
        for found in sorted(computed, key=lambda found: found not in alone)[:MOST_CONDITIONS]:
            yield from self.points(found, f"({found.text})")[:2]
            yield from self.points(found, f"NOT COALESCE(({found.text}), 0)")[:2]

    def misses(self, formula: Formula) -> list[Point]:
        """Points at which a condition does not hold, if possible including one where a column is NULL."""
        misses = f"NOT COALESCE(({formula.text}), 0)"
        null = self.points(formula, f"{misses} AND {named(formula.slots[0])} IS NULL")
        return [*self.points(formula, misses)[: POINTS - 1], *null[:1]]

    def beside(self, formula: Formula) -> list[Formula]:
        """The shared conditions on columns of a condition that only one query has."""
        return [must for must in self.musts if not must.plain and set(must.slots) & set(formula.slots)]

    def points(self, formula: Formula, condition: str, *others: Formula) -> list[Point]:
        """A few points at which a condition on the slots of formulas holds, if possible with all shared conditions."""
        slots = list(dict.fromkeys(slot for each in (formula, *others) for slot in each.slots))
        if len(slots) > MOST_SLOTS:
            return []
        musts = self.musts_on(slots, formula)
        found = self.ask(slots, conjunction(condition, *musts)) or (self.ask(slots, condition) if musts else [])
        return spread(found)

    def musts_on(self, slots: Sequence[Slot], but: Formula) -> list[str]:
        return [must.text for must in self.musts if must.text != but.text and set(must.slots) <= set(slots)]

    def twins(self, one: Formula, other: Formula) -> Iterator[tuple[Point, Point]]:
        """Pairs of points at which one of two formulas has equal values and the other does not, for each of the two."""
        slots = list(dict.fromkeys((*one.slots, *other.slots)))
        if 2 * len(slots) > MOST_SLOTS:
            return
        twin = {slot: (slot[0], slot[1] + TWIN, slot[2]) for slot in slots}
        here = [one.text, other.text, *self.musts_on(slots, one)]
        there = [of_twin(text, twin) for text in here]
        for same, differs in ((0, 1), (1, 0)):
            equal = f"({here[same]}) = ({there[same]}) AND ({here[differs]}) <> ({there[differs]})"
            for found in self.ask([*slots, *twin.values()], conjunction(equal, *here[2:], *there[2:]))[:1]:
                yield {slot: found[slot] for slot in slots}, {slot: found[twin[slot]] for slot in slots}

    def ask(self, slots: Sequence[Slot], condition: str) -> list[Point]:
        size = int(COMBINATIONS ** (1 / len(slots)))
        outputs = ", ".join(map(named, slots))
        sources = ", ".join(self.source(slot, size) for slot in slots)
        try:
            rows = self.engine.run(f"SELECT {outputs} FROM {sources} WHERE {condition} LIMIT {SEEN}").rows
        except EngineError:
            return []
        return [dict(zip(slots, row, strict=True)) for row in rows]

    def source(self, slot: Slot, size: int) -> str:
        """The first values of a slot's column, as a table with one column."""
        table = self.engine.schema.tables[slot[0]].address()
        return f"(SELECT {quoted(slot[2])} AS {quoted(COLUMN)} FROM {table} LIMIT {size}) AS {quoted(alias(slot))}"


def of_twin(text: str, twin: dict[Slot, Slot]) -> str:
    for slot, other in twin.items():
        text = text.replace(named(slot), named(other))
    return text


def named(slot: Slot) -> str:
    return f"{quoted(alias(slot))}.{quoted(COLUMN)}"


def conjunction(*conditions: str) -> str:
    return " AND ".join(f"({condition})" for condition in conditions)


def spread(points: Sequence[Point]) -> list[Point]:
    """A few points, evenly spaced from the first to the last."""
    step = max(1, len(points) // POINTS)
    return list(islice(points, 0, POINTS * step, step))


def joins(formula: Formula) -> bool:
    """Whether a formula is a join condition: it equates columns without computing."""
    return formula.must and formula.plain and len(formula.slots) > 1


def versions(gold: dict[str, Formula], pred: dict[str, Formula], alone: set[str]) -> Iterator[tuple[Formula, Formula]]:
    """Pairs of formulas that may be edits of each other, at least one of them in one query only; likeliest first."""

    def unlikeliness(pair: tuple[Formula, Formula]) -> tuple[int, float]:
        return sum(found.text not in alone for found in pair), -alike(*pair)

    both = ((one, other) for one in gold.values() for other in pred.values() if comparable(one, other))
    yield from sorted((pair for pair in both if any(found.text in alone for found in pair)), key=unlikeliness)


def comparable(one: Formula, other: Formula) -> bool:
    """Whether two formulas may be versions of the same one."""
    if one.text == other.text or one.condition != other.condition or (one.plain and other.plain):
        return False
    return bool(set(one.slots) & set(other.slots))


def alike(one: Formula, other: Formula) -> float:
    """The length of the common start and end of two texts, as a share of the longer text."""
    ends = same_start(one.text, other.text) + same_start(one.text[::-1], other.text[::-1])
    return ends / max(len(one.text), len(other.text))


def same_start(a: str, b: str) -> int:
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def usages_of(found: Iterable[Formula]) -> dict[Ref, Usage]:
    """How formulas use each column."""
    usages: dict[Ref, Usage] = {}
    for formula in found:
        texts, numbers = literals(formula.tree)
        for column in formula.tree.find_all(exp.Column):
            table, _, name = column.meta[SLOT]
            usage = usages.setdefault((table, name), Usage())
            usage.functions |= functions_round(column)
            usage.texts += texts
            usage.numbers += numbers
    return usages


def literals(tree: exp.Expr) -> tuple[list[str], list[float]]:
    texts: list[str] = []
    numbers: list[float] = []
    if tree.find(exp.CurrentDate, exp.CurrentTimestamp):
        texts.append("now")
    for arrow in tree.find_all(exp.JSONExtract, exp.JSONExtractScalar):
        texts.append(arrow.expression.sql(dialect=parse.DIALECT).strip("'"))
    for node in tree.find_all(exp.Literal):
        value = literal(node)
        if isinstance(value, str):
            texts.append(value)
        elif value is not None:
            numbers.append(float(value))
    return texts, numbers


def functions_round(column: exp.Expr) -> set[str]:
    """The functions around a column, including JSON's arrows."""
    names = set()
    node = column.parent
    while node is not None:
        if isinstance(node, exp.Anonymous):
            names.add(node.name.upper())
        elif isinstance(node, exp.JSONExtract | exp.JSONExtractScalar):
            names.add("->")
        node = node.parent
    return names


def columns_side_by_side(pools: dict[Ref, list[Value]], schema: Schema) -> dict[str, list[tuple[Value, ...]]]:
    """Rows of the tables: each column lists the values of its pool, repeated to the length of the longest."""
    rows = {}
    for name in dict.fromkeys(table for table, _ in pools):
        columns = [pools.get((name, column), [None]) for column in schema.tables[name].columns]
        length = max(map(len, columns))
        rows[name] = [tuple(values[at % len(values)] for values in columns) for at in range(length)]
    return rows
