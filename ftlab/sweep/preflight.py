"""Checks the values that a sweep lists by composing them before the study is created."""

from collections.abc import Callable, Iterator
from typing import Any

from ftlab.errors import ConfigError
from ftlab.sweep.space import Dimension, ParamValue, Space

MOST = 64  # compositions, about 0.1 s each; further values are checked by their trials only

Combination = dict[str, ParamValue]


def check_values(space: Space, compose: Callable[[list[str]], Any]) -> None:
    """Compose every listed value, and both ends of every interval, with the first values of all other keys. If that
    fails, try another value of one other key, since some values are valid in combination only.

    Raises:
        ConfigError: lists every value that is valid in none of these combinations, and why.
    """
    known: dict[tuple[str, ...], tuple[str, ...]] = {}

    def problems(point: Combination) -> tuple[str, ...]:
        overrides = space.overrides(point)
        key = tuple(overrides)
        if key not in known and len(known) < MOST:
            known[key] = _problems(compose, overrides)
        return known.get(key, ())

    invalid: dict[str, None] = {}
    for dimension in space.dimensions:
        for value in dimension.probes():
            found = map(problems, _around(space, dimension, value))
            first = next(found)
            if first and all(found):
                invalid |= dict.fromkeys(_named(dimension.override(value), problem) for problem in first)
    if invalid:
        raise ConfigError(*invalid)


def _around(space: Space, dimension: Dimension, value: ParamValue) -> Iterator[Combination]:
    """Points with this value: first with the first value of all other keys, then with one of those replaced."""
    point = {**space.first(), dimension.key: value}
    yield point
    for other in space.dimensions:
        if other.key != dimension.key:
            yield from ({**point, other.key: choice} for choice in other.probes()[1:])


def _problems(compose: Callable[[list[str]], Any], overrides: list[str]) -> tuple[str, ...]:
    try:
        compose(overrides)
    except ConfigError as error:
        return error.problems
    return ()


def _named(override: str, problem: str) -> str:
    """The problem, prefixed with the override that caused it."""
    return problem if problem.startswith(override) else f"{override}: {problem}"
