"""Measure speed and accuracy of the SQL scores: python bench/sql.py [DATA_FOLDER] [--rows 15716] [--equal 0.75 0.5]

DATA_FOLDER holds train.jsonl.gz of sql-create-context (rows with question, context, answer, source, db_id). The default
is data/sql_create_context in the folder that FTLAB_SHARED names, else in ../shared beside this repository. The script
prints Markdown tables. It uses one processor core: this process and the scoring process that it starts are bound to it.

*Speed.* `--rows` rows are made from the gold queries of the data set. In a share of them (`--equal`) the prediction is
the gold query itself. The others are rewrites by the fourteen rules, one-edit mutants, queries of another form with the
same results, gold queries of other rows, and texts that are no query. They are written to a JSON Lines file and scored
as `python -m ftlab score` does it: read, judged in the scoring process with 32 databases, and written. Seconds are
wall-clock seconds from opening the input file to closing the output file, including the start of the scoring process
but not making the rows. Milliseconds of a pair are what a caller of `Scorer.score` waits.

*Comparison with another checkout* (`--beside FOLDER`). Both checkouts judge the same rows, in alternating blocks, each
in a process of its own and four times. Seconds are processor time, and the fastest of the four counts, so that other
work of the machine has little effect.

*IN lists.* Two lists of 3,000 elements: the same in a different order, and with one element changed.

*The Spider test suite's method.* Zhong, Yu and Klein, "Semantic Evaluation for Text-to-SQL with Distilled Test Suites"
(EMNLP 2020, github.com/taoyds/test-suite-sql-eval), reimplemented in `Suite`. Databases are filled at random with the
gold query's literals and similar values. A database is kept if the gold query and one of its own mutants give different
results on it, and gave the same on all databases before. Then gold and prediction are executed on all kept databases
and compared as in that suite: columns in any order, rows in order if the gold query has an ORDER BY. Both methods judge
the same pairs (one-edit mutants and rewrites known to be equal), in this process and with the same SQLite.
"""

import argparse
import gzip
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice, permutations
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from sql_mutants import mutants
from sql_rewrites import rewrite
from sqlglot import exp

from ftlab.sql import parse
from ftlab.sql.engine import Engine, EngineError
from ftlab.sql.judge import judge
from ftlab.sql.schema import Schema, read_schema
from ftlab.sql.scorer import Scorer
from ftlab.sql.verdict import Verdict

SHARED = Path(os.environ.get("FTLAB_SHARED") or Path(__file__).resolve().parents[2] / "shared")
DATA = SHARED / "data/sql_create_context"
ROWS = 15_716
TARGETS = {0.75: 20, 0.5: 60}  # seconds for ROWS by the share of equal strings
DATABASES = 32
LIST_LENGTH = 3_000
SAMPLE = 500

# Of the suite: random databases tried for a gold query, its mutants that must give other results, rows of a table.
TRIED, NEIGHBOURS, TABLE_ROWS = 100, 25, 12

Row = dict[str, Any]
Timed = tuple[Row, Verdict, float]


def main(arguments: Sequence[str]) -> int:
    options = read_options(arguments)
    file = options.data / "train.jsonl.gz"
    if not file.is_file():
        print(f"{file} is missing: give the folder that holds it: python bench/sql.py DATA_FOLDER", file=sys.stderr)
        return 2
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        golds = [json.loads(line) for line in lines]
    if options.beside:
        return beside(golds, options)
    for share in options.equal:
        speed(golds, options.rows, share)
    long_lists()
    side_by_side(golds)
    return 0


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Benchmark of the SQL scores; prints Markdown.")
    parser.add_argument("data", type=Path, nargs="?", default=DATA, help="folder of train.jsonl.gz")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows to score")
    parser.add_argument("--beside", type=Path, help="another checkout to compare the speed with")
    parser.add_argument(
        "--equal",
        type=float,
        nargs="+",
        default=list(TARGETS),
        help="shares of rows whose prediction is the gold query",
    )
    return parser.parse_args(arguments)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)


