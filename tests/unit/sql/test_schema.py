"""The reader of contexts: it agrees with SQLite, and is lenient where SQLite refuses a context."""

import gzip
import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab.sql.schema import Column, Schema, read_schema


def columns(context: str) -> dict[str, list[str]]:
    return {key: list(table.columns) for key, table in read_schema(context).tables.items()}


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ("CREATE TABLE a (x INT, y TEXT)", {"a": ["x", "y"]}),
        ("create table if not exists main.a (x int);; CREATE TEMP TABLE b (y)", {"a": ["x"], "b": ["y"]}),
        ('CREATE TABLE "my table" ("a ""b""" INT, [c d] TEXT, `e` REAL, \'f\' INT)',
         {"my table": ['a "b"', "c d", "e", "f"]}),
        ("CREATE TABLE Movie (title VARCHAR); CREATE TABLE movie (YEAR INT, Title INT)", {"movie": ["title", "year"]}),
        ("CREATE TABLE a (Major VARCHAR, major INT, Sex VARCHAR)", {"a": ["major", "sex"]}),
        ("CREATE TABLE a (from INT, group TEXT, order TEXT, index TEXT, primary INT, unique TEXT, check INT, "
         "key VARCHAR(20))",
         {"a": ["from", "group", "order", "index", "primary", "unique", "check", "key"]}),
        ("CREATE TABLE order (select INT)", {"order": ["select"]}),
        ("CREATE TABLE a (x INT PRIMARY KEY, y INT DEFAULT (1, 2), PRIMARY KEY (x, y), UNIQUE (y), CHECK (x > 0), "
         "FOREIGN KEY (x) REFERENCES b(c), CONSTRAINT k UNIQUE (x), KEY name (x))", {"a": ["x", "y"]}),
        ("CREATE TABLE a (x INT, -- the (first\n y TEXT /* , z TEXT */)", {"a": ["x", "y"]}),
        ("CREATE TABLE a (x INT, y TEXT", {"a": ["x", "y"]}),
        ("CREATE TABLE a (2nd INT, 3rd)", {"a": ["2nd", "3rd"]}),
        ("CREATE TABLE sqlite_sequence (name, seq); CREATE TABLE a (x)", {"a": ["x"]}),
        ("CREATE VIEW v AS SELECT 1; DROP TABLE a; INSERT INTO b (c) VALUES (1)", {}),
        ("CREATE TABLE a (); CREATE TABLE b AS SELECT 1; CREATE TABLE", {}),
        ("CREATE", {}),
        ("", {}),
        ("garbage ' with \" every ` quote [ open", {}),
    ],
)  # fmt: skip
def test_tables_and_columns(context: str, expected: dict[str, list[str]]) -> None:
    assert columns(context) == expected


@pytest.mark.parametrize(
    ("declared", "type", "kind"),
    [
        ("x INTEGER", "INTEGER", "number"),
        ("x INT(11) UNSIGNED", "INT(11)", "number"),
        ("x double precision NOT NULL", "double precision", "number"),
        ("x DECIMAL(10, 2) DEFAULT 0", "DECIMAL(10,2)", "number"),
        ("x VARCHAR(20) COLLATE NOCASE", "VARCHAR(20)", "text"),
        ("x enum('a', 'b')", "enum", "any"),
        ("x DATE", "DATE", "any"),
        ("x TIMESTAMP REFERENCES b(c)", "TIMESTAMP", "any"),
        ("x BOOLEAN", "BOOLEAN", "any"),
        ("x BLOB", "BLOB", "any"),
        ("x", "", "any"),
        ("x PRIMARY KEY", "", "any"),
    ],
)
def test_types(declared: str, type: str, kind: str) -> None:
    assert read_schema(f"CREATE TABLE a ({declared})").tables["a"].columns == {"x": Column("x", type, kind)}  # type: ignore[arg-type]


def test_the_first_spelling_counts() -> None:
    table = read_schema("CREATE TABLE Grants (Id INT); CREATE TABLE grants (ID TEXT, Name TEXT)").tables["grants"]
    assert table.name == "Grants"
    assert [column.name for column in table.columns.values()] == ["Id", "Name"]


def test_ddl_makes_the_same_tables_whatever_their_names() -> None:
    schema = read_schema(
        'CREATE TABLE order (from VARCHAR(20), "a b" INT, `c"d` DATE, [select]); CREATE TABLE b (x REAL)'
    )
    connection = sqlite3.connect(":memory:")
    for statement in schema.ddl().values():
        connection.execute(statement)
    assert Schema.of_database(connection).tables == schema.tables
    connection.close()


def test_real_contexts_are_read_as_sqlite_reads_them(material: Callable[[str], list[dict[str, Any]]]) -> None:
    refused = read_as_sqlite_does(
        {row["context"] for name in ("sql_create_context", "spider_dev") for row in material(f"{name}.jsonl.gz")}
    )
    assert 0 < refused < 100


def test_all_contexts_of_the_training_set_are_read_as_sqlite_reads_them(shared: Callable[[str], Path]) -> None:
    with gzip.open(shared("data/sql_create_context/train.jsonl.gz"), "rt", encoding="utf-8") as lines:
        contexts = {json.loads(line)["context"] for line in lines}
    assert 0 < read_as_sqlite_does(contexts) < len(contexts) / 50


def read_as_sqlite_does(contexts: set[str]) -> int:
    """Compare what is read with SQLite's own reading; how many contexts SQLite refuses."""
    refused = 0
    for context in contexts:
        connection = sqlite3.connect(":memory:")
        try:
            connection.executescript(context)
        except sqlite3.Error:
            refused += 1
            assert read_schema(context).tables
            assert all(table.columns for table in read_schema(context).tables.values())
        else:
            assert read_schema(context).tables == Schema.of_database(connection).tables
        finally:
            connection.close()
    return refused


@pytest.mark.parametrize(
    "context",
    ["CREATE TABLE a (" * 20_000, "'" * 200_001, "/*" * 100_000, "(" * 200_000, "CREATE TABLE a (x" + " y" * 100_000],
    ids=["tables", "quotes", "comments", "parentheses", "words"],
)
def test_a_long_damaged_context_is_read_in_time(context: str) -> None:
    start = time.process_time()
    read_schema(context)
    assert time.process_time() - start < 2
