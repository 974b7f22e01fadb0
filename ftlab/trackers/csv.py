"""CSV files for spreadsheets and pandas: metrics.csv with one row for each step, and one file for each table."""

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

from ftlab.disk import write_atomic
from ftlab.redact import known
from ftlab.trackers.jsonl import plain, recorded
from ftlab.trackers.tracker import Start, Tracker


class CsvTracker(Tracker):
    """Writes metrics.csv, and NAME.csv for each table, into the run's folder.

    The columns of metrics.csv are `step` and the keys of all metrics in the order of their first use. A cell is empty
    if a step has no value or one that is not finite. The file of a resumed run is rewritten from its metrics.jsonl, so
    that it equals the file of an uninterrupted run.
    """

    name = "csv"

    def __init__(self, start: Start, options: Any) -> None:
        """Write the metrics of earlier processes from metrics.jsonl. Raises OSError."""
        self._folder, self._file = start.folder, start.folder / "metrics.csv"
        self._read_record()

    def _read_record(self) -> None:
        """Rewrite metrics.csv from metrics.jsonl."""
        self._whole = False
        rows: dict[int, dict[str, Any]] = {}
        for step, _, metrics in recorded(self._folder):
            rows.setdefault(step, {"step": step}).update(metrics)
        self._columns = list(dict.fromkeys(["step", *(key for row in rows.values() for key in row)]))
        self._last: dict[str, Any] = {}
        if rows:
            self._write(rows.values())
        else:  # such as after a run that was killed before its first checkpoint
            self._file.unlink(missing_ok=True)
        self._whole = True

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Add a row, or add values to the last row if it is of the same step. Raises OSError; the next call then
        rewrites the file, whose last row may be incomplete."""
        if not self._whole:
            self._read_record()
        self._whole = False
        self._add(metrics, step)
        self._whole = True

    def _add(self, metrics: dict[str, float], step: int) -> None:
        values = {key: value for key, given in metrics.items() if (value := plain(given)) is not None}
        same = self._last.get("step") == step
        row = {**(self._last if same else {"step": step}), **values}
        new = [key for key in row if key not in self._columns]
        self._columns += new
        if same or new or not self._file.exists():
            self._write([*self._rows()[: -1 if same else None], row])
        else:
            with self._file.open("a", encoding="utf-8", newline="") as file:
                file.write(_text([self._cells(row)]))
        self._last = row

    def table(self, name: str, columns: list[str], rows: list[list[object]], step: int) -> None:
        """Replace the file of the table, with known secrets masked. Raises OSError."""
        write_atomic(self._folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.csv", known(_text([columns, *rows])))

    def _rows(self) -> list[dict[str, Any]]:
        """The rows of the file, without empty cells."""
        if not self._file.exists():
            return []
        with self._file.open(encoding="utf-8", newline="") as file:
            return [{key: cell for key, cell in row.items() if cell} for row in csv.DictReader(file)]

    def _write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Replace metrics.csv as a whole."""
        rows = list(rows)
        write_atomic(self._file, _text([self._columns, *map(self._cells, rows)]))
        self._last = rows[-1]

    def _cells(self, row: dict[str, Any]) -> list[Any]:
        return [row.get(column, "") for column in self._columns]


def _text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV; numbers as Python writes them, so that reading them gives the same numbers."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


TRACKER = CsvTracker
