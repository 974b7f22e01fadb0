"""Measure how much a second GPU speeds up a sweep: python bench/sweep_gpu.py --out DIR [--trials 6] [--seconds 8]

The same sweep of the included base model runs with `sweep.workers=1` and with `sweep.workers=2`, each as `python -m
ftlab --multirun` in a process of its own, with a random sampler and no pruner. Draws, steps and seeds are the same, and
each worker has one core. A sweep of two trials beforehand measures how many steps make a trial of about `--seconds`
(its second trial counts); `--steps` sets the number instead.

*Trials an hour* counts from the start of the first trial to the end of the last. The time that starting the processes
takes is printed separately. *Trial s* is the median seconds of a trial. The target is at least 1.8 times as many trials
an hour with two workers.

With one GPU, the sweep with two workers is left out. `--tiny` runs short trials on two cores. DIR/sweep_gpu.md and
DIR/sweep_gpu.json hold the figures, and DIR/workers-N.log and DIR/workers-N/ the sweeps. Existing files are replaced.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from optuna.trial import TrialState

from ftlab.run_dir import RunDir
from ftlab.sweep.driver import visible_gpus
from ftlab.sweep.study import Study

ROOT = Path(__file__).resolve().parents[1]
TARGET = 1.8
PROBE_STEPS = 20
SPACE = ["trainer.lr=tag(log,interval(1e-4,3e-3))"]
FIXED = [
    "experiment=quickstart",
    "tracker=none",
    "data.validation=20",
    "data.test_rows=20",
    "eval.every=null",
    "eval.batch_size=20",
    "eval.max_new_tokens=32",
    "trainer.warmup_steps=2",
    "sweep.sampler=random",
    "sweep.pruner=none",
    "sweep.sampler_seed=0",
    "sweep.max_failures=1",
]
TINY = ["quant=none", "data.train_rows=64", "data.validation=4", "data.test_rows=4", "trainer.global_batch_size=4"]
TINY += ["eval.batch_size=4", "eval.max_new_tokens=2"]


@dataclass(frozen=True)
class Side:
    """The figures of a sweep that has run."""

    workers: int
    trials: int
    steps: int
    hourly: float  # trials an hour, from the start of the first trial to the end of the last
    trial_s: float  # median seconds of a trial
    start_s: float  # from the command to the start of the first trial
    whole_s: float  # of the whole command
    cpu_s: float  # processor seconds of all its processes
    best: float


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--trials", type=int, default=6, help="trials of each sweep")
    arguments.add_argument("--seconds", type=float, default=8.0, help="seconds of a trial's training")
    arguments.add_argument("--steps", type=int, help="steps of a trial, instead of --seconds")
    arguments.add_argument("--tiny", action="store_true", help="short trials; without a GPU, on two cores")
    settings = arguments.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    gpus = len(visible_gpus())
    if not gpus and not settings.tiny:
        raise SystemExit("no GPU is visible (nvidia-smi, CUDA_VISIBLE_DEVICES): --tiny runs on two cores")
    steps = settings.steps or steps_of(settings)
    print(f"{gpus} GPUs, {len(os.sched_getaffinity(0))} cores; {settings.trials} trials of {steps} steps", flush=True)
    sides = [side(settings, 1, settings.trials, steps)]
    if gpus == 1:
        print("one GPU: the sweep with two workers is left out", flush=True)
    else:
        sides.append(side(settings, 2, settings.trials, steps))
    record(settings.out, sides)


def steps_of(settings: argparse.Namespace) -> int:
    """The number of steps that takes about `--seconds`."""
    study = swept(settings, 1, 2, PROBE_STEPS, settings.out / "probe")
    seconds = float(RunDir(study.folder / "1").summary["seconds"]["train"])
    return max(1, round(float(settings.seconds) * PROBE_STEPS / seconds))


def side(settings: argparse.Namespace, workers: int, trials: int, steps: int) -> Side:
    """Run a sweep with this number of workers and return its figures."""
    began, cpu = time.time(), children_s()
    study = swept(settings, workers, trials, steps, settings.out / f"workers-{workers}")
    whole, cpu = time.time() - began, children_s() - cpu
    done = [trial for trial in study.trials() if trial.state is TrialState.COMPLETE]
    begins = [trial.datetime_start.timestamp() for trial in done if trial.datetime_start]
    ends = [trial.datetime_complete.timestamp() for trial in done if trial.datetime_complete]
    best = study.best()
    found = Side(
        workers=workers,
        trials=len(done),
        steps=steps,
        hourly=3600 * len(done) / (max(ends) - min(begins)),
        trial_s=statistics.median(end - begin for begin, end in zip(begins, ends, strict=True)),
        start_s=min(begins) - began,
        whole_s=whole,
        cpu_s=cpu,
        best=float(best.value or 0.0) if best else 0.0,
    )
    print(f"sweep.workers={workers}: {found.hourly:.0f} trials an hour ({whole:.0f} s)", flush=True)
    return found


def children_s() -> float:
    """The processor seconds of all child processes that have ended, their own children included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def swept(settings: argparse.Namespace, workers: int, trials: int, steps: int, folder: Path) -> Study:
    """Run a sweep from scratch in a process of its own and return its study."""
    shutil.rmtree(folder, ignore_errors=True)
    words = [*FIXED, *(TINY if settings.tiny else []), *SPACE]
    words += [f"sweep.workers={workers}", f"sweep.n_trials={trials}", f"run_dir={folder.resolve()}"]
    words += [f"trainer.max_steps={steps}", f"trainer.save_every={steps}", f"sweep.study={folder.name}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    log = folder.with_suffix(".log")
    with open(log, "wb") as file:
        command = [sys.executable, "-m", "ftlab", "--multirun", *words]
        code = subprocess.run(command, env=environment, stdout=file, stderr=file, check=False).returncode
    if code:
        raise SystemExit(f"sweep.workers={workers} ended with {code}, see {log}:\n{log.read_text()[-3000:]}")
    return Study.load(str(folder))


def record(folder: Path, sides: Sequence[Side]) -> None:
    """Print the figures and write them to files."""
    titles = ("workers", "trials", "steps", "trials an hour", "trial s", "start s", "whole s", "processor s", "best")
    rows = [
        (
            *map(str, (side.workers, side.trials, side.steps)),
            *(f"{value:.1f}" for value in (side.hourly, side.trial_s, side.start_s, side.whole_s, side.cpu_s)),
            f"{side.best:.3f}",
        )
        for side in sides
    ]
    lines = [f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows)]
    ratio = sides[1].hourly / sides[0].hourly if len(sides) > 1 else None
    if ratio is not None:
        lines += ["", f"{ratio:.2f}x, target {TARGET:g}x: {'met' if ratio >= TARGET else 'missed'}"]
    print("\n".join(["", *lines]), flush=True)
    (folder / "sweep_gpu.md").write_text("\n".join(lines) + "\n")
    figures = {"sides": [asdict(side) for side in sides], "ratio": ratio, "target": TARGET}
    (folder / "sweep_gpu.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
