"""Verdicts on pairs: the forty-two labelled examples, the tiers, and what is reported beside the scores."""

import random
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ftlab.sql.extract import extract
from ftlab.sql.judge import judge, over_budget
from ftlab.sql.verdict import Verdict

Material = Callable[[str], list[dict[str, Any]]]

SCORES = ("exact_string", "ast_equal", "exec_equal", "valid")
HEAD = "CREATE TABLE head (name VARCHAR, born_state VARCHAR, age INTEGER)"
CLUBS = "CREATE TABLE club (club_id VARCHAR, city VARCHAR); CREATE TABLE coach (club_id VARCHAR, wage INTEGER)"


@pytest.fixture(scope="module")
def examples(material: Material) -> list[dict[str, Any]]:
    return material("sql_examples.jsonl")


def scores(verdict: Verdict) -> dict[str, bool | None]:
    return {name: getattr(verdict, name) for name in SCORES}


def test_all_labelled_examples_are_right(examples: list[dict[str, Any]]) -> None:
    assert len(examples) == 42
    wrong = []
    for row in examples:
        found = scores(judge(row["gold"], row["pred"], row["context"]))
        wrong += [
            (row["id"], name, found[name])
            for name in SCORES
            if found[name] != row[name] and name not in row.get("contested", ())
        ]
    assert wrong == []


def test_examples_in_a_wrapper_are_right_once_it_is_taken_away(examples: list[dict[str, Any]]) -> None:
    wrapped = [row for row in examples if "after_extraction" in row]
    assert wrapped
    for row in wrapped:
        assert scores(judge(row["gold"], extract(row["pred"]), row["context"])) == row["after_extraction"], row["id"]


def test_extraction_changes_no_other_example(examples: list[dict[str, Any]]) -> None:
    for row in examples:
        if "after_extraction" not in row:
            assert extract(row["pred"]) == row["pred"], row["id"]


def test_equal_texts_have_equal_trees_and_equal_trees_equal_results(examples: list[dict[str, Any]]) -> None:
    for row in examples:
        verdict = judge(row["gold"], row["pred"], row["context"])
        if not verdict.gold_broken:
            assert verdict.ast_equal or not verdict.exact_string, row["id"]
            assert verdict.exec_equal or not verdict.ast_equal, row["id"]
            assert verdict.valid or not verdict.exec_equal, row["id"]


# --- tiers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pred", "expected"),
    [
        ("SELECT name FROM head WHERE age > 3", (True, True, True, True)),
        ("  SELECT name\nFROM head WHERE age > 3 ;", (True, True, True, True)),
        ("select h.name from head h where 3 < h.age", (False, True, True, True)),
        ("SELECT name FROM head WHERE nothing > 3", (False, False, False, False)),
        ("DROP TABLE head", (False, False, False, False)),
        ("", (False, False, False, False)),
    ],
)
def test_no_database_is_made_where_none_is_needed(pred: str, expected: tuple[bool, ...]) -> None:
    verdict = judge("SELECT name FROM head WHERE age > 3", pred, HEAD)
    assert tuple(scores(verdict).values()) == expected
    assert (verdict.databases, verdict.vacuous, verdict.gold_broken) == (0, None, False)
    assert verdict.reason


def test_different_trees_with_the_same_results_are_tried_on_every_database() -> None:
    gold, pred = "SELECT name FROM head WHERE age > 3", "SELECT name FROM head WHERE age > 3.0"
    for count in (1, 5, 32):
        verdict = judge(gold, pred, HEAD, count)
        assert (verdict.ast_equal, verdict.exec_equal, verdict.vacuous) == (False, True, False)
        assert verdict.databases == count


def test_a_difference_ends_the_search_and_is_told() -> None:
    verdict = judge("SELECT name FROM head WHERE age > 3", "SELECT name FROM head WHERE age >= 3", HEAD)
    assert (verdict.exec_equal, verdict.valid, verdict.vacuous) == (False, True, False)
    assert 1 <= verdict.databases <= 4
    assert f"database {verdict.databases}" in verdict.reason
    assert "row" in verdict.reason


