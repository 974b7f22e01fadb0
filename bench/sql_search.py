"""Measure how many wrong answers the execution match misses: python bench/sql_search.py [DATA_FOLDER]

There are two sets of gold queries. Those of tests/sql_golds.txt (ratios, ages, sums by CASE, cleaned-up texts, offsets)
get ten one-edit mutants each. If DATA_FOLDER holds train.jsonl.gz of sql-create-context, 1,000 of its gold queries get
five each. Mutants that SQLite refuses, and mutants with the canonical tree of the gold query, are left out.

If a mutant and its gold query give the same results on the 32 usual databases, both are run on 2,000 more. Half of
these are made from what the two queries compare, like the usual ones. The other half is filled at random by
`random_databases`, which does not use the search's hints, plans and trials. The script prints which share of the
mutants that differ on any database also differ on the usual ones, by kind of edit, and the processor milliseconds per
pair. `--show` prints the mutants that the usual databases miss.
"""

import argparse
import gzip
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date, timedelta
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from sql_mutants import analysts_golds, mutants
from sqlglot import exp

from ftlab.sql import parse
from ftlab.sql.databases import databases
from ftlab.sql.engine import Engine, EngineError
from ftlab.sql.judge import same_trees, search, tree_of
from ftlab.sql.moment import NOW
from ftlab.sql.results import Comparison
from ftlab.sql.schema import Schema, read_schema

