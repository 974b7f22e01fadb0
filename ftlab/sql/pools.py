"""Values to try for a column when functions or arithmetic of it are compared, the most useful first."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import chain, combinations, permutations, zip_longest
from typing import Any

from ftlab.sql.moment import NOW, evaluate
from ftlab.sql.schema import Kind
from ftlab.sql.shapes import OF_DATES, cuts
from ftlab.sql.values import Value, fit

OF_JSON = re.compile(r"JSON|->")
BASE = "2008-06-15"
DATED = re.compile(r"\d{4}-\d\d")
STEP = re.compile(r"\s*[+-]?\d+(?:\.\d+)?\s*(second|minute|hour|day|month|year)s?\s*", re.IGNORECASE)
FORMAT = re.compile(r"%[dmYHMSjw]")
PATH_STEP = re.compile(r'\.(?:"([^"]*)"|([^.\[]+))|\[(\d+)\]')
# Dates that differ from `BASE` in one or two parts.
MOMENTS = (
    BASE, "2009-06-15", "2008-07-15", "2008-06-16", "2009-03-10", "2007-09-20", "2008-06-15 10:30:00", "2008-02-29",
    "2012-12-31", "2013-01-01", "1999-12-31", "2008-06-15 22:45:30", "2008-06-14", "2008-10-05", "2001-04-01",
)  # fmt: skip
# Times and dates as texts for substring functions.
TIMES = (
    "10:30", "08:05", "10:31", "12:30", "1:27.453", "09:30:15", "10:305", "0530", "200806", "20080615", "15/06/2008",
)  # fmt: skip
UNITS = ("years", "days", "months")
# The most numeric and text literals that are used; the most separators among the texts, and their length.
NUMBERS = 8
TEXTS = 10
MARKS = 4
LONGEST_MARK = 8
# Seconds of a day: larger numbers may be Unix times; the most separators in a text; the place of NULL in a pool.
DAY = 86_400
MOST_MARKS = 12
NULL_AT = 6


@dataclass
class Usage:
    """How formulas use a column: the functions around it (upper-case names), and the literals next to it."""

    functions: set[str] = field(default_factory=set)
    texts: list[str] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)

    @property
    def is_json(self) -> bool:
        return any(OF_JSON.search(name) for name in self.functions)


def pool(kind: Kind, usage: Usage) -> list[Value]:
    """Distinct values to try for a column of a kind; NULL is among them."""
    numbers = list(dict.fromkeys(usage.numbers))[:NUMBERS]
    texts = list(dict.fromkeys(usage.texts))[:TEXTS]
    if usage.is_json:
        return distinct([*jsons(texts, numbers), None])
    found: list[Iterable[Value]] = []
    dated = usage.functions & OF_DATES or kind == "any" or any(map(DATED.match, texts)) or "now" in texts
    if kind != "number" and dated:
        found.append(dates(texts, numbers))
    if kind == "number" or (kind == "any" and not usage.functions & OF_DATES):
        found.append(figures(numbers))
    if kind != "number" and not usage.functions & OF_DATES:
        clock = times(numbers) if usage.functions & {"SUBSTR", "SUBSTRING"} else ()
        found.append(chain(clock, words(texts, numbers)))
    values = [fit(value, kind) for value in in_turn(found) if storable(value)]
    return distinct([*values[:NULL_AT], None, *values[NULL_AT:]])


def storable(value: Value) -> bool:
    return not isinstance(value, int | float) or abs(value) < 2**53


def distinct(values: Iterable[Value]) -> list[Value]:
    return list({(type(value), value): value for value in values}.values())


def in_turn(lists: Sequence[Iterable[Value]]) -> Iterator[Value]:
    return (value for values in zip_longest(*lists) for value in values)


def whole(number: float) -> float:
    return int(number) if float(number).is_integer() else number


def figures(numbers: Sequence[float]) -> Iterator[Value]:
    """Numbers near thresholds and their multiples, and small ones, whose quotients cover most fractions."""
    yield from (1, 2, 3)
    for step in (0, 1, -1):
        yield from (whole(number + step) for number in numbers)
    yield from (whole(a * b + step) for a, b in combinations(numbers, 2) for step in (1, 0, -1) if abs(a * b) > 1)
    for times in (2, 3, 7, 10):
        yield from (whole(number * times + 1) for number in numbers if abs(number) > 1)
    yield from (4, 7, 13, 0, 10, 20, 5, 11, 100, -1)
    yield from (whole(round(number + part, 6)) for part in (0.5, -0.5) for number in numbers)
    yield from (*range(6, 41), 200, 365, 1000, -7, 2.5, 0.25)


def dates(texts: Sequence[str], numbers: Sequence[float]) -> Iterator[Value]:
    """Dates near the written ones, with parts as written, and at the written distances from `BASE` and from now."""
    yield BASE
    yield from read_by_format(texts)
    yield from parts([*texts, *(str(whole(number)) for number in numbers)])
    written = [text for text in texts if DATED.match(text) and evaluate("date", text)]
    for text in written:
        yield text
        yield from shifted(text, ("+1 day", "-1 day"))
    seconds = [*numbers, *(int(text) for text in texts if text.isdecimal() and len(text) < 12)]
    for number in (number for number in seconds if DAY < number < 1e12):
        yield from (evaluate("datetime", second, "unixepoch") for second in near(number))
    modifiers = [text for text in texts if STEP.fullmatch(text)]
    for start in (BASE, NOW[:10]):
        for modifier in modifiers:
            yield from around(evaluate("date", start, modifier))
            yield from around(evaluate("date", start, opposite(modifier)))
        for number in numbers:
            if number.is_integer() and 0 < number < 1000:
                steps = [f"{sign}{step} {unit}" for unit in UNITS for step in near(number) for sign in "-+"]
                yield from shifted(start, steps)
                year = evaluate("date", start, f"-{int(number)} years")
                yield from shifted(str(year), ("+20 days", "-20 days", "+3 months", "-3 months"))
    yield from MOMENTS
    yield from (NOW[:10], NOW)
    yield from shifted(NOW[:10], ("-1 day", "+1 day", "-1 month", "-1 year", "start of month", "start of year"))


def read_by_format(texts: Sequence[str]) -> Iterator[str]:
    """The dates that texts spell in each of the formats among them, and the days after."""
    for form, text in permutations(texts, 2):
        if FORMAT.search(form):
            with suppress(ValueError, OverflowError, re.error):
                day = datetime.strptime(text, form)
                yield from (day.isoformat(" "), (day + timedelta(days=1)).isoformat(" "))


def near(number: float) -> tuple[int, ...]:
    return int(number), int(number) + 1, int(number) - 1


def opposite(modifier: str) -> str:
    text = modifier.strip()
    return "-" + text.lstrip("+") if not text.startswith("-") else "+" + text[1:]


def shifted(start: str, modifiers: Iterable[str]) -> Iterator[Value]:
    return (evaluate("date", start, modifier) for modifier in modifiers)


def around(day: Value) -> Iterator[Value]:
    if isinstance(day, str):
        yield day
        yield from shifted(day, ("+1 day", "-1 day"))


def parts(texts: Iterable[str]) -> Iterator[Value]:
    """Dates with a part that a text gives, or one more or less."""
    for text in texts:
        if DATED.fullmatch(text):
            year, month = int(text[:4]), int(text[5:])
            yield from (f"{text}-15", f"{year}-{month % 12 + 1:02}-15", f"{year - 1}-{month:02}-15")
        elif text.isdecimal() and len(text) <= 4:
            for number in near(int(text)):
                yield from of_part(number)
        elif re.fullmatch(r"\d\d-\d\d", text):
            yield from (f"2008-{text}", *shifted(f"2008-{text}", ("+1 day", "-1 day")))


def of_part(number: int) -> Iterator[str]:
    if 1000 <= number <= 9999:
        yield from (f"{number}-06-15", f"{number}07", f"{number}0615", f"{number}12")
    if 1 <= number <= 12:
        yield f"2008-{number:02}-15"
    if 1 <= number <= 28:
        yield f"2008-06-{number:02}"
    if 0 <= number <= 6:
        yield date(2008, 6, 15 + number).isoformat()  # a Sunday and the days after
    if 0 <= number <= 23:
        yield f"2008-06-15 {number:02}:30:00"


def times(numbers: Sequence[float]) -> Iterator[str]:
    """Times and dates as texts for substring functions, some as many minutes apart as the numbers."""
    yield "08:00"
    for minutes in (int(number) + step for number in numbers if 0 < number < 900 for step in (0, 1, -1)):
        yield f"{8 + minutes // 60:02}:{minutes % 60:02}"
    yield from TIMES


def words(texts: Sequence[str], numbers: Sequence[float]) -> Iterator[Value]:
    """Texts with and without the separators that functions look for, and numbers in common spellings."""
    short = [text for text in texts if 0 < len(text) <= LONGEST_MARK]
    marks = sorted(short, key=lambda text: (text.isalnum(), len(text)))[:MARKS] or ["-"]
    said = [text.replace("%", "") for text in texts if not STEP.fullmatch(text)]
    plain = [text for text in said if any(map(str.isalnum, text))]
    spelled = [str(whole(number + step)) for number in numbers for step in (1, 0, -1)]
    yield from chain(plain, (f"ab{mark}cd" for mark in marks))
    for text in [*plain, *spelled[:9]]:
        yield from marked(text, marks)
    for number in (number for number in numbers if number.is_integer()):
        yield from (f"{int(number) + step:,}" for step in (1, 0, -1))
        yield from (f"{mark}{int(number) + 1:,}" for mark in marks)
        for length in near(number):
            if 0 <= length < 200:
                yield from ("x" * length, *(f"x{mark}{'x' * (length - 2)}{mark}x" for mark in marks if length > 1))
            if 0 <= length < MOST_MARKS:
                yield from (mark.join("x" * (length + 1)) for mark in marks)
        yield from cuts([min(int(number), 99)] if number else [])
    for mark in marks:
        yield from (f"{mark}25", f"3{mark}", f"{mark}140", f"9{mark}", f"1{mark}40")
        yield from (
            f"{mark}ab",
            f"ab{mark}",
            f"a{mark}b{mark}c",
            f"ab {mark} cd",
            f"{mark}{mark}ab",
            *(f"{m}a{m}" for m in mark),
        )
    yield from ("abcd", "ann", "Ann", "ANN", "", " ", "b", " ann ", "7.5", "7x", "1,000", "$9", "9%", "10", "x")
    for text in plain:
        yield from (text.swapcase(), f" {text}", f"{text} ", f"q{text}", f"{text}q", text[:-1], text[1:])
    yield from spelled


def marked(text: str, marks: Iterable[str]) -> Iterator[Value]:
    """A text with each separator before, after and inside it."""
    half = (len(text) + 1) // 2
    for mark in marks:
        yield from (text[:half] + mark + text[half:], mark + text, text + mark)
        if len(text) > 1:
            yield from (f"{mark}{text}{mark}", f"x{mark}{text}", f"{text}{mark}x")


def jsons(texts: Sequence[str], numbers: Sequence[float]) -> Iterator[str]:
    """JSON texts in which each path leads to values, to nothing, or to lists of several lengths."""
    paths = [text for text in texts if text.startswith("$")] or [f"$.{text}" for text in texts[:1] if text.isalnum()]
    values: list[Any] = [text for text in texts if not text.startswith("$")]
    values += [whole(number + step) for number in numbers for step in (0, 1, -1)]
    values += ["red", 1, "7", None, {"a": 1}, 2.5]
    lengths = {int(number) + step for number in numbers if 0 <= number < 50 for step in (0, 1, -1)} | {0, 1, 2, 3}
    lists = [list(range(1, length + 1)) for length in sorted(lengths) if length >= 0]
    yield from map(json.dumps, lists)
    every = [*values, *lists]
    for at, value in enumerate(every):
        document: Any = {}
        for turn, path in enumerate(paths):
            document = planted(document, path, every[(at + turn) % len(every)] if turn else value)
        yield json.dumps(document)
        for left_out in range(len(paths)):
            document = {}
            for path in paths[:left_out] + paths[left_out + 1 :]:
                document = planted(document, path, value)
            yield json.dumps(document)


def planted(document: Any, path: str, value: Any) -> Any:
    """A JSON document with a value at a path; other values on the path are replaced."""
    steps = [int(index) if index else quoted or name for quoted, name, index in PATH_STEP.findall(path)]
    return put(document, steps, value)


def put(document: Any, steps: Sequence[int | str], value: Any) -> Any:
    if not steps:
        return value
    step, *rest = steps
    if isinstance(step, int):
        step = min(step, 50)
        items = list(document) if isinstance(document, list) else []
        items += [None] * (step + 1 - len(items))
        items[step] = put(items[step], rest, value)
        return items
    members = dict(document) if isinstance(document, dict) else {}
    members[step] = put(members.get(step), rest, value)
    return members
