"""The progress display of a running sweep, and how rarely it reads the study."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import Trial

from ftlab.config import SweepConfig
from ftlab.sweep import board as board_module
from ftlab.sweep.board import Board
from ftlab.sweep.events import Event
from ftlab.sweep.space import Space
from ftlab.sweep.study import Study, TrialRow
from ftlab.sweep.worker import work
from ftlab.terminal import Terminal

STEPS = (10, 20, 30)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def study(tmp_path: Path) -> Study:
    space, _ = Space.read(["lora.r=4,8"], {})
    return Study.open("toy", tmp_path, SweepConfig(), space, ["eval/loss"], [])


def shown(study: Study, file: io.StringIO) -> tuple[list[str], list[Callable[[], object]]]:
    """The lines of a sweep whose trials reach three rungs, and each read of the study."""
    looks: list[Callable[[], object]] = []
    look = study.leaderboard
    with Board(study, Terminal(file)).open() as board:

        def counted() -> list[TrialRow]:
            looks.append(look)
            return look()

        study.leaderboard = counted  # type: ignore[method-assign]

        def run(trial: Trial) -> float:
            for step in STEPS:
                trial.report(0.5, step)
                board.on_event(Event("rung", trial.number, step=step, value=0.5))
            return float(trial.params["lora.r"])

        work(study, run, board.on_event)
    return file.getvalue().splitlines(), looks


def test_rungs_that_follow_fast_are_shown_together(study: Study) -> None:
    lines, looks = shown(study, io.StringIO())
    assert [line.split()[:4] for line in lines if "step" in line] == [
        ["trial", str(number), "step", str(step)] for number in (0, 1) for step in STEPS
    ]
    assert len(looks) == 2 * 2 + 1  # begin and end of each trial, and the end


def test_rungs_that_follow_slowly_are_shown_at_once(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "PAUSE_S", 0.0)
    _, looks = shown(study, io.StringIO())
    assert len(looks) == 2 * (2 + len(STEPS)) + 1


def test_the_end_of_a_trial_says_how_far_the_sweep_is(study: Study) -> None:
    lines, _ = shown(study, io.StringIO())
    assert [line for line in lines if line.endswith("2/2 finished, best 4.0000 (trial 0)")]


def test_a_terminal_has_a_table_of_trials(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    lines, _ = shown(study, Screen())
    assert any("last rung" in line for line in lines)
