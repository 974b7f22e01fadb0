"""The sandboxed engine: right answers for what may run, a reason for what may not."""

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftlab.sql.engine import (
    FILE_BYTES,
    PAIR_STEPS,
    QUERY_STEPS,
    DatabaseError,
    Engine,
    OverBudget,
    QueryError,
)
from ftlab.sql.schema import read_schema

CONTEXT = "CREATE TABLE a (x VARCHAR, y INTEGER); CREATE TABLE b (x VARCHAR, z INTEGER)"
COUNT_UP = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r{limit}) SELECT {what} FROM r"


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(read_schema(CONTEXT))
    engine.fill({"a": [("one", 1), ("two", 2), (None, 3)], "b": [("one", 10)]})
    yield engine
    engine.close()


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("SELECT y FROM a WHERE x = 'one'", [(1,)]),
        ('SELECT y FROM a WHERE x = "one"', [(1,)]),
        ("SELECT y FROM a WHERE x = 'one';; -- done;", [(1,)]),
        ("/* ; */ select count(*) from A;", [(3,)]),
        ("SELECT ';', \"y\" FROM a WHERE x = 'one' ; \n", [(";", 1)]),
        ("SELECT COUNT(*) FROM (SELECT x FROM a) AS s", [(3,)]),
        ("WITH w AS (SELECT 1 UNION SELECT 2) SELECT COUNT(*) FROM w", [(2,)]),
        ("SELECT a.y, b.z FROM a JOIN b ON a.x = b.x", [(1, 10)]),
        ("SELECT main.a.rowid FROM main.a WHERE y = 2", [(2,)]),
        ("SELECT SUM(y) OVER (ORDER BY y) FROM a", [(1,), (3,), (6,)]),
        ("SELECT UPPER(x) FROM a WHERE x LIKE 'o%' AND y BETWEEN 0 AND 5", [("ONE",)]),
        ("SELECT strftime('%Y', '2020-05-01')", [("2020",)]),
        (COUNT_UP.format(limit=" LIMIT 3", what="n"), [(1,), (2,), (3,)]),
    ],
)
def test_queries_run(engine: Engine, query: str, rows: list[tuple[object, ...]]) -> None:
    assert engine.prepare(query) is None
    assert engine.run(query).rows == rows


@pytest.mark.parametrize(
    ("text", "reason", "grammatical"),
    [
        ("", "empty", False),
        ("  -- nothing\n", "empty", False),
        ("SELECT nope FROM a", "no such column: nope", True),
        ("SELECT x FROM nope", "no such table: nope", True),
        ("SELECT a.x FROM a, b WHERE x = 1", "ambiguous column name: x", True),
        ("SELECT x FROM a WHERE x ILIKE 'o'", 'near "ILIKE": syntax error', False),
        ("SELECT x, FROM a", 'near "FROM": syntax error', False),
        ("SELECT 'open", 'unrecognized token: "\'open"', False),
        ("SELECT 1; SELECT 2", "more than one statement", False),
        ("SELECT 1; /* ' */ DROP TABLE a -- '", "more than one statement", False),
        ("DELETE FROM a", "not a query: DELETE", False),
        ("WITH w AS (SELECT 1) DELETE FROM a", "not a query: DELETE", False),
        ("/**/VALUES (1)", "not a query: VALUES", False),
        ("EXPLAIN SELECT 1", "not a query: EXPLAIN", False),
        ("QUERY PLAN SELECT 1", "not a query: QUERY", False),
        ("SELECT ?", "has parameters, which have no values", False),
        ("SELECT x FROM a WHERE y = :y", "has parameters, which have no values", False),
        ("SELECT x FROM a ORDER BY random()", "not allowed: random()", True),
        ("SELECT COUNT(*) FROM sqlite_master", "not allowed: table sqlite_master", True),
        ("SELECT * FROM json_each('[1]')", "not allowed: a table or table-valued function of SQLite's own", True),
        ("SELECT \ud800", "not text: contains half of a surrogate pair", False),
        ("SELECT \0 1", "the query contains a null character", False),
    ],
)
def test_what_is_not_a_query_has_a_reason(engine: Engine, text: str, reason: str, grammatical: bool) -> None:
    assert engine.prepare(text) == reason
    assert engine.syntax_ok(text) is grammatical
    with pytest.raises(QueryError, match=r".") as caught:
        engine.run(text)
    assert str(caught.value) == reason


def test_preparing_runs_nothing(engine: Engine) -> None:
    assert engine.prepare(COUNT_UP.format(limit="", what="COUNT(*)")) is None
    assert engine.syntax_ok("SELECT x FROM a")


def test_text_that_is_not_utf8_is_a_value(engine: Engine) -> None:
    assert engine.run("SELECT CAST(x'ff' AS TEXT), 'ä'").rows == [("\udcff", "ä")]
    assert engine.run("SELECT 'ä'").rows == [("ä",)]


def test_a_query_that_fails_while_it_runs_has_a_reason(engine: Engine) -> None:
    query = "SELECT SUM(n) FROM (SELECT 9223372036854775807 AS n UNION ALL SELECT 1)"
    assert engine.prepare(query) is None
    with pytest.raises(QueryError, match="integer overflow"):
        engine.run(query)


