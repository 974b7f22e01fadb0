"""What a run prints: its configuration, phases, progress, scores and next commands.

A terminal gets colours and a live progress bar; a pipe or a log file gets plain lines.
Data is never interpreted as markup: SQL is full of [brackets].
"""

import io
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TextIO, cast
from weakref import WeakKeyDictionary

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text

from ftlab import declared
from ftlab.metrics import RUN, SPLITS, Metric
from ftlab.redact import redact, redact_tree

PLAIN_WIDTH = 100  # width of tables in characters, if the output is not a terminal
SILENCE_SECONDS = 30.0  # longest time without a line of progress in plain output
Metrics = Mapping[str, float]


class Bar(Protocol):
    """Progress towards a known total."""

    def update(self, step: int, metrics: Metrics) -> None:
        """Show that `step` of the total is done, with `metrics` by key (`train/loss`, `eval/…`), which may be empty."""


_LOST: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # files that cannot be written any more, and the reasons


class Output(io.TextIOBase):
    """A text file whose writes never fail. If it cannot be written any more, because its reader has ended (`| head`) or
    the disk is full, later text is dropped, and one line on stderr reports it."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    @property
    def lost(self) -> str:
        """Why the file cannot be written any more, empty if it can; shared by all users of the file."""
        return _LOST.get(self.file, "")

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.file, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return not self.lost and self.file.isatty()

    def fileno(self) -> int:
        return self.file.fileno()

    def write(self, text: str) -> int:
        if not self.lost:
            try:
                self.file.write(text)
            except (OSError, ValueError) as error:  # ValueError: it is closed
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        if not self.lost and not self.file.closed:  # it is flushed again when it is freed, perhaps after closing
            try:
                self.file.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def _lose(self, error: Exception) -> None:
        _LOST[self.file] = getattr(error, "strerror", None) or str(error)
        with suppress(OSError, ValueError):  # flushing the rest of its buffer at exit would be another error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)
        with suppress(OSError, ValueError):
            print(f"ftlab: no further output here ({self.lost}); the run continues", file=sys.stderr, flush=True)


class Terminal:
    """Writes to `file`, by default stdout, as long as it can be written."""

    def __init__(self, file: TextIO | None = None, width: int | None = None) -> None:
        file = file or sys.stdout
        if "utf" not in (getattr(file, "encoding", None) or "utf-8").lower() and hasattr(file, "reconfigure"):
            file.reconfigure(errors="replace")
        self.output = Output(file)
        self.console = Console(file=cast(TextIO, self.output), width=width, highlight=False, markup=False, emoji=False)
        self.plain = not self.console.is_terminal
        if self.plain and width is None:
            self.console.width = PLAIN_WIDTH
        self._waiting: Status | None = None

    @property
    def lost(self) -> str:
        """Why the output cannot be written any more; empty if it can."""
        return self.output.lost

    def note(self, text: str) -> None:
        """Print one line of information."""
        self._line(Text(_one_line(redact(text))))

    def warn(self, text: str) -> None:
        """Print one line about something that the user may not want."""
        self._line(Text.assemble(("warning: ", "yellow"), _one_line(redact(text))))

    def config(self, tree: Mapping[str, Any], changed: set[str]) -> None:
        """Print the configuration by node; `changed` holds the dotted keys that differ from the defaults.

        Secrets are masked. Changed keys are bold and marked with `*`.
        """
        groups: dict[str, list[_Entry]] = {"": []}
        for key, value in redact_tree(dict(tree)).items():
            if isinstance(value, dict):
                groups[key] = [_Entry(name, text, f"{key}.{name}" in changed) for name, text in _flat(value)]
            else:
                groups[""].append(_Entry(key, _value(value), key in changed))
        for name, entries in groups.items():
            if entries:
                self._line(Text(name or "experiment", style="bold cyan"))
                for line in _columns(entries, self.console.width - 2):
                    self._line(Text("  ") + line)
        self._line(Text(""))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show that the phase `name` runs, and its seconds once it is done; after an error nothing is printed."""
        began = time.perf_counter()
        if self.plain:
            self._line(Text(f"{name} ..."))
        with self._waits(name):
            yield
        seconds = time.perf_counter() - began
        self._line(Text.assemble(f"{name:<16}", (f"{seconds:8.1f} s", "dim")))

    @contextmanager
    def progress(self, total: int, start: int = 0, what: str = "train") -> Iterator[Bar]:
        """Show progress from `start` to `total`: optimizer steps in training, otherwise rows."""
        if self.plain:
            yield _Lines(self, what, total, start)
            return
        waiting, self._waiting = self._waiting, None
        if waiting:
            waiting.stop()
        bar = _LiveBar(self, what, total, start)
        try:
            with bar.live:
                yield bar
        finally:
            if waiting:
                self._waiting = waiting
                waiting.start()

    def scores(
        self,
        base: Metrics,
        tuned: Metrics,
        intervals: Mapping[str, Any] | None,
        columns: tuple[str, str] = ("base", "tuned"),
    ) -> None:
        """Print the scores of both models side by side, for validation and for test, then by kind of row.

        `intervals` holds (low, high) by metric key, for `base` and `tuned` or only for the tuned model. Rates are shown
        in percent and their difference in percentage points, losses unchanged.
        """
        keys = [key for key in dict.fromkeys([*tuned, *base]) if key.partition("/")[0] in SPLITS]
        ranges = (intervals or {}).get("tuned", intervals or {})
        rows: list[list[Text]] = []
        for prefix, split in SPLITS.items():
            mine = _shown([key for key in keys if key.startswith(f"{prefix}/")], base, tuned)
            rows += [[Text(split, style="bold")]] if mine else []
            rows += [_score_cells(key, base.get(key), tuned.get(key), ranges.get(key)) for key in mine]
        self.table(["", *columns, "difference", *([f"95 % CI of {columns[1]}"] if ranges else [])], rows)
        head, rows = _by_bucket(keys, base, tuned, columns)
        if rows:
            self.table(head, rows)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
        """Print an empty line and then one line per row; the first column is left-aligned, the others right-aligned."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for i, title in enumerate(head):
            table.add_column(Text(title), justify="right" if i else "left")
        for row in rows:
            table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
        with self.console.capture() as captured:
            self.console.print(table)
        self._line(Text(""))
        for line in captured.get().splitlines():
            self.console.out(line.rstrip(), highlight=False)

    def predictions(self, rows: Sequence[Mapping[str, Any]], fields: Sequence[str] = (), limit: int = 5) -> None:
        """Print the first rows: `question`, `gold`, `base_pred` and `pred` below each other, on one line each.

        Whether an answer is right is taken from the first of the columns `fields` (and `base_…`) that the row has;
        without any, the texts are compared.
        """
        for row in rows[:limit]:
            self._line(Text(""))
            self._answer("question", "", row.get("question"), "")
            self._answer("gold", "", row.get("gold"), "")
            for label, prefix in (("base", "base_"), ("tuned", "")):
                answer = row.get(f"{prefix}pred")
                if answer is not None:
                    known = [row.get(prefix + name) for name in fields]
                    same = answer.strip() == row["gold"].strip()
                    good = next((verdict for verdict in known if verdict is not None), same)
                    self._answer(label, "right" if good else "wrong", answer, "green" if good else "red")

    def next_commands(self, commands: Sequence[str]) -> None:
        """Print commands to copy, each complete on its own line."""
        self._line(Text(""))
        self._line(Text("next:", style="dim"))
        for command in commands:
            self._line(Text(command))

    def _line(self, text: Text) -> None:
        """Print a line without wrapping or truncating it, so that paths and commands can be copied."""
        self.console.print(text, soft_wrap=True)

    @contextmanager
    def _waits(self, name: str) -> Iterator[None]:
        """Show a spinner, which `progress` replaces while it runs."""
        if self.plain or self._waiting:
            yield
            return
        self._waiting = Status(Text(name), console=self.console, spinner="line", refresh_per_second=4)
        self._waiting.start()
        try:
            yield
        finally:
            self._waiting.stop()
            self._waiting = None

    def _answer(self, label: str, verdict: str, text: Any, style: str) -> None:
        shown = " ".join(_one_line(str(text)).split())
        line = Text.assemble((f"{label:<9}", "dim"), (f"{verdict:<6}", style), shown or ("(empty)", "dim"))
        line.truncate(self.console.width, overflow="ellipsis")
        self._line(line)


class _Pace:
    """The remaining time, estimated from the pace since the start."""

    def __init__(self, total: int, start: int) -> None:
        self.total, self.start, self.began = total, start, time.monotonic()
        self.ends: float | None = None

    def update(self, step: int) -> None:
        now, done = time.monotonic(), step - self.start
        self.ends = now + (now - self.began) / done * (self.total - step) if done > 0 else None

    def __str__(self) -> str:
        return "" if self.ends is None else f"eta {_clock(max(0.0, self.ends - time.monotonic()))}"


class _Lines:
    """Prints a line for each update with metrics, and at intervals one for updates without."""

    def __init__(self, terminal: Terminal, what: str, total: int, start: int) -> None:
        self._terminal, self._total, self._pace = terminal, total, _Pace(total, start)
        self._unit = "step" if what == "train" else "row"
        self._last_line = time.monotonic()

    def update(self, step: int, metrics: Metrics) -> None:
        self._pace.update(step)
        parts = _evaluation(metrics) or _training(metrics)
        now = time.monotonic()
        if not parts and (now - self._last_line < SILENCE_SECONDS or step >= self._total):
            return
        self._last_line = now
        eta = str(self._pace) if step < self._total else ""
        words = [f"{self._unit} {step:,}/{self._total:,}", *parts, *([eta] if eta else [])]
        self._terminal.note("  ".join(words))


class _LiveBar:
    """A live progress bar; evaluations are printed above it."""

    def __init__(self, terminal: Terminal, what: str, total: int, start: int) -> None:
        self._terminal, self._total, self._pace = terminal, total, _Pace(total, start)
        numbers = 76 if what == "train" else 32  # width that the numbers need; the bar gets the rest
        room = min(40, max(6, terminal.console.width - numbers))
        self.live = Progress(
            TextColumn(what, markup=False),
            BarColumn(bar_width=room, style="dim", complete_style="cyan", finished_style="cyan"),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}", markup=False),
            _Tail(self._pace),
            console=terminal.console,
            refresh_per_second=4,
            transient=True,
        )
        self._task = self.live.add_task(what, total=total, completed=start, tail="")

    def update(self, step: int, metrics: Metrics) -> None:
        self._pace.update(step)
        scores = _evaluation(metrics)
        if scores:
            self._terminal.note("  ".join([f"step {step:,}/{self._total:,}", *scores]))
        training = _training(metrics)
        if training:
            self.live.update(self._task, tail="  ".join(training))
        self.live.update(self._task, completed=step)


class _Tail(ProgressColumn):
    """The remaining time, counting down, and the latest numbers; truncated if the line is too narrow."""

    def __init__(self, pace: _Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        words = [word for word in (str(self._pace), task.fields["tail"]) if word]
        return Text("  ".join(words), no_wrap=True, overflow="ellipsis")


class _Entry:
    """A key of the configuration with its value, as printed."""

    def __init__(self, key: str, value: str, changed: bool) -> None:
        self.key, self.value, self.changed = key, value, changed

    def text(self, key_width: int, value_width: int) -> Text:
        mark, bold = ("*", "bold") if self.changed else (" ", "")
        return Text.assemble(
            (mark, "bold yellow"),
            (f"{self.key:<{key_width}} ", bold or "dim"),
            (f"{self.value:<{value_width}}", bold),
        )


def _columns(entries: list[_Entry], width: int) -> Iterator[Text]:
    """Arrange entries in as many columns as fit; each long value gets its own line at the end."""
    short = [entry for entry in entries if len(entry.value) <= 28]
    for count in (3, 2, 1):
        height = math.ceil(len(short) / count)
        columns = [short[i : i + height] for i in range(0, len(short), height or 1)]
        sizes = [(max(len(e.key) for e in col), max(len(e.value) for e in col)) for col in columns]
        if count == 1 or sum(sum(size) + 5 for size in sizes) - 3 <= width:
            break
    for i in range(height):
        cells = [(col[i], size) for col, size in zip(columns, sizes, strict=True) if i < len(col)]
        line = Text("   ").join(entry.text(*size) for entry, size in cells)
        line.rstrip()
        yield line
    for entry in entries:
        if len(entry.value) > 28:
            yield entry.text(len(entry.key), 0)


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _value(value)


def _value(value: Any) -> str:
    """Return a value as it is written in an override on the command line."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    text = str(value)
    return text if text.isprintable() and text == text.strip() and text else json.dumps(text, ensure_ascii=False)


