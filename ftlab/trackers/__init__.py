"""Where metrics go: metrics.jsonl always (`JsonlTracker`), and the tracker that the configuration names.

A new tracker is one file with a class that follows `Tracker`, and one line in `open`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ftlab.config import TrackerConfig
from ftlab.errors import ConfigError
from ftlab.trackers.jsonl import JsonlTracker

__all__ = ["JsonlTracker", "NullTracker", "Tracker", "Trackers", "open"]


class Tracker(Protocol):
    """A sink for one run. No method raises for trouble of its own: a tracker never ends a run."""

    id: str | None  # the run's id at the tracker, kept for resuming; null where there is none

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record scalars at an optimizer step."""

    def table(self, name: str, columns: list[str], rows: list[list[object]], step: int) -> None:
        """Record a table, such as predictions: one list of cells a row, as long as `columns`."""

    def page(self, name: str, file: Path, step: int) -> None:
        """Record an HTML page."""

    def summary(self, values: dict[str, object]) -> None:
        """Record values that hold for the run as a whole."""

    def tag(self, name: str) -> None:
        """Add a tag to the run, such as how it ended."""

    def close(self, exit_code: int = 0) -> str | None:
        """End the record; returns a line to show the user (a URL, or the command that uploads), or None."""


class NullTracker:
    """Records nothing."""

    id: str | None = None

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Nothing."""

    def table(self, name: str, columns: list[str], rows: list[list[object]], step: int) -> None:
        """Nothing."""

    def summary(self, values: dict[str, object]) -> None:
        """Nothing."""

    def page(self, name: str, file: Path, step: int) -> None:
        """Nothing."""

    def tag(self, name: str) -> None:
        """Nothing."""

    def close(self, exit_code: int = 0) -> str | None:
        """Nothing to tell."""
        return None


class Trackers:
    """metrics.jsonl and the configured tracker as one; the file is written first."""

    def __init__(self, jsonl: JsonlTracker, tracker: Tracker) -> None:
        self.jsonl = jsonl
        self.tracker = tracker

    @property
    def id(self) -> str | None:
        """The run's id at the configured tracker."""
        return self.tracker.id

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record scalars at an optimizer step in both."""
        self.jsonl.log(metrics, step)
        self.tracker.log(metrics, step)

    def table(self, name: str, columns: list[str], rows: list[list[object]], step: int) -> None:
        """Record a table at the tracker."""
        self.tracker.table(name, columns, rows, step)

    def summary(self, values: dict[str, object]) -> None:
        """Record the run's summary at the tracker."""
        self.tracker.summary(values)

    def tag(self, name: str) -> None:
        """Add a tag to the run at the tracker."""
        self.tracker.tag(name)

    def close(self, exit_code: int = 0) -> str | None:
        """Close both; returns the tracker's line."""
        try:
            self.jsonl.close()
        finally:  # on a full disk too the tracker ends its record
            line = self.tracker.close(exit_code)
        return line


def tell(line: str) -> None:
    """The default of `warn`: one line on stderr."""
    print(line, file=sys.stderr)


def open(
    cfg: TrackerConfig,
    run_dir: Path,
    run_name: str,
    config: dict[str, Any],
    run_id: str | None = None,
    warn: Callable[[str], None] = tell,
) -> Tracker:
    """The tracker that `cfg.name` names; `run_id` resumes an earlier record, `warn` hears what does not work.

    `config` is the plain configuration to record; secrets in it are masked. A tracker whose package is
    missing costs one line, never the run. Raises ConfigError for a name that is no tracker.
    """
    if cfg.name == "none":
        return NullTracker()
    if cfg.name != "wandb":
        raise ConfigError(f"tracker.name={cfg.name} must be one of wandb, none")
    try:
        from ftlab.trackers.wandb import WandbTracker
    except ImportError as error:
        warn(f"tracker=wandb: {error}; going on without it (pip install wandb, or tracker=none)")
        return NullTracker()
    return WandbTracker(cfg, run_dir, run_name, config, run_id, warn)
