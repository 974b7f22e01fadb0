"""summary.json: a run in numbers, as a typed record. Only this module reads and writes it. No torch.

A record may be of an older or newer ftlab, or damaged: a field that is absent or of another type gets its default, and
`damage` says what is wrong with a record that cannot be relied on.
"""

import json
import math
import sys
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from ftlab.disk import write_atomic
from ftlab.redact import redact_tree

Metrics = dict[str, float]
Interval = tuple[float, float]
# What a run is trained and scored on, by part: its sha256 and, for a split, its number of rows (`ftlab.provenance`).
Sources = dict[str, dict[str, Any]]

NOT_WRITTEN = {"written": False}  # fields that are never in the file
IF_KNOWN = {"if_known": True}  # fields that are in the file once they are known
# The fields that the record of an ended run must have.
OF_ENDED = ("objective", "base", "tuned", "intervals", "step", "planned_steps")


@dataclass
class Objective:
    """The metric that `objective` names, and its value on validation, None until it is known."""

    name: str = ""
    value: float | None = None


@dataclass
class ScoreIntervals:
    """95 % intervals by metric key, of the scores of the base and of the tuned model."""

    base: dict[str, Interval] = field(default_factory=dict)
    tuned: dict[str, Interval] = field(default_factory=dict)


@dataclass
class RowCounts:
    """Rows of each split, and how many of them were truncated and dropped because of `data.max_length`."""

    train_rows: int = 0
    validation_rows: int = 0
    test_rows: int = 0
    truncated: int = 0
    dropped: int = 0
    validation_truncated: int = 0
    validation_dropped: int = 0
    test_truncated: int = 0
    test_dropped: int = 0


@dataclass
class BaseModel:
    """The base model, where it was found, and the sha256 of each of its files."""

    id: str = ""
    revision: str | None = None
    origin: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)


@dataclass
class StepSetting:
    """How steps were computed: rows per micro-batch, whether dequantized 4-bit weights were kept in memory, the share
    of layers under activation checkpointing, and whether an out-of-memory error occurred."""

    micro: int = 1
    cached: bool = False
    share: float = 0.0
    ran_out: bool = False