def _shown(keys: Sequence[str], base: Metrics, tuned: Metrics) -> list[str]:
    """Return the keys of one split in the order of tables, without counts that are 0 for both models."""
    return [key for key in declared.in_order(keys) if not _is_count(key) or base.get(key) or tuned.get(key)]


def _is_count(key: str) -> bool:
    return declared.of(key).unit == "count"


def _by_bucket(
    keys: Sequence[str], base: Metrics, tuned: Metrics, columns: tuple[str, str]
) -> tuple[list[str], list[list[Text]]]:
    """Return the head and rows of the table of scores by kind of row, `base -> tuned` in percent."""
    keys = [key for key in keys if key.count("/") == 2 and declared.of(key).is_rate]
    kinds = dict.fromkeys(key.split("/")[2] for key in keys)
    scores = declared.in_order(dict.fromkeys(key.rpartition("/")[0] for key in keys))
    scores.sort(key=lambda score: list(SPLITS).index(score.partition("/")[0]))
    head, split = [f"{' -> '.join(columns)}, %"], ""
    for score in scores:
        prefix, metric = score.partition("/")[0], declared.of(score)
        title = metric.short or metric.title
        head.append(title if prefix == split else f"{SPLITS[prefix]} {title}")
        split = prefix
    rows = [[Text("  " + kind.replace("_", " "))] for kind in kinds]
    for row, kind in zip(rows, kinds, strict=True):
        for score in scores:
            pair = [values[key] for values in (base, tuned) if _is_number(values.get(key := f"{score}/{kind}"))]
            row.append(Text(" -> ".join(f"{100 * value:.1f}" for value in pair) or "-"))
    return head, rows


