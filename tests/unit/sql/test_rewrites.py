"""The canonical form against execution: what it calls equal must never give different results.

Rewrites that use only the fourteen rules must have the form of their query, and every query of that form must return
the same rows on every database. The databases and the comparison are used directly: scoring would not execute at all
where the trees are equal.
"""

import re
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest

from ftlab.sql.canonical import canonical
from ftlab.sql.databases import databases
from ftlab.sql.engine import Engine, EngineError
from ftlab.sql.parse import query, tokens
from ftlab.sql.results import Comparison
from ftlab.sql.schema import Schema, read_schema

sys.path.insert(0, str(Path(__file__).parents[2]))

from sql_mutants import analysts_golds, mutants
from sql_rewrites import rewrite

Gold = tuple[str, Schema]

CONTEXT = """
CREATE TABLE head (name VARCHAR, born_state VARCHAR, age INTEGER, head_id VARCHAR);
CREATE TABLE club (club_id VARCHAR, club_name VARCHAR, head_id VARCHAR, city VARCHAR);
CREATE TABLE coach (coach_id VARCHAR, club_id VARCHAR, wage INTEGER)
"""
QUERIES = [
    "SELECT name, age FROM head WHERE age BETWEEN 3 AND 9 AND NOT born_state IN ('Ohio', 'Utah') ORDER BY age",
    'SELECT COUNT(*) FROM head WHERE name LIKE "a%" OR born_state = "Ohio" OR born_state = "Utah"',
    "SELECT T1.club_name, T2.wage FROM club AS T1 JOIN coach AS T2 ON T1.club_id = T2.club_id WHERE T2.wage > 3",
    "SELECT a.name FROM head AS a, head AS b WHERE a.head_id <> b.head_id AND a.age >= b.age LIMIT 5 OFFSET 2",
    "SELECT * FROM club JOIN coach ON club.club_id = coach.club_id LEFT JOIN head ON head.head_id = club.head_id",
    "SELECT city, COUNT(*) AS n FROM club GROUP BY city HAVING COUNT(*) > 1 ORDER BY n DESC, city",
    "SELECT born_state AS name, SUM(age) FROM head GROUP BY born_state, head_id ORDER BY name",
    "SELECT name FROM head WHERE age > (SELECT AVG(age) FROM head) AND head_id IN (SELECT head_id FROM club)",
    "SELECT name FROM head AS h WHERE NOT EXISTS (SELECT 1 FROM club WHERE club.head_id = h.head_id)",
    "SELECT name FROM head UNION SELECT city FROM club UNION SELECT club_name FROM club",
    "SELECT name FROM head EXCEPT SELECT city FROM club WHERE NOT (city = 'x' AND club_name IS NULL)",
    "SELECT AVG(x.n) FROM (SELECT COUNT(*) AS n, city FROM club GROUP BY city) AS x WHERE x.city <> 'Rome'",
    "SELECT CAST(age AS TEXT), +age, -1 FROM head WHERE NOT age BETWEEN -1 AND 5 ORDER BY CAST(age AS TEXT) DESC",
    "WITH old AS (SELECT name FROM head WHERE age > 60) SELECT name FROM old ORDER BY name",
    "SELECT DISTINCT born_state FROM head WHERE CASE WHEN age > 3 THEN 1 ELSE 0 END = 1 ORDER BY 1",
    "SELECT club_name FROM club NATURAL JOIN coach WHERE wage = 3",
]

