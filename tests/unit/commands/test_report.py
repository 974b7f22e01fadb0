"""The report command: what a sweep found, and the messages on mistakes."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ftlab.config import SweepConfig

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study with 24 trials of one parameter, without run folders."""
    from optuna.trial import TrialState, create_trial

    from ftlab.sweep.space import Space
    from ftlab.sweep.study import Study

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "outputs" / "lr_search"
    space, _ = Space.read(["trainer.lr=tag(log,interval(1e-5,1e-2))"], {})
    fixed = ["experiment=quickstart", "tracker=none"]
    found = Study.open("lr_search", folder, SweepConfig(n_trials=24), space, ["eval/loss"], fixed)
    for i in range(24):
        values, state = ([1.0 + i], TrialState.COMPLETE) if i != 3 else (None, TrialState.FAIL)
        params = {"trainer.lr": 1e-5 * (i + 1)}
        found.optuna.add_trial(
            create_trial(state=state, values=values, params=params, distributions=space.distributions())
        )
    return folder


def test_a_study_is_found_by_name_and_by_folder(cli: Cli, study: Path) -> None:
    for words in (["lr_search"], [str(study)], ["outputs/lr_search"], ["study=lr_search"]):
        code, out, _ = cli("report", *words)
        assert code == 0
        assert "Sweep lr_search: 23 of 24 trials finished: 23 complete, 0 pruned; 1 failed" in out
        assert "best: trial 0, eval/loss 1.0000" in out
    for name in ("report.html", "report.md", "experiment/best.yaml"):
        assert (study / name).is_file()


def test_the_limit_holds_for_the_terminal_only(cli: Cli, study: Path) -> None:
    _, out, _ = cli("report", "lr_search", "limit=3")
    assert "21 more trials: limit=null shows all" in out
    assert "\n4 " not in out
    _, out, _ = cli("report", "lr_search", "limit=null")
    assert "\n23 " in out
    assert (study / "report.md").read_text().count("| complete |") == 23


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lr_serch"], "Did you mean: lr_search?"),
        ([], "report takes one study, got none: python -m ftlab report STUDY"),
        (["a", "b"], "report takes one study, got 2"),
        (["lr_search", "limit=0"], "limit=0 must be a whole number above 0, or null for all"),
        (["lr_search", "limt=3"], "limt= is not an argument of report. Did you mean: limit"),
    ],
)
def test_a_mistake_is_one_line(cli: Cli, study: Path, words: list[str], said: str) -> None:
    code, _, err = cli("report", *words)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1


def test_a_study_without_its_database_is_refused(cli: Cli, study: Path) -> None:
    (study / "study.db").unlink()
    code, _, err = cli("report", "lr_search")
    assert code == 2
    assert len(err.splitlines()) == 1


def test_a_folder_that_cannot_be_written_still_has_its_report_shown(cli: Cli, study: Path) -> None:
    (study / "report.html").mkdir()
    code, out, err = cli("report", "lr_search")
    assert code == 2
    assert "best: trial 0" in out
    assert "cannot be written" in err
    assert len(err.splitlines()) == 1


def test_a_study_may_be_moved(cli: Cli, study: Path, tmp_path: Path) -> None:
    shutil.move(study, tmp_path / "elsewhere")
    code, out, _ = cli("report", "elsewhere")
    assert code == 0
    assert "python -m ftlab --config-dir elsewhere experiment=best" in out


def test_the_report_needs_no_torch(study: Path) -> None:
    program = (
        "import json, sys; from ftlab.__main__ import main; code = main(['report', 'lr_search']);"
        "print(json.dumps([code, *({'torch', 'transformers', 'matplotlib', 'plotly'} & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=study.parents[1])
    assert json.loads(done.stdout.splitlines()[-1]) == [0], done.stderr
