"""python -m ftlab score IN.jsonl OUT.jsonl [--databases 32] [--extract] [--rows DIR]: judge SQL answers.

IN has one JSON object per line, {"id", "context", "gold", "pred"}, gzipped or not; other fields are ignored. OUT gets
one per row in the same order, {"id", "exact_string", "ast_equal", "exec_equal", "valid", "vacuous", "gold_broken",
"databases", "reason"}; it is gzipped if its name ends in .gz. A summary is printed.

--databases 32   number of generated databases on which two different queries are compared, 1 to 1000
--extract        first extract the query from each answer's fence, tags or prose
--rows DIR       rows with a "db_id" are also compared on DIR/<db_id>.sqlite, if it exists
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftlab.commands import dashed_arguments
from ftlab.config import MOST_DATABASES
from ftlab.errors import DataError, FtlabError, InputError
from ftlab.lines import read, replaced
from ftlab.sql import child, engine
from ftlab.sql.extract import extract
from ftlab.sql.rates import SCORES, Rate, by_bucket, rate, recorded
from ftlab.sql.real_rows import fault, rows_file
from ftlab.sql.scorer import DATABASES, NOT_JUDGED, SECONDS, Scorer, ScorerError
from ftlab.sql.verdict import Verdict
from ftlab.terminal import Terminal, percent, span

REFRESH = 0.1  # seconds between two updates of the bar
BUDGETS = (
    f"{SECONDS:g} s and {child.MEMORY >> 20} MB per pair; "
    f"{engine.QUERY_STEPS:,} steps and {engine.RESULT_ROWS:,} rows per query"
)


@dataclass(frozen=True)
class Pair:
    """A gold query and an answer from a row of IN."""

    id: Any
    context: str
    gold: str
    pred: Any
    rows_file: Path | None


def main(words: list[str]) -> int:
    """Score every row of IN into OUT and print a summary. All rows are read and checked before scoring.

    Raises:
        InputError: invalid options or files, or a row without one of the four fields; nothing is written.
    """
    options, files = dashed_arguments("score", words, ("databases", "rows"), ("extract",))
    source, target = _files(files)
    databases = _databases(options.get("databases", str(DATABASES)))
    folder = _rows_folder(options["rows"]) if "rows" in options else None
    pairs = [_pair(source, number, row, folder) for number, row in read(source)]
    if not pairs:
        raise DataError(f"{source}: the file is empty: no rows")
    terminal = Terminal()
    began = time.perf_counter()
    with replaced(target) as out:
        try:
            verdicts = _verdicts(pairs, databases, options.get("extract") == "true", terminal)
        except ScorerError as error:
            raise FtlabError(str(error)) from None
        out += [{"id": pair.id, **recorded(verdict)} for pair, verdict in zip(pairs, verdicts, strict=True)]
    own = sum(pair.rows_file is not None for pair in pairs)
    _summarise(terminal, verdicts, time.perf_counter() - began, own if folder else None)
    terminal.note(f"written      {target}")
    return 0


def _rows_folder(text: str) -> Path:
    folder = Path(text).expanduser()
    if problem := fault(folder):
        raise InputError(f"--rows={text} {problem}")
    return folder


def _files(words: list[str]) -> tuple[Path, Path]:
    usage = "python -m ftlab score IN.jsonl OUT.jsonl [--databases 32] [--extract] [--rows DIR]"
    if len(words) != 2:
        named = f"got {len(words)} ({', '.join(words)})" if words else "got none"
        raise InputError(f"score takes two files, {named}: {usage}")
    source, target = (Path(word).expanduser() for word in words)
    if os.path.exists(target) and os.path.exists(source) and os.path.samefile(source, target):
        raise InputError(f"{target} is the input file: name another file for the output: {usage}")
    return source, target


def _databases(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= MOST_DATABASES:
        raise InputError(f"--databases={text} must be a whole number from 1 to {MOST_DATABASES}")
    return int(text)


def _pair(file: Path, number: int, row: dict[str, Any], folder: Path | None) -> Pair:
    missing = [name for name in ("id", "context", "gold", "pred") if name not in row]
    if missing:
        has = ", ".join(list(row)[:9]) or "nothing"
        raise DataError(f"{file}:{number}: no {', '.join(missing)} (the row has {has})")
    for name in ("context", "gold"):
        if not isinstance(row[name], str):
            raise DataError(f"{file}:{number}: {name} must be text, not {json.dumps(row[name])[:40]}")
    try:
        json.dumps(row["id"], allow_nan=False)
    except ValueError:
        raise DataError(
            f"{file}:{number}: id is out of range: a number in it must be finite, below 1.8e308: write it as text"
        ) from None
    return Pair(row["id"], row["context"], row["gold"], row["pred"], rows_file(folder, row.get("db_id")))


def _verdicts(pairs: list[Pair], databases: int, extracts: bool, terminal: Terminal) -> list[Verdict]:
    verdicts: list[Verdict] = []
    updated = 0.0
    with Scorer(databases) as scorer, terminal.progress(len(pairs), what="score") as bar:
        for pair in pairs:
            pred = extract(pair.pred) if extracts and isinstance(pair.pred, str) else pair.pred
            verdicts.append(scorer.score(pair.gold, pred, pair.context, rows_file=pair.rows_file))
            if time.monotonic() - updated > REFRESH:
                updated = time.monotonic()
                bar.update(len(verdicts), {})
    return verdicts


# --- the summary --------------------------------------------------------------------------------------------


def _summarise(terminal: Terminal, verdicts: list[Verdict], seconds: float, own: int | None) -> None:
    rates = {title: rate(field, verdicts) for field, title in SCORES.items()}
    terminal.table(["all rows", "hits", "rows", "rate", "95 % interval"], [_rate_row(*item) for item in rates.items()])
    titles = [f"{title} (95 %)" for title in SCORES.values()]
    rows = [[name.replace("_", " "), *_bucket_cells(mine)] for name, mine in by_bucket(verdicts)]
    if rows:
        terminal.table(["by gold query", "rows", *titles], rows)
    terminal.note("")
    for line in _remarks(verdicts, own):
        terminal.note(line)
    terminal.note(f"time         {seconds:,.1f} s, {len(verdicts) / max(seconds, 1e-9):,.0f} rows/s")
    terminal.note(f"budgets      {BUDGETS}")


def _rate_row(title: str, found: Rate) -> list[str]:
    return [title, f"{found.hits:,}", f"{found.rows:,}", percent(found.value), span(found.interval)]


def _bucket_cells(verdicts: list[Verdict]) -> list[str]:
    rates = [rate(field, verdicts) for field in SCORES]
    cells = [f"{100 * r.value:.1f} ({100 * r.interval[0]:.0f}-{100 * r.interval[1]:.0f})" for r in rates]
    return [f"{len(verdicts):,}", *(cell if r.rows else "-" for cell, r in zip(cells, rates, strict=True))]


def _remarks(verdicts: list[Verdict], own: int | None) -> Iterator[str]:
    kinds = Counter(kind for verdict in verdicts for kind in _kinds(verdict))
    yield f"gold queries {kinds['broken']:,} broken, {kinds['vacuous']:,} vacuous: not counted in the exec rate"
    yield f"executed     {kinds['executed']:,} pairs, {kinds['apart']:,} of them with different results"
    yield f"over budget  {kinds['over']:,}"
    if kinds["not judged"]:
        yield f"not judged   {kinds['not judged']:,}: the scoring process was killed from outside (out of memory?)"
    if own is not None:
        yield f"real rows    {own:,} with a database in DIR, used for executed pairs as well"


def _kinds(verdict: Verdict) -> Iterator[str]:
    """The categories in which a verdict is counted besides its scores."""
    if verdict.gold_broken:
        yield "broken"
    if verdict.vacuous:
        yield "vacuous"
    if verdict.databases:
        yield "executed"
    if verdict.databases and verdict.exec_equal is False:
        yield "apart"
    if "over the budget" in verdict.reason:
        yield "over"
    if verdict.reason.startswith(NOT_JUDGED):
        yield "not judged"
