"""metrics.jsonl: one JSON object per line, `{"step": 40, "time": 1767225600.123, "train/loss": 0.81}`."""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ftlab.damaged import set_aside


class JsonlTracker:
    """Appends metrics to a file, one line per call of `log`; other processes can read it as soon as `log` returns."""

    def __init__(self, path: Path) -> None:
        """Open `path` for appending; its folder is created, and an incomplete last line, left by a killed process, is
        removed first."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        self._file: TextIO | None = path.open("a", encoding="utf-8")

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Append one line; NaN and infinities become null, since JSON has neither. Raises OSError."""
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        line = {"step": step, "time": round(time.time(), 3)}
        finite = {key: plain(value) for key, value in metrics.items()}
        self._file.write(json.dumps(line | finite, allow_nan=False) + "\n")
        self._file.flush()

    def truncate(self, step: int) -> str | None:
        """Drop lines beyond `step`, which a resumed run writes again; the file is replaced atomically. Returns a
        warning if lines are damaged: a copy of the file is then kept under another name."""
        if self._file is not None:
            self._file.close()
        steps = [(line, _step(line)) for line in self.path.read_bytes().splitlines()]
        damaged = sum(math.isinf(found) for _, found in steps)
        aside = set_aside(self.path, copy=True) if damaged else None
        # Test scores are a run's last line; a resumed run writes them again.
        kept = [line for line, found in steps if found <= step and b'"test/' not in line]
        temporary = self.path.with_name(self.path.name + ".part")
        with temporary.open("wb") as file:
            file.writelines(line + b"\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        self._file = self.path.open("a", encoding="utf-8")
        if aside is None:
            return None
        return (
            f"{self.path} is damaged ({damaged} of {len(steps)} lines) and kept as {aside.name}: the metrics of these "
            "lines are lost, nothing else"
        )

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def recorded(folder: Path) -> Iterator[tuple[int, float, dict[str, float]]]:
    """Step, time (seconds since 1970) and metrics of each line of a run's metrics.jsonl. Values that were not finite
    are left out, as are damaged lines; a missing file gives nothing."""
    try:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            values = json.loads(line)
            step, seconds = int(values.pop("step")), float(values.pop("time", 0.0))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        yield step, seconds, {key: value for key, value in values.items() if value is not None}


def plain(value: Any) -> Any:
    """The value as JSON can hold it: tensors and NumPy scalars as numbers, non-finite floats as None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step(line: bytes) -> float:
    """The line's step; infinity for a line that is not a record, so that it is dropped."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
    return float(step) if isinstance(step, int) else math.inf


def _cut_torn_line(path: Path) -> None:
    """Remove an incomplete last line; otherwise the first new line would be appended to it and both lost."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
