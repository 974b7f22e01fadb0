"""metrics.csv is read by spreadsheets and pandas, and does not depend on how often a run was interrupted."""

import csv
import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas
import pytest

from ftlab.options import NoOptions
from ftlab.trackers import JsonlTracker, Start
from ftlab.trackers.csv import CsvTracker

# Two keys come late, two lines are of one step, and one value is not finite.
LOG: list[tuple[dict[str, float], int]] = [
    ({"train/loss": 0.1 + 0.2, "train/lr": 1e-4}, 10),
    ({"train/loss": math.nan, "train/lr": 9e-5}, 20),
    ({"eval/loss": 1 / 3, "eval/a,b": 0.5}, 20),
    ({"train/loss": 2.5e-17, "train/lr": 8e-5}, 30),
    ({"test/loss": 7.0}, 30),
]


def record(folder: Path, log: list[tuple[dict[str, float], int]], resumed_from: int = -1) -> None:
    """What a process records that resumes from a checkpoint."""
    lines = JsonlTracker(folder / "metrics.jsonl")
    lines.truncate(resumed_from)
    tracker = CsvTracker(Start(folder, "run", {}), NoOptions())
    for metrics, step in log:
        lines.log(metrics, step)
        tracker.log(metrics, step)
    tracker.close()
    lines.close()


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_a_step_with_every_key_as_a_column(tmp_path: Path) -> None:
    record(tmp_path, LOG)
    rows = read(tmp_path)
    assert list(rows[0]) == ["step", "train/loss", "train/lr", "eval/loss", "eval/a,b", "test/loss"]
    assert [row["step"] for row in rows] == ["10", "20", "30"]
    assert [float(row["train/loss"]) if row["train/loss"] else None for row in rows] == [0.1 + 0.2, None, 2.5e-17]
    assert float(rows[1]["eval/loss"]) == 1 / 3
    assert rows[0]["test/loss"] == ""
    table = pandas.read_csv(tmp_path / "metrics.csv")
    assert table["train/lr"].tolist() == [1e-4, 9e-5, 8e-5]


@pytest.mark.parametrize("killed_after", range(len(LOG) + 1))
def test_a_resumed_run_ends_with_the_same_file(killed_after: int, tmp_path: Path) -> None:
    """It resumes from step 10, whatever was recorded until it was killed."""
    (whole := tmp_path / "whole").mkdir()
    (resumed := tmp_path / "resumed").mkdir()
    record(whole, LOG)
    record(resumed, LOG[:killed_after])
    if killed_after:
        record(resumed, LOG[1:], resumed_from=10)
    else:
        record(resumed, LOG)
    assert (resumed / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_a_run_that_begins_again_leaves_nothing_of_before(tmp_path: Path) -> None:
    (whole := tmp_path / "whole").mkdir()
    (again := tmp_path / "again").mkdir()
    record(whole, LOG)
    record(again, LOG[:4])
    record(again, LOG, resumed_from=-1)
    assert (again / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_half_a_row_that_a_full_disk_left_is_mended_by_the_next(tmp_path: Path) -> None:
    class Full(list[Any]):
        """What is written where only a part of it has room."""

        def __iter__(self) -> Iterator[Any]:
            with (tmp_path / "metrics.csv").open("a") as file:
                file.write("20,0.")
            raise OSError("No space left on device")

    lines, start = JsonlTracker(tmp_path / "metrics.jsonl"), Start(tmp_path, "run", {})
    tracker = CsvTracker(start, NoOptions())
    columns = tracker._cells
    for step in (10, 20, 30):
        lines.log({"a": step / 3}, step)
        tracker._cells = (lambda row: Full()) if step == 20 else columns  # type: ignore[method-assign]
        with nullcontext() if step != 20 else pytest.raises(OSError, match="No space"):
            tracker.log({"a": step / 3}, step)
    lines.close()
    assert [(row["step"], float(row["a"])) for row in read(tmp_path)] == [(str(n), n / 3) for n in (10, 20, 30)]


def test_a_torn_or_missing_file_is_made_anew(tmp_path: Path) -> None:
    record(tmp_path, LOG[:2])
    (tmp_path / "metrics.csv").write_text("step,tr")
    record(tmp_path, LOG[2:], resumed_from=20)
    (other := tmp_path / "other").mkdir()
    record(other, LOG)
    assert read(tmp_path) == read(other)


def test_a_secret_of_the_environment_is_masked_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_TOKEN", "zq8Lm2vX9pQw")
    CsvTracker(Start(tmp_path, "run", {}), NoOptions()).table("predictions", ["pred"], [["say zq8Lm2vX9pQw"]], 1)
    assert (tmp_path / "predictions.csv").read_text() == "pred\nsay ***\n"


def test_a_table_is_a_file_and_its_name_leads_nowhere_else(tmp_path: Path) -> None:
    (folder := tmp_path / "run").mkdir()
    tracker = CsvTracker(Start(folder, "run", {}), NoOptions())
    cells: list[list[Any]] = [['Who, "me"?\nyes', True], [None, 0.1]]
    tracker.table("predictions", ["question", "right"], cells, 3)
    tracker.table("../evil", ["a"], [], 3)
    with (folder / "predictions.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["question", "right"], ['Who, "me"?\nyes', "True"], ["", "0.1"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert json.dumps(sorted(path.name for path in folder.iterdir())) == '[".._evil.csv", "predictions.csv"]'
