"""Settings that a part defines itself in a dataclass: `data.options`, `trainer.options`, `tracker.NAME`."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ftlab.errors import ConfigError, first_line

T = TypeVar("T")


@dataclass
class NoOptions:
    """The options of a part that has none."""


def options_of(part: object) -> type:
    """The dataclass of a part's own settings: its attribute `options`, which a part without settings may lack."""
    return getattr(part, "options", NoOptions)


def settings(options: type[T], values: Mapping[str, Any]) -> T:
    """An instance of the dataclass `options` with the values of its fields; defaults fill the rest. Other names are
    ignored, since they may be another part's; call `problems` first to check the values."""
    node = _structured(options)
    for name in _types(options).keys() & values.keys():
        node.merge_with({name: values[name]})
    return cast(T, OmegaConf.to_object(node))


def typed(options: type[T], values: Mapping[str, Any], prefix: str, owner: str) -> T:
    """The values as an instance of the dataclass `options`, whose defaults fill the rest.

    `prefix` is the key of the values (`data.options`) and `owner` the choice of the part (`data.task=match`); both
    appear in messages.

    Raises:
        ConfigError: a name or a value that the dataclass does not accept; all of them are listed.
    """
    if wrong := problems({owner: options}, values, prefix):
        raise ConfigError(*wrong)
    return settings(options, values)


def plain(options: type, prefix: str, owner: str) -> dict[str, Any]:
    """The settings of the dataclass `options` with their defaults as plain values, `???` where a setting has none.

    Raises:
        ConfigError: a configuration cannot have such settings.
    """
    try:
        return cast(dict[str, Any], OmegaConf.to_container(_structured(options)))
    except OmegaConfBaseException as error:
        raise ConfigError(_unusable(owner, prefix, error)) from error


def problems(owners: Mapping[str, type], values: Mapping[str, Any], prefix: str) -> list[str]:
    """Problems with the settings of several parts that share one key, one line each: a name that none of the parts
    has, a value of the wrong type, a missing value. A name that several parts have is set for each of them.

    A dataclass may check its values in `__post_init__` and raise ValueError("NAME=VALUE must ...").

    `owners` maps the choice of each part (`data.task=match`) to its dataclass; `prefix` is the key (`data.options`).
    """
    names = {owner: list(_types(options)) for owner, options in owners.items()}
    known = {name for each in names.values() for name in each}
    found = [_unknown(name, names, prefix) for name in values if name not in known]
    for owner, options in owners.items():
        found += _mistyped(owner, options, values, prefix)
    return found


def _mistyped(owner: str, options: type, values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Values that the dataclass does not accept, and required values that are missing."""
    types = _types(options)
    try:
        node = _structured(options)
    except OmegaConfBaseException as error:
        yield _unusable(owner, prefix, error)
        return
    wrong = []
    for name, value in values.items():
        try:
            if name in types:
                node.merge_with({name: value})
        except OmegaConfBaseException:
            kind = getattr(types[name], "__name__", types[name])
            wrong.append(f"{prefix}.{name}={value} must be of the type {kind}, which {owner} declares")
    missing = [name for name in sorted(OmegaConf.missing_keys(node)) if name not in values]
    wrong += [f"{prefix}.{name} has no value, but {owner} requires one: set {prefix}.{name}=VALUE" for name in missing]
    yield from wrong or _checked(owner, node, prefix)


def _unusable(owner: str, prefix: str, error: Exception) -> str:
    return f"{prefix}: the options of {owner} are not a dataclass that OmegaConf supports ({first_line(error)})"


def _checked(owner: str, node: DictConfig, prefix: str) -> Iterator[str]:
    """The error that the dataclass itself raises for its values."""
    try:
        OmegaConf.to_object(node)
    except ValueError as error:
        yield f"{prefix}.{first_line(error)}"
    except Exception as error:  # whatever a `__post_init__` from outside does
        yield f"{prefix}: the options of {owner} cannot be made ({type(error).__name__}: {first_line(error)})"


def _unknown(name: str, names: Mapping[str, list[str]], prefix: str) -> str:
    """The message for a name that no part has, with the nearest name and all names."""
    near = difflib.get_close_matches(name, [known for each in names.values() for known in each], n=1, cutoff=0.5)
    hint = f" Did you mean {prefix}.{near[0]}?" if near else ""
    if len(names) == 1:
        ((owner, known),) = names.items()
        return f"{prefix}.{name} is not an option of {owner}.{hint} {_listed('It', known)}"
    there = "; ".join(_listed(owner, known) for owner, known in names.items())
    return f"{prefix}.{name} is not an option of {' or '.join(names)}.{hint} {there}"


def _listed(owner: str, names: list[str]) -> str:
    return f"{owner} has {', '.join(names) or 'none'}"


def _types(options: type) -> dict[str, Any]:
    return {field.name: field.type for field in fields(options)}


def _structured(options: type) -> DictConfig:
    return cast(DictConfig, OmegaConf.structured(options))
