"""The fourteen rules, each with what it makes equal, and what counts nevertheless."""

from itertools import pairwise

import pytest

from ftlab.sql.canonical import canonical
from ftlab.sql.parse import query
from ftlab.sql.schema import read_schema

CONTEXT = """
CREATE TABLE head (name VARCHAR, born_state VARCHAR, age INTEGER, head_id VARCHAR);
CREATE TABLE club (club_id VARCHAR, club_name VARCHAR, head_id VARCHAR, city VARCHAR);
CREATE TABLE coach (coach_id VARCHAR, club_id VARCHAR, wage INTEGER)
"""
SCHEMA = read_schema(CONTEXT)


def form(text: str) -> object:
    tree = query(text)
    assert tree is not None, text
    return canonical(tree, SCHEMA)


EQUAL = [
    ("SELECT name FROM head WHERE age > 3", "select /* x */ (name) from head where ((age > (3)));", 1),
    ("SELECT name FROM head WHERE age - (1 + 2) > 3", "SELECT name FROM head WHERE (age - (1 + 2)) > 3", 1),
    ("SELECT * FROM club JOIN coach ON 1 = 1", "SELECT * FROM (club JOIN coach ON 1 = 1)", 1),
    ("SELECT name FROM head", 'SELECT [NAME] FROM "Head"', 2),
    ("SELECT name FROM head", "SELECT `name` FROM HEAD", 2),
    ("SELECT name FROM head WHERE born_state = 'Ohio'", 'SELECT name FROM head WHERE born_state = "Ohio"', 3),
    ("SELECT name FROM head WHERE born_state = name", 'SELECT name FROM head WHERE born_state = "Name"', 3),
    ("SELECT h.name FROM head AS h", "SELECT name FROM head x", 4),
    (
        "SELECT a.name FROM head a JOIN head b ON a.age < b.age WHERE b.name = 'x'",
        "SELECT q.name FROM head p JOIN head q ON p.age > q.age WHERE p.name = 'x'",
        4,
    ),
    (
        "SELECT name FROM head WHERE EXISTS (SELECT 1 FROM club WHERE club.head_id = head.head_id)",
        "SELECT name FROM head AS h WHERE EXISTS (SELECT 1 FROM club AS c WHERE h.head_id = c.head_id)",
        4,
    ),
    ("WITH x AS (SELECT age FROM head) SELECT age FROM x", "WITH y AS (SELECT age FROM head) SELECT y.age FROM y", 4),
    ("SELECT x.n FROM (SELECT name AS n FROM head) x", "SELECT m FROM (SELECT name AS m FROM head) AS y", 5),
    ("SELECT name FROM (SELECT name FROM head) x", "SELECT x.name FROM (SELECT (name) FROM head) AS x", 5),
    (
        "SELECT COUNT(*) AS n FROM head GROUP BY name ORDER BY n",
        "SELECT COUNT(*) FROM head GROUP BY name ORDER BY 1",
        5,
    ),
    ("SELECT name, COUNT(*) FROM head GROUP BY 1", "SELECT name AS x, COUNT(*) FROM head GROUP BY x", 5),
    ("SELECT * FROM head ORDER BY 3", "SELECT * FROM head ORDER BY age", 5),
    ("SELECT age AS name FROM head ORDER BY name", "SELECT age FROM head ORDER BY age", 5),
    ("SELECT age AS name FROM head GROUP BY name", "SELECT age FROM head GROUP BY head.name", 5),
    (
        "SELECT name FROM head UNION SELECT city FROM club ORDER BY name",
        "SELECT name AS x FROM head UNION SELECT city FROM club ORDER BY 1",
        5,
    ),
    ("SELECT name FROM head WHERE age != 3 AND name == 'x'", "SELECT name FROM head WHERE 3 <> age AND 'x' = name", 6),
    ("SELECT name FROM head WHERE age >= 3 AND age < 9", "SELECT name FROM head WHERE 3 <= age AND 9 > age", 6),
    (
        "SELECT name FROM head WHERE age > 1 AND (age < 9 AND name = 'x')",
        "SELECT name FROM head WHERE (name = 'x' AND age > 1) AND (age < 9 AND age > 1)",
        7,
    ),
    ("SELECT name FROM head WHERE age > 1 OR age > 1", "SELECT name FROM head WHERE age > 1", 7),
    ("SELECT name FROM head WHERE NOT age = 3", "SELECT name FROM head WHERE age <> 3", 8),
    ("SELECT name FROM head WHERE NOT name LIKE 'a%'", "SELECT name FROM head WHERE name NOT LIKE 'a%'", 8),
    (
        "SELECT name FROM head WHERE NOT name LIKE 'a%' ESCAPE '!'",
        "SELECT name FROM head WHERE name NOT LIKE 'a%' ESCAPE '!'",
        8,
    ),
    ("SELECT name FROM head WHERE NOT age IN (1, 2)", "SELECT name FROM head WHERE age NOT IN (2, 1)", 8),
    ("SELECT name FROM head WHERE NOT age BETWEEN 1 AND 2", "SELECT name FROM head WHERE age NOT BETWEEN 1 AND 2", 8),
    ("SELECT name FROM head WHERE NOT age IS NULL", "SELECT name FROM head WHERE age IS NOT NULL", 8),
    (
        "SELECT name FROM head WHERE NOT (age = 3 AND NOT name = 'x')",
        "SELECT name FROM head WHERE name = 'x' OR age <> 3",
        8,
    ),
    ("SELECT name FROM head WHERE age IN (2, 1, 2)", "SELECT name FROM head WHERE age IN (1, 2)", 9),
    ("SELECT name FROM head WHERE age = 1 OR 2 = age", "SELECT name FROM head WHERE age IN (1, 2)", 9),
    ("SELECT name FROM head WHERE age IN (1)", "SELECT name FROM head WHERE age = 1", 9),
    ("SELECT name FROM head WHERE age = -1 OR age IN (3, 2)", "SELECT name FROM head WHERE age IN (-1, 2, 3)", 9),
    ("SELECT name FROM head WHERE age IN (1 + 1)", "SELECT name FROM head WHERE 1 + 1 = age", 9),
    ("SELECT name FROM head WHERE '1' IN (1)", "SELECT name FROM head WHERE 1 = '1'", 9),
    ("SELECT name FROM head WHERE (age & 1) = 1", "SELECT name FROM head WHERE age & 1 = 1", 1),
    ("SELECT name FROM head WHERE name LIKE ('a' || 'b')", "SELECT name FROM head WHERE name LIKE 'a' || 'b'", 1),
    ("SELECT name FROM head WHERE age BETWEEN 1 AND 2", "SELECT name FROM head WHERE age >= 1 AND 2 >= age", 10),
    ("SELECT name FROM head WHERE NOT age BETWEEN 1 AND 2", "SELECT name FROM head WHERE age < 1 OR age > 2", 10),
    (
        "SELECT T1.club_name FROM club AS T1 JOIN coach AS T2 ON T1.club_id = T2.club_id WHERE T2.wage > 3",
        "SELECT club_name FROM coach, club WHERE wage > 3 AND club.club_id = coach.club_id",
        11,
    ),
    (
        "SELECT wage FROM club CROSS JOIN coach WHERE club.club_id = coach.club_id",
        "SELECT wage FROM club INNER JOIN coach ON club.club_id = coach.club_id",
        11,
    ),
    (
        "SELECT wage FROM club LEFT OUTER JOIN coach ON club.club_id = coach.club_id",
        "SELECT wage FROM club c LEFT JOIN coach d ON d.club_id = c.club_id",
        11,
    ),
    ("SELECT name FROM head ORDER BY age ASC", "SELECT name FROM head ORDER BY age", 12),
    ("SELECT name FROM head LIMIT 2 OFFSET 3", "SELECT name FROM head LIMIT 3, 2", 12),
    ("SELECT COUNT(1) FROM head", "SELECT count(*) FROM head", 13),
    ("SELECT age FROM head GROUP BY name, age", "SELECT age FROM head GROUP BY age, name, age", 14),
    (
        "SELECT name FROM head UNION SELECT city FROM club UNION SELECT club_name FROM club",
        "SELECT club_name FROM club UNION SELECT name FROM head UNION SELECT city FROM club",
        14,
    ),
    (
        "SELECT name FROM head INTERSECT SELECT city FROM club",
        "SELECT city FROM club INTERSECT SELECT name FROM head",
        14,
    ),
    ("SELECT name FROM head UNION SELECT age FROM head", "SELECT age FROM head UNION SELECT name FROM head", 14),
    (
        "SELECT age FROM head WHERE name IN (SELECT city FROM club UNION SELECT club_name FROM club)",
        "SELECT age FROM head WHERE name IN (SELECT club_name FROM club UNION SELECT city FROM club)",
        14,
    ),
]