@pytest.mark.parametrize(
    ("pred", "exec_equal"),
    [("SELECT age FROM head WHERE age < 3 AND age > 4", True), ("SELECT age, name FROM head WHERE 1 = 0", False)],
)
def test_a_gold_that_never_returns_a_row_is_flagged(pred: str, exec_equal: bool) -> None:
    verdict = judge("SELECT age FROM head WHERE age > 5 AND age < 1", pred, HEAD)
    assert (verdict.exec_equal, verdict.vacuous, verdict.gold_broken) == (exec_equal, True, False)
    assert verdict.databases > 0


def test_a_gold_that_returns_rows_is_not_vacuous_when_the_first_database_already_differs() -> None:
    verdict = judge("SELECT name FROM head WHERE born_state = 'Ohio'", "SELECT name FROM head LIMIT 0", HEAD)
    assert (verdict.exec_equal, verdict.vacuous) == (False, False)


@pytest.mark.parametrize(
    "gold",
    [
        "SELECT name FROM head ORDER BY age LIMIT 1 OFFSET 5000",
        "SELECT name FROM head ORDER BY age LIMIT 5000, 1",
        "SELECT DISTINCT name FROM head ORDER BY age LIMIT 3 OFFSET 5000",
        "SELECT name FROM head LIMIT 0",
        "SELECT name FROM head LIMIT -1 OFFSET 5000",
        "SELECT name FROM head ORDER BY age LIMIT 1 OFFSET 50 * 100",
        "SELECT name FROM head LIMIT 1 - 1",
        "SELECT name FROM (SELECT name, age FROM head ORDER BY age LIMIT 9 OFFSET 5000) WHERE age > 3",
        "SELECT name FROM head UNION SELECT born_state FROM head ORDER BY 1 LIMIT 1 OFFSET 5000",
        "SELECT name FROM head WHERE age IN (SELECT age FROM head LIMIT 0)",
        "SELECT COUNT(*) FROM head LIMIT 1 OFFSET 1",
    ],
)
@pytest.mark.parametrize("pred", ["SELECT name FROM head WHERE 1 = 0", "SELECT age, name FROM head"])
def test_a_gold_whose_window_lets_no_row_through_is_vacuous(gold: str, pred: str) -> None:
    verdict = judge(gold, pred, HEAD)
    assert (verdict.vacuous, verdict.gold_broken) == (True, False)


@pytest.mark.parametrize(
    "gold",
    [
        "SELECT name FROM head ORDER BY age LIMIT 1 OFFSET 5",
        "SELECT DISTINCT name FROM head ORDER BY age LIMIT 2 OFFSET 1",
        "SELECT name FROM head LIMIT -1",
        "SELECT name FROM head LIMIT 100",
    ],
)
def test_a_gold_whose_window_lets_some_row_through_is_not_vacuous(gold: str) -> None:
    verdict = judge(gold, "SELECT name FROM head WHERE 1 = 0", HEAD)
    assert (verdict.exec_equal, verdict.vacuous) == (False, False)


# --- comments and white space -------------------------------------------------------------------------------

BEHIND = [
    *("-- end", "/* x */", " -- a\n-- b\n", "/* a */ ; /* b */;;", "\n\n-- end;\n;\n;", "; -- a; SELECT 2", "/* open"),
    *("\f-- a\f\r\n/* ; */ ;", " \v;", "-- a\r SELECT 2\n;", "/* '\"` */ -- '"),
]


@pytest.mark.parametrize("behind", BEHIND)
def test_a_comment_behind_the_last_semicolon_is_immaterial(behind: str) -> None:
    query, spelled = "SELECT name FROM head WHERE age = 3", f"select h.name from head as h where 3 = h.age;{behind}"
    for gold, pred in [(query, spelled), (spelled, query), (spelled, f"{query};{behind}")]:
        verdict = judge(gold, pred, HEAD)
        assert (verdict.exact_string, verdict.ast_equal, verdict.exec_equal, verdict.valid) == (False, True, True, True)
    near = judge(spelled, f"SELECT name FROM head WHERE age > 3;{behind}", HEAD)
    assert (near.exec_equal, near.valid, near.vacuous) == (False, True, False)


def test_a_comment_counts_in_the_text_alone() -> None:
    verdict = judge("SELECT name FROM head", "SELECT name FROM head; -- end", HEAD)
    assert scores(verdict) == {"exact_string": False, "ast_equal": True, "exec_equal": True, "valid": True}


