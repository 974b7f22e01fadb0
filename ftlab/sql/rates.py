"""Verdicts of many pairs as rates: each score with its hits, its rows and its interval, over all and by bucket."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ftlab.sql.intervals import wilson
from ftlab.sql.verdict import BUCKETS, Verdict

# The four scores by the verdict's field, in the order in which they are shown.
SCORES = {"exact_string": "string", "ast_equal": "AST", "exec_equal": "exec", "valid": "valid"}

# What is written of a verdict, in the order of the output's lines.
RECORDED = ("exact_string", "ast_equal", "exec_equal", "valid", "vacuous", "gold_broken", "databases", "reason")


@dataclass(frozen=True)
class Rate:
    """`hits` of `rows`."""

    hits: int
    rows: int

    @property
    def value(self) -> float:
        """The share of hits; 0 where there is no row."""
        return self.hits / max(1, self.rows)

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % Wilson interval."""
        return wilson(self.hits, self.rows)


def rate(field: str, verdicts: Iterable[Verdict]) -> Rate:
    """The rate of one score, a key of `SCORES`. `exec_equal` counts only rows whose gold ran and returned rows."""
    judged = [bool(getattr(verdict, field)) for verdict in verdicts if counts(field, verdict)]
    return Rate(sum(judged), len(judged))


def counts(field: str, verdict: Verdict) -> bool:
    """Whether a row belongs to the rows of a score: a broken or vacuous gold says nothing of `exec_equal`."""
    return field != "exec_equal" or (verdict.exec_equal is not None and not verdict.vacuous)


def by_bucket(verdicts: Iterable[Verdict]) -> Iterator[tuple[str, list[Verdict]]]:
    """The verdicts of each kind of gold that has rows, in the order of `BUCKETS`."""
    verdicts = list(verdicts)
    for bucket in BUCKETS:
        mine = [verdict for verdict in verdicts if bucket in verdict.buckets]
        if mine:
            yield bucket, mine


def recorded(verdict: Verdict, prefix: str = "") -> dict[str, Any]:
    """A verdict as fields of a row, each name after `prefix`."""
    return {prefix + name: getattr(verdict, name) for name in RECORDED}


def read_back(row: dict[str, Any], prefix: str = "") -> Verdict:
    """The verdict that `recorded` wrote into a row, its buckets apart. Raises KeyError where there is none."""
    return Verdict(**{name: row[prefix + name] for name in RECORDED})