DATA = Path(__file__).resolve().parents[2] / "shared/data/sql_create_context"
USUAL, MORE = 32, 2_000
POOL = 200
Gold = tuple[str, str]
Rows = dict[str, list[tuple[Any, ...]]]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Share of the wrong answers that the search finds; prints Markdown.")
    parser.add_argument("data", type=Path, nargs="?", default=DATA, help="folder of train.jsonl.gz")
    parser.add_argument("--show", action="store_true", help="print the mutants that were missed")
    parser.add_argument(
        "--part", type=int, nargs=2, default=(0, 1), help="I N: only every N-th gold query from the I-th on"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the edits")
    options = parser.parse_args(arguments)
    measure("analysts' queries", analysts_golds(), 10, options, computed=True)
    file = options.data / "train.jsonl.gz"
    if file.is_file():
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            golds = [(row["context"], row["answer"]) for row in map(json.loads, lines)]
        measure(
            "gold queries of the training set", Random(options.seed).sample(golds, 1_000), 5, options, computed=False
        )
    return 0


def measure(name: str, golds: Sequence[Gold], each: int, options: argparse.Namespace, computed: bool) -> None:
    distinguished, missed, never, spent, tried = Counter[str](), Counter[str](), 0, 0.0, 0
    first, step = options.part
    for at, (context, gold) in islice(enumerate(golds), first, None, step):
        rng = Random(f"{options.seed} {at}")
        engine = Engine(read_schema(context))
        for kind, text in islice(wrong_answers(engine, gold, rng, computed), each):
            began = time.process_time()
            found = search(engine, gold, text, USUAL, None)
            spent += time.process_time() - began
            tried += found.databases
            engine.reset()
            if found.exec_equal is False:
                distinguished[kind] += 1
            elif distinguishable(engine, gold, text, rng):
                missed[kind] += 1
                if options.show:
                    print(f"- {kind}: {gold}\n  {text}", flush=True)
            else:
                never += 1
        engine.close()
    wrong = distinguished.total() + missed.total()
    pairs = wrong + never
    print(f"## {name}: {pairs:,} mutants of {len(golds):,} gold queries\n")
    share = 100 * distinguished.total() / wrong
    print(
        f"{wrong:,} give different results on some database, {distinguished.total():,} of them ({share:.1f} %) on the"
    )
    print(f"{USUAL} usual ones: {1000 * spent / pairs:.1f} ms and {tried / pairs:.1f} databases per pair.\n")
    print("| edit | found | missed |\n| --- | --- | --- |")
    for kind in sorted({*distinguished, *missed}, key=lambda kind: (-missed[kind], kind)):
        print(f"| {kind} | {distinguished[kind]} | {missed[kind]} |")
    print(flush=True)


def wrong_answers(engine: Engine, gold: str, rng: Random, computed: bool) -> Iterator[tuple[str, str]]:
    """Yield the kind and text of each mutant that SQLite accepts and whose canonical tree differs from the gold's."""
    if engine.prepare(gold) is not None:
        return
    tree = tree_of(engine, gold)
    for kind, text in mutants(gold, engine.schema, rng, computed):
        if engine.prepare(text) is None and not same_trees(engine, tree, text):
            yield kind, text


def distinguishable(engine: Engine, gold: str, pred: str, rng: Random) -> bool:
    """Whether the two queries give different results on one of the additional databases."""
    comparison = Comparison(gold)
    if engine.prepare(comparison.probe) is not None:
        comparison.plain()
    hinted = islice(databases(gold, pred, engine.schema, USUAL + MORE // 2), USUAL, None)
    at_random = islice(random_databases(gold, pred, engine.schema, rng), MORE // 2)
    for rows in chain(hinted, at_random):
        engine.reset()
        engine.fill(rows)
        try:
            expected = engine.run(comparison.probe)
        except EngineError:
            continue
        try:
            if comparison.same(expected, engine.run(pred)) is not None:
                return True
        except EngineError:
            return True
    return False


# --- rows at random -----------------------------------------------------------------------------------------


def random_databases(gold: str, pred: str, schema: Schema, rng: Random) -> Iterator[Rows]:
    """Yield databases with tables of 0 to 30 rows, sometimes of hundreds if a LIMIT is large. Their values are those of
    both queries and similar ones, in no order, and a column has few or many different values."""
    literals = [text for query in (gold, pred) for text in literals_of(query)]
    named = [table for key, table in schema.tables.items() if key in f"{gold} {pred}".lower()]
    pools = {table.name: [pools_of(column.kind, literals, rng) for column in table.columns.values()] for table in named}
    great = any(int(text) > 30 for text in re.findall(r"(?:LIMIT|OFFSET)\s+(\d+)", gold))
    while True:
        count = rng.randrange(100, 250) if great and rng.random() < 0.2 else rng.choice((1, 2, 5, 12, 30))
        rows = {}
        for name, columns in pools.items():
            size = rng.choice((count, count, 0, 3))
            drawn = [rng.choices(some(rng.choice(kinds), rng), k=size) for kinds in columns]
            rows[name.lower()] = list(zip(*drawn, strict=True))
        yield rows


def some(pool: list[Any], rng: Random) -> list[Any]:
    """A few or all values of a pool, in 30 % of the cases with NULL."""
    values = rng.sample(pool, rng.choice((1, 3, 10, len(pool))))
    return [*values, None] if rng.random() < 0.3 else values


def literals_of(query: str) -> list[str]:
    tree = parse.query(query)
    if tree is None:
        return []
    quoted = [node.name for node in tree.find_all(exp.Identifier) if node.args.get("quoted")]
    return [*quoted, *(node.name for node in tree.find_all(exp.Literal))]


def pools_of(kind: str, literals: list[str], rng: Random) -> list[list[Any]]:
    """Pools of values for one column, one pool for each sort of value."""
    makers = {"number": [number], "any": [day, day, text]}.get(kind, [text, text, day, number_as_text, json_text])
    return [[make(literals, rng) for _ in range(POOL)] for make in makers]


def number(literals: list[str], rng: Random) -> float:
    known = [float(text) for text in literals if re.fullmatch(r"\d+(\.\d+)?", text)]
    if known and rng.random() < 0.5:
        value = rng.choice(known) * rng.choice((1, 1, 1, rng.randrange(1, 40))) + rng.choice((0, 0, 1, -1))
        return int(value) if value.is_integer() else value
    return rng.choice((rng.randrange(10), rng.randrange(100), rng.randrange(10_000), rng.random() * 100))


def number_as_text(literals: list[str], rng: Random) -> str:
    value = number(literals, rng)
    return rng.choice((f"{value}", f"{value:,}", f"${value:,}", f"{value} ft", f"<{value}", f"0{value}", f"{value}%"))


def day(literals: list[str], rng: Random) -> str:
    known = [text for text in literals if re.fullmatch(r"\d{4}(-\d\d){0,2}", text)]
    start = date.fromisoformat(NOW[:10])
    if known and rng.random() < 0.6:
        with suppress(ValueError):
            start = date.fromisoformat((rng.choice(known) + "-01-01")[:10])
    steps = (0, rng.randrange(-3, 4), rng.randrange(-40, 41), rng.randrange(-800, 800), rng.randrange(-30_000, 3_000))
    try:
        found = (start + timedelta(days=rng.choice(steps))).isoformat()
    except (OverflowError, ValueError):
        found = NOW[:10]
    return found if rng.random() < 0.7 else f"{found} {rng.randrange(24):02}:{rng.randrange(60):02}:00"


def text(literals: list[str], rng: Random) -> str:
    known = [text.strip("%") for text in literals]
    word = rng.choice(known) if known and rng.random() < 0.6 else "".join(rng.choices("abABxyz019", k=rng.randrange(9)))
    mark = rng.choice(("", "", "", " ", "-", ",", ".", "_", "@", ":", "$", "?", "*"))
    at = rng.choice((0, len(word), rng.randrange(len(word) + 1)))
    word = word[:at] + mark + word[at:]
    return rng.choice((word, word, word.swapcase(), word + rng.choice(known or ["x"]), word[:-1], f"{word} x"))


def json_text(literals: list[str], rng: Random) -> str:
    paths = [text[2:] for text in literals if text.startswith("$.")] or ["a"]
    document: dict[str, Any] = {}
    for path in paths:
        *parents, last = path.split(".")
        place = document
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                break
        else:
            if rng.random() < 0.8:
                place[last] = rng.choice(
                    (rng.choice([*literals, "x"]), rng.randrange(9), list(range(rng.randrange(5))), None)
                )
    return json.dumps(document)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
