"""What the scores say of one pair of queries."""

from dataclasses import dataclass

# Kinds of gold queries that rates are also given for, in the order in which they are shown.
BUCKETS = ("single_table", "multi_table", "aggregate", "order", "nested")


@dataclass(frozen=True)
class Verdict:
    """The four scores of a prediction, and what a reader must know to trust them.

    `exec_equal` is None where the gold query cannot run (`gold_broken`), and where the pair could not be judged.
    `databases` is how many databases the two queries were compared on, 0 where none was needed; then `vacuous` is
    None, else it says that the gold query returned no row on any of them. `reason` is one line. `buckets` are those of
    `BUCKETS` that the gold belongs to.
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
