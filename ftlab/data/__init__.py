"""Data: where rows come from, how they are split, and how they become prompts and token ids.

Rows of files, of the Hub and of sources that packages bring are read here, by the columns that a task names; rows that
a task makes itself are its own sources, by name.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from ftlab.config import DataConfig
from ftlab.data import supplied, table
from ftlab.data.splits import Example, Parts, Splits, divide

__all__ = ["TABLE", "Example", "Splits", "load"]

TABLE = "table"  # the source of files and Hub data sets, whatever the task


class Origin(table.Reader, Protocol):
    """What loading needs to know of a task: the rows that it reads, and those that it makes."""

    @property
    def sources(self) -> Mapping[str, Callable[[DataConfig], Parts]]: ...


def check_source(cfg: DataConfig) -> None:
    """What can be told of a source without reading it: its file or folder is there, and is one.

    Raises:
        DataError: it is not.
    """
    if cfg.source == TABLE and cfg.path:
        table.existing(Path(cfg.path).expanduser())


def load(cfg: DataConfig, task: Origin) -> Splits:
    """The splits of an experiment, checked row by row and divided the same way every time.

    Raises DataError with file, line and remedy. Reads no weights and imports no torch.
    """
    return divide(_parts(cfg, task), cfg)


def _parts(cfg: DataConfig, task: Origin) -> Parts:
    if cfg.source == TABLE:
        return table.load(cfg, task)
    if cfg.source in task.sources:
        return task.sources[cfg.source](cfg)
    return supplied.load(cfg, task)
