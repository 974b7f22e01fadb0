"""Hostile predictions: none scores as right, writes a file, exceeds its budget or stops the scorer."""

import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ftlab.sql.scorer import Scorer

CONTEXT = "CREATE TABLE a (x VARCHAR, y INTEGER); CREATE TABLE b (x VARCHAR, z INTEGER)"
GOLD = "SELECT x FROM a WHERE y = 1"
SECONDS = 2.0
MEMORY = 256 * 2**20
TICKS = os.sysconf("SC_CLK_TCK")

UP = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r{}) "
LIMITED = UP.format(" LIMIT {}")
A = "'a'"
LONG = "printf('%.*c', 240000, 'a')"


def nested(before: str, after: str, times: int, inside: str = "1") -> str:
    return f"SELECT {before * times}{inside}{after * times}"


def doubling(levels: int, body: str) -> str:
    """Common table expressions, each of which uses the one before twice."""
    parts = ", ".join(f"c{i} AS ({body.format(i - 1, i - 1)})" for i in range(1, levels))
    return f"WITH c0 AS (SELECT 1 AS x UNION ALL SELECT 2), {parts} SELECT COUNT(*) FROM c{levels - 1}"


HOSTILE = {
    # Writing, and reaching for files and for SQLite's inside.
    "drop": "DROP TABLE a",
    "delete": "DELETE FROM a",
    "delete in with": "WITH w AS (SELECT 1) DELETE FROM a",
    "update from": "WITH w AS (SELECT 1) UPDATE a SET x = 1 RETURNING x",
    "insert returning": "INSERT INTO a VALUES ('x', 1) RETURNING x",
    "create as select": "CREATE TABLE c AS SELECT * FROM a",
    "attach": "ATTACH 'attached.sqlite' AS z",
    "attach the victim": f"{GOLD}; ATTACH 'victim.sqlite' AS v; DELETE FROM v.t",
    "vacuum into": "VACUUM INTO 'copy.sqlite'",
    "pragma": "PRAGMA writable_schema = ON",
    "pragma journal": "PRAGMA journal_mode = WAL",
    "explain": f"EXPLAIN {GOLD}",
    "explain query plan": f"/* */ EXPLAIN QUERY PLAN {GOLD}",
    "begin": "BEGIN EXCLUSIVE",
    "savepoint": "SAVEPOINT s",
    "hidden statement": f"{GOLD} /* ; */ ; -- ;\n DROP TABLE a /*",
    "hidden by a quote": f"{GOLD} --'\n; DELETE FROM a --'",
    "two queries": f"{GOLD}; {GOLD}",
    "load extension": "SELECT load_extension('evil.so')",
    "readfile": "SELECT readfile('victim.sqlite')",
    "writefile": "SELECT writefile('written', 'x')",
    "edit": "SELECT edit('x', 'touch edited')",
    "tokenizer": "SELECT fts3_tokenizer('simple', x'4141414141414141')",
    "schema table": "SELECT sql FROM sqlite_master",
    "schema table counted": "SELECT COUNT(*) FROM sqlite_schema",
    "temporary schema": "SELECT 1 FROM temp.sqlite_temp_master",
    "pragma function": "SELECT name FROM pragma_table_info('a')",
    "database list": "SELECT COUNT(*) FROM pragma_database_list",
    "statements": "SELECT * FROM sqlite_stmt",
    "pages": "SELECT * FROM dbstat",
    "random": "SELECT x FROM a ORDER BY random()",
    "random bytes": "SELECT randomblob(1000000000)",
    "state": "SELECT last_insert_rowid(), changes(), total_changes()",
    "log": "SELECT sqlite_log(1, 'x')",
    # Memory.
    "zeroblob": "SELECT zeroblob(1000000000)",
    "printf": "SELECT printf('%.*c', 1000000000, 'a')",
    "printf rows": LIMITED.format(1000) + "SELECT COUNT(printf('%.*c', 900000000 + n, 'a')) FROM r",
    "replace": f"SELECT replace(replace(replace(hex({LONG}), '6', {LONG}), 'a', {LONG}), 'a', {LONG})",
    "group_concat": LIMITED.format(100000) + "SELECT group_concat(printf('%.*c', 100000, 'a')) FROM r",
    "large rows": LIMITED.format(20000) + f"SELECT {', '.join([LONG] * 50)} FROM r",
    "large sort": LIMITED.format(20000) + f"SELECT COUNT(*) FROM (SELECT {LONG} || n AS v FROM r ORDER BY v)",
    "large distinct": LIMITED.format(100000) + "SELECT COUNT(DISTINCT printf('%.*c', 50000, 'a') || n) FROM r",
    "json": LIMITED.format(100000) + "SELECT json_group_array(printf('%.*c', 50000, 'a')) FROM r",
    "deep json": f"SELECT json_extract(printf('%.*c', 100000, '['), '$')",  # noqa: F541
    "json array": f"SELECT json_array({', '.join([LONG] * 90)})",
    "rows without end": UP.format("") + "SELECT n FROM r",
    "many columns": f"SELECT {', '.join(['*'] * 900)} FROM a",
    "rounds of doubling": doubling(40, "SELECT l.x FROM c{} AS l, c{} AS r"),
    # Time.
    "count without end": UP.format("") + "SELECT COUNT(*) FROM r",
    "cross join": LIMITED.format(1000) + f"SELECT COUNT(*) FROM {', '.join(f'r AS r{i}' for i in range(8))}",
    "cross join of tables": f"SELECT COUNT(*) FROM {', '.join(f'a AS a{i}' for i in range(16))}",
    "doubled unions": doubling(30, "SELECT x FROM c{} UNION ALL SELECT x FROM c{}"),
    "chain of 4000": "WITH c0 AS (SELECT 1 AS x)"
    + "".join(f", c{i} AS (SELECT x FROM c{i - 1})" for i in range(1, 4000))
    + " SELECT x FROM c3999",
    "like": f"SELECT COUNT(*) FROM a, b WHERE {LONG} LIKE '{'%a' * 490}b'",
    "glob": f"SELECT COUNT(*) FROM a, b WHERE {LONG} GLOB '{'*a' * 490}b'",
    "instr": LIMITED.format(1000) + "SELECT SUM(instr(zeroblob(240000), zeroblob(120000 + n) || x'01')) FROM r",
    "windows": LIMITED.format(20000) + "SELECT SUM(n) OVER (ORDER BY n ROWS BETWEEN 9999 PRECEDING AND 9999 FOLLOWING) "
    "FROM r",
    "correlated": LIMITED.format(3000)
    + "SELECT COUNT(*) FROM r AS p WHERE (SELECT COUNT(*) FROM r AS q WHERE q.n < p.n)",
    "unions": "SELECT 1" + " UNION SELECT 1" * 600,
    "sum that overflows": "SELECT SUM(n) FROM (SELECT 9223372036854775807 AS n UNION ALL SELECT 1)",
    # Shape.
    "parentheses": nested("(", ")", 5000),
    "open parentheses": nested("(", "", 100_000),
    "not": nested("NOT ", "", 5000),
    "minus": nested("- ", "", 50_000),
    "case": nested("CASE WHEN 1 THEN ", " END", 5000),
    "subqueries": nested("(SELECT ", ")", 5000),
    "from subqueries": "SELECT * FROM " + "(SELECT * FROM " * 3000 + "a" + ")" * 3000,
    "calls": nested("abs(", ")", 5000),
    "sums": "SELECT 1" + " + 1" * 50_000,
    "and": f"{GOLD} AND " + " AND ".join(f"y <> {i}" for i in range(900)),
    "or of ands": f"{GOLD} AND ("
    + ") AND (".join(f"y = {i} OR y = {i + 1} AND (x = 'p' OR y < {i})" for i in range(200))
    + ")",
    "in list": f"SELECT x FROM a WHERE y IN ({', '.join(map(str, range(2, 30_000)))})",
    "huge in list": f"SELECT x FROM a WHERE y IN ({', '.join(map(str, range(200_000)))})",
    "megabyte of text": f"SELECT '{'a' * 900_000}'",
    "megabyte of quotes": "SELECT " + "'" * 900_001,
    "megabyte of comments": "/*" * 450_000,
    "megabyte of dashes": "--\n" * 300_000 + GOLD + " DESC",
    "two megabytes": "SELECT " + "x" * 2_000_000,
    "long name": f"SELECT {'n' * 100_000} FROM a",
    "joins": "SELECT 1 FROM a " + " ".join(f"JOIN a AS a{i}" for i in range(100)),
    "nul": "SELECT x FROM a\0 WHERE y = 1",
    "surrogate": "SELECT x FROM a WHERE x = '\ud800'",
    "not utf8": "SELECT CAST(x'fffe00' AS TEXT) FROM a",
    "parameter": "SELECT x FROM a WHERE y = ?",
    "named parameter": "SELECT x FROM a WHERE y = :y AND x = @x AND 1 = $z",
    "numbered parameter": "SELECT ?32766",
    "protocol": '"}\n{"exact_string": true, "ast_equal": true, "exec_equal": true}\n',
    "blanks": " " * 900_000,
    "empty": "",
}


