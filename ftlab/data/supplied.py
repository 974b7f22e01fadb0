"""Rows of a source that an installed package provides; they are read like the rows of a file."""

from collections.abc import Mapping
from typing import Any

from ftlab import sources
from ftlab.config import DataConfig
from ftlab.data.faults import Fault, describe
from ftlab.data.folder import NAMES
from ftlab.data.splits import SourceSplits
from ftlab.data.table import Reader, from_tables
from ftlab.errors import DataError, FtlabError, first_line
from ftlab.options import options_of, settings
from ftlab.sources import RowSource

SPLITS = tuple(NAMES)


def load(cfg: DataConfig, task: Reader) -> SourceSplits:
    """The rows of the source `cfg.source`, as the task reads them.

    Raises:
        DataError: the source fails, provides no rows or unknown splits, or its rows cannot be used.
    """
    source = sources.get(cfg.source)
    chosen = f"data.source={source.name}"
    given = _given(source, cfg, chosen)
    foreign = [name for name in given if name not in SPLITS]
    if foreign or "train" not in given:
        named = ", ".join(map(str, given)) or "none"
        raise DataError(
            f"{chosen} provides the splits {named}: it must provide train, and may provide {' and '.join(SPLITS[1:])}"
        )
    for split, rows in given.items():
        if not rows:
            raise DataError(f"{chosen} ({split}): no rows. Check its settings: data.options.NAME=VALUE")
    return from_tables(chosen, given, chosen, cfg, task)


def _given(source: RowSource, cfg: DataConfig, chosen: str) -> dict[str, list[dict[str, Any] | Fault]]:
    """All rows by split, in the order in which the source gives them."""
    try:
        found = source.rows(cfg, settings(options_of(source), cfg.options))
        if not isinstance(found, Mapping):
            raise DataError(f"{chosen} gives {describe(found)}, not rows by split, such as train")
        return {split: [_row(row) for row in rows] for split, rows in found.items()}
    except FtlabError:
        raise
    except (Exception, SystemExit) as error:  # code of another package may raise anything
        (provider,) = sources.providers()[source.name]
        raise DataError(f"{chosen}: {provider} failed ({type(error).__name__}: {first_line(error)})") from error


def _row(row: Any) -> dict[str, Any] | Fault:
    if not isinstance(row, Mapping):
        return Fault(f"{describe(row)}, not a mapping of columns to values")
    unnamed = [name for name in row if not isinstance(name, str)]
    return Fault(f"a column's name is {describe(unnamed[0])}, not text") if unnamed else dict(row)
