"""The exact-string score, by its examples."""

from collections.abc import Callable
from typing import Any

import pytest

from ftlab.sql import exact_string

GOLD = 'SELECT name FROM city WHERE motto = "a  b;"'


@pytest.mark.parametrize(
    ("gold", "pred", "equal"),
    [
        (GOLD, GOLD, True),
        (GOLD, '  SELECT name\n\tFROM city  WHERE motto = "a  b;" ; ;\n', True),
        (GOLD, 'SELECT name FROM city WHERE motto = "a b;"', False),
        (GOLD, 'SELECT name FROM city WHERE motto = "a  b"', False),
        (GOLD, 'select name FROM city WHERE motto = "a  b;"', False),
        (GOLD, "SELECT name FROM city WHERE motto = 'a  b;'", False),
        (GOLD, 'SELECT name FROM city WHERE motto="a  b;"', False),
        (GOLD, f"```sql\n{GOLD}\n```", False),
        ("SELECT 'it''s  x'", "SELECT  'it''s  x'", True),
        ("SELECT 'it''s  x'", "SELECT 'it''s x'", False),
        ("SELECT [a  b], `c  d`", "SELECT [a  b],  `c  d`", True),
        ("SELECT [a  b]", "SELECT [a b]", False),
        ("SELECT 'open  ", "SELECT 'open ", False),
        ("SELECT a", "SELECT\u00a0a", False),
        ("SELECT a", "\fSELECT\r\n\t a\f", True),
        ("SELECT a", "SELECT\va", False),
        ("SELECT a", "SELECT a\v", False),
        ("SELECT a", "SELECT a; -- end", False),
        ("SELECT 1", "", False),
        ("", "", False),
        ("", ";", False),
        ("SELECT 1", None, False),
    ],
)
def test_verdicts(gold: str, pred: object, equal: bool) -> None:
    assert exact_string(gold, pred) is equal


@pytest.mark.parametrize("pred", ["x", "", None])
def test_a_gold_that_is_no_text_is_refused_in_clear_words(pred: object) -> None:
    with pytest.raises(TypeError, match=r"gold must be text \(str\), not NoneType"):
        exact_string(None, pred)  # type: ignore[arg-type]


def test_verdicts_of_the_labelled_examples(material: Callable[[str], list[dict[str, Any]]]) -> None:
    rows = material("sql_examples.jsonl")
    wrong = [row["id"] for row in rows if exact_string(row["gold"], row["pred"]) != row["exact_string"]]
    assert len(rows) == 42
    assert wrong == []


def test_a_long_answer_of_quotes_is_read_in_linear_time() -> None:
    assert not exact_string("SELECT 1", "'" * 200_001 + '"[' * 50_000)
