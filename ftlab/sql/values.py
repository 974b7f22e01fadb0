"""Values near a literal: those that fulfil a comparison with it, and those that just miss it."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain

from ftlab.sql.schema import Kind

Value = int | float | str | None

NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
# How many elements of an IN list are used.
ELEMENTS = 5


def fit(value: Value, kind: Kind, strict: bool = True) -> Value:
    """A value as a column of a kind stores it. If the column cannot store it: None, or without `strict` the value."""
    if kind == "text" and isinstance(value, int | float):
        return str(value)
    if kind == "number" and isinstance(value, str):
        if not NUMBER.fullmatch(value):
            return None if strict else value
        number = float(value)
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    return value


def number_of(text: str) -> float | None:
    """The number that a text spells; None if it is not a number."""
    return float(text) if NUMBER.fullmatch(text) else None


def around(operator: str, value: Value, kind: Kind) -> list[Value]:
    """Values of a column on both sides of a comparison with a literal, the most useful first."""
    if operator.endswith(("like", "glob")):
        points = instances(str(value), "*?" if operator.endswith("glob") else "%_")
    else:
        value = fit(value, kind)
        if isinstance(value, str) and NUMBER.fullmatch(value):
            points = chain((value,), (str(n) for n in steps(float(value))), ("10", "9", value + "0"))
        elif isinstance(value, str):
            points = texts(value)
        elif value is not None:
            points = steps(value)
        else:
            return []
    return list(dict.fromkeys(point for point in (fit(point, kind) for point in points) if point is not None))


def steps(value: float) -> Iterator[Value]:
    """A number and nearby ones, whole ones as integers."""
    for step in (0, 1, -1, 0.5, -0.5, 10):
        near = round(value + step, 6)
        yield int(near) if float(near).is_integer() else near


def texts(value: str) -> Iterator[Value]:
    """A text and similar ones: other case, longer, shorter, greater."""
    yield from (value, value.swapcase(), value + "x", value[:-1], value.lower(), value.upper(), "zz")


def instances(pattern: str, wild: str) -> Iterator[Value]:
    """Texts that a pattern matches, and texts that it just misses."""
    many, one = wild[0], wild[1]
    parts = pattern.replace(one, "x").split(many)
    plain = "".join(parts)
    yield from (plain, "ab".join(parts), parts[0] + "ab" + "".join(parts[1:]), "".join(parts[:-1]) + "ab" + parts[-1])
    yield from (plain.swapcase(), "ab" + plain, plain + "ab", plain[:-1], plain[1:])
    yield from (pattern.replace(many, "").replace(one, ""), "zz", pattern)


def listed(values: Sequence[Value]) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """Some elements of an IN list, and nearby values that are not in it."""
    some = values if len(values) <= ELEMENTS else [*values[: ELEMENTS - 2], values[len(values) // 2], values[-1]]
    known = set(values)
    near = chain.from_iterable(texts(v) if isinstance(v, str) else steps(v) for v in some[:2] if v is not None)
    return tuple(dict.fromkeys(some)), tuple(value for value in dict.fromkeys(near) if value not in known)


def matching(operator: str, value: Value, bound: Value) -> bool:
    """Whether a comparison is true in SQLite; numbers sort before texts."""
    if value is None or bound is None:
        return False
    if operator.endswith(("like", "glob")):
        found = pattern(str(bound), operator.endswith("glob")).fullmatch(str(value)) is not None
        return found != operator.startswith("not")
    ours, theirs = (isinstance(value, str), value), (isinstance(bound, str), bound)
    if operator in ("=", "<>"):
        return (ours == theirs) == (operator == "=")
    less, more = ours < theirs, ours > theirs
    return {"<": less, "<=": not more, ">": more, ">=": not less}[operator]


@lru_cache(maxsize=256)
def pattern(text: str, glob: bool) -> re.Pattern[str]:
    many, one = "*?" if glob else "%_"
    body = "".join(".*" if sign == many else "." if sign == one else re.escape(sign) for sign in text)
    return re.compile(body, re.DOTALL if glob else re.DOTALL | re.IGNORECASE)
