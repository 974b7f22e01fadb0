"""Extracting a query from a chat model's answer, and leaving plain queries unchanged."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from ftlab.sql.extract import extract

Material = Callable[[str], list[dict[str, Any]]]

Q = "SELECT name FROM head ORDER BY age"


@pytest.mark.parametrize(
    "answer",
    [
        f"```sql\n{Q}\n```",
        f"```\n{Q}\n```",
        f"```SQLite\n{Q};\n```\nThis lists the heads; it sorts them.",
        f"~~~sql\n{Q}\n~~~",
        f"```sql\n{Q}",
        f"```sql {Q} ```",
        f"```{Q}```",
        f"   ```sql\r\n{Q}\r\n   ```",
        f"The schema is\n```sql\nCREATE TABLE head (name TEXT)\n```\nand the query\n```sql\n{Q}\n```",
        f"The answer is: {Q};",
        f"The answer is: {Q}; which sorts the heads by age.",
        f"SQL: {Q}",
        f"### SQL:\n{Q}\n\n### Explanation:\nIt sorts.",
        f"Answer: {Q}\n\nThis doesn't need a join.",
        f"You want {Q}\n\nIt sorts the heads.",
        f"Use `{Q}`.",
        f"<|im_start|>assistant\n{Q}<|im_end|>",
        f"[SQL] {Q} [/SQL]",
        f"{Q};\n\nExplanation: the heads are sorted",
        f"{Q}\n```\nThis is the query.",
        f"{Q}</s>",
        f"{Q}; -- done\nThat is all.",
        f"Choose like this:\n\n```sql\n{Q}\n```",
        f"<think>\nSELECT b FROM t\n</think>\n{Q}",
        f"<thinking>\n```sql\nSELECT b\n```\n</thinking>\n\nUse\n```sql\n{Q}\n```",
        f"\n<think>\n\n</think>\n\n{Q}",
        f"**{Q}**",
        f'"{Q}"',
        f"'{Q}'",
        f"`{Q};`",
        f"Use **`{Q}`**.",
        f"**Answer:** **{Q}**\n\nIt sorts.",
        f'Use "{Q}", where "age" is a number.',
        f'Use "{Q}."',
        f'{{"sql": "{Q}"}}',
        f"Answer: {Q}.",
        f"Answer: {Q}. It sorts the heads.",
        f"Answer: {Q}.\nthat sorts the heads.",
        f"<sql>{Q}</sql>",
        f"<SQL>\n{Q};\n</SQL>",
        f"The heads by age: <Sql> {Q} </sQL> I hope this helps; it's sorted.",
        f"Write the heads in <sql> and </sql> tags:\n<sql>{Q}</sql>\n<sql>SELECT 2</sql>",
        f"<sql>\n```sql\n{Q}\n```\n</sql>",
        f"```xml\n<sql>{Q}</sql>\n```",
        f"```sql\nSELECT old\n```\nor rather\n<sql>\n{Q}\n</sql>",
        f"<think>\n<sql>SELECT b</sql>\n</think>\n<sql>{Q}</sql>",
        f"<sql>`{Q}`</sql>",
        f"<sql>{Q}",
        f"{Q}</sql>",
        f"{Q}\n</SQL>\nThat is all.",
        f"SQLQuery: {Q}\nSQLResult: [('a',)]\nAnswer: a",
        f"SQLQuery: {Q} SQLResult: 5 Answer: a",
        f"Question: SELECT which heads?\nSQLQuery:\n{Q};\nSQLResult:\n",
        f"Question: which heads?\nSQLQuery: ```sql\n{Q}\n```\nSQLResult: a",
        f"I will select them.\nsqlquery: {Q}\nsqlresult : a",
        f'SQLQuery: "{Q}"\nSQLResult: a',
        f"**SQLQuery:** {Q}\n**SQLResult:** a",
        f"{Q}\nSQLResult: [('a', 1)]\nAnswer: a\n\nQuestion: b\nSQLQuery: SELECT 2",
        f"SQLQuery: {Q}",
        f"SQLQuery: ```{Q}``` SQLResult: a",
    ],
)
def test_the_query_is_taken_out(answer: str) -> None:
    assert extract(answer).rstrip("; ") == Q


@pytest.mark.parametrize(
    "answer",
    [
        Q,
        f"  {Q} ;\n",
        f"{Q};;",
        "-- the heads\nSELECT name FROM head",
        "/* ```sql SELECT 1``` */ SELECT name FROM head -- it's all; really",
        "SELECT name\n\nFROM head\n\nWHERE age > 1\n\nORDER BY name",
        "SELECT\n\nname,\n\nage FROM head",
        "WITH t AS (SELECT 'please select; one' AS x) SELECT x FROM t",
        "with recursive t(n) as (select 1 union all select n + 1 from t) select n from t",
        "SELECT '```' || ';\n\nNot prose' FROM head",
        'SELECT "a;  b" FROM [odd; table]',
        "(SELECT 1) UNION (SELECT 2)",
        "select count(*) from head",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE head",
        "SELECT 1; WITH t AS (SELECT 2) SELECT * FROM t",
        "",
        "I cannot answer that.",
        "With pleasure, but the schema has no such column.",
        "DELETE FROM head",
        "name FROM head",
        "SELECT name FROM head WHERE note = '<sql>SELECT 1</sql>' AND age > 3",
        "SELECT name FROM head WHERE note LIKE '%SQLResult: 5%' OR note = 'SQLQuery: SELECT 1'",
        "SELECT sqlresult, sqlquery FROM head WHERE a<sql",
        "SELECT name FROM head WHERE a <sql> 3",
        "SELECT name -- <sql>SELECT 1</sql> SQLResult: 5\nFROM head",
        'SELECT "SQLResult: " FROM [</sql>]',
        "<sql></sql>",
        "<sql>I cannot answer that.</sql>",
        "SQLQuery: none\nSQLResult: none",
        "SQLResult: 5",
    ],
)
def test_what_is_a_query_already_or_holds_none_stays_as_it_is(answer: str) -> None:
    assert extract(answer) == answer


@pytest.mark.parametrize(
    ("answer", "query"),
    [
        ('"SELECT a FROM t WHERE b = "x""', 'SELECT a FROM t WHERE b = "x"'),
        ("'SELECT a FROM t WHERE b IN ('x', 'y''s')'.", "SELECT a FROM t WHERE b IN ('x', 'y''s')"),
        ("`SELECT `a b` FROM `t``", "SELECT `a b` FROM `t`"),
        ("**select count(*) from t**", "select count(*) from t"),
        ("'select a from t'", "select a from t"),
        ('Answer: SELECT a FROM t WHERE b = "x"', 'SELECT a FROM t WHERE b = "x"'),
        ("Answer: SELECT a FROM t WHERE b = 'St. Louis'.", "SELECT a FROM t WHERE b = 'St. Louis'"),
        ("<sql>SELECT '</sql>', '<sql>' FROM t</sql>", "SELECT '</sql>', '<sql>' FROM t"),
        ("<sql>-- a\n(SELECT a) UNION SELECT 2</sql>", "-- a\n(SELECT a) UNION SELECT 2"),
        ("<sql>SELECT 1; DROP TABLE t</sql>", "SELECT 1; DROP TABLE t"),
        ("SQLQuery: WITH x AS (SELECT 1) SELECT * FROM x SQLResult: 1", "WITH x AS (SELECT 1) SELECT * FROM x"),
        ("SQLQuery: SELECT 'SQLResult: 5' AS a\nSQLResult: 5", "SELECT 'SQLResult: 5' AS a"),
        ("SQLQuery: none\nuse <sql>select a from t</sql>", "select a from t"),
        ("a <sql> 3 is wrong; this is right: SELECT a FROM t", "SELECT a FROM t"),
        ("MySQLQuery: it is\nSELECT a FROM t", "SELECT a FROM t"),
        ("Answer: SELECT T1 . Name FROM t AS T1 WHERE b > 2. AND c = 1.5", None),
        ("Answer: SELECT a FROM t WHERE b > 2.\nORDER BY a", None),
    ],
)
def test_what_belongs_to_the_query_stays(answer: str, query: str | None) -> None:
    assert extract(answer) == (query or answer.removeprefix("Answer: "))


@pytest.mark.parametrize(
    "query", ['SELECT a FROM t WHERE b = "x"', "SELECT 'a'", "SELECT `a`", "SELECT a FROM t.", "SELECT 2."]
)
def test_a_bare_query_keeps_its_last_mark_and_stop(query: str) -> None:
    assert extract(query) == query


def test_a_query_in_reasoning_that_came_to_none_is_no_answer() -> None:
    assert extract("<think>SELECT b FROM t</think>\nI cannot answer.") == "I cannot answer."


def test_reasoning_that_is_not_closed_is_prose() -> None:
    assert extract("<think>\nSELECT b FROM t\n\nBut is it") == "SELECT b FROM t"


@pytest.mark.parametrize("answer", [None, 5, b"SELECT 1"])
def test_what_is_no_text_is_refused_in_clear_words(answer: object) -> None:
    with pytest.raises(TypeError, match=rf"answer must be text \(str\), not {type(answer).__name__}"):
        extract(answer)  # type: ignore[arg-type]


def test_a_query_with_a_cte_is_found_in_prose() -> None:
    query = "WITH t AS (SELECT 'select' AS x) SELECT x FROM t"
    assert extract(f"With the schema given, the query is:\n{query};\nIt selects x.") == query


def test_a_fence_without_a_query_gives_its_text() -> None:
    assert extract("```sql\nDELETE FROM head\n```") == "DELETE FROM head"


def test_the_second_statement_of_a_fence_is_not_hidden() -> None:
    assert extract("```sql\nSELECT 1; DROP TABLE head\n```") == "SELECT 1; DROP TABLE head"


@pytest.mark.parametrize(
    "part",
    [
        *("/*", "'", "```", ";", "; --x\n", "WITH x (", "\n\nFROM", "(", ":`", "SELECT ", ".", ". ", ". A", '"', '" '),
        *("**", "** ", "`", "` ", "' ", "<think>", "</think>", "<think></think>", "\n", "<sql>", "</sql>", "<sql>/*"),
        *("<sql>--", "<sql>`", "<sql>```", "<sql> ", "<sql>SELECT ", "SQLQuery:", "SQLQuery: --", "SQLQuery:\n"),
        *("SQLQuery: /*", "SQLResult", "**SQLResult "),
    ],
)
def test_a_hostile_answer_is_read_in_linear_time(part: str) -> None:
    began = time.process_time()
    extract("SELECT a " + part * (300_000 // len(part)))
    for start in ("x ", "<think>", ":SELECT a", ':"SELECT a', ":'SELECT a", "`SELECT a", "**SELECT a"):
        extract(start + part * (300_000 // len(part)))
    assert time.process_time() - began < 2


def test_a_real_query_comes_out_of_marks_and_sentences(material: Material) -> None:
    golds = [row["answer"].strip() for row in material("spider_dev.jsonl.gz")]
    for before, after in (("<think>\nSELECT x\n</think>\n", ""), ("**", "**"), ("`", "`"), ('"', '"'), ("'", "'")):
        assert [gold for gold in golds if extract(f"{before}{gold}{after}") != gold] == []
    assert [gold for gold in golds if extract(f"Answer: {gold}. This doesn't use a join.") != gold] == []


@pytest.mark.parametrize("name", ["sql_create_context.jsonl.gz", "spider_dev.jsonl.gz"])
def test_real_queries_stay_as_they_are_and_come_out_of_a_wrapper(material: Material, name: str) -> None:
    golds = [row["answer"] for row in material(name)]
    assert [gold for gold in golds if extract(gold) != gold] == []
    for wrapper in (
        "Sure! Here is the query:\n```sql\n{}\n```\nIt doesn't use a join; it's short.",
        "The answer is: {};\n\nThis doesn't use a join.",
        "Here it is:\n<sql>{}</sql>\nIt doesn't use a join.",
        "SQLQuery: {}\nSQLResult: [('a', 1)]\nAnswer: it's 1",
    ):
        assert [gold for gold in golds if extract(wrapper.format(gold)) != gold.strip()] == []


def test_the_wrapped_example_gives_its_gold(material: Material) -> None:
    rows = material("sql_examples.jsonl")
    (row,) = [row for row in rows if "after_extraction" in row]
    assert extract(row["pred"]) == row["gold"]
    assert [row["id"] for row in rows if extract(row["pred"]) != row["pred"]] == [row["id"]]
