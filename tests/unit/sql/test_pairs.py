"""Pairs that other evaluators judge wrongly, after public bug reports: each is judged correctly here."""

import json
from pathlib import Path
from typing import Any

import pytest

from ftlab.sql.judge import judge

PAIRS = Path(__file__).parents[2] / "material/sql_pairs.jsonl"


def pairs() -> list[Any]:
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    return [pytest.param(row, id=row["id"]) for row in rows]


@pytest.mark.parametrize("row", pairs())
def test_a_pair_of_a_known_kind_is_judged_right(row: dict[str, Any]) -> None:
    verdict = judge(row["gold"], row["pred"], row["context"])
    assert {name: getattr(verdict, name) for name in row["want"]} == row["want"]


def test_every_kind_is_there() -> None:
    assert len(pairs()) == 24
