"""The study's own run at the tracker."""

from pathlib import Path
from typing import Any

import pytest

from ftlab.config import SweepConfig, TrackerConfig
from ftlab.sweep import tracked
from ftlab.sweep.space import Space
from ftlab.sweep.study import Study
from ftlab.sweep.study_report import report_study


class Recorder:
    """Stands in for a tracker."""

    id = "abc"

    def __init__(self) -> None:
        self.tables: dict[str, tuple[list[str], list[list[object]]]] = {}
        self.pages: list[str] = []
        self.values: dict[str, object] = {}

    def table(self, name: str, columns: list[str], rows: list[list[object]], step: int) -> None:
        self.tables[name] = (columns, rows)

    def page(self, name: str, file: Path, step: int) -> None:
        self.pages.append(file.read_text(encoding="utf-8")[:15])

    def summary(self, values: dict[str, object]) -> None:
        self.values |= values

    def close(self, exit_code: int = 0) -> str | None:
        return "wandb sync FOLDER"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[TrackerConfig, Recorder, Any]]:
    found: list[tuple[TrackerConfig, Recorder, Any]] = []

    def start(cfg: TrackerConfig, folder: Path, name: str, config: Any, run_id: str | None, warn: Any) -> Recorder:
        found.append((cfg, Recorder(), run_id))
        return found[-1][1]

    monkeypatch.setattr(tracked.trackers, "open", start)
    return found


def test_a_study_is_recorded_once_for_what_it_holds(
    tmp_path: Path, terminal: Any, opened: list[tuple[TrackerConfig, Recorder, Any]], capsys: Any
) -> None:
    from ftlab.terminal import Terminal

    space, _ = Space.read(["lora.r=2,4"], {})
    study = Study.open("s", tmp_path / "s", SweepConfig(), space, ["eval/sql_exact_match"], [])
    study.optuna.optimize(lambda trial: space.suggest(trial)["lora.r"] / 8, n_trials=2)  # type: ignore[operator]
    cfg = TrackerConfig(name="wandb", tags=["mine"])
    found = report_study(study, Terminal())
    for _ in range(2):
        tracked.record(study, found, cfg, terminal)
    ((used, tracker, run_id),) = opened
    assert (used.group, used.job_type, used.tags, run_id) == ("s", "study", ["mine", "study"], None)
    assert len(tracker.tables["leaderboard"][1]) == 2
    assert tracker.pages == ["<!doctype html>"]
    assert tracker.values["complete"] == 2
    assert tracker.values["best/lora.r"] == 4
    assert terminal.notes == ["wandb sync FOLDER"]
    study.optuna.optimize(lambda trial: 0.1, n_trials=1)
    tracked.record(study, found, cfg, terminal)
    assert opened[1][2] == "abc"