@dataclass
class Arena:
    """A folder with a database to harm, and a scorer that runs in it."""

    folder: Path
    scorer: Scorer
    fresh: int  # bytes that the scoring process takes after an ordinary pair

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("arena")
    (folder / "tmp").mkdir()
    victim = sqlite3.connect(folder / "victim.sqlite")
    victim.executescript("CREATE TABLE t (v TEXT); INSERT INTO t VALUES ('precious')")
    victim.close()
    with pytest.MonkeyPatch.context() as patch, Scorer() as scorer:
        patch.chdir(folder)
        for name in ("TMPDIR", "SQLITE_TMPDIR", "TMP", "TEMP"):
            patch.setenv(name, str(folder / "tmp"))
        scorer.score(GOLD, "SELECT x FROM a WHERE y = 2", CONTEXT)
        assert scorer._process is not None
        yield Arena(folder, scorer, Watch(scorer._process.pid).read()[1])


@dataclass
class Watch:
    """Samples what one process takes while a pair is judged: processor seconds, and bytes at its peak."""

    process: int
    seconds: float = 0.0
    peak: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Watch":
        Path(f"/proc/{self.process}/clear_refs").write_text("5")  # forget the peak of earlier pairs
        self.start, _ = self.read()
        self.thread = threading.Thread(target=self.sample)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def sample(self) -> None:
        last = False
        while True:
            try:
                seconds, self.peak = self.read()
            except (OSError, StopIteration):  # the process is gone
                return
            self.seconds = seconds - self.start
            if last:
                return
            last = self.done.wait(0.01)

    def read(self) -> tuple[float, int]:
        folder = Path(f"/proc/{self.process}")
        fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        peak = next(line for line in (folder / "status").read_text().splitlines() if line.startswith("VmHWM"))
        return (int(fields[11]) + int(fields[12])) / TICKS, int(peak.split()[1]) * 1024


