"""One fixed moment for "now": verdicts do not depend on the day or the second in which they are reached.

SQLite's date functions read the clock for 'now', CURRENT_DATE and where no time is given. `fix` puts functions of the
same names in their place that hand the same arguments on to SQLite with the moment written out.
"""

import re
import sqlite3
from functools import lru_cache, partial

from ftlab.sql.values import Value

NOW = "2024-08-15 11:42:17"
# The arguments of each function that are times; the last of them may be left out, and means now.
TIMES = {
    "date": (0,), "time": (0,), "datetime": (0,), "julianday": (0,), "unixepoch": (0,), "strftime": (1,),
    "timediff": (0, 1),
}  # fmt: skip
CURRENT = {"current_date": "date", "current_time": "time", "current_timestamp": "datetime"}
CACHED_LENGTH = 200  # characters of arguments whose result is kept
# Where none of these stands no query can mean now.
READS_CLOCK = re.compile(
    r"now|subsec|current_|\(\s*+(?:\)|--|/\*)|strftime\s*+\((?:\s*+'[^']{0,200}'\s*+\)|[^,]{0,200}\)|[^,]{201})",
    re.IGNORECASE,
)


def fix(connection: sqlite3.Connection) -> None:
    """Make `NOW` the only moment that queries on a connection know as now."""
    for name, count in known():
        connection.create_function(name, count, partial(evaluate, name), deterministic=True)
    for name, function in CURRENT.items():
        connection.create_function(name, 0, partial(evaluate, function), deterministic=True)


@lru_cache(maxsize=1024)
def reads_clock(text: str) -> bool:
    """Whether a query may ask for the time; false only where it cannot."""
    return READS_CLOCK.search(text) is not None


def evaluate(function: str, *arguments: Value) -> Value:
    """What a date function by its lower-case name makes of arguments, as SQLite does; NULL where it makes nothing."""
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
    """The arguments with the moment in the place of now, also where now goes without saying."""
    for place in TIMES[function]:
        if place < len(arguments) and str(arguments[place]).lower() == "now":
            arguments[place] = NOW
    last = TIMES[function][-1]
    if len(arguments) == last or (len(arguments) > last and str(arguments[last]).lower() in ("subsec", "subsecond")):
        arguments.insert(last, NOW)
    return arguments


@lru_cache(maxsize=1)
def known() -> list[tuple[str, int]]:
    """The date functions that this SQLite has, each with its number of arguments (-1: any)."""
    marks = ", ".join("?" * len(TIMES))
    found = f"SELECT DISTINCT name, narg FROM pragma_function_list WHERE name IN ({marks})"
    return sqlite().execute(found, list(TIMES)).fetchall()


@lru_cache(maxsize=1)
def sqlite() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
