"""Metrics of many judgements: rates with their 95 % intervals, over all rows and by kind of row, and counts."""

from collections.abc import Iterable, Sequence

from ftlab.metrics import Metric
from ftlab.tasks.task import Judgement, Scored

RESAMPLES = 2_000  # bootstrap resamples for the interval of a mean whose values are not only 0 and 1


def score(
    prefix: str, judgements: Sequence[Judgement], metrics: Iterable[Metric], buckets: Sequence[str] = ()
) -> Scored:
    """Compute each metric that has a column of predictions.jsonl (`field`): rates as means over the rows that count for
    it, counts as sums. A rate without rows is 0; buckets without rows are left out."""
    counted = [metric for metric in metrics if metric.field]
    rates = [metric for metric in counted if metric.is_rate]
    found: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for bucket in ("", *buckets):
        rows = [row for row in judgements if not bucket or bucket in row.buckets]
        for metric in (metric for metric in rates if metric.by_bucket or not bucket):
            mine = [row for row in rows if metric.name in row.hits]
            if mine or not bucket:
                key = f"{prefix}/{metric.name}" + (f"/{bucket}" if bucket else "")
                found[key], intervals[key] = mean(metric.name, mine)
    for metric in (metric for metric in counted if metric.unit == "count"):
        found[f"{prefix}/{metric.name}"] = float(sum(row.hits.get(metric.name, 0) for row in judgements))
    return found, intervals


def mean(name: str, rows: Sequence[Judgement]) -> tuple[float, tuple[float, float]]:
    """Return the mean of a rate over rows and its 95 % interval: Wilson's if every value is 0 or 1, else that of a
    bootstrap over clusters of rows."""
    from ftlab.sql.intervals import clustered_bootstrap, wilson

    values = [row.hits[name] for row in rows]
    total = sum(values)
    if all(value in (0, 1) for value in values):
        return total / max(1, len(values)), wilson(int(total), len(values))
    low, high = clustered_bootstrap([0.0] * len(rows), values, [row.cluster for row in rows], RESAMPLES)
    return total / len(values), (max(0.0, low), min(1.0, high))
