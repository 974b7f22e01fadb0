"""Whether the values that a sweep lists make sense, found out by composing them before the study is made."""

from collections.abc import Callable, Iterator
from typing import Any

from ftlab.errors import ConfigError
from ftlab.sweep.space import Dimension, ParamValue, Space

MOST = 64  # compositions, of a tenth of a second each; values beyond them are left to their trials

Combination = dict[str, ParamValue]


def check_values(space: Space, compose: Callable[[list[str]], Any]) -> None:
    """Compose every listed value, and both ends of numbers between, with the first values of all other keys; where
    that fails, with another value of one of them, since some values only go together.

    Raises:
        ConfigError: every value that goes with none of these, and why.
    """
    known: dict[tuple[str, ...], tuple[str, ...]] = {}

    def problems(point: Combination) -> tuple[str, ...]:
        overrides = space.overrides(point)
        key = tuple(overrides)
        if key not in known and len(known) < MOST:
            known[key] = _problems(compose, overrides)
        return known.get(key, ())

    told: dict[str, None] = {}
    for dimension in space.dimensions:
        for value in dimension.probes():
            found = map(problems, _around(space, dimension, value))
            first = next(found)
            if first and all(found):
                told |= dict.fromkeys(_named(dimension.override(value), problem) for problem in first)
    if told:
        raise ConfigError(*told)


def _around(space: Space, dimension: Dimension, value: ParamValue) -> Iterator[Combination]:
    """Points with the value: the first ones of all other keys, then one of those another."""
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
    """A problem that names the override which brought it about."""
    return problem if problem.startswith(override) else f"{override}: {problem}"
