"""The verdict on one pair, cheapest comparison first: the texts, the syntax trees, the results.

This runs inside the scoring process (`ftlab.sql.child`), which limits its time and memory.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path

from sqlglot import exp

from ftlab.sql.buckets import buckets
from ftlab.sql.canonical import canonical
from ftlab.sql.databases import Database, databases
from ftlab.sql.engine import DatabaseError, Engine, EngineError, OverBudget, QueryError, Rows, is_grammatical
from ftlab.sql.parse import query, with_names_quoted
from ftlab.sql.results import Comparison
from ftlab.sql.schema import read_schema
from ftlab.sql.strict import exact_string
from ftlab.sql.verdict import Verdict

# The length in characters up to which preparing a query is cheap even in the worst case.
CHEAP = 10_000


def judge(gold: str, pred: str, context: str, count: int = 32, rows_file: Path | None = None) -> Verdict:
    """Score a prediction on the tables of the context. If the trees differ, the results are compared on the real
    database of `rows_file`, if given, and then on `count` generated ones."""
    schema = read_schema(context)
    engine = Engine(schema)
    try:
        known = first_look(engine, gold, pred)
        if known.gold_broken or not known.valid or known.exec_equal:
            return known
        return replace(known, **vars(search(engine, gold, pred, count, rows_file)))
    finally:
        engine.close()


def over_budget(gold: str, pred: str, context: str, reason: str) -> Verdict:
    """The verdict on a prediction that exceeded a budget: not equal, with the scores that are cheap to compute."""
    engine = Engine(read_schema(context))
    try:
        gold_fault = engine.prepare(gold) or fails(engine, gold)
        return Verdict(
            exact_string=exact_string(gold, pred),
            ast_equal=False,
            exec_equal=None if gold_fault else False,
            valid=len(pred) <= CHEAP and engine.prepare(pred) is None,
            vacuous=None,
            gold_broken=gold_fault is not None,
            databases=0,
            reason=reason,
            buckets=buckets(tree_of(engine, gold)),
        )
    finally:
        engine.close()


def first_look(engine: Engine, gold: str, pred: str) -> Verdict:
    """The verdict without executing on rows: all but whether two different trees give the same results."""
    refused, pred_fault = engine.prepare(gold), engine.prepare(pred)
    gold_fault = refused or fails(engine, gold)
    same_text = exact_string(gold, pred)
    gold_tree = tree_of(engine, gold)
    if pred_fault is not None and gold_fault is None:
        same_tree, reason = False, pred_fault  # a query that SQLite refuses cannot equal one that it accepts
    elif is_grammatical(refused) and same_text and (gold == pred or "--" not in pred):
        same_tree, reason = True, "equal strings"  # in a `--` comment collapsed white space may have changed the query
    elif is_grammatical(refused) and is_grammatical(pred_fault):
        same_tree = same_trees(engine, gold_tree, pred)
        reason = "equal trees" if same_tree else "trees differ"
    else:
        same_tree, reason = False, "trees differ"
    if gold_fault is not None:
        reason = f"gold: {gold_fault}"
    return Verdict(
        exact_string=same_text,
        ast_equal=same_tree,
        exec_equal=None if gold_fault is not None else same_tree,
        valid=pred_fault is None,
        vacuous=None,
        gold_broken=gold_fault is not None,
        databases=0,
        reason=reason,
        buckets=buckets(gold_tree),
    )


def tree_of(engine: Engine, text: str) -> exp.Query | None:
    """The tree of a text. If sqlglot reads as a keyword what SQLite reads as a name, the name is quoted first."""
    tree = query(text)
    if tree is None and engine.syntax_ok(text):
        tables = engine.schema.tables.values()
        names = [name for table in tables for name in (table.name.lower(), table.schema, *table.columns)]
        quoted = with_names_quoted(text, names)
        tree = query(quoted) if engine.prepare(quoted) == engine.prepare(text) else None
    return tree


def same_trees(engine: Engine, gold: exp.Query | None, pred: str) -> bool:
    """Whether a text has the same canonical tree as the gold query."""
    pred_tree = tree_of(engine, pred) if gold is not None else None
    if gold is None or pred_tree is None:
        return False
    form = canonical(gold, engine.schema)
    return form is not None and form == canonical(pred_tree, engine.schema)


def fails(engine: Engine, gold: str) -> str | None:
    """Why a gold query cannot run even on empty tables; None if it can."""
    try:
        engine.run(gold)
    except EngineError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Found:
    """The result of executing both queries; the fields are those of `Verdict`."""

    exec_equal: bool | None
    vacuous: bool | None
    gold_broken: bool
    databases: int
    reason: str


def search(engine: Engine, gold: str, pred: str, count: int, rows_file: Path | None) -> Found:
    """Look for a database on which the results differ.

    Databases on which the gold query itself fails or exceeds a budget are skipped. If the results never differ, the
    queries count as equal, and `vacuous` says whether the gold query never returned a row.
    """
    comparison = Comparison(gold)
    if engine.prepare(comparison.probe) is not None:
        comparison.plain()
    tried, rows_seen, fault, difference = 0, False, "", None
    made_up = filled(engine, databases(gold, pred, engine.schema, count))
    for place in chain(real(rows_file, pred), made_up):
        try:
            expected = place.run(comparison.probe)
        except EngineError as error:
            fault = str(error)
            if isinstance(error, OverBudget) and error.pair:
                break
            continue
        rows_seen = rows_seen or comparison.returns_rows(expected)
        if difference is None:
            tried += 1
            difference = difference_on(place, comparison, expected, pred)
        if difference is not None and rows_seen:
            break
    if not tried:
        return Found(None, None, True, 0, f"gold: {fault}")
    if difference is None:
        return Found(True, not rows_seen, False, tried, f"equal on {tried} databases")
    return Found(False, not rows_seen, False, tried, f"database {tried}: {difference}")


def difference_on(place: Engine, comparison: Comparison, expected: Rows, pred: str) -> str | None:
    """Why the prediction's result on a database differs from the gold's; None if it does not."""
    try:
        return comparison.same(expected, place.run(pred))
    except (QueryError, OverBudget) as error:
        return str(error)


def filled(engine: Engine, made_up: Iterable[Database]) -> Iterator[Engine]:
    """The engine, filled with the rows of each database in turn."""
    for rows in made_up:
        engine.fill(rows)
        yield engine


def real(rows_file: Path | None, pred: str) -> Iterator[Engine]:
    """The database with real rows, if it can be read and has the tables and columns that the prediction names."""
    if rows_file is not None:
        with suppress(DatabaseError):
            engine = of_file(rows_file)
            engine.reset()
            if engine.prepare(pred) is None:
                yield engine


@lru_cache(maxsize=1)
def of_file(path: Path) -> Engine:
    """The engine of a real database, cached between pairs."""
    return Engine.of_file(path)
