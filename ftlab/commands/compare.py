"""python -m ftlab compare RUN_A RUN_B [split=test] [metric=NAME] [rows=IN.jsonl]: is one better on the same rows?

RUN_A, RUN_B      run folders, or files of `python -m ftlab score` or of answers (predictions.jsonl)
split=validation  the answers that `python -m ftlab eval run=DIR split=validation` wrote last; default: test
metric=exec       one of string, AST, exec and valid; default: all
rows=IN.jsonl     the file that `score` read, for contexts: rows of one schema are drawn together

The difference is B less A, with a 95 % interval from a bootstrap over schemas, and McNemar's exact p. One is called
better where the interval leaves out 0 and p < 0.05; anything else is noise.
"""

import json
import shlex
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftlab.commands import check_keys
from ftlab.errors import DataError, InputError
from ftlab.lines import read
from ftlab.run_dir import find_run
from ftlab.sql.intervals import clustered_bootstrap, mcnemar
from ftlab.sql.rates import RECORDED, SCORES, counts, read_back
from ftlab.sql.verdict import Verdict
from ftlab.terminal import Terminal, span

USAGE = "python -m ftlab compare RUN_A RUN_B [split=test] [metric=NAME] [rows=IN.jsonl]"
SPLITS = {"test": "test", "validation": "eval"}  # by the word for it, what its answers are marked with
# Every name under which a score is known, and its field.
KEYS = {"exact_string": "sql_string_match", "ast_equal": "sql_ast_match", "exec_equal": "sql_exec_match"}
METRICS = {
    **{title.lower(): field for field, title in SCORES.items()},
    **{field: field for field in SCORES},
    **{key: field for field, key in KEYS.items()},
    **{"sql_exact_match": "ast_equal", "sql_valid": "valid"},
}
LEVEL = 0.05

RowsById = dict[str, dict[str, Any]]  # by the id as JSON


@dataclass(frozen=True)
class Side:
    """The rows of one of the two, and the file that they are from."""

    file: Path
    rows: RowsById


@dataclass(frozen=True)
class PairedRow:
    """Both verdicts on one row, and the schema or, without schemas, the row that it counts as one with."""

    a: Verdict
    b: Verdict
    cluster: Hashable


@dataclass(frozen=True)
class ScoreComparison:
    """One score of A and B on the same rows; `low` and `high` bound the rate of B less that of A."""

    rows: int
    hits_a: int
    hits_b: int
    low: float
    high: float
    only_a: int
    only_b: int
    p: float

    @property
    def difference(self) -> float:
        """The rate of B less the rate of A."""
        return (self.hits_b - self.hits_a) / max(1, self.rows)

    @property
    def words(self) -> str:
        """Which one is better, or noise."""
        if self.p >= LEVEL or self.low <= 0 <= self.high:
            return "noise"
        return "B is better" if self.low > 0 else "A is better"


def main(arguments: dict[str, str], words: list[str]) -> int:
    """Print the comparison of two runs.

    Raises:
        InputError: runs or files that cannot be used or have no row in common, or rows of one id that differ.
    """
    check_keys("compare", arguments, ("split", "metric", "rows"))
    if len(words) != 2:
        raise InputError(f"compare takes two runs or files, got {len(words) or 'none'}: {USAGE}")
    split = arguments.get("split", "test")
    if split not in SPLITS:
        raise InputError(f"split={split} must be test or validation")
    fields = _fields(arguments.get("metric"))
    a, b = (_side(word, split) for word in words)
    contexts = _by_id(Path(arguments["rows"]).expanduser(), "rows") if "rows" in arguments else {}
    rows, clustered = _paired(a, b, contexts)
    _show(Terminal(), a, b, rows, clustered, fields)
    return 0


def compare(field: str, rows: list[PairedRow]) -> ScoreComparison:
    """One score on paired rows; those that say nothing of it in either are left out."""
    kept = [row for row in rows if counts(field, row.a) and counts(field, row.b)]
    right_a = [bool(getattr(row.a, field)) for row in kept]
    right_b = [bool(getattr(row.b, field)) for row in kept]
    only_a = sum(x and not y for x, y in zip(right_a, right_b, strict=True))
    only_b = sum(y and not x for x, y in zip(right_a, right_b, strict=True))
    low, high = clustered_bootstrap(right_a, right_b, [row.cluster for row in kept])
    p = mcnemar(only_a, only_b)
    return ScoreComparison(len(kept), sum(right_a), sum(right_b), low, high, only_a, only_b, p)


# --- what is compared ---------------------------------------------------------------------------------------


def _fields(metric: str | None) -> list[str]:
    if metric is None:
        return list(SCORES)
    name = metric.lower().removeprefix("eval/").removeprefix("test/")
    if name not in METRICS:
        raise InputError(f"metric={metric} must be one of {', '.join(SCORES.values())}")
    return [METRICS[name]]


