"""python -m ftlab data [OVERRIDES]: what a run would train on: splits, samples, lengths in tokens.

OVERRIDES are those of a run, such as data=sql_synth, data=jsonl data.path=FILE, model=tiny (its tokenizer is used) and
data.max_length=512. A histogram of the lengths is also written to outputs/ as a PNG (needs matplotlib).
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ftlab import data, stages, tasks
from ftlab.config import ExperimentConfig
from ftlab.data.encode import Encoded, refuse_empty, suggested_length, warnings_of
from ftlab.data.lengths import COLOURS, PERCENTILES, Measured, bins, figure, measure, percentile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OUTPUTS = Path("outputs")
SAMPLES = 3
BARS = 16  # lines of the histogram
PLAIN_WIDTH = 110  # columns, if the output is not a terminal
TRAINED, SPECIAL, WARN = "bold green", "magenta", "yellow"


def main(cfg: ExperimentConfig, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Show the data of `cfg` as the model reads it, and write a plot of its lengths to outputs/.

    Raises DataError for data that cannot be used and, after showing it all, if no training row fits `data.max_length`.
    """
    task, stage = tasks.get(cfg.data.task), stages.get(cfg.trainer.stage)
    splits = data.load(cfg.data, task)
    found = {
        name: measure(task.render(rows, tokenizer, cfg.data), partial(stage.encode, cfg=cfg))
        for name, rows in (("train", splits.train), ("validation", splits.validation), ("test", splits.test))
    }
    train, max_length = found["train"], cfg.data.max_length
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    console.print(Text.assemble((cfg.data.name, "bold"), ", tokenized for ", (cfg.model.name, "bold")))
    console.print(_table(found))
    for line in _remarks(splits, found, max_length):
        console.print(line, soft_wrap=True)
    _show_samples(console, train.fitted.encoded, tokenizer)
    _show_lengths(console, train.lengths, max_length)
    console.print(_plot(cfg, train), soft_wrap=True)
    refuse_empty(train.fitted, train.tokens, max_length)
    return 0


