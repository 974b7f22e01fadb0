"""Names that would lead out of outputs/ lead nowhere: of runs, studies, trials, options, and at the tracker."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ftlab.sweep.study import folder_of

Cli = Callable[..., tuple[int, str, str]]
PATHS = ["../x", "../../x", "a/../../x", "/tmp/ftlab-x", "..", ".", "~/x", "a/b/../../../x", "..\\x", "x/.."]
WORDS = [
    *(f"run_name={path}" for path in PATHS if path not in ("~/x", "..\\x")),
    *(f"model={path}" for path in PATHS[:4]),
    *(f"experiment={path}" for path in PATHS[:4]),
]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    return tmp_path


def nothing_outside(work: Path) -> None:
    files = [path for path in work.rglob("*") if path.is_file()]
    assert [path for path in files if not path.is_relative_to(work / "a" / "b" / "outputs")] == []
    assert not Path("/tmp/ftlab-x").exists()


@pytest.mark.parametrize("word", WORDS)
def test_a_run_is_not_led_out(cli: Cli, work: Path, small: list[str], word: str) -> None:
    code, _, err = cli("--dry-run", *small, word)
    assert (code, "Traceback" in err) == (2, False)
    nothing_outside(work)


@pytest.mark.parametrize("path", [path for path in PATHS if "/" in path or "\\" in path or ".." in path or path == "."])
def test_a_study_is_not_led_out(cli: Cli, work: Path, small: list[str], path: str) -> None:
    code, _, err = cli("--multirun", *small, "lora.r=2,4", f"sweep.study='{path}'")
    assert (code, "must be a name" in err) == (2, True), err
    nothing_outside(work)


@pytest.mark.parametrize("named", ["../../x", "/tmp/ftlab-x", None, 3.5, ["x"], "../x"])
def test_a_trial_is_not_led_out_by_the_database(work: Path, named: Any) -> None:
    (work / "x").mkdir()
    study: Any = SimpleNamespace(folder=work / "study")
    for attrs in ({"original": named}, {"attempts": [named]}, {"attempts": named}):
        trial: Any = SimpleNamespace(number=7, user_attrs=attrs)
        assert folder_of(study, trial) == work / "study" / "7"


@pytest.mark.parametrize("run_id", ["../../x", "x/../../../y", "/tmp/ftlab-x", "*", "x\n"])
def test_the_tracker_is_not_led_out_by_a_run_folder(work: Path, monkeypatch: pytest.MonkeyPatch, run_id: str) -> None:
    from ftlab.trackers import Start
    from ftlab.trackers.wandb import WandbTracker

    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = WandbTracker(Start(work / "a" / "b" / "outputs", "x", {}, id=run_id), WandbTracker.options())
    assert tracker.id is None
    nothing_outside(work)
