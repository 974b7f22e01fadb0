"""summary.json as a typed record: what is written is read, whatever version or accident wrote it."""

import json
from pathlib import Path
from typing import Any

import pytest

from ftlab.summary import BaseModel, Objective, ScoreIntervals, StepSetting, Summary


def whole() -> Summary:
    return Summary(
        status="finished",
        run_name="a",
        objective=Objective("eval/loss", 0.5),
        base={"eval/loss": 1.0},
        tuned={"eval/loss": 0.5},
        intervals=ScoreIntervals(tuned={"eval/sql_exact_match": (0.1, 0.4)}),
        model=BaseModel("m", sha256={"config.json": "00"}),
        setting=StepSetting(4, False, 0.5),
        step=10,
        planned_steps=10,
        seconds={"train": 3.5},
        vram={"train": {"allocated": 2.0}, "eval": {"allocated": 4.0}},
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    whole().write(tmp_path / "summary.json")
    found = Summary.read(tmp_path / "summary.json")
    assert found == whole()
    assert found.ended
    assert found.metrics == {"eval/loss": 0.5, "vram/peak_allocated_gib": 4.0, "train/seconds": 3.5}


def test_what_is_not_known_yet_does_not_stand_in_the_file() -> None:
    tree = Summary(status="running").tree()
    assert tree["tracker_ids"] == {}
    assert not {"step", "planned_steps", "model", "error", "reason", "damage", "others"} & tree.keys()


def test_a_part_is_asked_for_as_the_file_has_it() -> None:
    assert whole()["objective"]["value"] == whole()["tuned"]["eval/loss"] == 0.5
    with pytest.raises(KeyError):
        whole()["error"]


def test_what_another_version_wrote_is_kept() -> None:
    found = Summary.of({**whole().tree(), "of_tomorrow": {"a": 1}})
    assert found.damage is None
    assert found.tree()["of_tomorrow"] == {"a": 1}


@pytest.mark.parametrize("part", ["objective", "base", "tuned", "intervals", "step", "planned_steps", "status"])
def test_a_finished_record_without_a_part_is_not_relied_on(part: str) -> None:
    tree = whole().tree()
    del tree[part]
    found = Summary.of(tree)
    assert found.damage == "parts of it are missing"
    assert not found.ended


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("tuned", []),
        ("tuned", {"eval/loss": "low"}),
        ("seconds", {"train": None, "total": "x"}),
        ("seconds", {"train": 10**400}),
        ("vram", {"train": 3}),
        ("step", "ten"),
        ("step", True),
        ("sources", {"train": {"sha256": 7}}),
        ("intervals", {"tuned": {"eval/loss": [1, 2, 3]}}),
        ("model", "m"),
        ("status", 7),
    ],
)
def test_a_part_of_another_type_is_at_its_default(part: str, value: Any) -> None:
    found = Summary.of({**whole().tree(), part: value})
    assert found.damage == "parts of it are missing"
    json.dumps(found.tree())
    assert isinstance(found.peak_gib, float)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")])
def test_a_file_that_cannot_be_read_is_an_empty_record(text: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(text, encoding="latin-1")
    found = Summary.read(tmp_path / "summary.json")
    assert (found.status, found.tuned, found.damage) == ("", {}, "not readable")
    assert Summary.read(tmp_path / "absent.json").damage == "not readable"


def test_a_number_that_is_not_finite_is_null_and_read_as_none() -> None:
    record = whole()
    record.tuned["eval/other"] = float("nan")
    tree = record.tree()
    assert tree["tuned"]["eval/other"] is None
    assert Summary.of(tree).tuned == {"eval/loss": 0.5}
    assert Summary.of(tree).damage is None