# --- speed --------------------------------------------------------------------------------------------------


def speed(golds: list[Row], rows: int, share: float) -> None:
    made = make_rows(golds, rows, share, Random(1))
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        load = os.getloadavg()[0]
        began = time.perf_counter()
        timed = score_file(source, target)
        seconds = time.perf_counter() - began
    goal = f"{TARGETS[share]} s" if share in TARGETS and rows == ROWS else "-"
    print(f"## {rows:,} rows, {share:.0%} equal strings, {DATABASES} databases\n")
    table(
        ["seconds", "target", "rows/s", "executed pairs", "load before"],
        [[f"{seconds:.1f}", goal, f"{rows / seconds:,.0f}", sum(v.databases > 0 for _, v, _ in timed), f"{load:.1f}"]],
    )
    by_tier: defaultdict[str, list[float]] = defaultdict(list)
    by_kind: defaultdict[str, list[float]] = defaultdict(list)
    for row, verdict, spent in timed:
        by_tier[tier(verdict)].append(spent)
        by_kind[row["kind"]].append(spent)
    everything = [spent for _, _, spent in timed]
    table(HEAD, [percentiles("all", everything), *(percentiles(*item) for item in sorted(by_tier.items()))])
    table(["prediction", *HEAD[1:]], [percentiles(*item) for item in sorted(by_kind.items())])


HEAD = ["tier", "pairs", "p50 ms", "p95 ms", "p99 ms", "max ms", "sum s"]


def percentiles(name: str, spent: list[float]) -> list[object]:
    ordered = sorted(spent)
    at = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95, 0.99, 1)]
    return [name, f"{len(spent):,}", *(f"{1000 * value:.2f}" for value in at), f"{sum(spent):.1f}"]


def tier(verdict: Verdict) -> str:
    if verdict.gold_broken:
        return "gold broken"
    if "over the budget" in verdict.reason:
        return "over budget"
    if verdict.databases:
        return "executed, equal" if verdict.exec_equal else "executed, different"
    if not verdict.valid:
        return "invalid"
    return "equal string" if verdict.exact_string else "equal tree"


def score_file(source: Path, target: Path) -> list[Timed]:
    """Read, score and write all rows with one scoring process; return each row with its verdict and seconds."""
    timed = []
    with Scorer(DATABASES) as scorer, source.open(encoding="utf-8") as lines, target.open("w") as out:
        for row in map(json.loads, lines):
            began = time.perf_counter()
            verdict = scorer.score(row["gold"], row["pred"], row["context"])
            timed.append((row, verdict, time.perf_counter() - began))
            out.write(json.dumps({"id": row["id"], **asdict(verdict)}) + "\n")
    return timed


def make_rows(golds: list[Row], count: int, share: float, rng: Random) -> list[Row]:
    """Make `count` rows to score: in `share` of them the strings are equal, the others are of the `KINDS`."""
    by_database: defaultdict[str, list[str]] = defaultdict(list)
    for row in golds:
        by_database[row["db_id"]].append(row["answer"])
    picked = rng.sample(golds, count) if count <= len(golds) else rng.choices(golds, k=count)
    equal = set(rng.sample(range(count), round(share * count)))
    made = []
    for number, row in enumerate(picked):
        kind = "equal string" if number in equal else rng.choice(KINDS)
        pred = predict(kind, row, by_database[row["db_id"]], rng)
        made.append({"id": number, "context": row["context"], "gold": row["answer"], "pred": pred, "kind": kind})
    return made


KINDS = ("rule rewrite", *["mutant"] * 4, "same results", "other gold", "other gold", "no query", "rule rewrite")


