"""How long the rows of a split are in tokens, and which of them `data.max_length` truncates or drops."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftlab.data.encode import EncodedSet, Tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PERCENTILES = (50, 90, 99)
# Okabe and Ito's palette, distinguishable with any colour vision: https://jfly.uni-koeln.de/color/
COLOURS = {"whole": "#0072B2", "truncated": "#E69F00", "dropped": "#D55E00"}
INK, FAINT = "#222222", "#767676"


@dataclass(frozen=True)
class Measured:
    """One split as tokens, before (`tokens`) and after (`fitted`) truncation; `lengths` are sorted, before it."""

    tokens: list[Tokens]
    fitted: EncodedSet[Any]
    lengths: list[int]

    def by_fate(self) -> dict[str, list[int]]:
        """Return the lengths in tokens, before truncation, of the whole, the truncated and the dropped rows."""
        fate = {row.id: "truncated" if row.truncated else "whole" for row in self.fitted.encoded}
        found: dict[str, list[int]] = {name: [] for name in COLOURS}
        for row in self.tokens:
            found[fate.get(row.id, "dropped")].append(len(row))
        return found


def measure(tokens: list[Tokens], encode: Callable[[list[Tokens]], EncodedSet[Any]]) -> Measured:
    """Measure rows as the task renders them; `encode` (of the stage) makes the samples."""
    return Measured(tokens, encode(tokens), sorted(map(len, tokens)))


def percentile(lengths: Sequence[int], percent: int) -> int:
    """Return the smallest of the sorted `lengths` that `percent` percent of them do not exceed."""
    return lengths[max(0, -(-len(lengths) * percent // 100) - 1)]


def bins(lengths: Sequence[int], count: int) -> list[tuple[int, int, int]]:
    """Return a histogram of sorted `lengths` as (first, last, rows): at most `count` bins of the same round width.

    The last bin also holds the long tail beyond the 99th percentile; it is then wider.
    """
    top = min(lengths[-1], percentile(lengths, 99) * 5 // 4)
    rounds = (base * 10**power for power in range(9) for base in (1, 2, 5))
    width = next(width for width in rounds if top // width - lengths[0] // width < count)
    edges = list(range(lengths[0] // width * width, top + 1, width))
    lasts = [edge - 1 for edge in edges[1:]] + [max(edges[-1] + width - 1, lengths[-1])]
    return [
        (first, last, sum(first <= length <= last for length in lengths))
        for first, last in zip(edges, lasts, strict=True)
    ]


def figure(measured: Measured, title: str, max_length: int) -> "Figure":
    """Draw a histogram of the lengths, coloured by whether rows fit, with `max_length` and percentiles marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    drawn = Figure(figsize=(8, 4.4), dpi=160, layout="constrained")
    axes = drawn.add_subplot()
    end = _draw_bars(axes, measured, max_length)
    _mark_percentiles(axes, measured.lengths, end)
    _mark_limit(axes, max_length, end)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=48)
    axes.set_xlabel("tokens per row (prompt, answer and EOS)", color=INK)
    axes.set_ylabel("rows", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelcolor=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator("auto", integer=True))
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1.08), "borderaxespad": 0, "borderpad": 0}
    axes.legend(frameon=False, labelcolor=INK, ncols=len(COLOURS), handlelength=1, **place)
    return drawn


def _draw_bars(axes: "Axes", measured: Measured, max_length: int) -> int:
    """Draw stacked bars and return the length at which the last bar begins, which holds all longer rows too."""
    lengths = measured.lengths
    end = min(lengths[-1], max(percentile(lengths, 99) * 3 // 2, lengths[0] + 8))
    width = max(1, -(-(end - lengths[0]) // 48))
    # A bin edge lies right after max_length, so that no bar covers both sides of it.
    first = max_length + 1 - -(-(max_length + 1 - lengths[0]) // width) * width
    found = {name: values for name, values in measured.by_fate().items() if values}
    axes.hist(
        [[min(length, end) for length in values] for values in found.values()],
        bins=[edge - 0.5 for edge in range(first, end + width + 1, width)],
        stacked=True,
        color=[COLOURS[name] for name in found],
        label=[f"{name}: {len(values):,} ({len(values) / len(lengths):.1%})" for name, values in found.items()],
        edgecolor="white",
        linewidth=0.5,
    )
    axes.set_ylim(top=axes.get_ylim()[1] * 1.12)
    if end < lengths[-1]:
        tail = sum(length >= end for length in lengths)
        text = f"rows of {end:,} to {lengths[-1]:,} tokens: {tail:,} →"
        axes.annotate(text, (1, 0.04), xycoords="axes fraction", ha="right", fontsize=8, color=FAINT)
    return end


def _mark_percentiles(axes: "Axes", lengths: Sequence[int], end: int) -> None:
    """Draw ticks above the plot; ticks that are closer than the width of a label share one label."""
    labels: list[tuple[int, list[str]]] = []
    for percent in PERCENTILES:
        at = percentile(lengths, percent)
        near = labels and at - labels[-1][0] < 0.12 * (end - lengths[0] + 1)
        if near:
            labels[-1] = (at, [*labels[-1][1], f"p{percent}"])
        else:
            labels.append((at, [f"p{percent}"]))
    for at, names in labels:
        place: dict[str, Any] = {"xy": (at, 1), "xycoords": axes.get_xaxis_transform()}
        axes.annotate(
            f"{', '.join(names)}: {at:,}",
            **place,
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            color=FAINT,
        )
        axes.axvline(at, ymin=0.985, ymax=1, color=FAINT, linewidth=1)


def _mark_limit(axes: "Axes", max_length: int, end: int) -> None:
    """Draw a line at `max_length`, or an arrow if it lies far beyond the rows."""
    if max_length <= end * 1.6:
        axes.axvline(max_length + 0.5, color=INK, linewidth=1.4, linestyle=(0, (4, 3)))
        anchor: dict[str, Any] = {"xy": (max_length + 0.5, 1), "xycoords": axes.get_xaxis_transform()}
        text, side = f" data.max_length={max_length:,} ", "left" if max_length < end * 0.7 else "right"
    else:
        anchor = {"xy": (1, 1), "xycoords": "axes fraction"}
        text, side = f"data.max_length={max_length:,} →", "right"
    axes.annotate(text, **anchor, xytext=(0, -8), textcoords="offset points", ha=side, va="top", fontsize=9, color=INK)
