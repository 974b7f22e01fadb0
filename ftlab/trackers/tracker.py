"""What a tracker is: it records the metrics, tables and pages of a run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ftlab.options import NoOptions

Kind = Literal["run", "trial", "study"]


@dataclass(frozen=True)
class Start:
    """What a tracker is given when a run begins or is resumed.

    `ftlab.trackers.jsonl.recorded` reads from the folder what earlier processes of a resumed run recorded up to the
    checkpoint; metrics of later steps are recorded again.
    """

    folder: Path  # the run's folder, in which a tracker may keep files
    run_name: str
    config: dict[str, Any]  # the run's configuration as plain containers, secrets masked
    project: str = "ftlab"
    group: str | None = None  # such as the study that a trial belongs to
    tags: tuple[str, ...] = ()
    kind: Kind = "run"
    id: str | None = None  # the id that an earlier process of this run had at the tracker
    warn: Callable[[str], None] = field(default=print, compare=False)  # shows the user one line


class Tracker:
    """The base class: records nothing. A subclass overrides what it can record.

    A method may raise: `Trackers` catches the exception, warns once and continues. Return soon: training waits for it.
    Values may contain secrets of the environment: mask what is sent elsewhere with `ftlab.redact`.
    """

    name: str  # its name in the configuration: tracker=NAME
    options: type = NoOptions  # a dataclass of its settings, which are set by tracker.NAME.KEY=VALUE
    id: str | None = None  # the run's id at the tracker, which a resumed run is given again; None where it has none

    def __init__(self, start: Start, options: Any) -> None:
        """Begin or resume the record of a run. `options` is an instance of the dataclass."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record scalars by key at an optimizer step. A key occurs at most once per step."""

    def table(self, name: str, columns: list[str], rows: list[list[object]], step: int) -> None:
        """Record a table, such as the predictions: each row has as many cells as there are columns."""

    def page(self, name: str, file: Path, step: int) -> None:
        """Record an HTML page."""

    def summary(self, values: dict[str, object]) -> None:
        """Record values that hold for the run as a whole."""

    def tag(self, name: str) -> None:
        """Add a tag to the run, such as how it ended."""

    def close(self, exit_code: int = 0) -> str | None:
        """End the record. Returns a line to show the user, such as a URL, or None."""
        return None
