"""SQLite in memory, in which an untrusted query can do nothing but read the tables of its schema.

A query may call the functions of `FUNCTIONS` and read the schema's own tables; an authorizer refuses everything else.
Its cost is limited. A query that exceeds one of these budgets is over the budget, whatever it would return:

| budget             | value                                                                         |
| ------------------ | ----------------------------------------------------------------------------- |
| `SQL_BYTES`        | bytes of the text of a query                                                  |
| `VALUE_BYTES`      | bytes of one text, blob or row, also inside a computation                     |
| `EXPRESSION_DEPTH` | levels of an expression (SQLite also takes at most about 90 parentheses)      |
| `COMPOUND_TERMS`   | SELECTs joined by UNION, INTERSECT and EXCEPT                                 |
| `PATTERN_BYTES`    | bytes of the pattern of LIKE and GLOB                                         |
| `ARGUMENTS`        | arguments of a function                                                       |
| `LOOKUPS`          | names and functions looked up while a query is prepared, counted in every     |
|                    | copy of a CTE or view that it uses; also while a context's views are created  |
| `VIEWS`            | views of a context; further ones are ignored                                  |
| `QUERY_STEPS`      | steps of SQLite's virtual machine that one run of a query takes               |
| `PAIR_STEPS`       | steps of all runs of an engine together, since it was made or `reset`         |
| `RESULT_ROWS`      | rows of a result                                                              |
| `RESULT_BYTES`     | bytes of the texts and blobs of a result                                      |
| `HEAP_BYTES`       | bytes that SQLite allocates in the whole process, real databases included     |
| `FILE_BYTES`       | bytes of a real database                                                      |

All budgets are counts and not times, so that a verdict does not depend on the machine.
"""

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ftlab.sql import moment
from ftlab.sql.lexer import BLANK, BLANKS, COMMENT, WORD, end_of_query
from ftlab.sql.schema import Schema, Table, View, columns_of, quoted

SQL_BYTES = 250_000
VALUE_BYTES = 250_000
EXPRESSION_DEPTH = 1_000
COMPOUND_TERMS = 100
PATTERN_BYTES = 1_000
ARGUMENTS = 100
LOOKUPS = 20_000
VIEWS = 100
QUERY_STEPS = 5_000_000
PAIR_STEPS = 25_000_000
RESULT_ROWS = 20_000
RESULT_BYTES = 16_000_000
HEAP_BYTES = 160 * 2**20
FILE_BYTES = 64 * 2**20
# Schemas beside main and temp: SQLite's default limit.
ATTACHED = 10
# The most columns of a table, SQLite's own limit; each is filled by a variable.
COLUMNS = 2_000

# Steps between two checks of the step budgets.
STEPS = 1_000
# Rows fetched between two checks of the size of a result.
BATCH = 100
REASON_LENGTH = 200

LIMITS = {
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: SQL_BYTES,
    sqlite3.SQLITE_LIMIT_LENGTH: VALUE_BYTES,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: EXPRESSION_DEPTH,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: COMPOUND_TERMS,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: PATTERN_BYTES,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: ARGUMENTS,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: COLUMNS,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}

# Functions that depend on their arguments alone (dates also on `moment.NOW`). All others are refused: random numbers,
# files, extensions, full-text internals and the state of the connection.
FUNCTIONS = frozenset(
    re.findall(
        r"\S+",
        """abs char coalesce format glob hex ifnull iif instr length like likelihood likely lower ltrim max min nullif
        printf quote replace round rtrim sign soundex substr substring trim typeof unicode unlikely upper zeroblob
        concat concat_ws unhex octet_length string_agg if
        avg count group_concat sum total median percentile percentile_cont percentile_disc
        cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank row_number
        acos acosh asin asinh atan atan2 atanh ceil ceiling cos cosh degrees exp floor ln log log10 log2 mod pi pow
        power radians sin sinh sqrt tan tanh trunc
        date datetime julianday strftime time timediff unixepoch current_date current_time current_timestamp
        -> ->> json json_array json_array_length json_extract json_group_array json_group_object json_insert
        json_object json_patch json_quote json_remove json_replace json_set json_type json_valid""",
    )
)

