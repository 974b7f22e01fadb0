"""What a source is: rows that an installed package provides, for every task that reads their columns."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from ftlab.config import DataConfig
from ftlab.options import NoOptions

Rows = Iterable[Mapping[str, Any]]  # each row maps column names to values, like a line of a JSONL file


class RowSource(Protocol):
    """Where rows come from: a database table, a web service, a file format of your own.

    `name` is the value of `data.source` that chooses it. `options` is the dataclass of its own settings, which are set
    by `data.options.NAME=VALUE`; a subclass without settings need not define it.
    """

    name: str
    options: type = NoOptions

    def rows(self, cfg: DataConfig, options: Any) -> Mapping[str, Rows]:
        """The rows of each split: of `train`, and of `validation` and `test` if the source has them. A missing split
        is taken from train, by groups.

        `options` is an instance of the dataclass. `cfg` is the whole `data` node: a source may also read `path`,
        `hub_id` and `hub_revision` from it. `data.columns` names the columns that the task reads; rows may have others.
        Rows must come in the same order every time: checkpoints and hashes depend on it.

        Raises:
            DataError: the rows cannot be read; its text names the remedy.
        """
        ...
