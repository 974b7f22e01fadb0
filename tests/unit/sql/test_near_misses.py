"""Similar but different queries, which only rows made for them distinguish; and equal queries beside them.

`near_misses.jsonl` holds {kind, context, gold, pred, rows}; on the rows, by table, the two differ. Of many rows it
gives a count and the columns: "{i}", "{-i}" and "text {i}" stand for the row's number, all else is in every row.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from ftlab.sql import moment
from ftlab.sql.engine import Engine
from ftlab.sql.judge import judge
from ftlab.sql.results import Comparison
from ftlab.sql.schema import read_schema
from ftlab.sql.scorer import Scorer

LINES = [json.loads(line) for line in Path(__file__).with_name("near_misses.jsonl").read_text().splitlines()]
DIFFERENT = [pytest.param(pair, id=f"{pair['kind']} {at}") for at, pair in enumerate(LINES) if pair["kind"] != "equal"]
EQUAL = [pytest.param(pair, id=str(at)) for at, pair in enumerate(LINES) if pair["kind"] == "equal"]


def rows_of(given: Any) -> list[tuple[Any, ...]]:
    if isinstance(given, list):
        return [tuple(row) for row in given]
    return [tuple(cell(column, i) for column in given["columns"]) for i in range(given["count"])]


def cell(column: Any, i: int) -> Any:
    return {"{i}": i, "{-i}": -i, "text {i}": str(i)}.get(column, column)


@pytest.mark.parametrize("pair", [param for param in DIFFERENT if "rows" in param.values[0]])
def test_the_pairs_do_differ(pair: dict[str, Any]) -> None:
    engine = Engine(read_schema(pair["context"]))
    engine.fill({table: rows_of(given) for table, given in pair["rows"].items()})
    comparison = Comparison(pair["gold"])
    assert comparison.same(engine.run(comparison.probe), engine.run(pair["pred"])) is not None
    engine.close()


@pytest.mark.parametrize("pair", DIFFERENT)
def test_queries_that_differ_are_told_apart_whichever_is_the_gold(pair: dict[str, Any]) -> None:
    for gold, pred in ((pair["gold"], pair["pred"]), (pair["pred"], pair["gold"])):
        verdict = judge(gold, pred, pair["context"])
        assert (verdict.exec_equal, verdict.ast_equal, verdict.gold_broken) == (False, False, False), verdict.reason


@pytest.mark.parametrize("pair", EQUAL)
def test_equal_queries_are_not_told_apart(pair: dict[str, Any]) -> None:
    for gold, pred in ((pair["gold"], pair["pred"]), (pair["pred"], pair["gold"])):
        began = time.process_time()
        verdict = judge(gold, pred, pair["context"])
        assert verdict.exec_equal, verdict.reason
        assert not verdict.vacuous
        assert time.process_time() - began < 1


DATES = "CREATE TABLE t (d DATE)"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("DATE('now')", moment.NOW[:10]),
        ("date('NOW', '-1 day')", "2024-08-14"),
        ("CURRENT_TIMESTAMP", moment.NOW),
        ("CURRENT_DATE || ' ' || CURRENT_TIME", moment.NOW),
        ("DATETIME()", moment.NOW),
        ("STRFTIME('%Y')", "2024"),
        ("STRFTIME('%H:%M', 'now')", "11:42"),
        ("STRFTIME('%Y', d)", "2001"),
        ("JULIANDAY('now') - JULIANDAY(CURRENT_TIMESTAMP)", 0.0),
        ("DATE(d, 'now')", None),
        ("STRFTIME()", None),
        ("(SELECT 'now')", "now"),
    ],
)
def test_now_is_one_moment(expression: str, expected: object) -> None:
    engine = Engine(read_schema(DATES))
    engine.fill({"t": [("2001-02-03",)]})
    text = f"SELECT {expression}, 'now' FROM t"
    assert engine.prepare(text) is None
    assert engine.run(text).rows == [(expected, "now")]
    engine.close()


@pytest.mark.parametrize("text", ["SELECT DATE('now', 'utc', 'x')", "SELECT TIMEDIFF('now')", "SELECT CURRENT_DATE()"])
def test_now_makes_nothing_valid_that_is_not(text: str) -> None:
    engine, plain = Engine(read_schema(DATES)), Engine(read_schema(DATES))
    plain._now_fixed = True
    assert engine.prepare(text) == plain.prepare(text)
    engine.close()
    plain.close()


def test_local_time_is_the_same_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    gold = "SELECT d FROM t WHERE d > DATETIME('now', 'localtime')"
    with Scorer() as scorer:
        assert scorer.score(gold, "SELECT d FROM t WHERE d > DATETIME('now')", DATES).exec_equal


@pytest.mark.parametrize(
    ("gold", "pred"),
    [
        (f"a * 2.0 / 3 > {2**53 - 1}", f"a * 2 / 3 > {2**53 - 1}"),
        (" OR ".join(f"a / 3.0 = {i}" for i in range(150)), " OR ".join(f"a / 3 = {i}" for i in range(150))),
        (f"REPLACE(b, '{'x' * 50_000}', '') = 'y'", "b = 'y'"),
        ("JSON_EXTRACT(b, '$[49999999999]') = 1", "JSON_EXTRACT(b, '$.a.a.a') = 1"),
        ("d > DATE('now', '-99999999 years')", "d > DATE('now', '99999999999999999999 days')"),
        ("b = '2012-99'", "STRFTIME('%Y-%m', b) = '2012-99'"),
        (f"{'(' * 80}a{')' * 80} / 2.0 > 1", "a / 2 > 1"),
    ],
)
def test_unusual_formulas_are_judged_in_time(gold: str, pred: str) -> None:
    context = "CREATE TABLE t (a INTEGER, b TEXT, d DATE)"
    for one, other in ((gold, pred), (pred, gold)):
        began = time.process_time()
        verdict = judge(f"SELECT a FROM t WHERE {one}", f"SELECT a FROM t WHERE {other}", context)
        assert verdict.exec_equal is not None, verdict.reason
        assert time.process_time() - began < 1.5


@pytest.mark.parametrize("call", ["strftime('%d, %Y')", "date(/* today */)", "date( -- today\n)", "strftime('%Y' )"])
def test_a_call_without_a_time_reads_the_clock(call: str) -> None:
    assert moment.reads_clock(f"SELECT {call}")


def test_whether_a_query_reads_the_clock_is_seen_in_linear_time() -> None:
    started = time.process_time()
    moment.reads_clock("SELECT " + "strftime(" * 27_000)
    assert time.process_time() - started < 0.5
