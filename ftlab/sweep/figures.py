"""The figures of a sweep as inline SVG, drawn from plain trials. A figure with nothing to show is an empty string."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from ftlab.sweep.entry import Entry, Parameter, front, ranked, text
from ftlab.sweep.svg import Axis, Canvas, axis, shortened

WIDTH = 1020.0
SHADES = 5  # of lines in the parallel coordinates, s0 for the worst ranks
LANE = 30.0  # height of a worker's row in the timeline


@dataclass(frozen=True)
class Sweep:
    """The data of the figures and tables."""

    entries: Sequence[Entry]
    parameters: Sequence[Parameter]
    objectives: Sequence[str]
    directions: Sequence[str]
    rung_metric: str = "eval/loss"
    rung_unit: str = "step"
    now: float = 0.0  # seconds since the epoch; running trials are drawn up to here
    rung_up: bool = False  # whether a higher rung metric is better

    @cached_property
    def done(self) -> list[Entry]:
        """Complete trials without duplicates, best first."""
        return [entry for entry in ranked(self.entries, self.directions) if entry.distinct]

    @property
    def best(self) -> int | None:
        return self.done[0].number if self.done else None

    def varied(self) -> list[Parameter]:
        """Parameters whose value differs between trials."""
        seen = {p.key: {text(e.params[p.key]) for e in self.entries if p.key in e.params} for p in self.parameters}
        return [parameter for parameter in self.parameters if len(seen[parameter.key]) > 1]


def described(entry: Entry, sweep: Sweep) -> str:
    """The tooltip of a trial."""
    values = [f"{name} {value:.4g}" for name, value in zip(sweep.objectives, entry.values, strict=False)]
    params = [f"{key}={text(value)}" for key, value in entry.params.items()]
    return "\n".join(
        [f"trial {entry.number}: {entry.state}", *values, *params, *([entry.cause] if entry.cause else [])]
    )


def history(sweep: Sweep) -> str:
    """The first objective of each trial, with its interval, by trial number; and the best value so far."""
    done = sorted(sweep.done, key=lambda entry: entry.number)
    if not done:
        return ""
    canvas = Canvas(WIDTH, 310, bottom=70)
    shown = [entry for entry in sweep.entries if entry.state in ("complete", "pruned", "failed")]
    across = axis([entry.number for entry in shown], "linear", whole=True)
    up = axis([v for e in done for v in (e.values[0], *(e.interval or ()))], "linear")
    canvas.frame(across, up, "trial", sweep.objectives[0])
    canvas.line(_best_so_far(canvas, done, across, up, sweep.directions[0]), "best-line", "best so far")
    for entry in shown:
        x, title = canvas.x(across.place(entry.number)), described(entry, sweep)
        if not entry.scored:
            canvas.mark(x, canvas.bottom + 32, entry.state, title)  # below the axis, since there is no value
            continue
        if entry.interval:
            canvas.line([(x, canvas.y(up.place(bound))) for bound in entry.interval], "whisker")
        style = "best" if entry.number == sweep.best else ""
        canvas.mark(x, canvas.y(up.place(entry.values[0])), "complete", title, style)
    return str(canvas)


def _best_so_far(
    canvas: Canvas, done: Sequence[Entry], across: Axis, up: Axis, direction: str
) -> list[tuple[float, float]]:
    best = max if direction == "maximize" else min
    points, record = [], done[0].values[0]
    for entry in done:
        x = canvas.x(across.place(entry.number))
        points.append((x, canvas.y(up.place(record))))
        record = best(record, entry.values[0])
        points.append((x, canvas.y(up.place(record))))
    return points


def learning_curves(sweep: Sweep) -> str:
    """The rung metric of each trial by step; pruned trials end in a triangle, failed ones in a cross."""
    curves = [(e, {s: v for s, v in sorted(e.rungs.items()) if math.isfinite(v)}) for e in sweep.entries]
    curves = [(entry, rungs) for entry, rungs in curves if rungs]
    if not curves:
        return ""
    values = [value for _, rungs in curves for value in rungs.values()]
    wide = min(values) > 0 and max(values) > 8 * min(values)  # a few diverged trials would flatten all others
    canvas = Canvas(WIDTH, 340)
    across = axis([step for _, rungs in curves for step in rungs], "linear", whole=True)
    up = axis(values, "log" if wide else "linear")
    canvas.frame(across, up, sweep.rung_unit, sweep.rung_metric)
    curves.sort(key=lambda curve: (curve[0].number == sweep.best, curve[0].state == "complete"))  # the best on top
    for entry, rungs in curves:
        points = [(canvas.x(across.place(step)), canvas.y(up.place(value))) for step, value in rungs.items()]
        style = "best" if entry.number == sweep.best else ""
        canvas.line(points, f"curve {entry.state} {style}", described(entry, sweep))
        canvas.mark(*points[-1], entry.state, described(entry, sweep), style)
    return str(canvas)


def parallel_coordinates(sweep: Sweep) -> str:
    """One line per complete trial across its parameters and first objective; better ranks are darker and on top."""
    done, varied = sweep.done, sweep.varied()
    if len(done) < 2 or not varied:
        return ""
    gap = max(150.0, (WIDTH - 180) / len(varied))
    canvas = Canvas(180 + gap * len(varied), 360, left=110, right=70, top=46, bottom=18)
    axes = [axis(p.of(sweep.entries), p.kind) for p in varied]
    axes.append(axis([entry.values[0] for entry in done], "linear"))
    spots = [canvas.left + gap * i for i in range(len(axes))]
    for place, entry in reversed(list(enumerate(done))):
        points = [
            (x, canvas.y(one.place(entry.params[p.key])))
            for x, one, p in zip(spots, axes, varied, strict=False)
            if p.key in entry.params
        ]
        points.append((spots[-1], canvas.y(axes[-1].place(entry.values[0]))))
        shade = SHADES - 1 - place * SHADES // len(done)
        canvas.line(points, f"path s{shade}" + (" best" if place == 0 else ""), described(entry, sweep))
    for x, one, name in zip(spots, axes, [*(p.key for p in varied), sweep.objectives[0]], strict=True):
        _upright(canvas, x, one, name)
    return str(canvas)


def _upright(canvas: Canvas, x: float, one: Axis, name: str) -> None:
    """A vertical axis of the parallel coordinates. The group stands above the name, to avoid overlaps."""
    group, _, last = name.rpartition("." if "/" not in name else "/")
    canvas.line([(x, canvas.top), (x, canvas.bottom)], "axis")
    canvas.text(x, canvas.top - 28, shortened(group), style="quiet")
    canvas.text(x, canvas.top - 12, shortened(last), style="title")
    free = math.inf
    for share, label in one.ticks:
        y = canvas.y(share)
        canvas.line([(x - 4, y), (x, y)], "axis")
        if free - y >= 12:
            canvas.text(x - 7, y + 4, shortened(label, 16), anchor="end", style="halo")
            free = y
        elif free == math.inf:
            free = y


def timeline(sweep: Sweep) -> str:
    """One row per worker, with a bar from the start to the end of each of its trials."""
    bars = [entry for entry in sweep.entries if entry.started is not None]
    if not bars:
        return ""
    begin = min(entry.started or 0.0 for entry in bars)
    ends = {entry.number: entry.ended or max(sweep.now, entry.started or 0.0) for entry in bars}
    length = max(1e-3, max(ends.values()) - begin)
    unit, name = (3600.0, "hours") if length > 7200 else (60.0, "minutes") if length > 120 else (1.0, "seconds")
    workers = list(dict.fromkeys(entry.worker for entry in sorted(bars, key=lambda entry: entry.started or 0.0)))
    canvas = Canvas(WIDTH, 66 + LANE * len(workers), left=150)
    across = axis([0.0, length / unit], "linear")
    for i, worker in enumerate(workers):
        canvas.text(
            canvas.left - 8,
            canvas.top + LANE * (i + 0.5) + 4,
            worker if len(worker) <= 20 else f"…{worker[-19:]}",
            anchor="end",
        )
    canvas.ticks_across(across)
    canvas.text((canvas.left + canvas.right) / 2, canvas.height - 6, f"{name} since the first start", style="title")
    for entry in bars:
        x = canvas.x(across.place(((entry.started or 0.0) - begin) / unit))
        width = max(1.5, canvas.x(across.place((ends[entry.number] - begin) / unit)) - x - 1)
        y = canvas.top + LANE * workers.index(entry.worker) + 4
        best = "best" if entry.number == sweep.best and len(sweep.objectives) == 1 else ""
        canvas.box(x, y, width, LANE - 8, f"bar {entry.state} {best}", described(entry, sweep))
        if width > 8 * len(str(entry.number)) + 4:
            canvas.text(x + width / 2, y + 15, str(entry.number), style="on-bar")
    return str(canvas)


def pareto(sweep: Sweep) -> str:
    """The first two objectives of complete trials, and the Pareto front with numbered members."""
    done = sweep.done
    if len(sweep.objectives) < 2 or not done:
        return ""
    best = front(done, sweep.directions)
    canvas = Canvas(WIDTH, 380)
    across, up = (axis([entry.values[i] for entry in done], "linear") for i in (1, 0))
    canvas.frame(across, up, sweep.objectives[1], sweep.objectives[0])

    def spot(entry: Entry) -> tuple[float, float]:
        return canvas.x(across.place(entry.values[1])), canvas.y(up.place(entry.values[0]))

    if len(sweep.objectives) == 2:
        canvas.line(_steps([spot(entry) for entry in best]), "best-line", "front")
    named: list[tuple[float, float]] = []
    for entry in sorted(done, key=lambda entry: entry in best):
        x, y = spot(entry)
        canvas.mark(x, y, "complete", described(entry, sweep), "best" if entry in best else "dim")
        if entry in best and all(abs(x - a) > 22 or abs(y - b) > 14 for a, b in named):
            canvas.text(x, y - 9, str(entry.number), style="halo")
            named.append((x, y))
    return str(canvas)


def _steps(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The edge of the front as steps: a corner between two members has the worse value of both in each objective."""
    corners = [(a, (a[0], b[1])) for a, b in pairwise(points)]
    return [point for pair in corners for point in pair] + points[-1:]


