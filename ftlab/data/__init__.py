"""Data: where rows come from, how they are split, and how they become prompts and token ids.

A new source is one module with a function `load(cfg: DataConfig) -> Parts`, and one entry in SOURCES.
"""

from collections.abc import Callable
from pathlib import Path

from ftlab.config import DataConfig
from ftlab.data import sql_synth, table
from ftlab.data.splits import Example, Parts, Splits, divide

__all__ = ["SOURCES", "Example", "Splits", "load"]

_SYNTH_ROWS = 4000


def _synthetic(cfg: DataConfig) -> Parts:
    """Generated rows: whole domains of schemas belong to one split, so nothing has to be taken from train."""
    train = cfg.train_rows or _SYNTH_ROWS
    sizes = {
        "train": train,
        "validation": _rows(cfg.validation, train),
        "test": cfg.test_rows or _rows(cfg.test_size, train),
    }
    made = {name: [_example(row) for row in sql_synth.generate(name, n, cfg.split_seed)] for name, n in sizes.items()}
    notes = [f"{name}: {len(rows):,} rows generated over schemas of its own" for name, rows in made.items()]
    return Parts(**made, notes=notes, grouped_by="db_id")


def _rows(size: float, of: int) -> int:
    return round(size) if size >= 1 else max(1, round(size * of))


def _example(row: dict[str, str]) -> Example:
    return Example(row["id"], row["question"], row["context"], row["answer"], row["db_id"])


SOURCES: dict[str, Callable[[DataConfig], Parts]] = {
    "sql_synth": _synthetic,
    "table": table.load,
}


def check_source(cfg: DataConfig) -> None:
    """What can be told of a source without reading it: its file or folder is there, and is one.

    Raises:
        DataError: it is not.
    """
    if cfg.source == "table" and cfg.path:
        table.existing(Path(cfg.path).expanduser())


def load(cfg: DataConfig) -> Splits:
    """The splits of an experiment, checked row by row and divided the same way every time.

    Raises DataError with file, line and remedy. Reads no weights and imports no torch.
    """
    return divide(SOURCES[cfg.source](cfg), cfg)