ACTIONS = {
    getattr(sqlite3, f"SQLITE_{name}"): name.replace("_", " ")
    for name in re.findall(
        r"\w+",
        """ALTER_TABLE ANALYZE ATTACH CREATE_INDEX CREATE_TABLE CREATE_TRIGGER CREATE_VIEW CREATE_VTABLE DELETE DETACH
        DROP_INDEX DROP_TABLE DROP_TRIGGER DROP_VIEW DROP_VTABLE INSERT PRAGMA REINDEX SAVEPOINT TRANSACTION UPDATE""",
    )
}

OWN_TABLES = ("sqlite_", "pragma_")

# A part of SQLite's message for each limit, with the budget's name and value.
PASSED = {
    "query string is too large": ("bytes of text", SQL_BYTES),
    "string or blob too big": ("bytes in one value or row", VALUE_BYTES),
    "Expression tree is too large": ("levels of an expression", EXPRESSION_DEPTH),
    "parser stack overflow": ("levels of parentheses", None),
    "too many terms in compound SELECT": ("SELECTs in a compound", COMPOUND_TERMS),
    "pattern too complex": ("bytes in a pattern", PATTERN_BYTES),
    "too many arguments": ("arguments of a function", ARGUMENTS),
}

# Possessive quantifiers, so that no text makes it slow.
START = re.compile(rf"(?:{BLANK}|{COMMENT})*+({WORD}++|(?s:.)|\Z)")
NO_SYNTAX = re.compile(
    r"empty$|more than one|not a query|not text|has parameters|null char|syntax error|unrecognized token|incomplete "
    r"input|unknown (?:or unsupported )?join|clause should come|a JOIN clause is required|over the budget"
)
FAULTS = (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError)


class EngineError(Exception):
    """A query cannot be run, or a database not be read; the message is one line."""


class QueryError(EngineError):
    """A text that is not a single runnable read-only query, or a query that fails while it runs."""


class OverBudget(EngineError):
    """A query that exceeded a budget. `pair`: the steps of all runs together exceeded theirs, not those of this run."""

    def __init__(self, reason: str, pair: bool = False) -> None:
        super().__init__(reason)
        self.pair = pair


class DatabaseError(EngineError):
    """A file that is not a SQLite database, or too large."""


@dataclass(frozen=True)
class Rows:
    """A result: the names of its columns, and its rows in SQLite's order."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


class Guard:
    """SQLite's authorizer and progress handler: decides what a query may do, and counts its steps."""

    def __init__(self, tables: Iterable[Table]) -> None:
        self.names: set[str] = set()
        self.places: set[tuple[str, str]] = set()
        for table in tables:
            self.admit(table)
        self.pair_steps = 0
        self.begin()

    def admit(self, table: Table) -> None:
        """Let queries read a table or a view."""
        self.names.add(table.name.lower())
        self.places.add((table.schema, table.name.lower()))

    def begin(self) -> None:
        """Start an untrusted query, with all counts at zero."""
        self.trusted = False
        self.refused: str | None = None
        self.lookups = 0
        self.steps = 0

    def authorize(self, action: int, first: str | None, second: str | None, base: str | None, _: str | None) -> int:
        if self.trusted:
            return sqlite3.SQLITE_OK
        refusal = self.refusal(action, first, second, base)
        if refusal is None:
            return sqlite3.SQLITE_OK
        self.refused = self.refused or refusal
        return sqlite3.SQLITE_DENY

    def refusal(self, action: int, first: str | None, second: str | None, base: str | None) -> str | None:
        self.lookups += 1
        if self.lookups > LOOKUPS:
            return over("names looked up", LOOKUPS)
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return None
        if action == sqlite3.SQLITE_READ:
            return None if self.may_read(first or "", second, base) else f"not allowed: table {first}"
        if action == sqlite3.SQLITE_FUNCTION:
            return None if second in FUNCTIONS else f"not allowed: {second}()"
        # To read a table-valued function such as json_each, SQLite first writes its columns to a schema table.
        if (first or "").lower().startswith(OWN_TABLES):
            return "not allowed: a table or table-valued function of SQLite's own"
        return f"not a query: {ACTIONS.get(action, 'this statement')}"

    def may_read(self, table: str, column: str | None, base: str | None) -> bool:
        """Whether a table belongs to the schema, or is a subquery whose rows are only counted.

        For such a subquery SQLite passes its alias and no column, as it does for its own tables, which are known.
        """
        if table.lower() in self.names:
            return base is None or (base.lower(), table.lower()) in self.places
        return not column and table.lower() not in virtual_tables() and not table.lower().startswith(OWN_TABLES)

    def tick(self) -> bool:
        if self.trusted:  # filling the tables does not count as a query's steps
            return False
        self.steps += STEPS
        self.pair_steps += STEPS
        return self.steps > QUERY_STEPS or self.pair_steps > PAIR_STEPS