def slices(sweep: Sweep) -> list[tuple[str, str]]:
    """Key and figure of each parameter that varies: the first objective by the parameter's value."""
    return [(p.key, _slice(sweep, p)) for p in sweep.varied() if sum(p.key in entry.params for entry in sweep.done) > 1]


def _slice(sweep: Sweep, parameter: Parameter) -> str:
    done = [entry for entry in sweep.done if parameter.key in entry.params]
    canvas = Canvas(330, 230, left=56, right=10)
    across = axis(parameter.of(sweep.entries), parameter.kind)
    up = axis([entry.values[0] for entry in done], "linear")
    canvas.frame(across, up, parameter.key, "")
    crowd: dict[Any, int] = {}
    for entry in reversed(done):
        x = canvas.x(across.place(entry.params[parameter.key]))
        y = canvas.y(up.place(entry.values[0]))
        spot = (round(x / 5), round(y / 4))
        crowd[spot] = crowd.get(spot, -1) + 1  # marks that would overlap stand side by side
        shift = (crowd[spot] + 1) // 2 * 5 * (-1) ** crowd[spot]
        style = "best" if entry.number == sweep.best else ""
        canvas.mark(x + (shift if parameter.kind == "choice" else 0), y, "complete", described(entry, sweep), style)
    return str(canvas)
