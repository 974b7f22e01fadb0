"""A fixed time for "now", so that verdicts do not depend on the time at which they are computed.

SQLite's date functions read the clock for 'now', for CURRENT_DATE and when no time is given. `fix` replaces them by
functions of the same names, which pass their arguments on to SQLite with the fixed time in place of now.
"""

import re
import sqlite3
from functools import lru_cache, partial

from ftlab.sql.values import Value

NOW = "2024-08-15 11:42:17"
# The positions of each function's time arguments; if the last of them is missing, it means now.
TIMES = {
    "date": (0,), "time": (0,), "datetime": (0,), "julianday": (0,), "unixepoch": (0,), "strftime": (1,),
    "timediff": (0, 1),
}  # fmt: skip
CURRENT = {"current_date": "date", "current_time": "time", "current_timestamp": "datetime"}
CACHED_LENGTH = 200  # characters of arguments up to which a result is cached
# A query without any of these cannot depend on the clock.
READS_CLOCK = re.compile(
    r"now|subsec|current_|\(\s*+(?:\)|--|/\*)|strftime\s*+\((?:\s*+'[^']{0,200}'\s*+\)|[^,]{0,200}\)|[^,]{201})",
    re.IGNORECASE,
)


def fix(connection: sqlite3.Connection) -> None:
    """Make queries on a connection use `NOW` as the current time."""
    for name, count in known():
        connection.create_function(name, count, partial(evaluate, name), deterministic=True)
    for name, function in CURRENT.items():
        connection.create_function(name, 0, partial(evaluate, function), deterministic=True)


@lru_cache(maxsize=1024)
def reads_clock(text: str) -> bool:
    """Whether a query may read the clock; false only if it certainly does not."""
    return READS_CLOCK.search(text) is not None


def evaluate(function: str, *arguments: Value) -> Value:
    """The result of SQLite's date function of this lower-case name; None for NULL or an error."""
    short = sum(len(value) for value in arguments if isinstance(value, str | bytes)) < CACHED_LENGTH
    return (cached if short else computed)(function, *arguments)


def computed(function: str, *arguments: Value) -> Value:
    given = timed(function, list(arguments))
    try:
        found: Value = sqlite().execute(f"SELECT {function}({', '.join('?' * len(given))})", given).fetchone()[0]
        return found
    except (sqlite3.Error, OverflowError, ValueError):
        return None


cached = lru_cache(maxsize=8192, typed=True)(computed)


def timed(function: str, arguments: list[Value]) -> list[Value]:
    """The arguments with `NOW` in place of an explicit or implied now."""
    for place in TIMES[function]:
        if place < len(arguments) and str(arguments[place]).lower() == "now":
            arguments[place] = NOW
    last = TIMES[function][-1]
    if len(arguments) == last or (len(arguments) > last and str(arguments[last]).lower() in ("subsec", "subsecond")):
        arguments.insert(last, NOW)
    return arguments


@lru_cache(maxsize=1)
def known() -> list[tuple[str, int]]:
    """The date functions of this SQLite version, each with its number of arguments (-1: any)."""
    marks = ", ".join("?" * len(TIMES))
    found = f"SELECT DISTINCT name, narg FROM pragma_function_list WHERE name IN ({marks})"
    return sqlite().execute(found, list(TIMES)).fetchall()


@lru_cache(maxsize=1)
def sqlite() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
