"""`ftlab data`: what a model will be trained on: splits, samples with their trained tokens, and lengths."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ftlab import data
from ftlab.config import ExperimentConfig
from ftlab.data.encode import Encoded, EncodedSet, Tokens, fit, refuse_nothing, tokenise, whole_step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OUTPUTS = Path("outputs")
SAMPLES = 3
BARS = 14  # rows of the histogram in the terminal
PERCENTILES = (50, 90, 99)
TRAINED, SPECIAL, WARN = "bold green", "magenta", "yellow"
FITS, TRUNCATED, DROPPED = "#0072B2", "#E69F00", "#D55E00"  # told apart with any colour vision


@dataclass(frozen=True)
class Measured:
    """One split as tokens, whole (`tokens`) and made to fit (`fitted`)."""

    tokens: list[Tokens]
    fitted: EncodedSet

    @property
    def lengths(self) -> list[int]:
        """Tokens of every row before anything is cut, sorted."""
        return sorted(map(len, self.tokens))


def main(cfg: ExperimentConfig, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Show the data of `cfg` as `tokenizer` and `data.max_length` make it; write the plot of its lengths.

    Raises DataError for data that cannot be used, TrainingError (last) if no train row fits.
    """
    splits = data.load(cfg.data)
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    measured = {name: _measure(rows, tokenizer, cfg) for name, rows in named.items()}
    train = measured["train"]
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 110
    console.print(Text.assemble((cfg.data.name, "bold"), f" as {cfg.model.name} reads it"))
    console.print(_table(measured))
    console.print(*_remarks(splits, train, cfg.data.max_length), sep="\n")
    _show_samples(console, train.fitted.rows, tokenizer)
    _show_histogram(console, train.lengths, cfg.data.max_length)
    console.print(_plot(cfg, train), soft_wrap=True)
    refuse_nothing(train.fitted, train.tokens, cfg.data.max_length)
    return 0