def percent(value: float) -> str:
    """Return a rate in percent: `12.5 %`."""
    return f"{100 * value:.1f} %"


def span(interval: Sequence[float], sign: str = "") -> str:
    """Return an interval of a rate in percent: `8.1 to 17.2`."""
    return " to ".join(f"{100 * bound:{sign}.1f}" for bound in interval)


def _score_cells(key: str, before: float | None, after: float | None, ranges: Any) -> list[Text]:
    metric = declared.of(key)
    cells = [Text("  " + metric.title), Text(_number(before, metric)), Text(_number(after, metric), "bold")]
    if metric.unit == "count":
        return cells
    if _is_number(before) and _is_number(after):
        gain = float(after) - float(before)  # type: ignore[arg-type]
        better = gain > 0 if metric.rises else gain < 0
        style = "" if gain == 0 or metric.direction is None else "green" if better else "red"
        cells.append(Text(f"{100 * gain:+.1f} pp" if metric.is_rate else f"{gain:+.3f}", style))
    else:
        cells.append(Text(""))
    if ranges:
        low, high = ranges
        cells.append(Text(span(ranges) if metric.is_rate else f"{low:.3f} to {high:.3f}", "dim"))
    return cells


def _number(value: float | None, metric: Metric) -> str:
    if not _is_number(value):
        return "-"
    number = float(value)  # type: ignore[arg-type]
    return percent(number) if metric.is_rate else f"{number:,.0f}" if metric.unit == "count" else f"{number:.3f}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