def predict(kind: str, row: Row, others: list[str], rng: Random) -> str:
    gold, schema = str(row["answer"]), read_schema(row["context"])
    match kind:
        case "rule rewrite":
            return rewrite(gold, schema, rng)
        case "mutant":
            return next((text for _, text in mutants(gold, schema, rng)), gold + " LIMIT 1")
        case "same results":
            return same_results(gold)
        case "other gold":
            return str(rng.choice(others))
        case "no query":
            return rng.choice((gold[: len(gold) // 2], "I do not know.", gold + ")", "```sql\n" + gold, "", "SELECT"))
    return gold


def same_results(gold: str) -> str:
    """A query with a different tree that returns the same rows."""
    if not re.search(r"\b(ORDER BY|LIMIT)\b", gold):
        return f"SELECT * FROM ({gold}) AS inner_one"
    tree = parse.query(gold)
    where = tree.args.get("where") if isinstance(tree, exp.Select) else None
    if tree is None or where is None:
        return gold
    always = exp.EQ(this=exp.Literal.number(1), expression=exp.Literal.number(1))
    where.set("this", exp.And(this=exp.Paren(this=where.this), expression=always))
    return tree.sql(dialect=parse.DIALECT)


# --- comparison with another checkout --------------------------------------------------------------------------------

WORKER = """
import json, sys, time
from ftlab.sql.judge import judge
for line in sys.stdin:
    began, slowest, answers = time.process_time(), 0.0, []
    for row in json.loads(line):
        start = time.process_time()
        answers.append(judge(row["gold"], row["pred"], row["context"], %d).exec_equal)
        slowest = max(slowest, time.process_time() - start)
    print(json.dumps([time.process_time() - began, slowest, answers]), flush=True)
"""
# Rows per block; each checkout judges a block twice this often.
BLOCK, REPEATS = 100, 2


def beside(golds: list[Row], options: argparse.Namespace) -> int:
    """Judge the same rows with both checkouts in turn; a first block does not count. Returns the exit code."""
    trees = {"other": options.beside.resolve(), "this": Path(__file__).resolve().parents[1]}
    workers = {name: start_worker(tree) for name, tree in trees.items()}
    rows = []
    for share in options.equal:
        made = make_rows(golds, options.rows, share, Random(2))
        spent, slowest, changed = Counter[str](), Counter[str](), Counter[str]()
        for name in trees:
            ask(workers[name], made[:BLOCK])
        for turn, start in enumerate(range(0, len(made), BLOCK)):
            block, answers = made[start : start + BLOCK], {}
            least = dict.fromkeys(trees, (math.inf, math.inf))
            for name in (*sorted(trees, reverse=turn % 2 == 1), *sorted(trees)) * REPEATS:
                seconds, longest, answers[name] = ask(workers[name], block)
                least[name] = min(least[name][0], seconds), min(least[name][1], longest)
            for name, (seconds, longest) in least.items():
                spent[name] += seconds
                slowest[name] = max(slowest[name], longest)
            changed.update(f"{a} to {b}" for a, b in zip(answers["other"], answers["this"], strict=True) if a != b)
        each = [f"{1000 * spent[name] / len(made):.3f}" for name in trees]
        most = [f"{slowest[name]:.2f}" for name in trees]
        rows.append([f"{share:.0%}", *each, f"{spent['this'] / spent['other']:.3f}", *most, dict(changed) or "none"])
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    print(f"## {options.rows:,} rows compared with {options.beside}, processor milliseconds per pair\n")
    table(
        [
            "equal strings",
            "other",
            "this",
            "ratio",
            "slowest pair, other, s",
            "slowest pair, this, s",
            "changed verdicts",
        ],
        rows,
    )
    return 0


def start_worker(tree: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WORKER % DATABASES]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.Popen(
        command, cwd=tree, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def ask(worker: Any, rows: list[Row]) -> Any:
    worker.stdin.write(json.dumps(rows) + "\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


# --- IN lists -----------------------------------------------------------------------------------------------


def long_lists() -> None:
    numbers = [str(number) for number in range(LIST_LENGTH)]
    shuffled = Random(3).sample(numbers, LIST_LENGTH)
    changed = ["123456" if number == "1500" else number for number in shuffled]
    context = "CREATE TABLE t (name VARCHAR, number INTEGER)"
    rows = []
    with Scorer(DATABASES) as scorer:
        scorer.score("SELECT 1", "SELECT 1", context)  # starts the scoring process
        for name, other in (("different order", shuffled), ("one element differs", changed)):
            gold, pred = (f"SELECT name FROM t WHERE number IN ({', '.join(one)})" for one in (numbers, other))
            began = time.perf_counter()
            verdict = scorer.score(gold, pred, context)
            seconds = time.perf_counter() - began
            rows.append([name, f"{seconds:.2f}", "2", verdict.ast_equal, verdict.exec_equal, verdict.reason[:60]])
    print(f"## Two IN lists of {LIST_LENGTH:,} elements\n")
    table(["lists", "seconds", "target", "ast_equal", "exec_equal", "reason"], rows)


# --- the Spider test suite's method ------------------------------------------------------------------------------


def side_by_side(golds: list[Row]) -> None:
    """Judge the same pairs by both methods. A mutant that either finds different is a wrong answer."""
    different, equal = sample_pairs(golds, Random(4))
    spent: defaultdict[str, float] = defaultdict(float)
    outcomes: list[tuple[bool, bool]] = []
    for at, (gold, pred, context) in enumerate([*different, *equal]):
        began = time.perf_counter()
        ours = judge(gold, pred, context, DATABASES).exec_equal is False
        spent["ftlab"] += time.perf_counter() - began
        began = time.perf_counter()
        suite = Suite(gold, read_schema(context), Random(at))
        spent["making"] += time.perf_counter() - began
        began = time.perf_counter()
        theirs = suite.differs(pred)
        spent["executing"] += time.perf_counter() - began
        spent["kept"] += len(suite.kept)
        suite.engine.close()
        outcomes.append((ours, theirs))
    pairs = len(outcomes)
    wrong = [pair for pair in outcomes[: len(different)] if any(pair)]
    right = outcomes[len(different) :]
    each = {name: f"{1000 * spent[name] / pairs:.1f}" for name in ("ftlab", "making", "executing")}
    print(f"## ftlab and the Spider test suite: {len(different)} mutants, {len(equal)} predictions known to be equal\n")
    table(
        [
            "method",
            "ms per pair",
            "of it making databases",
            "databases",
            "wrong answers found, of those that either found",
            "equal predictions found different",
        ],
        [
            ["ftlab", each["ftlab"], "made for each pair", f"up to {DATABASES}", ratio(wrong, 0), ratio(right, 0)],
            [
                "test suite",
                f"{1000 * (spent['making'] + spent['executing']) / pairs:.1f}",
                f"{each['making']} (once per gold query)",
                f"{spent['kept'] / pairs:.1f} kept of {TRIED}",
                ratio(wrong, 1),
                ratio(right, 1),
            ],
        ],
    )


def ratio(outcomes: list[tuple[bool, bool]], way: int) -> str:
    hits = sum(outcome[way] for outcome in outcomes)
    return f"{hits} of {len(outcomes)} ({100 * hits / max(1, len(outcomes)):.1f} %)"


def sample_pairs(golds: list[Row], rng: Random) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """Valid pairs of gold query, prediction and context: `SAMPLE` mutants, and a fifth as many predictions that are
    equal by construction. Half of the gold queries contain a JOIN or a subquery."""
    shuffled = rng.sample(golds, len(golds))
    intricate = [row for row in shuffled if re.search(r"JOIN|SELECT.*SELECT", row["answer"])]
    different: list[tuple[str, str, str]] = []
    equal: list[tuple[str, str, str]] = []
    for row in (row for both in zip(intricate, shuffled, strict=False) for row in both):
        gold, context, schema = row["answer"], row["context"], read_schema(row["context"])
        engine = Engine(schema)
        found = next((text for _, text in mutants(gold, schema, rng) if engine.prepare(text) is None), None)
        if engine.prepare(gold) is None and found and len(different) < SAMPLE:
            different.append((gold, found, context))
            if len(different) % 5 == 0:
                equal.append((gold, rewrite(gold, schema, rng) if len(equal) % 2 else same_results(gold), context))
        engine.close()
        if len(different) == SAMPLE:
            break
    return different, equal


class Suite:
    """The kept databases of one gold query."""

    def __init__(self, gold: str, schema: Schema, rng: Random) -> None:
        self.gold, self.schema, self.rng = gold, schema, rng
        self.engine = Engine(schema)
        self.ordered = "order by" in gold.lower()
        self.values = literals(gold)
        self.kept: list[dict[str, list[tuple[Any, ...]]]] = []
        alive = [
            text for _, text in islice(mutants(gold, schema, rng), NEIGHBOURS) if self.engine.prepare(text) is None
        ]
        for _ in range(TRIED):
            if not alive:
                break
            rows = self.random_rows()
            self.engine.fill(rows)
            expected = self.run(gold)
            still = [text for text in alive if self.same(expected, self.run(text))]
            if len(still) < len(alive):
                self.kept.append(rows)
            alive = still

    def random_rows(self) -> dict[str, list[tuple[Any, ...]]]:
        return {
            name: [tuple(self.value(column.kind) for column in table.columns.values()) for _ in range(TABLE_ROWS)]
            for name, table in self.schema.tables.items()
        }

    def value(self, kind: str) -> object:
        """A random value: half of them are the gold query's literals or similar, the others are from a small range."""
        number = self.rng.randrange(10)
        if self.values and self.rng.random() < 0.5:
            text = self.rng.choice(self.values)
            if kind == "text":
                return self.rng.choice((text, text, text + "a", text[:-1]))
            number = int(float(text)) + self.rng.randrange(-1, 2) if re.fullmatch(r"-?\d+(\.\d+)?", text) else number
        return str(number) if kind == "text" else number

    def run(self, text: str) -> list[tuple[Any, ...]] | None:
        try:
            return self.engine.run(text).rows
        except EngineError:
            return None

    def same(self, gold: list[tuple[Any, ...]] | None, pred: list[tuple[Any, ...]] | None) -> bool:
        if gold is None or pred is None:
            return gold is pred
        return equal_results(gold, pred, self.ordered)

    def differs(self, pred: str) -> bool:
        for rows in self.kept:
            self.engine.fill(rows)
            if not self.same(self.run(self.gold), self.run(pred)):
                return True
        return False


def literals(gold: str) -> list[str]:
    tree = parse.query(gold)
    if tree is None:
        return []
    texts = [node.name for node in tree.find_all(exp.Identifier) if node.args.get("quoted")]
    return [*texts, *(node.name.strip("%") for node in tree.find_all(exp.Literal))]


def equal_results(gold: list[tuple[Any, ...]], pred: list[tuple[Any, ...]], ordered: bool) -> bool:
    """Whether some order of the prediction's columns makes the rows equal, as that suite compares."""
    if not gold and not pred:
        return True
    if len(gold) != len(pred) or len(gold[0]) != len(pred[0]):
        return False
    arrange: Callable[[Any], Any] = list if ordered else Counter
    wanted = arrange(gold)
    return any(arrange([tuple(row[at] for at in order) for row in pred]) == wanted for order in orders(len(gold[0])))


def orders(width: int) -> Iterator[tuple[int, ...]]:
    """Yield the orders of `width` columns; beyond five columns, only the one as written."""
    yield from permutations(range(width)) if width <= 5 else [tuple(range(width))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