@pytest.mark.parametrize(
    ("query", "budget"),
    [
        (COUNT_UP.format(limit="", what="n"), "rows"),
        (COUNT_UP.format(limit="", what="COUNT(*)"), "steps"),
        (COUNT_UP.format(limit=" LIMIT 1000", what="zeroblob(200000)"), "bytes of rows"),
        ("SELECT zeroblob(1000000)", "250,000 bytes in one value"),
        ("SELECT 1" + " + 1" * 3000, "1,000 levels of an expression"),
        ("SELECT 1" + " UNION SELECT 1" * 600, "100 SELECTs in a compound"),
        ("SELECT '" + "a" * 300_000 + "'", "250,000 bytes of text"),
        ("SELECT " + "(" * 500 + "1" + ")" * 500, "levels of parentheses"),
        ("SELECT x LIKE '" + "%a" * 1000 + "' FROM a", "1,000 bytes in a pattern"),
        ("SELECT max(1" + ", 1" * 100 + ")", "100 arguments"),
        (
            "WITH c0 AS (SELECT 1 AS x)"
            + "".join(f", c{i} AS (SELECT x FROM c{i - 1} UNION ALL SELECT x FROM c{i - 1})" for i in range(1, 20))
            + " SELECT * FROM c19",
            "names looked up|memory",
        ),
    ],
)
def test_budgets(engine: Engine, query: str, budget: str) -> None:
    with pytest.raises(OverBudget, match=rf"^over the budget: .*{budget}"):
        engine.run(query)
    assert engine.run("SELECT COUNT(*) FROM a").rows == [(3,)]


def test_the_steps_of_a_pair_add_up_until_the_next(engine: Engine) -> None:
    query = COUNT_UP.format(limit=f" LIMIT {QUERY_STEPS // 20}", what="COUNT(*)")

    def run_often() -> None:
        for _ in range(100):
            engine.run(query)

    with pytest.raises(OverBudget, match=f"{PAIR_STEPS:,} steps in all") as caught:
        run_often()
    assert caught.value.pair
    engine.reset()
    assert engine.run(query).rows == [(QUERY_STEPS // 20,)]


def test_two_in_lists_of_3000_fit(engine: Engine) -> None:
    numbers = ", ".join(str(10**9 + i) for i in range(3000))
    words = ", ".join(f"'a rather long text {i}'" for i in range(3000))
    assert engine.run(f"SELECT x FROM a WHERE y IN (1, {numbers}) AND x IN ('one', {words})").rows == [("one",)]


def test_what_a_query_costs_does_not_keep_the_tables_from_being_filled(engine: Engine) -> None:
    with pytest.raises(OverBudget):
        engine.run(COUNT_UP.format(limit="", what="COUNT(*)"))
    rows = [("one", at) for at in range(1000)]
    engine.fill({"a": rows})
    assert engine.run("SELECT x, y FROM a").rows == rows


def test_fill_replaces_the_rows_of_all_tables(engine: Engine) -> None:
    engine.fill({"b": [("new", 5)]})
    assert engine.run("SELECT COUNT(*) FROM a").rows == [(0,)]
    assert engine.run("SELECT * FROM b").rows == [("new", 5)]
    assert engine.run("SELECT * FROM b").columns == ["x", "z"]


def test_affinity_is_the_declared_types() -> None:
    engine = Engine(read_schema("CREATE TABLE order (from VARCHAR, group INTEGER, select)"))
    engine.fill({"order": [(5, "7", "7")]})
    assert engine.run('SELECT "from", "group", "select" FROM "order"').rows == [("5", 7, "7")]
    engine.close()


def test_a_table_of_a_name_that_sqlite_refuses_leaves_the_others() -> None:
    engine = Engine(read_schema("CREATE TABLE a (x INT); CREATE TABLE b\ud800 (y INT)"))
    assert engine.prepare("SELECT x FROM a") is None
    engine.close()


def test_an_engine_costs_little() -> None:
    schema = read_schema(CONTEXT)
    start = time.process_time()
    for _ in range(100):
        engine = Engine(schema)
        assert engine.prepare("SELECT a.x, COUNT(*) FROM a JOIN b ON a.x = b.x GROUP BY a.x") is None
        engine.close()
    assert (time.process_time() - start) / 100 < 0.002


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_real_database_is_read_and_stays_as_it_is(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "real.sqlite"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA journal_mode = {mode}")
    connection.executescript(
        "CREATE TABLE Pets (Id INTEGER PRIMARY KEY AUTOINCREMENT, Name TEXT); INSERT INTO Pets (Name) VALUES ('Rex');"
        "CREATE VIEW Names AS SELECT Name FROM Pets"
    )
    connection.close()
    before = path.read_bytes()
    engine = Engine.of_file(path)
    assert list(engine.schema.tables) == ["pets", "names"] or set(engine.schema.tables) == {"pets", "names"}
    assert engine.run("SELECT Name FROM Pets").rows == [("Rex",)]
    assert engine.run("SELECT COUNT(*), MAX(Name) FROM Names").rows == [(1, "Rex")]
    assert engine.prepare("WITH w AS (SELECT 1) DELETE FROM Pets") == "not a query: DELETE"
    assert engine.prepare("SELECT * FROM sqlite_sequence") == "not allowed: table sqlite_sequence"
    engine.close()
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["real.sqlite"]


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, " * 100)
    large = tmp_path / "large.sqlite"
    with large.open("wb") as file:
        file.truncate(FILE_BYTES + 1)
    reasons = {text: "not a database", large: "more than", tmp_path / "none": "No such file", tmp_path: "directory"}
    for path, why in reasons.items():
        with pytest.raises(DatabaseError, match=why):
            Engine.of_file(path)
