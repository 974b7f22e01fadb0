"""Rates over many verdicts: hits, rows and interval of each score, over all rows and by bucket."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ftlab.sql.intervals import wilson
from ftlab.sql.verdict import BUCKETS, Verdict

# The titles of the four scores by the verdict's field, in the order in which they are shown.
SCORES = {"exact_string": "string", "ast_equal": "AST", "exec_equal": "exec", "valid": "valid"}

# The fields of a verdict that are written to files, in this order.
RECORDED = ("exact_string", "ast_equal", "exec_equal", "valid", "vacuous", "gold_broken", "databases", "reason")


@dataclass(frozen=True)
class Rate:
    """`hits` of `rows`."""

    hits: int
    rows: int

    @property
    def value(self) -> float:
        """The share of hits; 0 without rows."""
        return self.hits / max(1, self.rows)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the rate."""
        return wilson(self.hits, self.rows)


def rate(field: str, verdicts: Iterable[Verdict]) -> Rate:
    """The rate of one score, a key of `SCORES`. For `exec_equal` only rows count whose gold query returned rows."""
    judged = [bool(getattr(verdict, field)) for verdict in verdicts if counts(field, verdict)]
    return Rate(sum(judged), len(judged))


def counts(field: str, verdict: Verdict) -> bool:
    """Whether a row counts for a score: `exec_equal` is undefined for a broken or vacuous gold query."""
    return field != "exec_equal" or (verdict.exec_equal is not None and not verdict.vacuous)


def by_bucket(verdicts: Iterable[Verdict]) -> Iterator[tuple[str, list[Verdict]]]:
    """The verdicts of each bucket that has any, in the order of `BUCKETS`."""
    verdicts = list(verdicts)
    for bucket in BUCKETS:
        mine = [verdict for verdict in verdicts if bucket in verdict.buckets]
        if mine:
            yield bucket, mine


def recorded(verdict: Verdict, prefix: str = "") -> dict[str, Any]:
    """A verdict as fields of a row, with `prefix` before each name."""
    return {prefix + name: getattr(verdict, name) for name in RECORDED}


def read_back(row: dict[str, Any], prefix: str = "") -> Verdict:
    """The verdict that `recorded` wrote into a row, without buckets. Raises KeyError if a field is missing."""
    return Verdict(**{name: row[prefix + name] for name in RECORDED})