@dataclass
class Summary:
    """The record of one run. Scores are by key (`eval/...` on validation, `test/...` on test); `seconds` and `vram`
    (peaks in GiB) are by phase."""

    status: str = ""  # running, finished, pruned, stopped or failed
    run_name: str = ""
    started: str = ""
    objective: Objective = field(default_factory=Objective)
    base: Metrics = field(default_factory=dict)
    tuned: Metrics = field(default_factory=dict)
    intervals: ScoreIntervals = field(default_factory=ScoreIntervals)
    tracker_ids: dict[str, str] = field(default_factory=dict)  # the run's id at each tracker that has one
    seconds: dict[str, float] = field(default_factory=dict)
    vram: dict[str, dict[str, float]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    data_sha256: str | None = field(default=None, metadata=IF_KNOWN)
    sources: Sources = field(default_factory=dict)
    data: RowCounts | None = field(default=None, metadata=IF_KNOWN)
    model: BaseModel | None = field(default=None, metadata=IF_KNOWN)
    trainable_parameters: int | None = field(default=None, metadata=IF_KNOWN)
    parameters: int | None = field(default=None, metadata=IF_KNOWN)
    processes: int | None = field(default=None, metadata=IF_KNOWN)
    planned_steps: int | None = field(default=None, metadata=IF_KNOWN)
    setting: StepSetting | None = field(default=None, metadata=IF_KNOWN)
    step: int | None = field(default=None, metadata=IF_KNOWN)
    best_step: int | None = None
    epochs: float | None = field(default=None, metadata=IF_KNOWN)
    reason: str | None = field(default=None, metadata=IF_KNOWN)  # why a sweep pruned the run
    error: str | None = field(default=None, metadata=IF_KNOWN)  # the error that ended it early
    terminal: str | None = field(default=None, metadata=IF_KNOWN)  # why its output could not be written any more
    others: dict[str, Any] = field(default_factory=dict, metadata=NOT_WRITTEN)  # fields that another version wrote
    damage: str | None = field(default=None, metadata=NOT_WRITTEN)  # None if the record can be relied on

    @classmethod
    def read(cls, file: Path) -> "Summary":
        """Return the record in a file; an empty one if the file is absent or cannot be read."""
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            tree = None
        return cls.of(tree) if isinstance(tree, dict) and tree else cls(damage="not readable")

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> "Summary":
        """Return the record of a tree of plain values, as JSON has them."""
        made: Summary
        tree = dict(tree)
        if isinstance(wandb_id := tree.pop("tracker_id", None), str):  # of an earlier version, which had W&B alone
            tree.setdefault("tracker_ids", {"wandb": wandb_id})
        made, wrong = _read(cls, tree)
        known = {one.name for one in fields(cls) if one.metadata != NOT_WRITTEN}
        made.others = {key: value for key, value in tree.items() if key not in known}
        made.damage = "parts of it are missing" if wrong or not made._complete(tree) else None
        return made

    def write(self, file: Path) -> None:
        """Replace the file atomically, with secrets masked."""
        write_atomic(file, json.dumps(redact_tree(self.tree()), indent=2) + "\n")

    def tree(self) -> dict[str, Any]:
        """Return the record as values of JSON; NaN and infinities, which JSON lacks, become null."""
        found: dict[str, Any] = finite(asdict(self))
        for one in fields(self):
            unknown = found[one.name] is None and one.metadata == IF_KNOWN
            if one.metadata == NOT_WRITTEN or unknown:
                del found[one.name]
        return {**found, **self.others}

    def __getitem__(self, key: str) -> Any:
        """Return a field as in summary.json: `summary["tuned"]["eval/loss"]`. Raises KeyError if it is missing."""
        return self.tree()[key]

    @property
    def ended(self) -> bool:
        """Whether the run is finished or pruned, and its record can be relied on."""
        return self.damage is None and self.status in ("finished", "pruned")

    @property
    def peak_gib(self) -> float:
        """The largest peak of allocated GPU memory over the phases, in GiB; 0 without a GPU."""
        return max((float(peaks.get("allocated") or 0.0) for peaks in self.vram.values()), default=0.0)

    @property
    def metrics(self) -> Metrics:
        """All metrics that a sweep may optimise: the scores of the tuned model, and the costs of the run."""
        return {**self.tuned, "vram/peak_allocated_gib": self.peak_gib, "train/seconds": self.seconds.get("train", 0.0)}

    @property
    def known_sources(self) -> Sources:
        """The hashes of what the run began with; a run of an older ftlab has one hash for all its rows."""
        if self.sources or not self.data_sha256:
            return self.sources
        return {"data": {"sha256": self.data_sha256}}

    def _complete(self, tree: Mapping[str, Any]) -> bool:
        """Whether the record has all fields that its status requires."""
        if "status" not in tree or not all(isinstance(part.get("sha256"), str) for part in self.sources.values()):
            return False
        if self.status not in ("finished", "pruned"):
            return True
        return all(key in tree for key in OF_ENDED) and self.objective.value is not None and bool(self.tuned)


def finite(node: Any) -> Any:
    """Return nested values with NaN and infinities, which JSON lacks, replaced by None."""
    if isinstance(node, dict):
        return {key: finite(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


# --- reading by types -------------------------------------------------------------------------------------------


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Return the types of a record's fields that are in the file."""
    hints = get_type_hints(kind)
    return {one.name: hints[one.name] for one in fields(kind) if one.metadata != NOT_WRITTEN}


def _read(kind: Any, tree: Mapping[str, Any]) -> tuple[Any, bool]:
    """Return a record of `kind`, and whether a part of it had another type."""
    values, wrong = {}, False
    for name, hint in _hints(kind).items():
        if name in tree:
            value, other = _value(hint, tree[name])
            wrong = wrong or other
            if value is not MISSING:
                values[name] = value
    return kind(**values), wrong


def _value(hint: Any, value: Any) -> tuple[Any, bool]:
    """Return a value as its type (MISSING if it has another), and whether a part of it had another type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value, False
    if origin in (Union, types.UnionType):
        if value is None:
            return None, False
        return _value(next(kind for kind in arguments if kind is not types.NoneType), value)
    if is_dataclass(hint):
        return _read(hint, value) if isinstance(value, dict) else (MISSING, True)
    if origin is dict:
        return _dict(arguments[1], value)
    if origin is tuple:
        pair = isinstance(value, (list, tuple)) and len(value) == len(arguments) and all(map(_is_number, value))
        return (tuple(map(float, value)), False) if pair else (MISSING, True)
    if hint is float:
        return (float(value), False) if _is_number(value) else (MISSING, True)
    fits = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    return (value, False) if fits else (MISSING, True)


def _dict(hint: Any, value: Any) -> tuple[Any, bool]:
    """A mapping without those of its values that are of another type; null (a number that was not finite) is none."""
    if not isinstance(value, dict):
        return MISSING, True
    read = {key: _value(hint, one) for key, one in value.items() if one is not None}
    kept = {key: one for key, (one, _) in read.items() if one is not MISSING}
    return kept, any(wrong for _, wrong in read.values())


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return whole or isinstance(value, float)
