"""The own settings of a task, `data.options`: typed by the dataclass that the task brings."""

import difflib
from dataclasses import fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ftlab.config import DataConfig, ExperimentConfig
from ftlab.errors import ConfigError
from ftlab.tasks.task import Task


def of(task: Task, cfg: DataConfig) -> Any:
    """The task's options as its dataclass.

    Raises:
        ConfigError: a name or a value that it does not have.
    """
    names = [field.name for field in fields(task.options)]
    wrong = [_unknown(name, names, task) for name in cfg.options if name not in names]
    if wrong:
        raise ConfigError(*wrong)
    node = OmegaConf.structured(task.options)
    problems = []
    for name, value in cfg.options.items():
        try:
            node[name] = value
        except OmegaConfBaseException:
            kind = next(str(getattr(f.type, "__name__", f.type)) for f in fields(task.options) if f.name == name)
            problems.append(f"data.options.{name}={value} must be of the type {kind}")
    if problems:
        raise ConfigError(*problems)
    return OmegaConf.to_object(node)


def problems(task: Task, cfg: ExperimentConfig) -> list[str]:
    """What is wrong with the options of a configuration, a line each."""
    try:
        of(task, cfg.data)
    except ConfigError as error:
        return list(error.problems)
    return task.check(cfg)


def _unknown(name: str, names: list[str], task: Task) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean data.options.{near[0]}?" if near else ""
    there = f"it has {', '.join(names)}" if names else "it has none"
    return f"data.options.{name} is no option of data.task={task.name}.{hint} {there[0].upper()}{there[1:]}"
