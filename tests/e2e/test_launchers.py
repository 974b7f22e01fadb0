"""Workers that Hydra's launchers start: they share one study, and resume the trial of a dead worker."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab.sweep.study import Study

pytestmark = pytest.mark.slow

Ftlab = Callable[..., Any]

GRID = ("trainer.lr=1e-2,3e-3", "lora.r=2,4")
ENVIRONMENT = {**os.environ, "WANDB_MODE": "offline"}


def start(words: list[str], cwd: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "ftlab", "--multirun", *words],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def owner_of_a_running_trial(folder: Path) -> int:
    """The pid of a worker that trains."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.2)
        for file in folder.glob("*/metrics.jsonl"):
            for trial in Study.load(str(folder)).trials():
                if trial.state.name == "RUNNING" and str(trial.number) == file.parent.name:
                    return int(trial.user_attrs["owner"]["pid"])
    raise TimeoutError("no trial began")


def parent(pid: int) -> int:
    """The process that looks after a worker."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("launcher", "package"),
    [
        ("joblib", "hydra_joblib_launcher"),
        ("submitit_local", "hydra_submitit_launcher"),
        pytest.param("ray", "hydra_ray_launcher", marks=pytest.mark.slow),
    ],
)
def test_workers_of_a_launcher_share_one_study(
    launcher: str, package: str, ftlab: Ftlab, small: list[str], tmp_path: Path
) -> None:
    pytest.importorskip(f"hydra_plugins.{package}")
    words = [*small, *GRID, "sweep.study=s", "sweep.workers=2", f"hydra/launcher={launcher}", "trainer.max_steps=12"]
    done = ftlab("--multirun", *words)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 trials finished" in done.stdout
    assert "experiment=best" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    folder = tmp_path / "outputs/s"
    study = Study.load(str(folder))
    assert (study.counts().complete, study.counts().failed, study.counts().running) == (4, 0, 0)
    workers = [trial.user_attrs["owner"]["pid"] for trial in study.trials() if trial.state.name == "COMPLETE"]
    assert len(set(workers)) == 2, "both took trials"
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["s"], "launchers leave nothing elsewhere"
    again = ftlab("--multirun", *words)
    assert again.returncode == 0, again.stderr
    assert len(Study.load(str(folder)).trials()) == len(study.trials()), "a finished study is not worked on"


@pytest.mark.parametrize(
    ("launcher", "package"), [("joblib", "hydra_joblib_launcher"), ("submitit_local", "hydra_submitit_launcher")]
)
def test_what_a_dead_job_began_goes_on(launcher: str, package: str, small: list[str], tmp_path: Path) -> None:
    pytest.importorskip(f"hydra_plugins.{package}")
    limits = ["trainer.max_steps=60", "trainer.save_every=4", "sweep.workers=2", "sweep.study=d"]
    process = start([*small, *GRID, *limits, f"hydra/launcher={launcher}"], tmp_path)
    folder = tmp_path / "outputs/d"
    os.kill(parent(owner_of_a_running_trial(folder)), signal.SIGKILL)
    output, _ = process.communicate(timeout=250)
    assert process.returncode == 0, output
    assert f"a worker of hydra/launcher={launcher} died" in output
    study = Study.load(str(folder))
    assert (study.counts().complete, study.counts().failed, study.counts().running) == (4, 0, 0)
    assert any("interrupted" in trial.user_attrs for trial in study.trials())
    for row in study.leaderboard():
        steps = [line for line in (Path(row.folder) / "metrics.jsonl").read_text().splitlines() if "train/loss" in line]
        assert len(steps) == 60, "no step was lost or repeated"


def test_a_signal_stops_the_workers_of_a_launcher(small: list[str], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    limits = ["trainer.max_steps=2000", "sweep.workers=2", "sweep.study=t"]
    process = start([*small, *GRID, *limits, "hydra/launcher=joblib"], tmp_path)
    worker = owner_of_a_running_trial(tmp_path / "outputs/t")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert "run the same command again to resume" in output
    assert Study.load(str(tmp_path / "outputs/t")).counts().running == 0
    assert not alive(worker)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_a_worker_does_not_outlive_the_driver(small: list[str], tmp_path: Path) -> None:
    process = start([*small, *GRID, "trainer.max_steps=2000", "sweep.workers=2", "sweep.study=o"], tmp_path)
    worker = owner_of_a_running_trial(tmp_path / "outputs/o")
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not alive(worker)


def test_a_launcher_that_cannot_start_jobs_is_told_in_one_line(ftlab: Ftlab, small: list[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    done = ftlab("--multirun", *small, *GRID, "hydra/launcher=submitit_slurm", "sweep.study=x", PATH="/nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("ftlab: hydra/launcher=submitit_slurm cannot run workers: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("launcher", "extra"),
    [("joblib", "joblib"), ("submitit_local", "slurm"), ("submitit_slurm", "slurm"), ("ray", "ray")],
)
def test_a_launcher_that_is_not_installed_names_its_extra(
    launcher: str, extra: str, cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # has found what is installed, and looks no more
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], f"{launcher}.yaml", raising=False)
    code, _, err = cli("--multirun", "experiment=quickstart", "lora.r=2,4", f"hydra/launcher={launcher}")
    assert code == 2
    assert (
        err == f"ftlab: hydra/launcher={launcher} needs a package that is not installed: pip install 'ftlab[{extra}]'\n"
    )
