"""Contexts with views, and with a schema before a table's name: read, executed on rows, and judged as one table."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftlab.sql.databases import databases
from ftlab.sql.engine import LOOKUPS, VIEWS, Engine
from ftlab.sql.judge import judge
from ftlab.sql.schema import Schema, read_schema
from ftlab.sql.verdict import Verdict

PUBLIC = "CREATE TABLE public.users (id INT, name TEXT, age INT); CREATE TABLE public.pet (owner INT, kind TEXT)"
TWO = "CREATE TABLE sales.item (id INT, price REAL); CREATE TABLE archive.item (id INT, price REAL, year INT)"
USERS = "CREATE TABLE users (id INT, name TEXT, age INT);"
ADULT = f"{USERS} CREATE VIEW adult AS SELECT id, name, age FROM users WHERE age >= 18"
CHAIN = f"""{USERS} CREATE TABLE pet (owner INT, kind TEXT);
CREATE VIEW IF NOT EXISTS keepers (who, kind, years) AS -- owners; of pets
    SELECT u.name, p.kind, u.age FROM users AS u JOIN pet AS p ON p.owner = u.id;
CREATE TEMP VIEW kinds AS SELECT kind, COUNT(*) AS n, AVG(years) AS years FROM keepers GROUP BY kind
CREATE OR REPLACE VIEW common AS SELECT kind FROM kinds WHERE n > 2;"""


def scores(verdict: Verdict) -> tuple[bool | None, ...]:
    return verdict.ast_equal, verdict.exec_equal, verdict.valid, verdict.gold_broken


@pytest.fixture
def engine() -> Iterator[Callable[[str], Engine]]:
    made: list[Engine] = []

    def make(context: str) -> Engine:
        made.append(Engine(read_schema(context)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def columns(schema: Schema) -> dict[str, list[str]]:
    return {key: list(table.columns) for key, table in schema.tables.items()}


# --- a schema before a table's name -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (PUBLIC, {"users": "public", "pet": "public"}),
        ('CREATE TABLE "public"."users" (a INT)', {"users": "public"}),
        ("CREATE TABLE [Dbo].[Users] (a INT)", {"users": "dbo"}),
        ("CREATE TABLE warehouse.dbo.users (a INT)", {"users": "dbo"}),
        ("CREATE TABLE main.users (a INT); CREATE TABLE users (b INT)", {"users": "main"}),
        ("CREATE TEMP TABLE users (a INT); CREATE TABLE temp.pet (a INT)", {"users": "temp", "pet": "temp"}),
        (
            "CREATE TABLE s.users (a INT); CREATE TABLE users (a INT); CREATE TABLE pet (a INT)",
            {"users": "s", "pet": "s"},
        ),
        ("CREATE TABLE s.users (a INT); CREATE TABLE main.users (a INT)", {"users": "main", "s.users": "s"}),
        (
            "CREATE TABLE s.a (a INT); CREATE TABLE r.a (a INT); CREATE TABLE a (a INT)",
            {"a": "main", "s.a": "s", "r.a": "r"},
        ),
        ("CREATE TABLE s.users (a INT); CREATE TABLE S.Users (b INT)", {"users": "s"}),
        (TWO, {"item": "sales", "archive.item": "archive"}),
        ('CREATE TABLE "public.users" (a INT)', {"public.users": "main"}),
    ],
)
def test_a_table_knows_its_schema(context: str, expected: dict[str, str]) -> None:
    tables = read_schema(context).tables
    assert {key: table.schema for key, table in tables.items()} == expected


def test_tables_of_one_name_in_one_schema_are_united_and_in_two_are_not() -> None:
    found = read_schema("CREATE TABLE a.t (x INT); CREATE TABLE b.t (y INT); CREATE TABLE a.t (z INT)")
    assert columns(found) == {"t": ["x", "z"], "b.t": ["y"]}
    assert (found.key("T"), found.key("t", "A"), found.key("t", "b")) == ("t", "t", "b.t")
    assert (found.key("t", "c"), found.key("t", "main"), found.key("b.t", "a")) == (None, None, None)


@pytest.mark.parametrize(
    "pred",
    [
        "SELECT name FROM users WHERE age > 3",
        "SELECT name FROM public.users WHERE public.users.age > 3",
        'select "users".name from "public"."users" where 3 < [public].[users].[age]',
        "SELECT u.name FROM PUBLIC.Users AS u WHERE u.age > 3",
    ],
)
def test_a_table_is_the_same_with_and_without_its_schema(pred: str) -> None:
    for gold in ("SELECT name FROM public.users WHERE age > 3", "SELECT name FROM users WHERE age > 3"):
        assert scores(judge(gold, pred, PUBLIC)) == (True, True, True, False)
        assert scores(judge(gold, pred + " OR age <> age", PUBLIC, 8)) == (False, True, True, False)
    assert judge("SELECT name FROM public.users WHERE age >= 3", pred, PUBLIC).exec_equal is False


@pytest.mark.parametrize(
    ("gold", "same", "other"),
    [
        (
            "SELECT u.name FROM public.users u JOIN public.pet p ON p.owner = u.id WHERE p.kind = 'cat'",
            "SELECT name FROM users, pet WHERE public.pet.owner = public.users.id AND kind IN ('cat')",
            "SELECT name FROM public.users WHERE id IN (SELECT owner FROM public.pet WHERE kind = 'cat')",
        ),
        (
            "SELECT name FROM public.users ORDER BY public.users.age DESC LIMIT 3",
            "SELECT name FROM users ORDER BY age DESC LIMIT 3",
            "SELECT name FROM public.users ORDER BY public.users.age LIMIT 3",
        ),
        (
            "SELECT COUNT(*) FROM public.users",
            "SELECT COUNT(1) FROM users",
            "SELECT COUNT(name) FROM public.users",
        ),
        (
            "SELECT archive.item.price FROM archive.item, sales.item WHERE sales.item.id = archive.item.id",
            "SELECT a.price FROM sales.item AS s JOIN archive.item AS a ON a.id = s.id",
            "SELECT sales.item.price FROM archive.item, sales.item WHERE sales.item.id = archive.item.id",
        ),
        ("SELECT id FROM sales.item", "SELECT id FROM item", "SELECT id FROM archive.item"),
    ],
)
def test_queries_that_name_schemas_are_told_apart(gold: str, same: str, other: str) -> None:
    context = f"{PUBLIC}; {TWO}"
    assert scores(judge(gold, same, context)) == (True, True, True, False)
    assert scores(judge(gold, other, context)) == (False, False, True, False)


@pytest.mark.parametrize("name", ["dbo.users", "main.users", "public.nothing", "public.sqlite_master", "sqlite_schema"])
def test_a_schema_that_the_context_does_not_declare_is_not_there(name: str) -> None:
    verdict = judge("SELECT COUNT(*) FROM users", f"SELECT COUNT(*) FROM {name}", PUBLIC)
    assert scores(verdict) == (False, False, False, False)
    assert scores(judge(f"SELECT COUNT(*) FROM {name}", "SELECT 1", PUBLIC)) == (False, None, True, True)


def test_what_the_real_rows_lack_is_judged_on_made_up_ones(root: Path) -> None:
    file = root / "tests/material/new_pets_1.sqlite"
    context = "CREATE TABLE public.student (stuid INTEGER, age INTEGER)"
    gold = "SELECT stuid FROM student WHERE age > 20"
    verdict = judge(gold, "SELECT stuid FROM public.student WHERE age > 20.0", context, 4, file)
    assert (scores(verdict), verdict.databases) == ((False, True, True, False), 4)


# --- views --------------------------------------------------------------------------------------------------


def test_views_have_the_columns_that_sqlite_computes(engine: Callable[[str], Engine]) -> None:
    found = engine(CHAIN).schema
    assert columns(found) == {
        "users": ["id", "name", "age"],
        "pet": ["owner", "kind"],
        "keepers": ["who", "kind", "years"],
        "kinds": ["kind", "n", "years"],
        "common": ["kind"],
    }
    assert list(found.views) == ["keepers", "kinds", "common"]
    assert found.tables["keepers"].columns["years"].kind == "number"


def test_views_compute_their_rows_from_the_tables(engine: Callable[[str], Engine]) -> None:
    made = engine(CHAIN)
    made.fill({"users": [(1, "Ann", 20), (2, "Bob", 40)], "pet": [(1, "cat"), (2, "cat"), (2, "cat"), (2, "dog")]})
    assert made.run("SELECT * FROM kinds ORDER BY n").rows == [("dog", 1, 40.0), ("cat", 3, 100 / 3)]
    assert made.run("SELECT kind FROM common").rows == [("cat",)]
    made.fill({})
    assert made.run("SELECT COUNT(*) FROM keepers").rows == [(0,)]


@pytest.mark.parametrize(
    ("statements", "there"),
    [
        ("CREATE VIEW v AS SELECT * FROM nowhere", []),
        ("CREATE VIEW v AS SELECT nothing FROM users", []),
        ("CREATE VIEW v AS SELECT * FROM v", []),
        ("CREATE VIEW v AS SELECT * FROM w; CREATE VIEW w AS SELECT * FROM v", []),
        ("CREATE VIEW v AS SELECT * FROM w; CREATE VIEW w AS SELECT * FROM users", ["w", "v"]),
        ("CREATE VIEW v (a, b) AS SELECT name FROM users; CREATE VIEW w AS SELECT 1 AS a", ["w"]),
        ("CREATE VIEW users AS SELECT 1 AS a", []),
        ("CREATE VIEW v AS SELECT id FROM users; CREATE VIEW v AS SELECT name FROM users", ["v"]),
        ("CREATE VIEW v AS SELECT random() AS a", []),
        ("CREATE VIEW v AS SELECT sql FROM sqlite_master", []),
        ("CREATE VIEW v AS SELECT name FROM pragma_table_info('users')", []),
        ("CREATE VIEW v AS SELECT ? AS a", []),
        ("CREATE VIEW v AS DELETE FROM users", []),
        ("CREATE VIEW v AS", []),
        ("CREATE VIEW v", []),
        ("CREATE VIEW", []),
        ("CREATE VIEW v AS SELECT ';' AS a FROM users; SELECT 1", ["v"]),
        ('create view "my view" as select name from users -- the end', ["my view"]),
        ("CREATE MATERIALIZED VIEW v AS SELECT name FROM users\n\nCREATE TABLE z (q INT)", ["v"]),
    ],
)
def test_views_that_sqlite_can_prepare_are_there(
    engine: Callable[[str], Engine], statements: str, there: list[str]
) -> None:
    made = engine(f"{USERS} {statements}")
    assert list(made.schema.views) == there
    for name in there:
        assert made.prepare(f'SELECT COUNT(*) FROM "{name}"') is None
    assert made.prepare("SELECT name FROM users") is None


def test_views_of_schemas_are_there(engine: Callable[[str], Engine]) -> None:
    views = {
        "public.old": "SELECT name FROM public.users WHERE age > 60",
        "public.older": "SELECT name FROM users WHERE age > 80",
        "young": "SELECT name FROM public.users WHERE age < 20",
    }
    made = engine(PUBLIC + "".join(f"; CREATE VIEW {name} AS {query}" for name, query in views.items()))
    made.fill({"users": [(1, "Ann", 10), (2, "Bob", 70), (3, "Cy", 90)]})
    found = {name: made.run(f"SELECT name FROM {name}").rows for name in [*views, "old"]}
    old = [("Bob",), ("Cy",)]
    assert found == {"public.old": old, "public.older": [("Cy",)], "young": [("Ann",)], "old": old}
    assert "not allowed" in str(made.prepare("SELECT name FROM temp.sqlite_master"))


def test_a_view_of_the_only_schema_reads_tables_that_are_declared_without_one() -> None:
    context = f"{USERS} CREATE VIEW hr.adult AS SELECT name, age FROM users WHERE age >= 18"
    gold = "SELECT name FROM hr.adult WHERE age < 30"
    assert scores(judge(gold, "SELECT adult.name FROM adult WHERE 30 > hr.adult.age", context)) == (
        *(True, True, True, False),
    )
    same = judge(gold, "SELECT name FROM hr.users WHERE age < 30 AND age >= 18", context)
    assert scores(same) == (False, True, True, False)
    assert scores(judge(gold, "SELECT name FROM users WHERE age < 30", context)) == (False, False, True, False)


def test_a_script_of_sql_server_is_read() -> None:
    context = """CREATE TABLE [dbo].[Order Details] ([Order ID] int NOT NULL, [Unit Price] money)\nGO
    CREATE VIEW [dbo].[Dear Orders] AS\nSELECT [Order ID] FROM [dbo].[Order Details] WHERE [Unit Price] > 100\nGO\n"""
    pred = 'SELECT "Order ID" FROM dbo."Order Details" WHERE "Unit Price" > 100'
    assert scores(judge("SELECT [Order ID] FROM [dbo].[Dear Orders]", pred, context)) == (False, True, True, False)


def test_a_view_across_schemas_is_there_by_its_bare_name(engine: Callable[[str], Engine]) -> None:
    made = engine(f"{TWO}; CREATE VIEW sales.dear AS SELECT i.id FROM item AS i JOIN archive.item AS o ON o.id = i.id")
    made.fill({"item": [(1, 2.5), (2, 3)], "archive.item": [(1, 2, 2008)]})
    assert made.run("SELECT id FROM dear").rows == [(1,)]
    assert made.prepare("SELECT id FROM sales.dear") == "no such table: sales.dear"


@pytest.mark.parametrize(
    ("gold", "same", "other"),
    [
        (
            "SELECT name FROM adult WHERE age > 30",
            "SELECT name FROM users WHERE age >= 18 AND age > 30",
            "SELECT name FROM adult WHERE age >= 30",
        ),
        (
            "SELECT name FROM adult",
            "SELECT name FROM users WHERE NOT age < 18",
            "SELECT name FROM users WHERE age > 18",
        ),
        ("SELECT name FROM adult", "SELECT adult.name || '' FROM adult", "SELECT name FROM users"),
        (
            "SELECT name FROM adult WHERE name LIKE 'A%b'",
            "SELECT name FROM users WHERE name LIKE 'A%b' AND age > 17.999999 AND age >= 18",
            "SELECT name FROM adult WHERE name LIKE 'A%'",
        ),
    ],
)
def test_queries_on_a_view_are_told_apart(gold: str, same: str, other: str) -> None:
    assert scores(judge(gold, same, ADULT)) == (False, True, True, False)
    assert scores(judge(gold, other, ADULT)) == (False, False, True, False)


@pytest.mark.parametrize(
    ("gold", "other"),
    [
        ("SELECT kind FROM common", "SELECT kind FROM kinds WHERE n >= 2"),
        ("SELECT kind FROM kinds WHERE n > 5", "SELECT kind FROM kinds WHERE n >= 5"),
        ("SELECT who FROM keepers WHERE kind = 'cat'", "SELECT who FROM keepers"),
        ("SELECT who FROM keepers WHERE years > 40", "SELECT who FROM keepers WHERE years >= 40"),
        ("SELECT COUNT(*) FROM keepers", "SELECT COUNT(*) FROM pet"),
        ("SELECT who FROM keepers", "SELECT name FROM users"),
        ("SELECT kind, years FROM kinds", "SELECT kind, MAX(years) FROM keepers GROUP BY kind"),
    ],
)
def test_queries_on_chained_views_are_told_apart(gold: str, other: str) -> None:
    verdict = judge(gold, other, CHAIN)
    assert scores(verdict) == (False, False, True, False)
    assert verdict.vacuous is False


def test_the_columns_of_a_view_are_known_to_the_rules() -> None:
    gold = 'SELECT k.who FROM keepers AS k WHERE "kind" = "cat" ORDER BY 1'
    assert scores(judge(gold, "SELECT who FROM keepers WHERE kind = 'cat' ORDER BY who", CHAIN)) == (
        *(True, True, True, False),
    )


def test_a_view_that_no_parser_reads_still_gets_rows_in_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftlab.sql.hints.query_of_view", lambda text: None)
    made = Engine(read_schema(CHAIN))
    gold = "SELECT kind FROM common"
    named = {name for rows in databases(gold, gold, made.schema, 4) for name in rows}
    assert named == {"users", "pet"}
    assert {name for rows in databases("SELECT FROM common WHERE", gold, made.schema, 4) for name in rows} == named
    made.close()


def test_views_are_made_until_their_lookups_are_over_the_budget(engine: Callable[[str], Engine]) -> None:
    """One budget for all views together, so that many costly ones cost no more than one."""
    wide = f"SELECT name FROM users WHERE id IN ({', '.join(['age'] * (LOOKUPS // 5))})"
    found = engine(USERS + "; ".join(f"CREATE VIEW v{i} AS {wide}" for i in range(10))).schema
    assert list(found.views) == [f"v{i}" for i in range(5)]


def test_only_so_many_views_are_made(engine: Callable[[str], Engine]) -> None:
    views = "; ".join(f"CREATE VIEW v{i} AS SELECT name FROM users" for i in range(VIEWS + 50))
    assert len(engine(USERS + views).schema.views) == VIEWS


def test_a_context_of_real_rows_is_not_changed_by_views(material: Callable[[str], list[dict[str, Any]]]) -> None:
    """A view over the gold's own query returns what the gold returns."""
    judged = 0
    for row in material("sql_create_context.jsonl.gz")[::90]:
        gold = row["answer"].rstrip("; ")
        plain = judge(gold, gold, row["context"])
        if not plain.gold_broken and "ORDER" not in gold:
            verdict = judge(gold, "SELECT * FROM answers", f"{row['context']}; CREATE VIEW answers AS {gold}", 12)
            assert (verdict.exec_equal, verdict.valid) == (True, True), gold
            judged += 1
    assert judged > 15
