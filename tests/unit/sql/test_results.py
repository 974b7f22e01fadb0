"""Comparison of results: what a query's ORDER BY and LIMIT allow, and which values are equal."""

import pytest

from ftlab.sql.engine import Engine, Rows
from ftlab.sql.results import Comparison
from ftlab.sql.schema import read_schema

CONTEXT = "CREATE TABLE t (name TEXT, age INTEGER, team TEXT); CREATE TABLE u (name TEXT, pay REAL)"
ROWS = {
    "t": [("ann", 3, "x"), ("bob", 1, "x"), ("Ann", 2, "y"), ("cy", 2, "y"), ("dee", 2, "z"), ("eve", None, "z")],
    "u": [("ann", 1.5), ("bob", 2.5), ("zed", 2.5)],
}


@pytest.fixture
def engine():
    engine = Engine(read_schema(CONTEXT))
    engine.fill(ROWS)
    yield engine
    engine.close()


@pytest.fixture
def why(engine):
    """Why the results of two queries differ on the rows above."""

    def why(gold: str, pred: str) -> str | None:
        comparison = Comparison(gold)
        assert engine.prepare(comparison.probe) is None, comparison.probe
        return comparison.same(engine.run(comparison.probe), engine.run(pred))

    return why


def rows(*rows: tuple, columns: int | None = None) -> Rows:
    return Rows([f"c{i}" for i in range(len(rows[0]) if columns is None else columns)], list(rows))


@pytest.mark.parametrize(
    ("gold", "pred"),
    [
        ("SELECT name FROM t", "SELECT name FROM t ORDER BY name"),
        ("SELECT name FROM t ORDER BY age", "SELECT name FROM t ORDER BY age, name"),
        ("SELECT name FROM t ORDER BY age", "SELECT name FROM t ORDER BY age, name DESC"),
        ("SELECT name AS n FROM t ORDER BY n", "SELECT name FROM t ORDER BY 1"),
        ("SELECT age a FROM t ORDER BY a DESC", "SELECT age FROM t ORDER BY age DESC"),
        ("SELECT age AS name FROM t ORDER BY name", "SELECT age FROM t ORDER BY age"),
        ("SELECT name FROM t ORDER BY age LIMIT 2 OFFSET 1", "SELECT name FROM t ORDER BY age, name LIMIT 1, 2"),
        ("SELECT name FROM t ORDER BY age LIMIT 1, 2", "SELECT name FROM t ORDER BY age, name DESC LIMIT 2 OFFSET 1"),
        ("SELECT name FROM t LIMIT 2", "SELECT name FROM t ORDER BY name DESC LIMIT 2"),
        ("SELECT name FROM t LIMIT 3 -- three;", "SELECT name FROM t ORDER BY name LIMIT 3;"),
        ("SELECT name FROM t ORDER BY name COLLATE NOCASE", "SELECT name FROM t ORDER BY lower(name), age"),
        ("SELECT name FROM t ORDER BY name COLLATE NOCASE", "SELECT name FROM t ORDER BY lower(name), age DESC"),
        (
            "SELECT name FROM t ORDER BY age DESC NULLS FIRST",
            "SELECT name FROM t ORDER BY age IS NOT NULL, age DESC, 1",
        ),
        ("SELECT team FROM t GROUP BY team ORDER BY COUNT(*)", "SELECT team FROM t GROUP BY team ORDER BY team DESC"),
        (
            "SELECT team, COUNT(*) FROM t GROUP BY team ORDER BY COUNT(*) DESC LIMIT 1",
            "SELECT team, 2 FROM t WHERE team = 'z' LIMIT 1",
        ),
        ("SELECT DISTINCT team FROM t ORDER BY team DESC", "SELECT team FROM t GROUP BY team ORDER BY team DESC"),
        ("SELECT DISTINCT team FROM t ORDER BY lower(team)", "SELECT team FROM t GROUP BY 1 ORDER BY 1"),
        ("SELECT DISTINCT team FROM t ORDER BY age", "SELECT DISTINCT team FROM t ORDER BY team DESC"),
        (
            "SELECT name FROM t UNION SELECT name FROM u ORDER BY name LIMIT 2",
            "SELECT name FROM (SELECT name FROM u UNION SELECT name FROM t) ORDER BY 1 LIMIT 2",
        ),
        (
            "SELECT t.name, age AS n FROM t UNION ALL SELECT name, pay FROM u ORDER BY n DESC, t.name",
            "SELECT name, age FROM t UNION ALL SELECT name, pay FROM u ORDER BY 2 DESC, 1",
        ),
        (
            "WITH w AS (SELECT name, age FROM t ORDER BY age LIMIT 3) SELECT name FROM w",
            "SELECT name FROM (SELECT name, age FROM t ORDER BY age LIMIT 3) ORDER BY name DESC",
        ),
        ("SELECT name FROM t WHERE name <> ' ORDER BY age LIMIT 1'", "SELECT name FROM t ORDER BY team DESC"),
        (
            "SELECT name, row_number() OVER (ORDER BY name) FROM t",
            "SELECT name, row_number() OVER (ORDER BY name) FROM t ORDER BY 2 DESC",
        ),
        ("SELECT age IS DISTINCT FROM 2 FROM t ORDER BY age", "SELECT age IS NOT 2 FROM t ORDER BY age"),
        ("SELECT SUM(pay) FROM u", "SELECT 6.5000000001"),
        ("SELECT name FROM t ORDER BY age LIMIT -1", "SELECT name FROM t ORDER BY age"),
        ("SELECT COUNT(*) FROM t", "SELECT 6.0"),
    ],
)
def test_the_gold_allows(why, gold, pred):
    assert why(gold, pred) is None