# The format of a run's metric in the progress line, by unit.
PROGRESS = {"nats": "{short} {value:.4f}", "tokens/s": "{value:,.0f} {short}", "GiB": "{value:.1f} {short}"}


def _training(metrics: Metrics) -> list[str]:
    """Return the numbers of training for the progress line, each with its unit."""
    shown = {key: declared.of(key) for key in metrics}
    shown = {key: metric for key, metric in shown.items() if metric.short and not metric.of_split}
    order = {metric.name: place for place, metric in enumerate(RUN)}
    return [
        PROGRESS.get(metric.unit, "{short} {value:.1e}").format(short=metric.short, value=metrics[key])
        for key, metric in sorted(shown.items(), key=lambda item: order.get(item[0], len(order)))
        if metric.hidden_by not in metrics
    ]


def _evaluation(metrics: Metrics) -> list[str]:
    """Return the scores of an evaluation for the progress line: the loss, then the task's metrics."""
    parts = []
    for prefix, split in SPLITS.items():
        keys = declared.in_order(key for key in metrics if key.startswith(f"{prefix}/"))
        watched = [(declared.of(key), metrics[key]) for key in keys]
        watched = sorted((pair for pair in watched if pair[0].short), key=lambda pair: pair[0].is_rate)
        parts += [split] if watched else []
        parts += [f"{metric.short} {_number(value, metric)}" for metric, value in watched]
    return parts


def _clock(seconds: float) -> str:
    """Return a duration as m:ss, or as h:mm:ss from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _one_line(text: str) -> str:
    """Replace line breaks and control characters by spaces: data must not move the cursor."""
    return "".join(char if char.isprintable() else " " for char in text.strip())
