import random
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ftlab.config import DataConfig
from ftlab.data import Example
from ftlab.data.encode import fit
from ftlab.data.lengths import bins, figure, measure, percentile
from ftlab.tasks.sql import TASK

LENGTHS = {
    "bell": sorted(int(random.Random(i).gauss(150, 30)) for i in range(2000)),
    "tail": [*range(60, 260), 9000],
    "one": [40],
    "equal": [40] * 9,
}


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("count", [1, 5, 16])
def test_the_bins_hold_every_row_once(name: str, count: int) -> None:
    lengths = LENGTHS[name]
    found = bins(lengths, count)
    assert len(found) <= count
    assert sum(rows for _, _, rows in found) == len(lengths)
    assert found[0][0] <= lengths[0]
    assert found[-1][1] >= lengths[-1]
    assert all(right[0] == left[1] + 1 for left, right in pairwise(found))


def test_a_long_tail_does_not_squeeze_the_others() -> None:
    found = bins(LENGTHS["tail"], 16)
    assert len([rows for _, _, rows in found if rows]) >= 10
    assert found[-1][1] == 9000


def test_percentiles_are_lengths_that_so_many_rows_do_not_exceed() -> None:
    assert percentile(list(range(1, 101)), 50) == 50
    assert percentile(list(range(1, 101)), 99) == 99
    assert percentile([7], 50) == percentile([7], 99) == 7


@pytest.mark.parametrize("max_length", [50, 90, 4096])
def test_the_plot_tells_whole_truncated_and_dropped_rows_apart(tokenizer: Any, tmp_path: Path, max_length: int) -> None:
    pytest.importorskip("matplotlib")
    rows = [Example(str(i), "How many? " * (i // 8), "CREATE TABLE t " * (i + 1), "SELECT 1", "g") for i in range(40)]
    cfg = DataConfig(name="x", source="table", max_length=max_length)
    measured = measure(TASK.render(rows, tokenizer, cfg), partial(fit, max_length=max_length, loss_on="completion"))
    fate = {name: len(lengths) for name, lengths in measured.by_fate().items()}
    assert fate["truncated"] == measured.fitted.truncated
    assert fate["dropped"] == measured.fitted.dropped
    drawn = figure(measured, "title", max_length)
    drawn.savefig(tmp_path / "plot.png")
    (axes,) = drawn.axes
    bars: Any = axes.patches
    assert sum(bar.get_height() for bar in bars) == len(rows)
    assert all(bar.get_x() > max_length or bar.get_x() + bar.get_width() <= max_length + 0.5 for bar in bars)
    legend = axes.get_legend_handles_labels()[1]
    assert [text.split(":")[0] for text in legend] == [name for name, count in fate.items() if count]
    assert any(f"data.max_length={max_length:,}" in text.get_text() for text in axes.texts)
    assert (tmp_path / "plot.png").stat().st_size > 5000
