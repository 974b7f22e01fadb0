"""Settings that a part brings itself, typed by its dataclass: `data.options`, `trainer.options`, `tracker.NAME`."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ftlab.errors import ConfigError


@dataclass
class NoOptions:
    """The options of a part that has none."""


def typed(options: type, values: Mapping[str, Any], prefix: str, owner: str) -> Any:
    """The values as an instance of the dataclass `options`, whose defaults fill the rest.

    `prefix` is the key of the values (`data.options`), `owner` what chose the part (`data.task=match`); both are for
    messages.

    The dataclass may check its values in `__post_init__`, and raise ValueError("NAME=VALUE must ...").

    Raises:
        ConfigError: a name or a value that the dataclass does not have; all of them are listed.
    """
    types = {field.name: field.type for field in fields(options)}
    wrong = [_unknown(name, list(types), prefix, owner) for name in values if name not in types]
    if wrong:
        raise ConfigError(*wrong)
    node = OmegaConf.structured(options)
    for name, value in values.items():
        try:
            node[name] = value
        except OmegaConfBaseException:
            kind = getattr(types[name], "__name__", types[name])
            wrong.append(f"{prefix}.{name}={value} must be of the type {kind}")
    if wrong:
        raise ConfigError(*wrong)
    try:
        return OmegaConf.to_object(node)
    except ValueError as error:  # of the dataclass's `__post_init__`
        raise ConfigError(f"{prefix}.{error}") from None


def _unknown(name: str, names: list[str], prefix: str, owner: str) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {prefix}.{near[0]}?" if near else ""
    there = f"It has {', '.join(names)}" if names else "It has none"
    return f"{prefix}.{name} is no option of {owner}.{hint} {there}"
