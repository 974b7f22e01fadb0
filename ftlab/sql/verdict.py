"""The scores of one pair of queries: a gold query and a prediction."""

from dataclasses import dataclass

# Kinds of gold queries for which rates are also reported, in the order in which they are shown.
BUCKETS = ("single_table", "multi_table", "aggregate", "order", "nested")


@dataclass(frozen=True)
class Verdict:
    """The four scores of a prediction, and how far to trust them.

    `exec_equal` is None if the gold query cannot run (`gold_broken`) or the pair could not be judged. `databases` is
    the number of databases on which the two queries were compared. If none was needed it is 0 and `vacuous` is None;
    else `vacuous` says whether the gold query returned no row on any of them. `reason` is one line. `buckets` are the
    members of `BUCKETS` to which the gold query belongs.
    """

    exact_string: bool
    ast_equal: bool
    exec_equal: bool | None
    valid: bool
    vacuous: bool | None
    gold_broken: bool
    databases: int
    reason: str
    buckets: tuple[str, ...] = ()
