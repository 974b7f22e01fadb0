"""python -m ftlab compare RUN_A RUN_B [split=test] [metric=NAME] [rows=IN.jsonl]: is one better on the same rows?

RUN_A, RUN_B      run folders, or files of answers (predictions.jsonl, or written by `python -m ftlab score`)
split=validation  compare the answers that `python -m ftlab eval run=DIR split=validation` wrote last; default: test
metric=exec       one of the task's metrics (SQL: string, AST, exec, valid); default: all
rows=IN.jsonl     the file that `score` read; it has the contexts, by which the bootstrap groups rows

The table shows B minus A with a 95 % interval from a bootstrap over schemas, and the p-value of McNemar's exact test
for answers that are right or wrong. A or B is better if the interval excludes 0 and p < 0.05; otherwise the difference
is inconclusive.
"""

import json
import shlex
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftlab import tasks
from ftlab.commands import check_keys
from ftlab.errors import DataError, InputError
from ftlab.lines import read
from ftlab.metrics import Metric, name_of
from ftlab.run_dir import find_run
from ftlab.run_report import task_of
from ftlab.sql.intervals import clustered_bootstrap, mcnemar
from ftlab.tasks import Judgement, Task
from ftlab.tasks.task import rates, right
from ftlab.terminal import Terminal, span

USAGE = "python -m ftlab compare RUN_A RUN_B [split=test] [metric=NAME] [rows=IN.jsonl]"
SPLITS = {"test": "test", "validation": "eval"}  # from the value of split= to the `split` column of answers
LEVEL = 0.05

RowsById = dict[str, dict[str, Any]]  # by the id as JSON


@dataclass(frozen=True)
class Side:
    """One side of the comparison: its rows, the file that they are from, and the task that judged them."""

    file: Path
    rows: RowsById
    task: Task


@dataclass(frozen=True)
class PairedRow:
    """Both judgements of one row, and its cluster: its context or, if no contexts are known, the row itself."""

    a: Judgement
    b: Judgement
    cluster: Hashable


@dataclass(frozen=True)
class ScoreComparison:
    """One metric of A and B on the same rows; `low` and `high` are the 95 % interval of the mean of B minus that of A.
    `p` is of McNemar's test, if every row is right or wrong."""

    rows: int
    hits_a: float
    hits_b: float
    low: float
    high: float
    only_a: int = 0
    only_b: int = 0
    p: float | None = None

    @property
    def difference(self) -> float:
        """The rate of B minus the rate of A."""
        return (self.hits_b - self.hits_a) / max(1, self.rows)

    @property
    def conclusion(self) -> str:
        """Which one is better, or that the difference is inconclusive."""
        if (self.p is not None and self.p >= LEVEL) or self.low <= 0 <= self.high:
            return "inconclusive"
        return "B is better" if self.low > 0 else "A is better"


def main(arguments: dict[str, str], words: list[str]) -> int:
    """Print the comparison of two runs.

    Raises:
        InputError: a run or file cannot be used, they have no row in common, or rows with the same id differ.
    """
    check_keys("compare", arguments, ("split", "metric", "rows"))
    if len(words) != 2:
        raise InputError(f"compare needs two runs or files, got {len(words) or 'none'}: {USAGE}")
    split = arguments.get("split", "test")
    if split not in SPLITS:
        raise InputError(f"split={split} must be test or validation")
    a, b = (_side(word, split) for word in words)
    if a.task is not b.task:
        raise InputError(
            f"{a.file} holds answers of {a.task.title}, {b.file} of {b.task.title}: name two runs of one task"
        )
    metrics = _metrics(a.task, arguments.get("metric"))
    contexts = _by_id(Path(arguments["rows"]).expanduser(), "rows") if "rows" in arguments else {}
    rows, clustered = _paired(a, b, contexts)
    _show(Terminal(), a, b, rows, clustered, metrics)
    return 0


def compare(metric: str, rows: list[PairedRow]) -> ScoreComparison:
    """Compare one metric on paired rows; rows that do not count for it on both sides are left out."""
    kept = [row for row in rows if metric in row.a.hits and metric in row.b.hits]
    a, b = [row.a.hits[metric] for row in kept], [row.b.hits[metric] for row in kept]
    low, high = clustered_bootstrap(a, b, [row.cluster for row in kept])
    if not all(isinstance(hit, bool) for hit in (*a, *b)):
        return ScoreComparison(len(kept), sum(a), sum(b), low, high)
    only_a = sum(bool(x and not y) for x, y in zip(a, b, strict=True))
    only_b = sum(bool(y and not x) for x, y in zip(a, b, strict=True))
    return ScoreComparison(len(kept), sum(a), sum(b), low, high, only_a, only_b, mcnemar(only_a, only_b))


# --- what is compared ---------------------------------------------------------------------------------------


def _metrics(task: Task, asked: str | None) -> list[Metric]:
    """Return the task's rates of rows, or only the one that `asked` names by its key, its column or its short name."""
    found = rates(task)
    if asked is None:
        return found
    name = name_of(asked.lower().removeprefix("eval/").removeprefix("test/"))
    known = [metric for metric in task.metrics if metric.is_rate and metric.field]
    for metric in known:
        if name in (metric.name, metric.field, called(metric).lower()):
            return [metric]
    raise InputError(f"metric={asked} must be one of {', '.join(map(called, found))}")


def called(metric: Metric) -> str:
    """Return a metric's name for a narrow table."""
    return metric.short or metric.title.removesuffix(" match")


