"""Sweeps under SIGKILL, many times at random moments: `make soak`. Minutes; FTLAB_SOAK sets how many times (20)."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from ftlab.sweep.study import FINISHED, Study

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1000)]

TIMES = int(os.environ.get("FTLAB_SOAK", "20"))
Process = subprocess.Popen[bytes]
Start = Callable[..., Process]

# A worker of a study whose trials last about a second; each notes when it begins.
TOY = """
import json, random, sys, time
from pathlib import Path
from ftlab.config import SweepConfig
from ftlab.sweep.space import Space
from ftlab.sweep.study import Study
from ftlab.sweep.worker import work

folder, n_trials = Path(sys.argv[1]), int(sys.argv[2])
space, _ = Space.read(["trainer.lr=tag(log,interval(1e-5,1e-2))", "lora.r=choice(4,8,16)"], {})
cfg = SweepConfig(n_trials=n_trials, sampler="random", pruner="successive_halving", retries=1000, workers=3)
study = Study.open("toy", folder, cfg, space, ["eval/loss"], [])
study.set_pruner([1, 2, 3, 4, 5])

def run(trial):
    with open(folder / "begun.jsonl", "a") as file:
        file.write(json.dumps({"lr": trial.params["trainer.lr"], "time": time.time()}) + "\\n")
    for step in range(1, 6):
        time.sleep(random.uniform(0.1, 0.4))
        trial.report(trial.params["trainer.lr"] / step, step)
    return trial.params["trainer.lr"]

work(study, run)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process, whose group is killed in the end."""
    started: list[Process] = []

    def begin(*words: str) -> Process:
        log = (tmp_path / "output.log").open("ab")
        with log:
            started.append(
                subprocess.Popen([sys.executable, *words], cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
            )
        return started[-1]

    yield begin
    for process in started:
        kill_all(process)


def kill_all(process: Process) -> None:
    """The process and all that it started, orphans included."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def children(process: Process) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def finished(folder: Path) -> dict[int, FrozenTrial]:
    """Finished trials by number; none where the study is not made yet."""
    if not (folder / "study.json").exists():
        return {}
    return {trial.number: trial for trial in Study.load(str(folder)).trials() if trial.state in FINISHED}


def check(folder: Path, n_trials: int, seen: dict[int, FrozenTrial]) -> list[FrozenTrial]:
    """The totals of a study at its end, and that what was `seen` finished has not changed; the finished trials."""
    trials = Study.load(str(folder)).trials()
    states = [trial.state for trial in trials]
    assert sum(state in FINISHED for state in states) == n_trials
    assert TrialState.RUNNING not in states
    done = finished(folder)
    for number, trial in seen.items():
        assert (done[number].state, done[number].values) == (trial.state, trial.values)
        assert done[number].datetime_complete == trial.datetime_complete, "a finished trial was run again"
    params = [json.dumps(trial.params, sort_keys=True) for trial in done.values()]
    assert len(set(params)) == n_trials, "two trials have the same parameters"
    originals = [trial.user_attrs.get("original", trial.number) for trial in done.values()]
    assert len(set(originals)) == n_trials, "two trials go on with the same first attempt"
    assert not [trial.user_attrs["cause"] for trial in trials if "cause" in trial.user_attrs]
    return list(done.values())


def test_workers_killed_at_random_leave_the_exact_total(start: Start, tmp_path: Path) -> None:
    rng, folder, n_trials = random.Random(0), tmp_path / "toy", 24 * TIMES
    words = ("-c", TOY, str(folder), str(n_trials))
    crew, seen = [start(*words) for _ in range(3)], dict[int, FrozenTrial]()
    for turn in range(TIMES):
        time.sleep(rng.uniform(0.5, 5))
        victims = crew if turn % 5 == 4 else [rng.choice(crew)]
        for process in victims:
            assert process.poll() is None, "the study ended before the last kill, or a worker crashed"
            kill_all(process)
        seen |= finished(folder)
        crew = [start(*words) if process in victims else process for process in crew]
    assert [process.wait(timeout=600) for process in crew] == [0, 0, 0], (tmp_path / "output.log").read_text()
    ended = {trial.params["trainer.lr"]: trial.datetime_complete for trial in check(folder, n_trials, seen)}
    for line in (folder / "begun.jsonl").read_text().splitlines():
        begun = json.loads(line)
        complete = ended.get(begun["lr"])
        assert complete is None or begun["time"] <= complete.timestamp(), "a finished trial was run again"


def test_experiments_killed_at_random_go_on_from_their_checkpoints(
    start: Start, small: list[str], tmp_path: Path
) -> None:
    rng, kills, study = random.Random(1), dict.fromkeys(("worker", "driver", "all"), 0), 0
    while sum(kills.values()) < TIMES:  # another study where one ends before
        n_trials, steps = 8, 60
        folder = tmp_path / f"outputs/s{study}"
        words = ["-m", "ftlab", "--multirun", *small, "trainer.lr=interval(1e-4,1e-2)", f"trainer.max_steps={steps}"]
        words += ["trainer.save_every=4", "eval.every=30", "sweep.sampler=random", f"sweep.sampler_seed={study}"]
        words += [f"sweep.n_trials={n_trials}", "sweep.retries=1000", f"sweep.study=s{study}", "sweep.workers=2"]
        process, seen, written = start(*words), dict[int, FrozenTrial](), dict[Path, int]()
        while process.poll() is None and sum(kills.values()) < TIMES:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=rng.uniform(5, 12))
                break
            kind = rng.choice(["worker", "worker", "driver", "all"])
            kills[kind] += kill(process, kind, rng)
            seen |= finished(folder)
            written |= {file: file.stat().st_mtime_ns for file in summaries(folder, seen)}
            if process.poll() is not None:
                process = start(*words)
        assert process.wait(timeout=600) == 0, (tmp_path / "output.log").read_text()[-5000:]
        check(folder, n_trials, seen)
        assert written == {file: file.stat().st_mtime_ns for file in written}, "a finished trial was run again"
        for file in summaries(folder, finished(folder)):
            assert trained(file.parent) == list(range(1, steps + 1)), "a resumed trial repeats and skips nothing"
        study += 1
    print(f"kills: {kills}, studies: {study}")


def kill(process: Process, kind: str, rng: random.Random) -> bool:
    """Whether there was one of that kind to kill. Workers whose driver alone is killed stop by themselves, while the
    next driver starts."""
    if kind == "all":
        kill_all(process)
        return True
    pids = children(process) if kind == "worker" else [process.pid]
    if pids:
        with suppress(ProcessLookupError):
            os.kill(rng.choice(pids), signal.SIGKILL)
    if kind == "driver":
        process.wait()
    return bool(pids)


def summaries(folder: Path, trials: dict[int, FrozenTrial]) -> list[Path]:
    return [folder / str(number) / "summary.json" for number in trials]


def trained(folder: Path) -> list[int]:
    lines: list[dict[str, Any]] = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "train/loss" in line]


def test_two_drivers_started_at_once_share_a_fresh_study(start: Start, small: list[str], tmp_path: Path) -> None:
    for turn in range(TIMES):
        words = ["-m", "ftlab", "--multirun", *small, "trainer.lr=1e-2,3e-3", "trainer.max_steps=2"]
        words += [f"sweep.study=d{turn}", f"sweep.sampler_seed={turn}"]
        pair = [start(*words), start(*words)]
        codes = [process.wait(timeout=200) for process in pair]
        assert codes == [0, 0], (tmp_path / "output.log").read_text()[-5000:]
        check(tmp_path / f"outputs/d{turn}", 2, {})