def _side(word: str, split: str) -> Side:
    """The answers of a run, or of a file. Raises InputError where none of them carry verdicts."""
    path = Path(word).expanduser()
    if path.is_file():
        side = Side(path, _by_id(path, "rows"))
        if not _judged(side.rows):
            raise InputError(f"{path} holds no verdicts ({', '.join(RECORDED[:4])}): write them with ftlab score")
        return side
    run = find_run(word)
    folder = run.path
    own = [folder / "predictions.jsonl"] if split == "test" else []
    for file in (file for file in (*own, *run.evaluated()) if file.is_file()):
        rows = _by_id(file, "answers")
        if _judged(rows) and all(row.get("split") == SPLITS[split] for row in rows.values()):
            return Side(file, rows)
    command = shlex.join(["python", "-m", "ftlab", "eval", f"run={folder}", f"split={split}"])
    raise InputError(f"{word} holds no answers on {split} with verdicts: {command}")


def _by_id(file: Path, what: str) -> RowsById:
    found: RowsById = {}
    for number, row in read(file):
        if "id" not in row:
            raise DataError(f"{file}:{number}: no id (the row has {', '.join(list(row)[:9]) or 'nothing'})")
        name = json.dumps(row["id"], sort_keys=True)
        if name in found:
            raise DataError(f"{file}:{number}: id {name} occurs twice: {what} are paired by id")
        found[name] = row
    return found


def _judged(rows: RowsById) -> bool:
    return bool(rows) and all(isinstance(row.get("ast_equal"), bool) for row in rows.values())


def _paired(a: Side, b: Side, contexts: RowsById) -> tuple[list[PairedRow], bool]:
    """The rows that both have, in A's order; and whether rows of one schema are known."""
    shared = [name for name in a.rows if name in b.rows]
    if not shared:
        raise InputError(f"{a.file} and {b.file} have no id in common: they are not about the same rows")
    schemas = []
    for name in shared:
        sources = (a.rows[name], b.rows[name], contexts.get(name, {}))
        for field in ("gold", "context", "question"):
            _check_same(name, field, {json.dumps(row[field]) for row in sources if field in row}, a, b)
        schemas.append(next((row["context"] for row in sources if "context" in row), None))
    clustered = None not in schemas
    clusters = schemas if clustered else shared
    verdicts = [[_verdict(side, name) for name in shared] for side in (a, b)]
    return [PairedRow(*row) for row in zip(*verdicts, map(json.dumps, clusters), strict=True)], clustered


def _check_same(name: str, field: str, values: set[str], a: Side, b: Side) -> None:
    if len(values) > 1:
        raise InputError(f"id {name}: its {field} differs between {a.file} and {b.file}: they are not the same rows")


def _verdict(side: Side, name: str) -> Verdict:
    try:
        return read_back(side.rows[name])
    except KeyError as error:
        raise DataError(f"{side.file}: id {name} has no {error.args[0]}: write the file with ftlab score") from None


# --- what is shown ------------------------------------------------------------------------------------------


def _show(terminal: Terminal, a: Side, b: Side, rows: list[PairedRow], clustered: bool, fields: list[str]) -> None:
    terminal.note(f"A  {a.file}")
    terminal.note(f"B  {b.file}")
    found = {field: compare(field, rows) for field in fields}
    head = ["", "A %", "B %", "B - A", "95 %", "A only", "B only", "p", ""]
    terminal.table(head, [_cells(SCORES[field], one) for field, one in found.items()])
    terminal.note("")
    for line in _remarks(a, b, rows, clustered, found):
        terminal.note(line)


def _cells(title: str, found: ScoreComparison) -> list[str]:
    if not found.rows:
        return [title, *["-"] * 7, "no row to compare"]
    rates = [f"{100 * hits / found.rows:.1f}" for hits in (found.hits_a, found.hits_b)]
    p = f"{found.p:.3f}" if found.p >= 0.0005 else "<.001"
    difference = f"{100 * found.difference:+.1f}"
    return [
        *(title, *rates, difference, span((found.low, found.high), "+")),
        *(f"{found.only_a:,}", f"{found.only_b:,}", p, found.words),
    ]


def _remarks(
    a: Side, b: Side, rows: list[PairedRow], clustered: bool, found: dict[str, ScoreComparison]
) -> Iterator[str]:
    clusters = len({row.cluster for row in rows})
    yield f"{_counted(len(rows))} in both, " + (
        f"drawn as {_counted(clusters, 'schema')}"
        if clustered
        else "each drawn on its own: no contexts are known (name the file that was scored: rows=IN.jsonl)"
    )
    for letter, side in (("A", a), ("B", b)):
        if alone := len(side.rows) - len(rows):
            yield f"{_counted(alone)} of {letter} alone left out"
    if "exec_equal" in found and (silent := len(rows) - found["exec_equal"].rows):
        yield f"{_counted(silent)} left out of exec: the gold query is broken, or returned no row"


def _counted(number: int, what: str = "row") -> str:
    return f"1 {what}" if number == 1 else f"{number:,} {what}s"