# What a rewrite may show that the query below has not, rule by rule.
RICH = """SELECT T1.club_name, COUNT(*) FROM club AS T1 JOIN coach AS T2 ON T1.club_id = T2.club_id
WHERE T2.wage BETWEEN 1 AND 9 AND NOT T1.city IN ('Rome', 'Bern') AND T1.city <> 'Oslo'
AND (T1.head_id = 'a' OR T1.head_id = 'b') AND NOT T1.club_name LIKE 'x%' GROUP BY T1.club_name, T1.city
ORDER BY T1.club_name LIMIT 3 OFFSET 1"""
MARKS = {
    1: [r"\bselect\b", r"/\*", r"--", r";\s*$", r"\(\(", r"\n"],
    2: [r"\[", r"`", r"CLUB_NAME"],
    3: ['"Rome"', "'Rome'"],
    4: [r"(?i)\sclub ON|club,", r"(?i)from \w+ AS \w", r"(?i)\bclub_name\b(?!\.)"],
    5: [r"(?i)GROUP BY.*\b[12]\b", r"(?i)ORDER BY\s+1", r"(?i)ORDER BY\s+[\"\[`]?out_\d"],
    6: ["!=", "==", r"'Oslo'\s*(<>|!=)"],
    7: [r"(?is)AND\s*\(.*AND.*\)"],
    8: [r"(?i)NOT\s+LIKE", r"(?i)NOT\s*\(\s*NOT", r"(?i)NOT\s+IN\b"],
    9: [r"(?i)\bIN\s*\(\s*['\"]b['\"]\s*,\s*['\"]a['\"]", r"'Bern'\s*(<>|!=)|(<>|!=)\s*'Bern'"],
    10: [r"(?i)BETWEEN", r"(?i)wage\W*<=\s*9|9\s*>=", r"(?i)wage\W*>=\s*1|1\s*<="],
    11: [r"(?i)CROSS\s+JOIN", r"(?i)INNER\s+JOIN", r"(?is)FROM.*coach.*,.*club.*WHERE", r"(?is)FROM[^=]*WHERE"],
    12: [r"(?i)\bASC\b", r"(?i)LIMIT\s+1\s*,\s*3"],
    13: [r"(?i)COUNT\s*\(\s*1\s*\)"],
    14: [r"(?i)GROUP BY\W+(\w+\W+)?city"],
}


def differ(gold: str, pred: str, schema: Schema, count: int = 8) -> str | None:
    """Why the results are not the same on some database; None where none shows a difference."""
    engine = Engine(schema)
    try:
        comparison = Comparison(gold)
        if engine.prepare(comparison.probe) is not None:
            comparison.plain()
        for rows in databases(gold, pred, schema, count):
            engine.fill(rows)
            try:
                expected = engine.run(comparison.probe)
            except EngineError:  # the gold fails on this database: nothing to compare
                continue
            try:
                found = comparison.same(expected, engine.run(pred))
            except EngineError as error:
                found = str(error)
            if found is not None:
                return found
        return None
    finally:
        engine.close()


def form(text: str, schema: Schema) -> object:
    tree = query(text)
    return None if tree is None else canonical(tree, schema)


def runs(text: str, schema: Schema) -> bool:
    engine = Engine(schema)
    try:
        return engine.prepare(text) is None
    finally:
        engine.close()


@pytest.fixture(scope="module")
def golds(material: Callable[[str], list[dict[str, Any]]]) -> list[Gold]:
    """Gold queries that run: of each source 700, half of them intricate and half at random."""
    by_source: dict[str, list[Gold]] = {}
    for row in material("sql_create_context.jsonl.gz"):
        by_source.setdefault(row["source"], []).append((row["answer"], read_schema(row["context"])))
    return [gold for rows in by_source.values() for gold in islice((row for row in rows if runs(*row)), 700)]


@pytest.fixture(scope="module")
def rewritten(golds: list[Gold]) -> list[tuple[str, str, Schema]]:
    rng = Random(7)
    return [(gold, rewrite(gold, schema, rng), schema) for gold, schema in golds]


def test_real_golds_and_their_rewrites_have_one_form(rewritten: list[tuple[str, str, Schema]]) -> None:
    assert len(rewritten) >= 2_000
    changed = sum(gold != pred for gold, pred, _ in rewritten)
    assert changed > 0.95 * len(rewritten)
    wrong = [(gold, pred) for gold, pred, schema in rewritten if not same_form(gold, pred, schema)]
    assert wrong == []


def edits(text: str, rng: Random, count: int) -> Iterator[str]:
    """Texts with some words left out, doubled, exchanged, or put in or out of parentheses."""
    words = [text[token.start : token.end + 1] for token in tokens(text)]
    for _ in range(count):
        new, at, to = list(words), *sorted(rng.choices(range(len(words)), k=2))
        match rng.randrange(5):
            case 0:
                del new[at]
            case 1:
                new.insert(at, rng.choice(words))
            case 2:
                new[at], new[to] = new[to], new[at]
            case 3:
                new[at:to] = ["(", *new[at:to], ")"]
            case 4:
                new[at : at + 3], new[to : to + 3] = new[to : to + 3], new[at : at + 3]
        if new != words:
            yield " ".join(new)