@pytest.mark.parametrize(
    "behind",
    [
        *(
            "; -- x\n DROP TABLE head",
            "; /* a */ SELECT 2",
            ";; -- x\n;; SELECT 2 -- y",
            "; SELECT 2 /* open",
            "; /**/ x",
        ),
        *("; --\0\n", ";\0", ";\u00a0", "; -- a\n\u2003", ";\v", ";\x1c", "; 'text'", "; )", "; /* a */ */"),
    ],
)
def test_a_second_statement_is_not_hidden_by_comments(behind: str) -> None:
    query = "SELECT name FROM head"
    verdict = judge(query, query + behind, HEAD)
    assert (verdict.ast_equal, verdict.exec_equal, verdict.valid) == (False, False, False)
    assert judge(query + behind, query, HEAD).gold_broken


@pytest.mark.parametrize("blank", [" ", "\t", "\n", "\f", "\r", " \v", "\r\n", "/**/", "--\r\n", "\ufeff "])
def test_what_is_a_blank_to_sqlite_parts_words(blank: str) -> None:
    words = ["SELECT", "name", "FROM", "head", "WHERE", "age", "=", "3", "ORDER", "BY", "age", "LIMIT", "1"]
    verdict = judge(" ".join(words), blank.join(words).removesuffix(blank), HEAD)
    assert (verdict.ast_equal, verdict.exec_equal, verdict.valid) == ((blank[0] != "\ufeff"),) * 3


@pytest.mark.parametrize("sign", ["\v", "\x1c", "\x1f", "\x85", "\u00a0", "\u2003", "\u2028", "\u3000"])
def test_what_only_others_take_for_a_blank_parts_no_words(sign: str) -> None:
    verdict = judge("SELECT name FROM head", f"SELECT name{sign}FROM head", HEAD)
    assert scores(verdict) == {"exact_string": False, "ast_equal": False, "exec_equal": False, "valid": False}
    name = f"a{sign}b"
    quoted = judge(f'SELECT "{name}" FROM head', f"SELECT [{name}] FROM head", f'CREATE TABLE head ("{name}" INTEGER)')
    assert (quoted.ast_equal, quoted.valid) == (True, True)


def test_a_name_with_a_blank_that_sqlite_does_not_know_is_one_name() -> None:
    gold, pred = "SELECT 1 AS a UNION SELECT name FROM head", "SELECT 1 AS a\u00a0UNION\u00a0SELECT\u00a0name FROM head"
    verdict = judge(gold, pred, HEAD)
    assert (verdict.ast_equal, verdict.exec_equal, verdict.valid) == (False, False, True)


def test_a_comment_that_ends_only_for_a_parser_hides_what_sqlite_does_not_read() -> None:
    verdict = judge("SELECT name FROM head WHERE age = 3", "SELECT name FROM head -- \r WHERE age = 3", HEAD)
    assert (verdict.ast_equal, verdict.exec_equal, verdict.valid) == (False, False, True)


# --- golds that cannot run ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "pred", "exact", "same_tree"),
    [
        ("SELECT gone FROM head", "SELECT gone FROM head", True, True),
        ("SELECT gone FROM head", "select h.gone from head as h", False, True),
        ("SELECT gone FROM head", "SELECT name FROM head", False, False),
        ("SELECT MAX(10 AS x) FROM head", "SELECT MAX(10 AS x) FROM head", True, False),
    ],
)
def test_a_broken_gold_is_no_miss(gold: str, pred: str, exact: bool, same_tree: bool) -> None:
    verdict = judge(gold, pred, HEAD)
    assert (verdict.exact_string, verdict.ast_equal, verdict.exec_equal) == (exact, same_tree, None)
    assert (verdict.gold_broken, verdict.databases, verdict.vacuous) == (True, 0, None)
    assert verdict.valid is (pred == "SELECT name FROM head")
    assert verdict.reason.startswith("gold: ")


def test_a_gold_that_fails_on_every_database_is_broken() -> None:
    gold = "SELECT ABS(-9223372036854775808) FROM (SELECT 1)"
    verdict = judge(gold, "SELECT 5", HEAD)
    assert (verdict.exec_equal, verdict.gold_broken, verdict.databases) == (None, True, 0)
    assert "overflow" in verdict.reason


