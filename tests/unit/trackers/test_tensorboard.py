"""TensorBoard's own reader finds what a run recorded, once, however often the run was interrupted."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from ftlab.trackers import JsonlTracker, Start, Trackers, settings

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def events(folder: Path) -> Any:
    found = accumulator.EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def record(folder: Path, steps: tuple[int, ...], resumed_from: int = -1) -> list[str]:
    lines = JsonlTracker(folder / "metrics.jsonl")
    lines.truncate(resumed_from)
    start = Start(folder, "run", {"lora": {"r": 4}, "hub": {"token": "hunter2"}})
    both = Trackers(settings({"tensorboard": {}}), start, lines)
    for step in steps:
        both.log({"train/loss": step / 10, "train/nan": math.nan}, step)
    both.table("predictions", ["question", "right"], [["a|b\nc", True]], steps[-1])
    both.summary({"eval/loss": 0.5})
    both.tag("finished")
    return both.close()


def test_scalars_configuration_and_tables_are_read_back(tmp_path: Path) -> None:
    (line,) = record(tmp_path, (1, 2))
    assert line == f"tensorboard --logdir {tmp_path / 'tensorboard'}"
    found = events(tmp_path)
    assert [(one.step, round(one.value, 6)) for one in found.Scalars("train/loss")] == [(1, 0.1), (2, 0.2)]
    assert found.Tags()["scalars"] == ["train/loss"]
    texts = {tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]}
    assert '"r": 4' in texts["configuration/text_summary"]
    assert "hunter2" not in texts["configuration/text_summary"]
    assert "| a\\|b<br>c | True |" in texts["predictions/text_summary"]
    assert '"eval/loss": 0.5' in texts["summary/text_summary"]


def test_a_secret_of_the_environment_is_masked_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_TOKEN", "zq8Lm2vX9pQw")
    tracker = Trackers(settings({"tensorboard": {}}), Start(tmp_path, "run", {}))
    tracker.table("predictions", ["pred"], [["say zq8Lm2vX9pQw"]], 1)
    tracker.close()
    (tag,) = (tag for tag in events(tmp_path).Tags()["tensors"] if tag.startswith("predictions"))
    assert b"| say *** |" in events(tmp_path).Tensors(tag)[0].tensor_proto.string_val[0]


def test_a_resumed_run_holds_each_step_once(tmp_path: Path) -> None:
    record(tmp_path, (1, 2, 3, 4))
    record(tmp_path, (3, 4, 5), resumed_from=2)
    assert [one.step for one in events(tmp_path).Scalars("train/loss")] == [1, 2, 3, 4, 5]


def test_without_the_package_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard.writer", raising=False)
    lines: list[str] = []
    both = Trackers(settings({"tensorboard": {}, "csv": {}}), Start(tmp_path, "run", {}, warn=lines.append))
    both.log({"a": 1.0}, 1)
    assert both.close() == []
    (line,) = lines
    assert "pip install 'ftlab[tensorboard]'" in line
    assert (tmp_path / "metrics.csv").exists()