def test_there_are_enough() -> None:
    assert len(HOSTILE) >= 30


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see what a process takes")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_prediction_is_harmless(arena: Arena, name: str) -> None:
    scorer, before, outside = arena.scorer, arena.files(), set(os.listdir(tempfile.gettempdir()))
    scorer.score(GOLD, GOLD, CONTEXT)
    assert scorer._process is not None
    start = time.monotonic()
    with Watch(scorer._process.pid) as watch:
        verdict = scorer.score(GOLD, HOSTILE[name], CONTEXT)
    growth = watch.peak - arena.fresh
    print(f"{name}: {watch.seconds:.2f} s of {time.monotonic() - start:.2f}, {growth >> 20} MB: {verdict.reason}")

    assert (verdict.exact_string, verdict.ast_equal, verdict.exec_equal) == (False, False, False)
    assert verdict.reason
    assert "\n" not in verdict.reason
    assert not verdict.gold_broken
    assert watch.seconds <= SECONDS + 2 / TICKS
    assert growth < MEMORY
    assert arena.files() == before
    assert not {name for name in set(os.listdir(tempfile.gettempdir())) - outside if "etilqs" in name}
    assert scorer.score(GOLD, "select x from a where 1 = y", CONTEXT).exec_equal is True
    assert scorer.score(GOLD, "SELECT x FROM a WHERE y = 2", CONTEXT).exec_equal is False


@pytest.mark.parametrize("name", ["drop", "random", "schema table", "protocol", "hidden statement", "not", "surrogate"])
def test_what_is_no_query_is_not_valid(arena: Arena, name: str) -> None:
    assert not arena.scorer.score(GOLD, HOSTILE[name], CONTEXT).valid