def _side(word: str, split: str) -> Side:
    """Return the answers of a run or a file. Raises InputError if they are not scored."""
    path = Path(word).expanduser()
    if path.is_file():
        rows = _by_id(path, "rows")
        task = next((task for task in tasks.usable() if _judged(rows, task)), None)
        if task is None:
            columns = "; ".join(", ".join(metric.field for metric in rates(each)) for each in tasks.usable())
            raise InputError(f"{path} holds no scores of its rows ({columns}): write them with python -m ftlab score")
        return Side(path, rows, task)
    run = find_run(word)
    folder, task = run.path, task_of(run)
    if task is None:
        named = "data.task in its config.yaml"
        raise InputError(f"{word}: its task ({named}) is not available here: install the package that provides it")
    own = [folder / "predictions.jsonl"] if split == "test" else []
    for file in (file for file in (*own, *run.evaluated()) if file.is_file()):
        rows = _by_id(file, "answers")
        if _judged(rows, task) and all(row.get("split") == SPLITS[split] for row in rows.values()):
            return Side(file, rows, task)
    command = shlex.join(["python", "-m", "ftlab", "eval", f"run={folder}", f"split={split}"])
    raise InputError(f"{word} holds no scored answers on {split}. Write them: {command}")


def _by_id(file: Path, what: str) -> RowsById:
    found: RowsById = {}
    for number, row in read(file):
        if "id" not in row:
            raise DataError(
                f"{file}:{number}: no id, by which {what} are paired (the row has "
                f"{', '.join(list(row)[:9]) or 'nothing'}): give each row one"
            )
        name = json.dumps(row["id"], sort_keys=True)
        if name in found:
            raise DataError(f"{file}:{number}: id {name} occurs twice, but {what} are paired by id: rename one")
        found[name] = row
    return found


def _judged(rows: RowsById, task: Task) -> bool:
    column = right(task)[0]
    return bool(rows) and all(isinstance(row.get(column), (bool, float)) for row in rows.values())


def _paired(a: Side, b: Side, contexts: RowsById) -> tuple[list[PairedRow], bool]:
    """Return the rows that both sides have, in A's order; and whether they are clustered by context."""
    shared = [name for name in a.rows if name in b.rows]
    if not shared:
        raise InputError(f"{a.file} and {b.file} have no id in common: name two files about the same rows")
    schemas = []
    for name in shared:
        sources = (a.rows[name], b.rows[name], contexts.get(name, {}))
        for field in ("gold", "context", "question"):
            _check_same(name, field, {json.dumps(row[field]) for row in sources if field in row}, a, b)
        schemas.append(next((row["context"] for row in sources if "context" in row), None))
    clustered = None not in schemas and any(schemas)
    clusters = [schema or name for schema, name in zip(schemas, shared, strict=True)] if clustered else shared
    judged = [[_judgement(side, name) for name in shared] for side in (a, b)]
    return [PairedRow(*row) for row in zip(*judged, map(json.dumps, clusters), strict=True)], clustered


def _check_same(name: str, field: str, values: set[str], a: Side, b: Side) -> None:
    if len(values) > 1:
        raise InputError(f"id {name}: its {field} differs between {a.file} and {b.file}: they are not the same rows")


def _judgement(side: Side, name: str) -> Judgement:
    try:
        return side.task.read(side.rows[name])
    except KeyError as error:
        raise DataError(
            f"{side.file}: id {name} has no {error.args[0]}: write the file with python -m ftlab score"
        ) from None


# --- what is shown ------------------------------------------------------------------------------------------


def _show(terminal: Terminal, a: Side, b: Side, rows: list[PairedRow], clustered: bool, metrics: list[Metric]) -> None:
    terminal.note(f"A  {a.file}")
    terminal.note(f"B  {b.file}")
    found = {metric: compare(metric.name, rows) for metric in metrics}
    head = ["", "A %", "B %", "B - A", "95 % CI", "A only", "B only", "p", ""]
    terminal.table(head, [_cells(called(metric), one) for metric, one in found.items()])
    terminal.note("")
    for line in _remarks(a, b, rows, clustered, found):
        terminal.note(line)


def _cells(title: str, found: ScoreComparison) -> list[str]:
    if not found.rows:
        return [title, *["-"] * 7, "no row to compare"]
    rates = [f"{100 * hits / found.rows:.1f}" for hits in (found.hits_a, found.hits_b)]
    p = "-" if found.p is None else f"{found.p:.3f}" if found.p >= 0.0005 else "<.001"
    difference = f"{100 * found.difference:+.1f}"
    return [
        *(title, *rates, difference, span((found.low, found.high), "+")),
        *((f"{found.only_a:,}", f"{found.only_b:,}") if found.p is not None else ("-", "-")),
        *(p, found.conclusion),
    ]


def _remarks(
    a: Side, b: Side, rows: list[PairedRow], clustered: bool, found: dict[Metric, ScoreComparison]
) -> Iterator[str]:
    clusters = len({row.cluster for row in rows})
    yield f"{_counted(len(rows))} in both; the bootstrap resamples " + (
        _counted(clusters, a.task.cluster)
        if clustered
        else "single rows, since no contexts are known (name the file that was scored: rows=IN.jsonl)"
    )
    for letter, side in (("A", a), ("B", b)):
        if alone := len(side.rows) - len(rows):
            yield f"{_counted(alone)} only in {letter}, left out"
    for metric, one in found.items():
        if silent := len(rows) - one.rows:
            yield f"{_counted(silent)} left out of {called(metric)}" + (f": {metric.silent}" if metric.silent else "")


def _counted(number: int, what: str = "row") -> str:
    return f"1 {what}" if number == 1 else f"{number:,} {what}s"
