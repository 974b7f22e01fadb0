"""Scores of SQL answers. Needs neither torch nor Hydra and can be used alone.

`exact_string`, `ast_equal`, `exec_equal` and `valid` are the scores that docs/metrics.md defines; `Scorer` computes all
of them at once, with reasons. All work that needs SQLite or a parser runs in a separate process, so that no prediction
can harm the caller.
"""

from ftlab.sql.extract import extract
from ftlab.sql.intervals import clustered_bootstrap, mcnemar, wilson
from ftlab.sql.scorer import Scorer, shared_scorer
from ftlab.sql.strict import exact_string
from ftlab.sql.verdict import Verdict

__all__ = [
    "Scorer",
    "Verdict",
    "ast_equal",
    "clustered_bootstrap",
    "exact_string",
    "exec_equal",
    "extract",
    "mcnemar",
    "shared_scorer",
    "valid",
    "wilson",
]


def ast_equal(gold: str, pred: object, context: str) -> bool:
    """Whether two queries over the tables of a context have the same canonical tree."""
    return shared_scorer().score(gold, pred, context).ast_equal


def exec_equal(gold: str, pred: object, context: str) -> bool | None:
    """Whether two queries give the same result on every database that was tried; None if the gold query cannot run."""
    return shared_scorer().score(gold, pred, context).exec_equal


def valid(pred: object, context: str) -> bool:
    """Whether a text is a single read-only query that SQLite can prepare on the tables of a context."""
    return shared_scorer().score("SELECT 1", pred, context).valid
