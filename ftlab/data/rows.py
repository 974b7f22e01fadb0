"""Files of rows: JSON, CSV and Parquet, each row with its line or row number.

A row that cannot be read is replaced by a `Fault`, so that all faults of a file can be reported together.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ftlab import content
from ftlab.data import csv_rows, json_rows
from ftlab.data.faults import Located
from ftlab.errors import DataError

TEXT = (".jsonl", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXT, *(f"{suffix}.gz" for suffix in TEXT), ".parquet")


@dataclass(frozen=True)
class Read:
    """The rows of a file, the unit of their numbers (line or row), and notes for the user."""

    rows: list[Located]
    unit: str
    notes: list[str] = field(default_factory=list)


def suffix(path: Path) -> str:
    """Return the suffix of a file that gives its format, one of SUFFIXES, or an empty text."""
    return next((known for known in SUFFIXES if path.name.lower().endswith(known)), "")


def read(path: Path, wanted: Collection[str] = ()) -> Read:
    """Return every row of a file with its number, counted from 1. `wanted` are the names of columns; they settle the
    layout of a file where its content is ambiguous.

    Raises DataError where the file as a whole cannot be read (damaged archive, no permission, UTF-16, unknown
    format).
    """
    content.refuse_special(path)
    kind = suffix(path)
    if not kind:
        raise DataError(f"{path}: unknown file format. Use one of {', '.join(SUFFIXES)}")
    try:
        if kind == ".parquet":
            return Read(list(_parquet(path)), "row")
        text = content.read(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}). Check data.path.") from None
    reader = json_rows if kind.startswith(".json") else csv_rows
    return Read(*reader.read(text, wanted))


def _parquet(path: Path) -> Iterator[Located]:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    with path.open("rb") as file:
        head = file.read(512)
    if not head.startswith(b"PAR1"):
        content.refuse_other(path, head)
    try:
        names = pq.read_schema(path).names
        if len(set(names)) < len(names):
            raise DataError(f"{path}: two columns have the same name ({', '.join(names)}). Rename one of them.")
        yield from enumerate(pq.read_table(path, partitioning=None).to_pylist(), start=1)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a readable Parquet file ({reason}). Copy or download it again.") from None