def _table(found: dict[str, Measured]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("split")
    for head in ("rows", "truncated", "dropped", *(f"p{percent}" for percent in PERCENTILES), "longest"):
        table.add_column(head, justify="right")
    for name, split in found.items():
        total = len(split.tokens)
        lengths = [percentile(split.lengths, percent) for percent in PERCENTILES] + split.lengths[-1:]
        lost = (_share(split.fitted.truncated, total), _share(split.fitted.dropped, total))
        table.add_row(name, f"{total:,}", *lost, *(f"{length:,}" for length in lengths))
    return table


def _share(part: int, total: int) -> Text:
    return Text(f"{part:,} ({part / total:.1%})", style=WARN) if part else Text("0", style="dim")


def _remarks(splits: data.Splits, found: dict[str, Measured], max_length: int) -> list[Text]:
    remarks = [Text(note) for note in splits.notes]
    remarks.append(Text(f"sha256 of all rows: {splits.sha256}"))
    remarks += [Text(line, style=WARN) for line in warnings_of({k: v.fitted for k, v in found.items()}, max_length)]
    longer = [name for name, split in found.items() if split.lengths and split.lengths[-1] > max_length]
    if longer:
        longest = suggested_length(max(found[name].lengths[-1] for name in longer))
        most = suggested_length(max(percentile(found[name].lengths, 99) for name in longer))
        advice = f"data.max_length={longest} would truncate no row of {_listed(longer)}"
        if max_length < most < longest:
            advice += f", data.max_length={most} at most 1 % of them"
        remarks.append(Text(advice, style=WARN))
    return remarks


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _show_samples(console: Console, rows: Sequence[Encoded], tokenizer: "PreTrainedTokenizerBase") -> None:
    """Show a short, a medium and a long row."""
    ordered = sorted(rows, key=lambda row: row.tokens)
    places = dict.fromkeys(len(ordered) * part // (SAMPLES + 1) for part in range(1, SAMPLES + 1))
    coloured = console.color_system is not None
    legend = Text("trained tokens", style=TRAINED) if coloured else Text("⟦trained tokens⟧")
    console.print(Text.assemble("\n", ("Samples of train", "bold"), ", marked: ", legend))
    for row in [ordered[place] for place in places if ordered]:
        cut = ", truncated" if row.truncated else ""
        console.print(Text(f"\n{row.id}: {row.tokens:,} tokens, {row.trained:,} trained{cut}", style="dim"))
        console.print(Padding(_sample(row, tokenizer, coloured), (0, 0, 0, 2), expand=False))


def _sample(row: Encoded, tokenizer: "PreTrainedTokenizerBase", coloured: bool) -> Text:
    """Return the text of a row as the model reads it, with special tokens."""
    text = Text()
    for ids, trained in _pieces(row):
        read = str(tokenizer.decode(ids, skip_special_tokens=False))
        if not coloured:
            text.append(f"⟦{read}⟧" if trained else read)
            continue
        offset = len(text)
        text.append(read, TRAINED if trained else None)
        for first, last in _control_spans(ids, tokenizer):
            text.stylize(SPECIAL, offset + first, offset + last)
    return text


def _pieces(row: Encoded) -> Iterator[tuple[list[int], bool]]:
    """Yield the row's token ids, divided at the borders of trained spans, and whether each piece is trained."""
    end = 0
    for first, last in row.spans:
        yield row.input_ids[end:first], False
        yield row.input_ids[first:last], True
        end = last
    yield row.input_ids[end:], False


def _control_spans(ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> list[tuple[int, int]]:
    """Return the positions of special tokens in the decoded text; text that only looks like one does not count."""
    special = set(tokenizer.all_special_ids)

    def end(count: int) -> int:
        return len(str(tokenizer.decode(ids[:count], skip_special_tokens=False)))

    return [(end(i), end(i + 1)) for i, id in enumerate(ids) if id in special]


def _show_lengths(console: Console, lengths: list[int], max_length: int) -> None:
    console.print(Text.assemble("\n", ("Tokens per row of train", "bold"), ", before truncation (tokens, rows)\n"))
    found = bins(lengths, BARS)
    most = max(rows for _, _, rows in found)
    room = min(60, console.width - 36)
    limit = Text(f"{'┄' * 17} {'┄' * (room // 3)} data.max_length={max_length:,}", style=WARN)
    shown = False
    for first, last, rows in found:
        if first > max_length and not shown:
            console.print(limit)
            shown = True
        colour = COLOURS["whole" if last <= max_length else "truncated"]
        label = f"{first:>7,} to {last:<6,} "
        console.print(Text.assemble(label, (bar(rows / most * room), colour), f" {rows:,}"))
    if not shown:
        console.print(limit)


def bar(length: float) -> str:
    """Return a bar of `length` character cells, in steps of 1/8; a length above 0 is always visible."""
    eighths = max(round(length * 8), int(length > 0))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _plot(cfg: ExperimentConfig, train: Measured) -> Text:
    """Write the PNG, and return the line that says where it is or why there is none."""
    name = "-".join(re.sub(r"[^\w.]+", "_", part) for part in ("data", cfg.data.name, cfg.model.name))
    path = OUTPUTS / f"{name}.png"
    if not find_spec("matplotlib"):
        return Text(f"\nNo plot: {path} needs matplotlib: pip install 'ftlab[plots]'", style=WARN)
    title = f"{cfg.data.name}: {len(train.lengths):,} rows of train, tokenized for {cfg.model.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure(train, title, cfg.data.max_length).savefig(path)
    except OSError as error:
        return Text(f"\nNo plot: {path} cannot be written ({error.strerror or error})", style=WARN)
    return Text(f"\nPlot: {path}")