def test_a_prediction_that_fails_only_when_it_runs_is_not_equal() -> None:
    gold = "SELECT COUNT(*) FROM head"
    verdict = judge(gold, "SELECT SUM(9223372036854775807) FROM head", HEAD)
    assert (verdict.valid, verdict.exec_equal, verdict.gold_broken) == (True, False, False)
    wide = "CREATE TABLE t (a INTEGER, b VARCHAR)"
    failing = judge("SELECT a FROM t WHERE b = 'x'", "SELECT ABS(-9223372036854775808) FROM t WHERE b = 'x'", wide)
    assert (failing.valid, failing.exec_equal) == (True, False)
    assert "overflow" in failing.reason


def test_what_passed_its_budget_is_not_equal_but_what_is_known_is_said() -> None:
    gold = "SELECT name FROM head ORDER BY name"
    verdict = over_budget(gold, f" {gold};", HEAD, "over the budget: 2 s")
    assert scores(verdict) == {"exact_string": True, "ast_equal": False, "exec_equal": False, "valid": True}
    assert (verdict.reason, verdict.databases, verdict.vacuous) == ("over the budget: 2 s", 0, None)
    assert verdict.buckets == ("single_table", "order")
    assert over_budget("SELECT gone FROM head", "SELECT (", HEAD, "x").exec_equal is None
    assert over_budget(gold, "SELECT (", HEAD, "x").valid is False


def test_an_endless_prediction_stops_at_the_budget() -> None:
    endless = "WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r) SELECT i FROM r"
    verdict = judge("SELECT age FROM head", endless, HEAD)
    assert verdict.exec_equal is False
    assert "over the budget" in verdict.reason


# --- real rows ------------------------------------------------------------------------------------------------


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    file = tmp_path / "clubs.sqlite"
    connection = sqlite3.connect(file)
    connection.executescript(
        "CREATE TABLE club (club_id TEXT, city TEXT); CREATE TABLE coach (club_id TEXT, wage INTEGER);"
        "INSERT INTO club VALUES ('1', 'Rome'), ('2', 'Bern'); INSERT INTO coach VALUES ('1', 5), ('2', 777000);"
    )
    connection.close()
    return file


def test_only_real_rows_tell_some_predictions_apart(rows_file: Path) -> None:
    """A number that is computed, and so is no literal, is in no generated database."""
    gold = "SELECT wage * 2 FROM coach"
    pred = "SELECT wage * 2 + (wage = (6070 << 7) + 40) FROM coach"
    assert judge(gold, pred, CLUBS).exec_equal is True
    with_rows = judge(gold, pred, CLUBS, rows_file=rows_file)
    assert (with_rows.exec_equal, with_rows.databases, with_rows.vacuous) == (False, 1, False)


def test_real_rows_come_before_the_made_up_ones(rows_file: Path) -> None:
    gold, pred = "SELECT city FROM club WHERE city = 'Rome'", "SELECT city FROM club WHERE club_id = '1'"
    assert judge(gold, pred, CLUBS).exec_equal is False
    verdict = judge(gold, pred, CLUBS, rows_file=rows_file)
    assert (verdict.exec_equal, verdict.databases) == (False, 2)
    equal = judge(gold, "SELECT city || '' FROM club WHERE city = 'Rome'", CLUBS, 7, rows_file)
    assert (equal.exec_equal, equal.databases) == (True, 8)


def test_real_questions_keep_their_own_answer_and_lose_another(root: Path) -> None:
    """With a database of Spider-DK in addition, different queries stay different and equal ones stay equal."""
    context = "CREATE TABLE student (stuid INTEGER, age INTEGER); CREATE TABLE has_pet (stuid INTEGER, petid INTEGER)"
    gold = "SELECT COUNT(*) FROM has_pet AS T1 JOIN student AS T2 ON T1.stuid = T2.stuid WHERE T2.age > 20"
    near = gold.replace(">", ">=")
    file = root / "tests/material/new_pets_1.sqlite"
    assert judge(gold, near, context).exec_equal is False
    assert judge(gold, near, context, rows_file=file).exec_equal is False
    equal = judge(gold, gold.replace("COUNT(*)", "COUNT(T2.stuid)").replace("20", "20.0"), context, 4, file)
    assert (equal.exec_equal, equal.databases, equal.vacuous) == (True, 5, False)


# --- determinism and buckets ----------------------------------------------------------------------------------

