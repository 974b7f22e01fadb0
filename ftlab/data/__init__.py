"""Data: where rows come from, how they are split, and how they become prompts and token ids.

This package reads the rows of files, of the Hub and of sources that installed packages add, using the columns that a
task names. A task that generates rows itself lists its generators as `sources`, by name.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from ftlab.config import DataConfig
from ftlab.data import supplied, table
from ftlab.data.splits import Example, SourceSplits, Splits, divide

__all__ = ["TABLE", "Example", "Splits", "load"]

TABLE = "table"  # the source of files and Hub data sets, whatever the task


class Origin(table.Reader, Protocol):
    """The part of a task that loading needs: how it reads rows, and the sources whose rows it generates."""

    @property
    def sources(self) -> Mapping[str, Callable[[DataConfig], SourceSplits]]: ...


def check_source(cfg: DataConfig) -> None:
    """Check a source without reading it: its file or folder exists and is neither a pipe nor a device.

    Raises:
        DataError: the check fails.
    """
    if cfg.source == TABLE and cfg.path:
        table.existing(Path(cfg.path).expanduser())


def load(cfg: DataConfig, task: Origin) -> Splits:
    """Return the splits of an experiment; every row is checked, and the division is deterministic.

    Raises DataError with file, line and remedy. Reads no weights and does not import torch.
    """
    return divide(_source_splits(cfg, task), cfg)


def _source_splits(cfg: DataConfig, task: Origin) -> SourceSplits:
    if cfg.source == TABLE:
        return table.load(cfg, task)
    if cfg.source in task.sources:
        return task.sources[cfg.source](cfg)
    return supplied.load(cfg, task)
