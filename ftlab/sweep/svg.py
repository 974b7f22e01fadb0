"""Inline SVG: axes that map values to positions, and a canvas. Colours are CSS classes, for light and dark pages."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

from ftlab.sweep.entry import text

WIDE = 22  # characters of a category's label


@dataclass(frozen=True)
class Axis:
    """Maps values to positions from 0 to 1; has ticks, each a position and a label."""

    place: Callable[[Any], float]
    ticks: tuple[tuple[float, str], ...]


def axis(values: Iterable[Any], kind: Literal["choice", "linear", "log"], whole: bool = False) -> Axis:
    """An axis for these values: `choice` for categories, `linear` and `log` for numbers. A logarithmic axis becomes
    linear if a value is not above 0. `whole` puts ticks at whole numbers only."""
    values = list(values)
    if kind == "choice" or not values or not all(map(_is_number, values)):
        return _names(values)
    if kind == "log" and min(values) > 0:
        return _log(min(values), max(values))
    return _linear(min(values), max(values), whole)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _names(values: Sequence[Any]) -> Axis:
    """A categorical axis: numbers by size, then names in the given order."""
    numbers = sorted({value for value in values if _is_number(value)})
    names = dict.fromkeys([*map(text, numbers), *(text(value) for value in values if not _is_number(value))])
    at = {name: (i + 0.5) / len(names) for i, name in enumerate(names)}
    return Axis(lambda value: at[text(value)], tuple((spot, shortened(name)) for name, spot in at.items()))


def shortened(name: str, width: int = WIDE) -> str:
    """A name cut to `width` characters."""
    return name if len(name) <= width else name[: width - 1] + "…"


def _linear(low: float, high: float, whole: bool) -> Axis:
    if low == high:
        low, high = low - (abs(low) * 0.1 or 1), high + (abs(high) * 0.1 or 1)
    room = 0.04 * (high - low)
    low, high = low - room, high + room
    step = _step((high - low) / 5)
    step = max(1, round(step)) if whole else step
    first, last = math.ceil(low / step), math.floor(high / step)
    ticks = [i * step for i in range(first, last + 1)]
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    digits = max(3, math.ceil(math.log10(max(abs(low), abs(high)) / step)) + 1)
    labels = [f"{tick:.{places}f}" if 1e-4 <= step < 1e6 else f"{tick:.{digits}g}" for tick in ticks]

    def place(value: float) -> float:
        return (value - low) / (high - low)

    return Axis(place, tuple((place(tick), label) for tick, label in zip(ticks, labels, strict=True)))


def _step(rough: float) -> float:
    """The round number nearest to `rough`: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return float(min((1, 2, 5, 10), key=lambda factor: abs(factor * power - rough)) * power)


def _log(low: float, high: float) -> Axis:
    if high / low < 1.2:
        low, high = low / 1.5, high * 1.5
    start, end = math.log10(low), math.log10(high)
    room = 0.04 * (end - start)
    start, end = start - room, end + room
    decades = range(math.floor(start), math.ceil(end) + 1)
    factors = (1,) if end - start > 2.5 else (1, 3) if end - start > 1.2 else (1, 2, 5)

    def place(value: float) -> float:
        return (math.log10(value) - start) / (end - start)

    round_ones = [factor * 10.0**decade for decade in decades for factor in factors]
    ticks = [tick for tick in round_ones if 0 <= place(tick) <= 1]
    ticks = ticks if len(ticks) > 1 else [low, high]
    return Axis(place, tuple((place(tick), f"{tick:.4g}") for tick in ticks))


class Canvas:
    """A drawing of `width` by `height` units, with a plot area in which positions run from 0 to 1."""

    def __init__(
        self, width: float, height: float, *, left: float = 64, right: float = 16, top: float = 14, bottom: float = 52
    ) -> None:
        self.width, self.height = width, height
        self.left, self.right, self.top, self.bottom = left, width - right, top, height - bottom
        self._parts: list[str] = []

    def x(self, share: float) -> float:
        return self.left + share * (self.right - self.left)

    def y(self, share: float) -> float:
        return self.bottom - share * (self.bottom - self.top)

    def line(self, points: Sequence[tuple[float, float]], style: str, title: str = "") -> None:
        """A line through points in units of the drawing."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(f'<polyline class="{style}" points="{path}">{_title(title)}</polyline>')

    def text(self, x: float, y: float, words: str, *, anchor: str = "middle", style: str = "", turn: float = 0) -> None:
        turned = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}"{turned}>{escape(words)}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, style: str, title: str = "") -> None:
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="3" class="{style}">'
            f"{_title(title)}</rect>"
        )

    def mark(self, x: float, y: float, state: str, title: str = "", style: str = "") -> None:
        """The mark of a trial; states differ in shape as well as in colour."""
        shapes = {
            "pruned": f"M{x - 4.5:.1f} {y - 3.5:.1f}h9l-4.5 8z",
            "failed": f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8",
            "running": f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8z",
        }
        circle = f"M{x - 4.5:.1f} {y:.1f}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z"
        path = shapes.get(state, circle)
        self._parts.append(f'<path class="mark {state} {style}" d="{path}">{_title(title)}</path>')

    def frame(self, across: Axis, up: Axis, across_title: str, up_title: str) -> None:
        """Grid, ticks and titles."""
        self.ticks_up(up)
        self.ticks_across(across)
        self.text((self.left + self.right) / 2, self.height - 6, across_title, style="title")
        if up_title:
            self.text(13, (self.top + self.bottom) / 2, up_title, style="title", turn=-90)

    def ticks_up(self, up: Axis) -> None:
        for share, label in up.ticks:
            y = self.y(share)
            self.line([(self.left, y), (self.right, y)], "grid")
            self.text(self.left - 6, y + 4, label, anchor="end")

    def ticks_across(self, across: Axis) -> None:
        """Ticks of the horizontal axis. A label that would touch its neighbour goes one line lower, or is left out."""
        free = [-math.inf, -math.inf]
        self.line([(self.left, self.bottom), (self.right, self.bottom)], "axis")
        for share, label in across.ticks:
            half = 3.5 * len(label)
            x = self.x(share)
            self.line([(x, self.bottom), (x, self.bottom + 4)], "axis")
            row = next((row for row, edge in enumerate(free) if x - half >= edge), None)
            if row is not None:
                self.text(x, self.bottom + 16 + 13 * row, label)
                free[row] = x + half + 6

    def __str__(self) -> str:
        inside = "\n".join(self._parts)
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" height="{self.height:g}" '
            f'role="img" xmlns="http://www.w3.org/2000/svg">\n{inside}\n</svg>'
        )


def _title(words: str) -> str:
    return f"<title>{escape(words)}</title>" if words else ""
