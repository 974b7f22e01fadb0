"""The progress of a running sweep: a live table in a terminal, or one line per event in a log."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ftlab.sweep.entry import best_of
from ftlab.sweep.events import Event
from ftlab.sweep.space import text_of
from ftlab.sweep.study import Study, TrialRow
from ftlab.sweep.tables import number
from ftlab.terminal import Terminal

SHOWN = 12  # rows of the live table
ENDED = ("complete", "pruned", "failed")
PAUSE_S = 0.5  # minimum time between two refreshes caused by rungs


class Board:
    """Shows what changed in a study since the last refresh."""

    def __init__(self, study: Study, terminal: Terminal) -> None:
        self.study, self.terminal = study, terminal
        self.seen: dict[int, tuple[str, int]] = {}  # by trial number: state, number of rungs
        self.began, self.before = time.monotonic(), study.counts().finished
        self.refreshed = float("-inf")  # when, by time.monotonic
        self._live: Any = None
        for row in study.leaderboard():
            if row.state in ENDED:
                self.seen[row.number] = (row.state, len(row.rungs))

    @contextmanager
    def open(self) -> Iterator["Board"]:
        """Show the board while the block runs."""
        if self.terminal.plain:
            yield self
            self.refresh()
            return
        from rich.live import Live

        with Live(self._table(), console=self.terminal.console, refresh_per_second=2, transient=True) as self._live:
            yield self
        self._live = None

    def on_event(self, event: Event) -> None:
        """Refresh when a trial of this process started or ended, or reached a rung at least `PAUSE_S` after the last
        refresh; rungs in between are shown by the next one."""
        if event.kind != "rung" or time.monotonic() - self.refreshed >= PAUSE_S:
            self.refresh()

    def refresh(self) -> None:
        """Read the study and show what is new."""
        self.refreshed = time.monotonic()
        if self._live is not None:
            self._live.update(self._table())
            return
        rows = self.study.leaderboard()
        for row in sorted(rows, key=lambda row: row.number):
            now = (row.state, len(row.rungs))
            before = self.seen.get(row.number, ("", 0))
            if row.state != "waiting" and now != before:
                self.seen[row.number] = now
                for line in self._news(row, before, rows):
                    self.terminal.note(line)

    def _news(self, row: TrialRow, before: tuple[str, int], rows: list[TrialRow]) -> Iterator[str]:
        name = f"trial {row.number:<3}"
        if before[0] != row.state and row.state == "running":
            yield f"{name} {self._params(row)}"
        for step, value in list(row.rungs.items())[before[1] :]:
            yield f"{name} step {step}  {self.study.cfg.rung_metric} {number(value, self.study.cfg.rung_metric)}"
        if before[0] != row.state and row.state in ENDED:
            yield f"{name} {self._end(row)}  {self._standing(rows)}"

    def _params(self, row: TrialRow) -> str:
        return "  ".join(f"{key.rpartition('.')[2]}={short(value)}" for key, value in row.params.items()) or "-"

    def _end(self, row: TrialRow) -> str:
        spent = f"{row.seconds:.0f} s" if row.seconds is not None else ""
        if row.state == "failed":
            return f"failed: {row.cause}"
        if row.state == "pruned":
            return f"pruned at step {max(row.rungs, default=0)}  {spent}"
        return f"done  {self._values(row)}  {spent}"

    def _values(self, row: TrialRow) -> str:
        pairs = zip(self.study.objectives, row.values or [], strict=False)
        return "  ".join(f"{name} {number(value, name)}" for name, value in pairs)

    def _standing(self, rows: list[TrialRow]) -> str:
        """The progress of the sweep, and the best value so far."""
        counts, best = Counter(row.state for row in rows), best_of(rows, self.study.directions)
        finished = counts["complete"] + counts["pruned"]
        parts = [f"{finished}/{self.study.target} finished"]
        parts += [f"{counts[name]} {name}" for name in ("pruned", "failed") if counts[name]]
        if best and best.values:
            parts.append(f"best {number(best.values[0], self.study.objectives[0])} (trial {best.number})")
        if eta := self._eta(finished):
            parts.append(f"eta {eta}")
        return ", ".join(parts)

    def _eta(self, finished: int) -> str:
        done, left = finished - self.before, max(0, self.study.target - finished)
        if not (done and left):
            return ""
        minutes, seconds = divmod(round((time.monotonic() - self.began) / done * left), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        rows = self.study.leaderboard()
        running = [row for row in rows if row.state == "running"]
        chosen = running + [row for row in rows if row.state in ENDED][: SHOWN - len(running)]
        table = Table(box=None, pad_edge=False, caption=Text(self._standing(rows)), caption_justify="left")
        for title in ("trial", *(key.rpartition(".")[2] for key in self.study.space.keys), "last rung", "score"):
            table.add_column(title, no_wrap=True)
        table.add_column("state", overflow="ellipsis")
        for row in chosen:
            last = list(row.rungs.items())[-1:]
            rung = f"{last[0][0]}: {number(last[0][1], self.study.cfg.rung_metric)}" if last else ""
            params = [short(row.params.get(key, "")) for key in self.study.space.keys]
            state = row.cause if row.state == "failed" else row.state
            table.add_row(*map(Text, (str(row.number), *params, rung, self._values(row) or "", str(state))))
        return table


def short(value: Any) -> str:
    """A parameter's value in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else value if isinstance(value, str) else text_of(value)