@pytest.mark.parametrize(("one", "other", "rule"), EQUAL)
def test_a_rule_makes_equal(one: str, other: str, rule: int) -> None:
    assert form(one) is not None
    assert form(one) == form(other)


DIFFERENT = [
    ("SELECT name, age FROM head", "SELECT age, name FROM head"),
    ("SELECT DISTINCT name FROM head", "SELECT name FROM head"),
    ("SELECT COUNT(DISTINCT name) FROM head", "SELECT COUNT(name) FROM head"),
    ("SELECT name FROM head WHERE age = 5", "SELECT name FROM head WHERE age = 5.0"),
    ("SELECT name FROM head WHERE age = 5", "SELECT name FROM head WHERE age = '5'"),
    ("SELECT name FROM head WHERE name = 'Ohio'", "SELECT name FROM head WHERE name = 'ohio'"),
    # To SQLite "city" is text here, but it names a column of the context: rule 3 does not make it a literal.
    ("SELECT name FROM head WHERE born_state = 'city'", 'SELECT name FROM head WHERE born_state = "city"'),
    ("SELECT name FROM head LIMIT 2", "SELECT name FROM head"),
    ("SELECT name FROM head LIMIT 2", "SELECT name FROM head LIMIT 2 OFFSET 0"),
    ("SELECT name FROM head ORDER BY age", "SELECT name FROM head ORDER BY age DESC"),
    ("SELECT name FROM head ORDER BY age, name", "SELECT name FROM head ORDER BY name, age"),
    ("SELECT name FROM head EXCEPT SELECT city FROM club", "SELECT city FROM club EXCEPT SELECT name FROM head"),
    ("SELECT name FROM head UNION SELECT city FROM club", "SELECT name FROM head UNION ALL SELECT city FROM club"),
    # What the outputs are compared with is converted by the type of one of the operands, which is not said of which.
    *(
        (
            f"SELECT wage FROM coach WHERE club_id IN ({one} {operator} {other})",
            f"SELECT wage FROM coach WHERE club_id IN ({other} {operator} {one})",
        )
        for operator in ("UNION", "INTERSECT")
        for one, other in (
            ("SELECT name FROM head", "SELECT age FROM head"),
            ("SELECT age FROM head", "SELECT 1"),
            ("SELECT name FROM head", "SELECT 'a'"),
            ("SELECT CAST(age AS TEXT) FROM head", "SELECT age FROM head"),
            ("SELECT x FROM nowhere", "SELECT age FROM head"),
        )
    ),
    (
        "SELECT x FROM (SELECT name AS x FROM head UNION SELECT age FROM head) WHERE x < 5",
        "SELECT x FROM (SELECT age AS x FROM head UNION SELECT name FROM head) WHERE x < 5",
    ),
    (
        "SELECT wage FROM club LEFT JOIN coach ON club.club_id = coach.club_id AND wage > 3",
        "SELECT wage FROM club LEFT JOIN coach ON club.club_id = coach.club_id WHERE wage > 3",
    ),
    (
        "SELECT wage FROM club LEFT JOIN coach ON club.club_id = coach.club_id",
        "SELECT wage FROM club JOIN coach ON club.club_id = coach.club_id",
    ),
    (
        "SELECT city FROM club LEFT JOIN coach ON club.club_id = coach.club_id",
        "SELECT city FROM coach LEFT JOIN club ON club.club_id = coach.club_id",
    ),
    ("SELECT * FROM club, coach", "SELECT * FROM coach, club"),
    ("SELECT club.* FROM club, coach", "SELECT club.* FROM coach, club"),
    (
        "SELECT a.name FROM head a JOIN head b ON a.age < b.age",
        "SELECT b.name FROM head a JOIN head b ON a.age < b.age",
    ),
    ("SELECT COUNT(2) FROM head", "SELECT COUNT(*) FROM head"),
    ("SELECT IFNULL(name, 'x') FROM head", "SELECT COALESCE(name, 'x') FROM head"),
    ("SELECT CAST(name AS STRING) FROM head", "SELECT CAST(name AS TEXT) FROM head"),
    ("SELECT +age FROM head", "SELECT age FROM head"),
    ("SELECT name FROM head WHERE age - 1 - 2 > 3", "SELECT name FROM head WHERE age - (1 - 2) > 3"),
    ("SELECT name FROM head WHERE (age = 1) = 1", "SELECT name FROM head WHERE age = (1 = 1)"),
    ("SELECT age AND age FROM head", "SELECT age FROM head"),
    ("SELECT name FROM head WHERE NOT NOT age", "SELECT name FROM head WHERE NOT age"),
    ("SELECT name FROM head WHERE age IN (head_id)", "SELECT name FROM head WHERE age = head_id"),
    (
        "SELECT name FROM head WHERE head_id IN (SELECT head_id FROM club)",
        "SELECT name FROM head WHERE head_id IN ((SELECT head_id FROM club))",
    ),
    ("SELECT name FROM head WHERE age IS 3", "SELECT name FROM head WHERE age = 3"),
    ("SELECT name FROM head HAVING COUNT(*) > 1", "SELECT name FROM head WHERE COUNT(*) > 1"),
    (
        "SELECT x.n FROM (SELECT name AS n, age AS m FROM head) x",
        "SELECT x.m FROM (SELECT name AS n, age AS m FROM head) x",
    ),
    (
        "SELECT name FROM head WHERE age = 1 AND age = 2 OR age = 3",
        "SELECT name FROM head WHERE age = 1 AND (age = 2 OR age = 3)",
    ),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_everything_else_counts(one: str, other: str) -> None:
    assert form(one) is not None
    assert form(one) != form(other)


RISKY = [
    # A WITH inside hides the names of the one outside, but its own tables are distinguished.
    (
        "WITH x AS (SELECT name FROM head) SELECT * FROM "
        "(WITH x AS (SELECT city AS p FROM club), y AS (SELECT club_name AS p FROM club) SELECT p FROM x)",
        "WITH x AS (SELECT name FROM head) SELECT * FROM "
        "(WITH x AS (SELECT city AS p FROM club), y AS (SELECT club_name AS p FROM club) SELECT p FROM y)",
    ),
    # A common table expression sees those after it.
    (
        "WITH q AS (SELECT age FROM head), head AS (SELECT 1 AS age) SELECT * FROM q",
        "WITH q AS (SELECT age FROM head), z AS (SELECT 1 AS age) SELECT * FROM q",
    ),
    # A column without an alias is called by its expression's text.
    ('SELECT "COUNT(*)" FROM (SELECT COUNT(*) FROM head) x', "SELECT 'COUNT(*)' FROM (SELECT COUNT(*) FROM head) x"),
    ('SELECT "max" FROM (SELECT MAX(age) FROM head) x', "SELECT m FROM (SELECT MAX(age) AS m FROM head) x"),
    # SQLite looks for the output behind COLLATE.
    ("SELECT name AS age FROM head ORDER BY age COLLATE NOCASE", "SELECT name FROM head ORDER BY age COLLATE NOCASE"),
    (
        "SELECT name FROM head WHERE name COLLATE NOCASE = born_state COLLATE BINARY",
        "SELECT name FROM head WHERE born_state COLLATE BINARY = name COLLATE NOCASE",
    ),
    ("SELECT name FROM head WHERE age = .5", "SELECT name FROM head WHERE age = 0.5"),
]


@pytest.mark.parametrize(("one", "other"), RISKY)
def test_what_sqlite_reads_otherwise_is_not_called_equal(one: str, other: str) -> None:
    first = form(one)
    assert first is None or first != form(other)


def test_a_long_chain_needs_no_recursion() -> None:
    either = " OR ".join(f"age = {i}" for i in range(900))
    assert form(f"SELECT name FROM head WHERE {either}") == form(
        f"SELECT name FROM head WHERE age IN ({', '.join(map(str, range(900)))})"
    )


@pytest.mark.parametrize("copies", [2, 3, 4])
def test_a_table_joined_with_itself_has_one_form_whatever_its_aliases(copies: int) -> None:
    def chain(names: list[str], order: list[str]) -> str:
        tables = ", ".join(f"head AS {name}" for name in order)
        links = " AND ".join(f"{a}.age < {b}.age" for a, b in pairwise(names))
        return f"SELECT {names[0]}.name FROM {tables} WHERE {links}"

    names = [f"t{i}" for i in range(copies)]
    assert form(chain(names, names)) == form(chain(names[::-1], names)) == form(chain(names, names[::-1]))
