"""Where metrics are recorded: always in metrics.jsonl, and in the trackers that the configuration chooses.

Each module here with an attribute TRACKER is a tracker, as is each entry point of the group `ftlab.trackers`.
`tracker=NAME` or `tracker=[NAME,NAME]` chooses; a tracker's settings are under `tracker.NAME`.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ftlab.config import TrackerConfig
from ftlab.errors import ConfigError, first_line
from ftlab.options import plain, typed
from ftlab.redact import redact, redact_tree
from ftlab.registry import Registry
from ftlab.trackers.jsonl import JsonlTracker
from ftlab.trackers.tracker import Kind, Start, Tracker

__all__ = [
    "NONE",
    "JsonlTracker",
    "Kind",
    "Settings",
    "Start",
    "Tracker",
    "Trackers",
    "broken",
    "chosen_names",
    "defaults",
    "get",
    "keys",
    "modern",
    "names",
    "providers",
    "settings",
    "unknown",
]

NONE = "none"  # the choice of no tracker
SHARED = tuple(field.name for field in fields(TrackerConfig))  # keys below `tracker` that are no tracker's name
# Keys of earlier versions, which had W&B only, and what replaces them.
OLD = {
    "tracker.name": "the choice tracker=NAME",
    "tracker.mode": "tracker.wandb.mode",
    "tracker.entity": "tracker.wandb.entity",
    "tracker.job_type": "tracker.wandb.job_type",
}

_registry: Registry[type[Tracker]] = Registry(
    "tracker",
    __name__,
    "TRACKER",
    "ftlab.trackers.tracker:Tracker",
    classes=True,
    taken=(NONE, *SHARED),
)
names, get, broken, providers = _registry.names, _registry.get, _registry.broken, _registry.providers


@dataclass(frozen=True)
class Settings:
    """The node `tracker` of a configuration, typed."""

    shared: TrackerConfig
    chosen: dict[str, Any]  # for each chosen tracker, by name, its own options


def settings(node: Mapping[str, Any]) -> Settings:
    """The node `tracker` of a configuration, typed: each key that is not shared is the name of a chosen tracker.

    Raises:
        ConfigError: an unknown key or tracker, or a value of the wrong type; all of them are listed.
    """
    problems: list[str] = []
    own_keys = {key: node[key] for key in node if key in SHARED}
    shared = _collect(problems, TrackerConfig, own_keys, "tracker", "the node tracker")
    chosen = {}
    for name in chosen_names(node):
        if f"tracker.{name}" in OLD or name not in names():
            problems.append(unknown(f"tracker.{name}"))
        else:
            own, prefix = node[name] or {}, f"tracker.{name}"
            if isinstance(own, Mapping):
                chosen[name] = _collect(problems, get(name).options, own, prefix, f"tracker={name}")
            else:
                problems.append(f"{prefix}={own} must be a mapping of the tracker's settings: set {prefix}.KEY=VALUE")
    if problems:
        raise ConfigError(*problems)
    return Settings(shared, chosen)


def _collect(problems: list[str], options: type, values: Mapping[str, Any], prefix: str, owner: str) -> Any:
    try:
        return typed(options, values, prefix, owner)
    except ConfigError as error:
        problems += error.problems
        return None


def unknown(key: str) -> str:
    """The message for a key below `tracker` that the configuration does not have."""
    if key in OLD:
        return f"{key} has been replaced by {OLD[key]}: each tracker's own settings are under tracker.NAME"
    name, _, option = key.removeprefix("tracker.").partition(".")
    if name in names() and name not in broken():
        options = [field.name for field in fields(get(name).options)]
        if option in options:
            return f"{key} belongs to a tracker that is not chosen: choose it, tracker={name} or tracker=[A,{name}]"
        near = difflib.get_close_matches(option, options, n=1, cutoff=0.5)
        hint = f" Did you mean tracker.{name}.{near[0]}?" if near else ""
        return f"{key} is not a setting of tracker={name}.{hint} It has {', '.join(options) or 'none'}"
    known = [*SHARED, *names()]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean: {', '.join(f'tracker.{one}' for one in near)}?" if near else ""
    return f"{key} is neither a setting that all trackers share nor a tracker.{hint} Trackers: {', '.join(names())}"


def chosen_names(node: Mapping[str, Any]) -> list[str]:
    """The trackers that a node `tracker` chooses, in its order; they need not be installed."""
    return [key for key in node if key not in SHARED]


def keys() -> list[str]:
    """The keys of the trackers that ftlab ships, which need no import of another package."""
    return [f"tracker.{one.name}.{field.name}" for one in _registry.own() for field in fields(one.options)]


def defaults(name: str) -> dict[str, Any]:
    """What choosing a tracker adds to the node `tracker`: its settings with their defaults, `???` where a setting has
    none. ConfigError if it cannot be imported, or has settings that a configuration cannot have."""
    return {} if name == NONE else {name: plain(get(name).options, f"tracker.{name}", f"tracker={name}")}


def modern(node: Mapping[str, Any]) -> dict[str, Any]:
    """The node `tracker` of an earlier run in the form of this version. An earlier version had W&B's settings directly
    below `tracker`; if its best.yaml is composed by this version, "wandb" is there too. Trackers that are not
    installed here are left out."""
    found = dict(node)
    old = {key: found.pop(key) for key in ("name", "mode", "entity", "job_type") if key in found}
    if old.pop("name", None) == "wandb" or "wandb" in found:
        found["wandb"] = {**(found.get("wandb") or {}), **old}
    return {key: value for key, value in found.items() if key in SHARED or key in names()}


class Trackers:
    """metrics.jsonl and all chosen trackers as one.

    A tracker's failure is caught only here: it prints one line, and neither ends the run nor stops the other trackers.
    A tracker that has failed is still called, but prints no further line. metrics.jsonl is written first; the caller
    handles its OSError.
    """

    def __init__(
        self,
        chosen: Settings,
        start: Start,
        jsonl: JsonlTracker | None = None,
        ids: Mapping[str, str] | None = None,
    ) -> None:
        """Start every chosen tracker. `ids` holds the run's id at each tracker that has recorded it before."""
        self._jsonl = jsonl
        self._warn = start.warn
        self._failed: set[str] = set()
        self._running: dict[str, Tracker] = {}
        self._before = dict(ids or {})
        shared = chosen.shared
        start = replace(start, project=shared.project, group=start.group or shared.group)
        start = replace(start, tags=(*shared.tags, *start.tags))
        for name, options in chosen.chosen.items():
            # Each tracker gets its own copy with secrets masked, so that its changes do not affect the others.
            own = replace(start, id=self._before.get(name), config=redact_tree(start.config))
            self._try(name, "start", partial(self._start, name, own, options))

    @property
    def ids(self) -> dict[str, str]:
        """The run's id at each tracker that has recorded it, in this process or before."""
        found = dict(self._before)

        def add(name: str, tracker: Tracker) -> None:
            if tracker.id:
                found[name] = str(tracker.id)

        for name, tracker in self._running.items():
            self._try(name, "report its id", partial(add, name, tracker))
        return found

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record scalars at an optimizer step in all trackers. Raises OSError if metrics.jsonl cannot be written."""
        if self._jsonl:
            self._jsonl.log(metrics, step)
        self._each("log metrics", lambda tracker: tracker.log(dict(metrics), step))

    def table(self, name: str, columns: list[str], rows: list[list[object]], step: int) -> None:
        """Record a table."""
        self._each(f"log the table {name}", lambda tracker: tracker.table(name, columns, rows, step))

    def page(self, name: str, file: Path, step: int) -> None:
        """Record an HTML page."""
        self._each(f"log the page {name}", lambda tracker: tracker.page(name, file, step))

    def summary(self, values: dict[str, object]) -> None:
        """Record values of the run as a whole."""
        self._each("record the summary", lambda tracker: tracker.summary(dict(values)))

    def tag(self, name: str) -> None:
        """Add a tag to the run."""
        self._each("tag the run", lambda tracker: tracker.tag(name))

    def close(self, exit_code: int = 0) -> list[str]:
        """End every record. Returns the lines to show the user."""
        lines: list[str] = []

        def end(tracker: Tracker) -> None:
            line = tracker.close(exit_code)
            lines.extend([str(line)] if line else [])

        try:
            if self._jsonl:
                self._jsonl.close()
        finally:  # even if the disk is full, the trackers end their records
            self._each("end its record", end)
        return lines

    def _start(self, name: str, start: Start, options: Any) -> None:
        self._running[name] = get(name)(start, options)

    def _each(self, what: str, act: Callable[[Tracker], object]) -> None:
        for name, tracker in self._running.items():
            self._try(name, what, partial(act, tracker))

    def _try(self, name: str, what: str, act: Callable[[], object]) -> None:
        try:
            act()
        except (Exception, SystemExit) as error:
            if name not in self._failed:
                self._failed.add(name)
                cause = redact(first_line(error))[:200].rstrip(".: ")
                self._warn(
                    f"tracker={name} could not {what} ({type(error).__name__}: {cause}); metrics.jsonl is still written"
                )
