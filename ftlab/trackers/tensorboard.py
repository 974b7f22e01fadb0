"""TensorBoard event files below tensorboard/ of the run's folder: `tensorboard --logdir outputs` shows all runs."""

import json
import shlex
from pathlib import Path
from typing import Any

from ftlab.paths import short
from ftlab.redact import known, redact_tree
from ftlab.trackers.jsonl import plain, recorded
from ftlab.trackers.tracker import Start, Tracker

MOST_ROWS = 100  # the most rows of a table to record; TensorBoard shows tables as text


class TensorboardTracker(Tracker):
    """Scalars by step, the configuration, the summary and the first rows of tables as text.

    The event file of a resumed run is rewritten from its metrics.jsonl, since a killed process may have written more or
    fewer steps than its last checkpoint has.
    """

    name = "tensorboard"

    def __init__(self, start: Start, options: Any) -> None:
        """Write the metrics of earlier processes from metrics.jsonl.

        Raises:
            ImportError: the package tensorboard is not installed.
            OSError: the files cannot be written.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError("it needs the package tensorboard: pip install 'ftlab[tensorboard]'") from None
        folder = start.folder / "tensorboard"
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        self._writer: Any = SummaryWriter(str(folder), flush_secs=10)
        self._writer.add_text("configuration", _code(redact_tree(start.config)))
        for step, seconds, metrics in recorded(start.folder):
            self._scalars(metrics, step, seconds)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record scalars."""
        self._scalars(metrics, step)

    def table(self, name: str, columns: list[str], rows: list[list[object]], step: int) -> None:
        """Record the first rows as a Markdown table, with known secrets masked."""
        lines: list[list[Any]] = [columns, ["---"] * len(columns), *rows[:MOST_ROWS]]
        self._writer.add_text(name, known("\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)), step)

    def summary(self, values: dict[str, object]) -> None:
        """Record values of the run as a whole."""
        self._writer.add_text("summary", _code(redact_tree(values)))

    def tag(self, name: str) -> None:
        """Record a tag as text."""
        self._writer.add_text("tag", name)

    def close(self, exit_code: int = 0) -> str | None:
        """Write what is buffered; returns the command that shows the run."""
        self._writer.close()
        return shlex.join(["tensorboard", "--logdir", short(Path(self._writer.log_dir))])

    def _scalars(self, metrics: dict[str, float], step: int, seconds: float | None = None) -> None:
        for key, given in metrics.items():
            if (value := plain(given)) is not None:
                self._writer.add_scalar(key, value, step, walltime=seconds)


def _code(values: Any) -> str:
    """Values as JSON in a block of code."""
    return "\n".join("    " + line for line in json.dumps(values, indent=2, default=str).splitlines())


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", "<br>")


TRACKER = TensorboardTracker