def same_form(gold: str, pred: str, schema: Schema) -> bool:
    ours = form(gold, schema)
    return ours is not None and ours == form(pred, schema)


def test_rewrites_that_change_the_plan_too_have_one_form(golds: list[Gold]) -> None:
    """Where SQLite may choose what it returns, execution cannot be compared, but the rules hold all the same."""
    rng = Random(8)
    pairs = [(gold, rewrite(gold, schema, rng, keep_choice=False), schema) for gold, schema in golds[::2]]
    assert [(gold, pred) for gold, pred, schema in pairs if not same_form(gold, pred, schema)] == []


def test_execution_never_contradicts_a_rewrite(rewritten: list[tuple[str, str, Schema]]) -> None:
    """The property that makes an equal tree a verdict on results: on at least 2,000 real golds."""
    wrong = [(gold, pred, found) for gold, pred, schema in rewritten if (found := differ(gold, pred, schema))]
    assert wrong == []


def test_golds_of_analysts_and_their_rewrites_are_equal_by_form_and_results() -> None:
    """The same on queries with ratios, ages, CASE, text functions and offsets."""
    rng = Random(11)
    golds = [(gold, read_schema(context)) for context, gold in analysts_golds()]
    pairs = [(gold, rewrite(gold, schema, rng), schema) for gold, schema in golds]
    assert len(pairs) >= 150
    assert sum(gold != pred for gold, pred, _ in pairs) > 0.95 * len(pairs)
    assert [(gold, pred) for gold, pred, schema in pairs if not same_form(gold, pred, schema)] == []
    assert [(gold, pred, found) for gold, pred, schema in pairs if (found := differ(gold, pred, schema, 20))] == []


def test_no_edited_query_of_the_same_form_gives_other_results(golds: list[Gold]) -> None:
    """The converse: of texts that were edited at random, and so may mean anything, some have the form of the gold."""
    rng = Random(9)
    judged = equal = 0
    wrong = []
    for gold, schema in (one for one in golds[::3] if not re.search(r"\b(GROUP|LIMIT)\b", one[0])):
        ours = form(gold, schema)
        for edited in edits(gold, rng, 8):
            judged += 1
            if runs(edited, schema) and form(edited, schema) == ours:
                equal += 1
                if found := differ(gold, edited, schema, 6):
                    wrong.append((gold, edited, found))
    assert judged > 2_000
    assert 0.02 * judged < equal < 0.5 * judged
    assert wrong == []


def test_mutants_have_another_form(golds: list[Gold]) -> None:
    """A mutant's edit counts, by design; one of the gold's form must at least give the gold's results."""
    rng = Random(10)
    judged = [
        (gold, mutant, schema) for gold, schema in golds[::30] for _, mutant in islice(mutants(gold, schema, rng), 8)
    ]
    same = [pair for pair in judged if same_form(*pair)]
    assert len(judged) > 400
    assert len(same) < 0.02 * len(judged)
    assert [pair for pair in same if differ(*pair)] == []


@pytest.mark.parametrize("gold", QUERIES)
def test_rewrites_of_a_query_are_equal_in_form_and_results(gold: str) -> None:
    schema = read_schema(CONTEXT)
    rng = Random(gold)
    rewrites = {rewrite(gold, schema, rng) for _ in range(40)}
    assert len(rewrites) > 30
    for pred in rewrites:
        assert runs(pred, schema), pred
        assert same_form(gold, pred, schema), pred
    for pred in sorted(rewrites)[:10]:
        assert differ(gold, pred, schema, 16) is None, pred


@pytest.fixture(scope="module")
def rich_rewrites() -> list[str]:
    return [rewrite(RICH, read_schema(CONTEXT), Random(seed)) for seed in range(200)]


@pytest.mark.parametrize("number", MARKS)
def test_every_rule_is_used_often(number: int, rich_rewrites: list[str]) -> None:
    for mark in MARKS[number]:
        assert sum(re.search(mark, text) is not None for text in rich_rewrites) >= 5, mark


def test_a_seed_always_gives_the_same_rewrite() -> None:
    schema = read_schema(CONTEXT)
    assert rewrite(RICH, schema, Random(3)) == rewrite(RICH, schema, Random(3)) != rewrite(RICH, schema, Random(4))