@lru_cache(maxsize=1)
def virtual_tables() -> frozenset[str]:
    """SQLite's built-in virtual tables, such as json_each and dbstat."""
    connection = sqlite3.connect(":memory:")
    try:
        return frozenset(name for (name,) in connection.execute("PRAGMA module_list"))
    finally:
        connection.close()


def over(what: str, limit: int | None = None) -> str:
    return f"over the budget: {what}" if limit is None else f"over the budget: more than {limit:,} {what}"


class Engine:
    """The empty tables of a schema and its views, in an SQLite database in memory. Not thread-safe.

    `schema` is the part of the given schema that could be created, without tables that SQLite refuses (too many
    columns, a name with a NUL, an eleventh schema), and without views that SQLite cannot prepare on these tables or
    that are over the budget. A view that reads tables of other schemas exists under its bare name only.
    """

    def __init__(self, schema: Schema) -> None:
        self._connection = connect()
        attach(self._connection, schema)
        ddl = schema.ddl()
        tables = {key: table for key, table in schema.tables.items() if accepted(self._connection, ddl[key])}
        self.schema = Schema(tables, {})
        self._protect()
        self._add_views(schema.views)

    @classmethod
    def of_file(cls, path: Path | str) -> "Engine":
        """The tables and rows of a SQLite file, read into memory; the file is never opened by SQLite.

        Raises DatabaseError if the file cannot be read, is larger than `FILE_BYTES` or is not a SQLite database.
        """
        engine = cls.__new__(cls)
        engine._connection = connect()
        try:
            engine._connection.deserialize(read_database(Path(path)))
            engine._connection.execute("PRAGMA temp_store = MEMORY")
            engine.schema = Schema.of_database(engine._connection)
        except (*FAULTS, OSError) as error:
            raise DatabaseError(f"{path} cannot be read as a SQLite database: {error}") from None
        engine._protect()
        return engine

    def _protect(self) -> None:
        """From now on allow reading only, except in `fill`."""
        self._now_fixed = False
        self._guard = Guard(self.schema.tables.values())
        self._connection.set_authorizer(self._guard.authorize)
        self._connection.set_progress_handler(self._guard.tick, STEPS)

    def _add_views(self, views: Mapping[str, View]) -> None:
        """Create the views, each after those that it reads, until one is over the budget."""
        waiting, left, lookups = list(views.items())[:VIEWS], 0, 0
        while len(waiting) != left:
            left, late = len(waiting), []
            for key, view in waiting:
                self._guard.begin()
                fault = self.prepare(view.query)
                if fault is not None or not self._add_view(key, view):
                    late.append((key, view))
                lookups += self._guard.lookups
                if lookups > LOOKUPS or (fault or "").startswith(over("")):
                    return
            waiting = late

    def _add_view(self, key: str, view: View) -> bool:
        """Create a view, if possible. Only a temporary view may read tables of another schema."""
        names = f" ({', '.join(map(quoted, view.names))})" if view.names else ""
        for schema in dict.fromkeys([view.schema, "temp"]):
            table = Table(view.name, {}, schema)
            with self._trusting():
                made = accepted(self._connection, f"CREATE VIEW {table.address()}{names} AS {view.query}")
            if not made:
                continue
            self._guard.admit(table)
            fits = self.prepare(f"SELECT * FROM {table.address()}") is None
            with self._trusting():
                if fits:
                    table.columns.update(columns_of(self._connection, view.name, schema))
                    self.schema.tables[key], self.schema.views[key] = table, view
                    return True
                accepted(self._connection, f"DROP VIEW {table.address()}")
        return False

    @contextmanager
    def _trusting(self) -> Iterator[None]:
        """Allow all statements in the block, for those of this class itself."""
        self._guard.trusted = True
        try:
            yield
        finally:
            self._guard.trusted = False

    def reset(self) -> None:
        """Start another pair, with its steps at zero."""
        self._guard.pair_steps = 0

    def close(self) -> None:
        self._connection.close()

    def fill(self, rows: Mapping[str, Sequence[tuple[Any, ...]]]) -> None:
        """Replace the rows of all tables. `rows` maps a table's key to rows with values in the order of its columns."""
        with self._trusting():
            if self._connection.in_transaction:  # an earlier fill was interrupted
                self._connection.execute("ROLLBACK")
            self._connection.execute("BEGIN")
            try:
                for key, table in self.schema.tables.items():
                    if key not in self.schema.views:
                        self._replace(table, rows.get(key, ()))
            finally:
                self._connection.execute("COMMIT")

    def _replace(self, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
        self._connection.execute(f"DELETE FROM {table.address()}")
        if rows:
            marks = ", ".join("?" * len(table.columns))
            self._connection.executemany(f"INSERT INTO {table.address()} VALUES ({marks})", rows)

    def prepare(self, text: str) -> str | None:
        """None if a text is a single read-only query that SQLite can prepare, else the reason in one line."""
        reason = not_a_query(text)
        if reason is not None:
            return reason
        try:
            self._execute("EXPLAIN " + text).close()
        except FAULTS as error:
            return str(self._fault(error))
        return None

    def syntax_ok(self, text: str) -> bool:
        """Whether a text is a single query by SQLite's grammar, even if it names unknown tables or columns."""
        return is_grammatical(self.prepare(text))

    def run(self, text: str) -> Rows:
        """The result of a query. Raises QueryError if it cannot run and OverBudget if it exceeds a budget."""
        reason = not_a_query(text)
        if reason is not None:
            raise QueryError(reason)
        try:
            return self._fetch(text)
        except FAULTS as error:
            if "Could not decode to UTF-8" not in str(error):
                raise self._fault(error) from None
        return self._with_any_text(lambda: self._fetch(text))

    def _with_any_text(self, fetch: Callable[[], Rows]) -> Rows:
        """Fetch a result with text that is not UTF-8, as in CAST(x'ff' AS TEXT). Slower, so used only when needed."""
        self._connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
        try:
            return fetch()
        except FAULTS as error:
            raise self._fault(error) from None
        finally:
            self._connection.text_factory = str

    def _fetch(self, text: str) -> Rows:
        cursor = self._execute(text)
        try:
            rows: list[tuple[Any, ...]] = []
            size = 0
            while batch := cursor.fetchmany(BATCH):
                rows += batch
                size += sum(len(value) for row in batch for value in row if isinstance(value, (str, bytes)))
                if len(rows) > RESULT_ROWS:
                    raise OverBudget(over("rows", RESULT_ROWS))
                if size > RESULT_BYTES:
                    raise OverBudget(over("bytes of rows", RESULT_BYTES))
            return Rows([name for name, *_ in cursor.description or ()], rows)
        finally:
            cursor.close()

    def _execute(self, text: str) -> sqlite3.Cursor:
        self._guard.begin()
        if not self._now_fixed and moment.reads_clock(text):
            moment.fix(self._connection)
            self._now_fixed = True
        try:
            return self._connection.execute(text.rstrip(BLANKS + ";"))
        except (sqlite3.ProgrammingError, sqlite3.Warning) as error:
            end = end_of_query(text)
            if "one statement" not in str(error) or end == len(text):
                raise
        return self._connection.execute(text[:end])

    def _fault(self, error: BaseException) -> EngineError:
        """The error for what SQLite or Python raised, with one line that says what is wrong with the query."""
        guard, message = self._guard, str(error)
        if guard.refused is not None:
            return (OverBudget if guard.refused.startswith("over") else QueryError)(guard.refused)
        if isinstance(error, MemoryError):
            return OverBudget(over("memory"))
        if message == "interrupted":
            return interrupted(guard)
        for sign, (what, limit) in PASSED.items():
            if sign in message:
                return OverBudget(over(what, limit))
        if isinstance(error, UnicodeError):
            return QueryError("not text: contains half of a surrogate pair")
        if "one statement" in message:
            return QueryError("more than one statement")
        if "number of bindings" in message:
            return QueryError("has parameters, which have no values")
        return QueryError(one_line(message))


def is_grammatical(fault: str | None) -> bool:
    """Whether a reason from `Engine.prepare` (or None) is not a syntax error."""
    return fault is None or NO_SYNTAX.search(fault) is None


def interrupted(guard: Guard) -> OverBudget:
    if guard.steps > QUERY_STEPS:
        return OverBudget(over("steps", QUERY_STEPS))
    if guard.pair_steps > PAIR_STEPS:
        return OverBudget(over("steps in all", PAIR_STEPS), pair=True)
    return OverBudget(over("processor time"))


# Sorting must not open a file. Deleted data need not be overwritten in memory. The heap limit is per process.
SETTINGS = f"""
    PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF; PRAGMA secure_delete = OFF;
    PRAGMA hard_heap_limit = {HEAP_BYTES};
"""


def connect() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(SETTINGS)
    for limit, value in LIMITS.items():
        connection.setlimit(limit, value)
    return connection


def attach(connection: sqlite3.Connection, schema: Schema) -> None:
    """Attach an empty database in memory for each named schema."""
    every: list[Table | View] = [*schema.tables.values(), *schema.views.values()]
    names = dict.fromkeys(made.schema for made in every if made.schema not in ("main", "temp"))
    if not names:
        return
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, ATTACHED)
    for name in names:
        accepted(connection, f"ATTACH ':memory:' AS {quoted(name)}")
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, LIMITS[sqlite3.SQLITE_LIMIT_ATTACHED])


def accepted(connection: sqlite3.Connection, statement: str) -> bool:
    """Execute a statement that creates something; whether SQLite accepts it."""
    try:
        connection.execute(statement)
    except FAULTS:
        return False
    return True


def read_database(path: Path) -> bytearray:
    size = path.stat().st_size
    if size > FILE_BYTES:
        raise ValueError(f"{size:,} bytes, more than the {FILE_BYTES:,} that are read into memory")
    data = bytearray(size)
    with path.open("rb", buffering=0) as file:
        file.readinto(data)
    # Bytes 18 and 19 mark a database that was last used with a write-ahead log, which cannot exist in memory
    # (sqlite.org/fileformat2.html, 1.3.3).
    if data[18:20] == b"\x02\x02":
        data[18:20] = b"\x01\x01"
    return data


def not_a_query(text: str) -> str | None:
    """Why a text cannot be a query, judged by its first word; None if it can."""
    match = START.match(text)
    word = match.group(1).upper() if match else ""
    if word in ("SELECT", "WITH"):
        return None
    return f"not a query: {one_line(word)}" if word else "empty"


def one_line(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= REASON_LENGTH else line[: REASON_LENGTH - 1] + "…"
