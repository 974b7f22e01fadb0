"""Values of a column at which a function of it differs from the column itself and from other functions of it."""

from collections.abc import Iterator, Sequence

from ftlab.sql import moment
from ftlab.sql.values import Value

LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Dates that differ in one part each.
MOMENTS = (
    "2008-06-15", "2009-06-15", "2008-07-15", "2008-06-16", "2008-06-15 10:30:00", "2008-06-15 11:30:00",
    "2008-06-15 10:31:00", "2008-06-15 10:30:01",
)  # fmt: skip
OF_DATES = {"STRFTIME", "DATE", "DATETIME", "TIME", "JULIANDAY", "UNIXEPOCH"}
LONGEST_CUT = 250


def shapes(name: str, arguments: Sequence[Value]) -> Iterator[Value]:
    """Distinguishing values for a function by its upper-case name. `arguments` are its literals, None for others."""
    literals = [value for value in arguments[1:] if value is not None]
    match name:
        case "ROUND":
            digits = literals[0] if literals and isinstance(literals[0], int) else 0
            yield from fractions(max(0, min(digits, 8)))
        case "SUBSTR" | "SUBSTRING":
            yield from cuts([value for value in literals if isinstance(value, int)])
        case "TRIM" | "LTRIM" | "RTRIM":
            edge = str(literals[0])[:1] if literals else " "
            yield from (f"{edge}ann", f"ann{edge}", "ann", f"{edge}ann{edge}")
        case "UPPER" | "LOWER":
            yield from ("ann", "Ann", "ANN", "b")
        case "LENGTH":
            yield from ("bb", "a", "aaaa", "ccc")
        case "ABS":
            yield from (-7, 7, -40.5, 3)
        case "CAST" | "REPLACE":
            yield from (7.5, "7x", "1,000", "7.0", -7.5, 7, " 7", "x")
        case _ if name in OF_DATES:
            yield from MOMENTS


def fractions(digits: int) -> Iterator[float]:
    """Numbers of which rounding to `digits`, to fewer and to more digits makes different ones equal."""
    step = 10.0**-digits
    yield from (round(7 + step * part, digits + 2) for part in (1.24, 1.2, 1.4, 0.8, 1))


def cuts(bounds: Sequence[int]) -> Iterator[str]:
    """Texts that differ just after a substring's end, or just before its start."""
    if not bounds:
        return
    start = max(0, min(abs(bounds[0]) - 1, LONGEST_CUT))
    end = start + max(0, min(bounds[1], LONGEST_CUT)) if len(bounds) > 1 else start
    text = LETTERS * (2 + end // len(LETTERS))
    if bounds[0] < 0:
        yield from ("zz" + text[: start + 1], "yz" + text[: start + 1], text[:start])
    yield from (text[:end] + "yx", text[:end] + "zx", text[:end])
    if start:
        yield from (text[: start - 1] + "Z" + text[start : end + 2], "Z" + text[1 : end + 2])


def spellings(number: float) -> Iterator[str]:
    """Texts that arithmetic or CAST turns into a number."""
    yield from (str(number), f" {number}", f"{float(number)}", f"{number}x", f"0{number}")
    if number and number == int(number):
        yield f"{int(number) // 10}e1" if number % 10 == 0 else f"{number}.4"


def dated(function: str, *arguments: Value) -> Value:
    """The result of a SQLite date function, by its upper-case name, for constants; None if it is not a date."""
    return moment.evaluate(function.lower(), *arguments) if function in OF_DATES else None