@pytest.mark.parametrize(
    ("gold", "pred", "reason"),
    [
        ("SELECT name FROM t ORDER BY age", "SELECT name FROM t ORDER BY age DESC", "row 1"),
        ("SELECT name FROM t ORDER BY age", "SELECT name FROM t ORDER BY name", "row 1"),
        ("SELECT name FROM t ORDER BY age, name", "SELECT name FROM t ORDER BY age, name DESC", "row 3"),
        ("SELECT age AS n FROM t ORDER BY n", "SELECT age FROM t ORDER BY age DESC", "row 1"),
        ("SELECT name FROM t ORDER BY age LIMIT 2", "SELECT name FROM t ORDER BY age LIMIT 3", "3 rows instead of 2"),
        ("SELECT name FROM t ORDER BY age LIMIT 2", "SELECT name FROM t ORDER BY age DESC LIMIT 2", "row 1"),
        ("SELECT name FROM t LIMIT 2", "SELECT team FROM t LIMIT 2", "no row of the gold is ('x')"),
        ("SELECT name FROM t LIMIT 2", "SELECT 'ann' FROM t LIMIT 2", "no row of the gold is ('ann')"),
        ("SELECT name FROM t ORDER BY name COLLATE NOCASE", "SELECT name FROM t ORDER BY age", "row 1"),
        ("SELECT team FROM t GROUP BY team ORDER BY COUNT(*) LIMIT 1", "SELECT name FROM t LIMIT 1", "ann"),
        ("SELECT DISTINCT team FROM t ORDER BY lower(team)", "SELECT DISTINCT team FROM t ORDER BY 1 DESC", "row 1"),
        ("SELECT DISTINCT team FROM t", "SELECT team FROM t", "6 rows instead of 3"),
        ("SELECT name FROM t UNION SELECT name FROM u ORDER BY name", "SELECT name FROM t UNION SELECT name FROM u "
         "ORDER BY name DESC", "row 1"),
        ("SELECT name, age FROM t", "SELECT age, name FROM t", "no row of the gold is"),
        ("SELECT name, age FROM t WHERE 0", "SELECT name FROM t WHERE 0", "1 column instead of 2"),
        ("SELECT name FROM t ORDER BY age", "SELECT name, age FROM t ORDER BY age", "2 columns instead of 1"),
        ("SELECT age FROM t", "SELECT CAST(age AS TEXT) FROM t", "no row of the gold is ('1')"),
        ("SELECT SUM(pay) FROM u", "SELECT 6.50001", "6.50001"),
    ],
)  # fmt: skip
def test_the_gold_forbids(why, gold, pred, reason):
    assert reason in why(gold, pred)


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ((1,), (1.0,), True),
        ((1,), ("1",), False),
        ((None,), (None,), True),
        ((None,), (0,), False),
        ((None,), ("",), False),
        ((0.1 + 0.2,), (0.3,), True),
        ((1e300,), (1.0000000001e300,), True),
        ((1.0,), (1.00000001,), False),
        ((2**53,), (2**53 + 1,), False),
        ((b"a",), ("a",), False),
        ((b"a",), (b"a",), True),
    ],
)
def test_values(left, right, equal):
    assert (Comparison("SELECT 1").same(rows(left), rows(right)) is None) == equal


def test_floats_that_sort_differently_are_matched_row_by_row():
    gold = [(0.1 + 0.2, "b"), (0.3, "a"), (1.0, "c")]
    pred = [(0.3, "b"), (0.1 + 0.2, "a"), (1.0, "c")]
    assert Comparison("SELECT 1").same(rows(*gold), rows(*pred)) is None


def test_a_row_is_not_matched_twice():
    assert Comparison("SELECT 1").same(rows((1.0,), (1.0,), (2.0,)), rows((1.0,), (2.0,), (2.0,))) is not None
    assert Comparison("SELECT 1").same(rows((1.5,), (2.5,)), rows((1.5 + 1e-12,), (1.5 - 1e-12,))) is not None


def test_thousands_of_inexact_rows_are_compared_in_order():
    gold = [(i / 7, i) for i in range(5000)]
    pred = [(i / 7 * (1 + 1e-13), i) for i in reversed(range(5000))]
    assert Comparison("SELECT 1").same(rows(*gold), rows(*pred)) is None


def test_a_key_that_computes_with_an_alias_is_compared_in_the_golds_own_order(engine):
    gold = "SELECT team, COUNT(*) AS n FROM t GROUP BY team ORDER BY -n, n + 1"
    comparison = Comparison(gold)
    assert engine.prepare(comparison.probe) is not None
    comparison.plain()
    assert comparison.probe == gold
    assert comparison.ordered
    result = engine.run(gold)
    assert comparison.same(result, result) is None
    assert comparison.same(result, Rows(result.columns, result.rows[::-1])) is not None


def test_the_probe_leaves_the_gold_as_it_is_written():
    gold = "select a /* order by b */ from [t x] where \"c\" = 'LIMIT 1' order by (d) limit 5 ;"
    probe = "select a, (d) /* order by b */ from [t x] where \"c\" = 'LIMIT 1' order by (d) "
    assert Comparison(gold).probe == probe


@pytest.mark.parametrize(
    "gold",
    [
        "",
        ";",
        "SELECT",
        "SELECT UNION SELECT a ORDER BY a",
        "ORDER BY",
        "SELECT a FROM t ORDER BY",
        "LIMIT 1",
        "(",
        "SELECT )",
    ],
)
def test_a_text_that_is_no_query_has_a_probe_too(gold):
    assert isinstance(Comparison(gold).probe, str)