PAIRS = [
    ("SELECT name FROM head WHERE age > 3", "SELECT name FROM head WHERE age > 4", HEAD),
    ("SELECT name FROM head WHERE age > 3", "SELECT name FROM head WHERE NOT age <= 3.0", HEAD),
    ("SELECT MAX(age) FROM head GROUP BY name", "SELECT MAX(age) FROM head GROUP BY born_state", HEAD),
    ("SELECT city FROM club", "SELECT city FROM club JOIN coach ON club.club_id = coach.club_id", CLUBS),
    ("SELECT wage FROM coach ORDER BY wage LIMIT 1", "SELECT MIN(wage) FROM coach", CLUBS),
    ("SELECT gone FROM coach", "SELECT wage FROM coach", CLUBS),
    ("SELECT wage FROM coach", "SELECT wage FROM", CLUBS),
]


def test_a_verdict_does_not_depend_on_what_was_judged_before() -> None:
    first = [judge(*pair, 8) for pair in PAIRS]
    order = list(range(len(PAIRS))) * 2
    random.Random(1).shuffle(order)
    for at in order:
        assert judge(*PAIRS[at], 8) == first[at]


def test_more_databases_never_turn_a_difference_into_equality() -> None:
    for gold, pred, context in PAIRS:
        few, many = judge(gold, pred, context, 2), judge(gold, pred, context, 32)
        assert few.exec_equal is not False or many.exec_equal is False
        if few.exec_equal is False:
            assert few == replace(many, vacuous=few.vacuous)


@pytest.mark.parametrize(
    ("gold", "expected"),
    [
        ("SELECT name FROM head", ("single_table",)),
        ("SELECT a.name FROM head a, head b ORDER BY 1", ("single_table", "order")),
        ("SELECT city, COUNT(*) FROM club JOIN coach GROUP BY city", ("multi_table", "aggregate")),
        ("SELECT city FROM club WHERE club_id IN (SELECT club_id FROM coach)", ("multi_table", "nested")),
        ("SELECT gone FROM head ORDER BY 1", ("single_table", "order")),
        ("SELECT FROM WHERE", ()),
    ],
)
def test_a_verdict_says_what_kind_of_gold_it_is_about(gold: str, expected: tuple[str, ...]) -> None:
    assert judge(gold, "SELECT 1", f"{HEAD}; {CLUBS}", 2).buckets == expected


ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n FROM r"


@pytest.mark.parametrize("pred", [ENDLESS, "SELECT 1", "garbage"])
def test_a_gold_that_never_ends_is_broken_whatever_the_answer(pred: str) -> None:
    verdict = judge(ENDLESS, pred, "CREATE TABLE t (a INTEGER)")
    assert verdict.gold_broken
    assert verdict.exec_equal is None


def test_a_comment_that_loses_its_line_break_swallows_the_rest() -> None:
    gold, pred = "SELECT a FROM t --c\nWHERE a = 1", "SELECT a FROM t --c WHERE a = 1"
    verdict = judge(gold, pred, "CREATE TABLE t (a INTEGER)")
    assert verdict.exact_string
    assert not verdict.ast_equal
    assert verdict.exec_equal is False


@pytest.mark.parametrize("name", ["window", "cross", "offset", "lock", "for"])
def test_a_column_named_like_a_keyword_of_sqlglot_is_read(name: str) -> None:
    context = f'CREATE TABLE t (id INTEGER, "{name}" VARCHAR)'
    verdict = judge(
        f"SELECT {name} FROM t WHERE {name} = 'x'", f'SELECT T1."{name}" FROM t AS T1 WHERE "{name}" = "x"', context
    )
    assert verdict.ast_equal


def test_a_byte_order_mark_is_white_space_to_sqlite() -> None:
    assert judge("SELECT a FROM t", "\ufeffSELECT a FROM t", "CREATE TABLE t (a INTEGER)").valid


@pytest.mark.parametrize("columns", [101, 2000])
def test_a_wide_table_is_filled(columns: int) -> None:
    context = f"CREATE TABLE wide ({', '.join(f'c{at} INTEGER' for at in range(columns))})"
    gold = "SELECT c1 FROM wide WHERE c100 > 3"
    assert judge(gold, "SELECT c1 FROM wide WHERE c100 > 3 AND c100 IS NOT NULL", context).exec_equal
    assert not judge(gold, "SELECT c1 FROM wide WHERE c100 >= 3", context).exec_equal