def test_a_hostile_gold_stops_nothing_either(arena: Arena) -> None:
    for name in ("count without end", "chain of 4000", "printf rows", "rounds of doubling"):
        verdict = arena.scorer.score(HOSTILE[name], GOLD, CONTEXT)
        assert not verdict.ast_equal
        assert verdict.exec_equal is not True
    assert arena.scorer.score(GOLD, "select x from a where 1 = y", CONTEXT).exec_equal is True


def views(count: int, body: str) -> str:
    """Views, each of which uses the one before twice."""
    return f"{CONTEXT}; CREATE VIEW v0 AS SELECT x, y FROM a; " + "; ".join(
        f"CREATE VIEW v{i} AS {body.format(i - 1, i - 1)}" for i in range(1, count)
    )


HOSTILE_VIEWS = {
    "doubled joins": views(40, "SELECT l.x, r.y FROM v{} AS l, v{} AS r"),
    "doubled unions": views(40, "SELECT x, y FROM v{} UNION ALL SELECT x, y FROM v{}"),
    "joins of six": views(6, "SELECT l.x, r.y FROM v{} AS l, v{} AS r"),
    "rows without end": f"{CONTEXT}; CREATE VIEW v5 AS {UP.format('')}SELECT n AS x, n AS y FROM r",
    "count without end": f"{CONTEXT}; CREATE VIEW v5 AS {UP.format('')}SELECT COUNT(*) AS x, 1 AS y FROM r",
    "cross join": f"{CONTEXT}; CREATE VIEW v5 AS SELECT a.x, a.y FROM a, {', '.join(f'a AS a{i}' for i in range(16))}",
    "large rows": f"{CONTEXT}; CREATE VIEW v5 AS {LIMITED.format(20000)}SELECT {LONG} AS x, n AS y FROM r",
    "a circle": f"{CONTEXT}; CREATE VIEW v5 AS SELECT * FROM v6; CREATE VIEW v6 AS SELECT * FROM v5",
    "ten thousand": CONTEXT + "".join(f"; CREATE VIEW v{i} AS SELECT x, y FROM a" for i in range(10_000)),
    "upside down": CONTEXT + "".join(f"; CREATE VIEW v{i} AS SELECT x, y FROM v{i + 1}" for i in range(1_000)),
    "parentheses": f"{CONTEXT}; CREATE VIEW v5 AS SELECT {'(' * 100_000}",
    "an attached file": f"{CONTEXT}; ATTACH 'victim.sqlite' AS z; CREATE VIEW v5 AS SELECT v AS x, 1 AS y FROM z.t",
    "a file as schema": 'CREATE TABLE "victim.sqlite".a (x VARCHAR, y INTEGER); CREATE TABLE "file:w?mode=rwc".t (x)',
    "a thousand schemas": CONTEXT + "".join(f"; CREATE TABLE s{i}.v5 (x INT, y INT)" for i in range(1_000)),
}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to see what a process takes")
@pytest.mark.parametrize("name", HOSTILE_VIEWS)
def test_a_hostile_view_is_harmless(arena: Arena, name: str) -> None:
    scorer, before = arena.scorer, arena.files()
    scorer.score(GOLD, GOLD, CONTEXT)
    assert scorer._process is not None
    with Watch(scorer._process.pid) as watch:
        on_tables = scorer.score(GOLD, "SELECT x FROM a WHERE y = 2", HOSTILE_VIEWS[name])
        on_view = scorer.score("SELECT y FROM v5 WHERE y = 1", "SELECT y FROM v5 WHERE y = 2", HOSTILE_VIEWS[name])
    print(f"{name}: {watch.seconds:.2f} s, {(watch.peak - arena.fresh) >> 20} MB: {on_view.reason}")
    assert (on_tables.exec_equal, on_tables.gold_broken) == (False, False)
    assert on_view.exec_equal is not True
    assert watch.seconds <= 2 * SECONDS + 2 / TICKS
    assert watch.peak - arena.fresh < MEMORY
    assert arena.files() == before


def test_a_real_database_is_not_touched(arena: Arena) -> None:
    before = arena.files()
    rows = arena.folder / "victim.sqlite"
    context = "CREATE TABLE t (v TEXT)"
    for name in ("attach the victim", "delete", "count without end", "large sort"):
        assert arena.scorer.score("SELECT v FROM t", HOSTILE[name], context, rows).exec_equal is False
    assert arena.scorer.score("SELECT v FROM t", "SELECT t.v FROM t", context, rows).exec_equal is True
    assert arena.files() == before
