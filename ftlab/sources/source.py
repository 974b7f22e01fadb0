"""What a source is: rows that an installed package brings, for every task that has their columns."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from ftlab.config import DataConfig
from ftlab.options import NoOptions

Rows = Iterable[Mapping[str, Any]]  # each row's values by the names of its columns, as a line of a JSONL file has them


class RowSource(Protocol):
    """Rows as they lie somewhere: a table of a database, the answers of a service, a file format of your own.

    `name` is what `data.source` calls it. `options` is the dataclass of its own settings, which are set by
    `data.options.NAME=VALUE`. A subclass need not say that it has none.
    """

    name: str
    options: type = NoOptions

    def rows(self, cfg: DataConfig, options: Any) -> Mapping[str, Rows]:
        """The rows of each split: of `train`, and where there are such of `validation` and `test`. A split that is
        absent is taken from train, by groups.

        `options` is an instance of the dataclass. `cfg` is the whole `data` node, of which a source may also read
        `path`, `hub_id` and `hub_revision`. `data.columns` names the columns that the task reads; rows may have others.
        Rows must come in the same order every time: checkpoints and hashes count on it.

        Raises:
            DataError: the rows cannot be had; its text names the remedy.
        """
        ...