def percentile(lengths: Sequence[int], percent: float) -> int:
    """The smallest of the sorted `lengths` that at least `percent` of them do not exceed."""
    return lengths[max(0, -(-len(lengths) * percent // 100).__int__() - 1)]


def _measure(
    rows: list[data.Example], tokenizer: "PreTrainedTokenizerBase", cfg: ExperimentConfig
) -> Measured:
    tokens = tokenise(rows, tokenizer, cfg.data.prompt)
    return Measured(tokens, fit(tokens, cfg.data.max_length, cfg.trainer.loss_on))


def _table(measured: dict[str, Measured]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("split")
    heads = ("rows", "truncated", "dropped", *(f"p{percent}" for percent in PERCENTILES), "longest")
    for head in heads:
        table.add_column(head, justify="right")
    for name, split in measured.items():
        lengths, total = split.lengths, len(split.tokens)
        tokens = [percentile(lengths, percent) for percent in PERCENTILES] + lengths[-1:]
        lost = (_share(split.fitted.truncated, total), _share(split.fitted.dropped, total))
        table.add_row(name, f"{total:,}", *lost, *(f"{n:,}" for n in tokens))
    table.columns[-1].footer = "tokens"
    return table


def _share(part: int, total: int) -> Text:
    return Text(f"{part:,} ({part / total:.1%})", style=WARN) if part else Text("0", style="dim")


def _remarks(splits: data.Splits, train: Measured, max_length: int) -> list[Text]:
    remarks = [Text(note) for note in splits.notes]
    remarks.append(Text(f"sha256 of all rows: {splits.sha256}"))
    if train.fitted.truncated or train.fitted.dropped:
        longest, most = whole_step(train.lengths[-1]), whole_step(percentile(train.lengths, 99))
        advice = f"data.max_length={longest} would keep every train row whole"
        if max_length < most < longest:
            advice += f", data.max_length={most} 99 % of them"
        remarks.append(Text(advice, style=WARN))
    return remarks


def _show_samples(console: Console, rows: Sequence[Encoded], tokenizer: "PreTrainedTokenizerBase") -> None:
    """Rows of three lengths (short, middling, long), so that not all look alike."""
    ordered = sorted(rows, key=lambda row: len(row.input_ids))
    picked = [ordered[len(ordered) * part // (SAMPLES + 1)] for part in range(1, SAMPLES + 1)] if ordered else []
    coloured = console.color_system is not None
    console.print()
    legend = Text("trained tokens", style=TRAINED) if coloured else Text("⟦trained tokens⟧")
    console.print(Text.assemble(("Samples of train", "bold"), ", ", legend))
    for row in picked:
        size = f"{len(row.input_ids):,} tokens, {len(row.input_ids) - row.trained_from:,} trained"
        console.print(Text(f"\n{row.id}: {size}{', truncated' if row.truncated else ''}", style="dim"))
        console.print(Padding(_sample(row, tokenizer, coloured), (0, 0, 0, 2)))


def _sample(row: Encoded, tokenizer: "PreTrainedTokenizerBase", coloured: bool) -> Text:
    """A row as the model sees it; special tokens are part of the text."""
    read, trained = (
        str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for ids in (row.input_ids[: row.trained_from], row.input_ids[row.trained_from :])
    )
    if not coloured:
        return Text(f"{read}⟦{trained}⟧")
    text = Text.assemble(read, (trained, TRAINED))
    text.highlight_words(list(map(str, tokenizer.all_special_tokens)), style=SPECIAL)
    return text


def bins(lengths: Sequence[int], count: int) -> list[tuple[int, int, int]]:
    """A histogram of sorted `lengths` as (first, last, rows), at most `count` bins of equal width.

    The width is a round number; a long tail beyond the 99th percentile is gathered in the last bin.
    """
    top = max(1, min(lengths[-1], percentile(lengths, 99) * 5 // 4))
    rounds = (base * 10**power for power in range(7) for base in (1, 2, 5))
    width = next(width for width in rounds if top < width * count)
    edges = list(range(lengths[0] // width * width, top + 1, width))
    lasts = [edge + width - 1 for edge in edges[:-1]] + [max(edges[-1] + width - 1, lengths[-1])]
    return [(a, b, sum(a <= n <= b for n in lengths)) for a, b in zip(edges, lasts, strict=True)]


def _show_histogram(console: Console, lengths: list[int], max_length: int) -> None:
    console.print(Text.assemble(("\nTokens of the train rows", "bold"), ", before anything is cut"))
    found = bins(lengths, BARS)
    most = max(rows for _, _, rows in found)
    room, marked = min(60, console.width - 30), False
    for first, last, rows in found:
        if first > max_length and not marked:
            console.print(_limit(max_length, room))
            marked = True
        style = FITS if last <= max_length else TRUNCATED
        label = f"{first:>7,} to {last:<7,}"
        console.print(Text.assemble(label, (bar(rows / most * room), style), f" {rows:,}"))
    if not marked:
        console.print(_limit(max_length, room))


def _limit(max_length: int, room: int) -> Text:
    return Text(f"{'':>7}    {'':<7}{'┄' * (room // 3)} data.max_length={max_length}", style=WARN)


def bar(length: float) -> str:
    """A bar of `length` character cells, to an eighth of one; what is not zero is seen."""
    eighths = max(round(length * 8), int(length > 0))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _plot(cfg: ExperimentConfig, train: Measured) -> Text:
    """Write the PNG of the lengths; a line that says where, or why there is none."""
    name = "-".join(re.sub(r"[^\w.]+", "_", part) for part in ("data", cfg.data.name, cfg.model.name))
    path = OUTPUTS / f"{name}.png"
    if not find_spec("matplotlib"):
        return Text(f"\nNo plot: {path} needs matplotlib: pip install 'ftlab[plots]'", style="dim")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _figure(cfg, train).savefig(path)
    except OSError as error:
        return Text(f"\nNo plot: {path} cannot be written ({error.strerror or error})", style=WARN)
    return Text(f"\nPlot: {path}")


def _figure(cfg: ExperimentConfig, train: Measured) -> Any:
    """The lengths of the train rows by what becomes of them, with `data.max_length` and percentiles."""
    from matplotlib.figure import Figure

    lengths, limit = train.lengths, cfg.data.max_length
    kept = {row.id: row for row in train.fitted.rows}
    fate = {"fits": [], "truncated": [], "dropped": []}  # type: dict[str, list[int]]
    for row in train.tokens:
        found = kept.get(row.id)
        fate["dropped" if not found else "truncated" if found.truncated else "fits"].append(len(row))
    figure = Figure(figsize=(8, 4.2), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    # A few very long rows must not squeeze the others; they are counted at the right edge.
    end = min(lengths[-1], max(percentile(lengths, 99) * 3 // 2, lengths[0] + 8))
    width = max(1, -(-(end - lengths[0]) // 48))
    edges = list(range(lengths[0], end + 2 * width, width))
    shown = {name: found for name, found in fate.items() if found}
    axes.hist(
        [[min(n, end) for n in found] for found in shown.values()],
        bins=edges,
        stacked=True,
        color=[{"fits": FITS, "truncated": TRUNCATED, "dropped": DROPPED}[name] for name in shown],
        label=[f"{name}: {len(found):,} ({len(found) / len(lengths):.1%})" for name, found in shown.items()],
        edgecolor="white",
        linewidth=0.4,
    )
    return figure
