"""metrics.jsonl is valid JSON line by line, whatever was logged and whenever the process died."""

import json
import math
from pathlib import Path

import pytest

from ftlab.trackers import JsonlTracker


def read(path: Path) -> list[dict[str, object]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics.jsonl"


def test_a_line_is_readable_before_the_file_is_closed(path: Path) -> None:
    tracker = JsonlTracker(path)
    tracker.log({"train/loss": 0.5, "train/lr": 1e-3}, 10)
    (line,) = read(path)
    assert line["step"] == 10
    assert line["train/loss"] == 0.5
    assert isinstance(line["time"], float)
    tracker.close()


def test_what_is_not_finite_becomes_null(path: Path) -> None:
    tracker = JsonlTracker(path)
    tracker.log({"nan": math.nan, "inf": math.inf, "minus": -math.inf, "fine": 0.0}, 1)
    tracker.close()
    (line,) = read(path)
    assert [line[key] for key in ("nan", "inf", "minus", "fine")] == [None, None, None, 0.0]


def test_a_second_process_appends(path: Path) -> None:
    for step in (1, 2):
        tracker = JsonlTracker(path)
        tracker.log({"a": 1.0}, step)
        tracker.close()
    assert [line["step"] for line in read(path)] == [1, 2]


def test_a_line_torn_by_a_kill_is_cut_off_and_the_next_is_whole(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"step": 1, "time": 0}\n{"step": 2, "ti')
    tracker = JsonlTracker(path)
    tracker.log({"a": 1.0}, 2)
    tracker.close()
    assert [line["step"] for line in read(path)] == [1, 2]


@pytest.mark.parametrize("place", [b'": 2', b'step": 2'], ids=["no JSON", "another key"])
@pytest.mark.parametrize("bit", [1, 0x80], ids=["ASCII", "no UTF-8"])
def test_a_flipped_bit_costs_its_line_alone(path: Path, place: bytes, bit: int) -> None:
    tracker = JsonlTracker(path)
    for step in (1, 2, 3):
        tracker.log({"a": 1.0}, step)
    data = bytearray(path.read_bytes())
    data[data.index(place)] ^= bit
    path.write_bytes(data)
    told = tracker.truncate(2)
    tracker.log({"a": 1.0}, 3)
    tracker.close()
    assert [line["step"] for line in read(path)] == [1, 3]
    assert told
    assert "metrics.jsonl is damaged (1 of 3 lines) and kept as metrics.jsonl.damaged-1" in told
    assert path.with_name("metrics.jsonl.damaged-1").read_bytes() == data


def test_truncate_drops_what_is_trained_again_and_goes_on(path: Path) -> None:
    tracker = JsonlTracker(path)
    for step in (10, 20, 30):
        tracker.log({"a": 1.0}, step)
    assert tracker.truncate(20) is None
    assert [line["step"] for line in read(path)] == [10, 20]
    tracker.log({"a": 2.0}, 30)
    tracker.close()
    assert [line["step"] for line in read(path)] == [10, 20, 30]
    assert list(path.parent.iterdir()) == [path]


def test_logging_after_close_is_an_error_and_closing_twice_is_not(path: Path) -> None:
    tracker = JsonlTracker(path)
    tracker.close()
    tracker.close()
    with pytest.raises(ValueError, match="closed"):
        tracker.log({"a": 1.0}, 1)
