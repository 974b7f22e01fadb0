"""The study's own run at the tracker."""

from pathlib import Path
from typing import Any

import pytest

from ftlab import trackers
from ftlab.config import SweepConfig
from ftlab.sweep import tracked
from ftlab.sweep.space import Space
from ftlab.sweep.study import Study
from ftlab.sweep.study_report import report_study
from ftlab.trackers import Start, Tracker


class Memory(Tracker):
    """Keeps what it is given."""

    name = "memory"
    id = "abc"

    def __init__(self, start: Start, options: Any) -> None:
        self.start = start
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
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Memory]:
    """The trackers named memory that were started, in order."""
    found: list[Memory] = []

    class Found(Memory):
        def __init__(self, start: Start, options: Any) -> None:
            super().__init__(start, options)
            found.append(self)

    monkeypatch.setattr(trackers, "names", lambda: ["memory"])
    monkeypatch.setattr(trackers, "get", lambda name: Found)
    return found


def test_a_study_is_recorded_once_for_what_it_holds(
    tmp_path: Path, terminal: Any, opened: list[Memory], capsys: Any
) -> None:
    from ftlab.terminal import Terminal

    space, _ = Space.read(["lora.r=2,4"], {})
    study = Study.open("s", tmp_path / "s", SweepConfig(), space, ["eval/sql_exact_match"], [])
    study.optuna.optimize(lambda trial: space.suggest(trial)["lora.r"] / 8, n_trials=2)  # type: ignore[operator]
    node = {"tags": ["mine"], "memory": {}}
    found = report_study(study, Terminal())
    for _ in range(2):
        tracked.record(study, found, node, terminal)
    (tracker,) = opened
    begun = tracker.start
    assert (begun.group, begun.kind, begun.tags, begun.id) == ("s", "study", ("mine", "study"), None)
    assert len(tracker.tables["leaderboard"][1]) == 2
    assert tracker.pages == ["<!doctype html>"]
    assert tracker.values["complete"] == 2
    assert tracker.values["best/lora.r"] == 4
    assert terminal.notes == ["wandb sync FOLDER"]
    study.optuna.optimize(lambda trial: 0.1, n_trials=1)
    tracked.record(study, found, node, terminal)
    assert opened[1].start.id == "abc"


def test_the_run_of_an_earlier_version_is_gone_on_with(tmp_path: Path, terminal: Any, opened: list[Memory]) -> None:
    from ftlab.terminal import Terminal

    space, _ = Space.read(["lora.r=2,4"], {})
    study = Study.open("s", tmp_path / "s", SweepConfig(), space, ["eval/sql_exact_match"], [])
    study.optuna.optimize(lambda trial: space.suggest(trial)["lora.r"] / 8, n_trials=2)  # type: ignore[operator]
    study.optuna.set_user_attr("tracked", {"id": "old", "finished": 1})
    tracked.record(study, report_study(study, Terminal()), {"memory": {}}, terminal)
    assert opened[0].start.id is None  # it was W&B's
    assert study.optuna.user_attrs["tracked"]["ids"] == {"wandb": "old", "memory": "abc"}
