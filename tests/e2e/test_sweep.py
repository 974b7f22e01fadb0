"""Sweeps as a user runs them: from the command line, killed and started again, alone and with several workers."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab.sweep.study import Study

Ftlab = Callable[..., Any]

GRID = ("trainer.lr=1e-2,3e-3", "lora.r=2,4")


def states(folder: Path) -> Counter[str]:
    """How the trials of a study ended; those given back or interrupted count nowhere."""
    counts = Study.load(str(folder)).counts()
    return Counter(complete=counts.complete, pruned=counts.pruned, failed=counts.failed, running=counts.running)


def start(words: list[str], cwd: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "ftlab", "--multirun", *words],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def test_a_grid_is_searched_reported_and_not_repeated(ftlab: Ftlab, small: list[str], tmp_path: Path) -> None:
    words = ("--multirun", *small, *GRID, "sweep.study=grid", "trainer.max_steps=2")
    done = ftlab(*words)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs/grid"
    assert states(folder) == Counter(complete=4)
    assert {path.name for path in folder.iterdir()} >= {"0", "1", "2", "3", "study.db", "study.json", "report.html"}
    assert "python -m ftlab --config-dir outputs/grid experiment=best" in done.stdout
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}
    again = ftlab(*words)
    assert again.returncode == 0, again.stderr
    assert "trial 0" not in again.stdout.split("rank")[0]
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}
    best = ftlab("--config-dir", "outputs/grid", "experiment=best", "--dry-run")
    assert best.returncode == 0, best.stderr
    reported = ftlab("report", "grid")
    assert reported.returncode == 0, reported.stderr
    assert "4 of 4 trials finished" in reported.stdout
    other = ftlab("--multirun", *small, "trainer.lr=1e-2,1e-3", "lora.r=2,4", "sweep.study=grid", "trainer.max_steps=2")
    assert other.returncode == 2
    assert "trainer.lr: choice(0.01,0.003) in the study" in other.stderr


def test_hopeless_trials_are_pruned_and_failed_ones_do_not_end_the_sweep(
    ftlab: Ftlab, small: list[str], tmp_path: Path
) -> None:
    done = ftlab(
        "--multirun",
        *small,
        "trainer.lr=1e-2,1e-2,1e-6,1e30",
        "seed=0,1",
        "sweep.study=s",
        "sweep.pruner=successive_halving",
        "eval.every=1",
    )
    assert done.returncode == 2  # the same value twice
    done = ftlab(
        "--multirun",
        *small,
        "trainer.lr=1e-2,1e-6,1e30",
        "seed=0,1",
        "sweep.study=s",
        "sweep.pruner=successive_halving",
        "eval.every=1",
    )
    assert done.returncode == 0, done.stderr
    found = states(tmp_path / "outputs/s")
    assert found["failed"] == 2
    assert found["pruned"] >= 1
    assert found["complete"] + found["pruned"] == 4
    assert "Traceback" not in done.stdout + done.stderr
    failed = [row for row in Study.load(str(tmp_path / "outputs/s")).leaderboard() if row.state == "failed"]
    assert all("loss" in str(row.cause) or "nan" in str(row.cause) for row in failed)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_killed_sweep_goes_on_to_the_exact_total(
    workers: int, ftlab: Ftlab, small: list[str], tmp_path: Path
) -> None:
    """However often: that everything died, driver and all, says nothing against a trial."""
    words = [*small, *GRID, "sweep.study=k", f"sweep.workers={workers}", "trainer.max_steps=40", "trainer.save_every=4"]
    words += ["sweep.retries=0"]
    rng = random.Random(workers)
    for _ in range(3):
        process = start(words, tmp_path)
        time.sleep(rng.uniform(5, 11))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = ftlab("--multirun", *words)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs/k"
    assert states(folder) == Counter(complete=4)
    rows = [row for row in Study.load(str(folder)).leaderboard() if row.state == "complete"]
    assert len({(row.params["trainer.lr"], row.params["lora.r"]) for row in rows}) == 4
    for row in rows:
        file = Path(row.folder) / "metrics.jsonl"
        lines = [json.loads(line) for line in (tmp_path / file).read_text().splitlines()]
        trained = [line["step"] for line in lines if "train/loss" in line]
        assert trained == sorted(set(trained)), "a resumed trial repeats nothing"
        assert trained[-1] == 40


@pytest.mark.slow
def test_a_frozen_worker_is_killed_and_its_trial_goes_on(ftlab: Ftlab, small: list[str], tmp_path: Path) -> None:
    words = [*small, *GRID, "sweep.study=f", "sweep.workers=2", "trainer.max_steps=40", "trainer.save_every=4"]
    process = start([*words, "sweep.trial_limit_s=60"], tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("outputs/f/0/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    (trial,) = [t for t in Study.load(str(tmp_path / "outputs/f")).trials() if t.number == 0]
    os.kill(trial.user_attrs["owner"]["pid"], signal.SIGSTOP)
    assert process.wait(timeout=250) == 0
    assert states(tmp_path / "outputs/f") == Counter(complete=4)
    assert [row.user_attrs.get("retries") for row in Study.load(str(tmp_path / "outputs/f")).leaderboard()].count(
        1
    ) == 1


def test_a_signal_stops_the_sweep_and_says_that_it_can_go_on(ftlab: Ftlab, small: list[str], tmp_path: Path) -> None:
    words = [*small, *GRID, "sweep.study=t", "trainer.max_steps=60"]
    process = start(words, tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("outputs/t/0/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert states(tmp_path / "outputs/t")["running"] == 0
    done = ftlab("--multirun", *words)
    assert done.returncode == 0, done.stderr
    assert states(tmp_path / "outputs/t") == Counter(complete=4)


def test_two_drivers_on_one_study_work_together(ftlab: Ftlab, small: list[str], tmp_path: Path) -> None:
    words = [*small, *GRID, "sweep.study=d", "trainer.max_steps=8"]
    first, second = start(words, tmp_path), start(words, tmp_path)
    assert (first.wait(timeout=200), second.wait(timeout=200)) == (0, 0)
    assert states(tmp_path / "outputs/d") == Counter(complete=4)
