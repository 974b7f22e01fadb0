"""Measure what the sweep engine costs: python bench/sweep.py [--trials 100] [--only overhead start workers]

The script prints Markdown tables with the target of each figure. Both sides of a comparison run in the same call. The
load of the machine before each measurement is printed, because other processes slow everything here.

*Overhead.* A toy objective reports five rungs, asks the pruner each time and computes nothing. Its study is a SQLite
file in a temporary folder, and everything runs in this process. Four variants are compared: `ftlab.sweep.worker.work`
alone, with the lines that the driver prints into a file, with the driver's live table in a terminal, and bare Optuna as
its users write it (`RDBStorage` with heartbeats, `study.optimize`). The time of a trial is that from the start of one
objective to the start of the next, as wall-clock and processor milliseconds of this process. The pruner's answers are
ignored, so every trial reports five times. The target applies to the slowest of ftlab's variants. The script also
prints how long composing a trial's configuration takes, which a run outside a sweep does as well.

*Start.* The time from starting a worker of an existing study until it would load the first trial's model, compared
with a process that only imports the training libraries. The difference is ftlab's own time. A worker that a driver
starts is `ftlab.sweep.join`; with one worker, the driver (`python -m ftlab --multirun ...`) is itself the worker.

*Workers.* Trials that compute in pure Python for about two seconds of one core, with the same number of trials per
worker, run in one worker process and in two. The same work in bare processes without a study shows what the machine can
give. The time is that from the first start to the last end.
"""

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import optuna
from optuna.trial import Trial

from ftlab.composition import composition
from ftlab.config import SweepConfig
from ftlab.sweep.board import Board
from ftlab.sweep.events import Event, Listener, ignore_event
from ftlab.sweep.join import WorkerOrder
from ftlab.sweep.rungs import rungs_of
from ftlab.sweep.space import Space
from ftlab.sweep.study import Study
from ftlab.sweep.worker import work
from ftlab.terminal import Terminal

ROOT = Path(__file__).resolve().parents[1]
RUNGS = [10, 20, 30, 40, 50]
SPACE = ["trainer.lr=tag(log,interval(1e-5,1e-2))", "lora.r=choice(4,8,16,32)"]
STARTS = 5
TRIALS_A_WORKER = 6
SECONDS = 2.0
TARGETS = {"overhead": 50.0, "start": 1.0, "workers": 1.8}

# Program of a child: it prints the time at which training would start. The training libraries are imported first, which
# does not change the total.
STARTED = """
import os, sys, time
from ftlab import experiment
def run(*_, **__):
    print(time.time(), file=sys.__stdout__, flush=True)
    os._exit(0)
experiment.run = run
if len(sys.argv) > 1:
    from ftlab.__main__ import main
    main(sys.argv[1:])
else:
    from ftlab.sweep.join import main
    main()
"""
IMPORTED = "import time; from ftlab import experiment; print(time.time())"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--trials", type=int, default=100, help="trials of the overhead measurement")
    arguments.add_argument("--only", nargs="+", choices=list(TARGETS), default=list(TARGETS), help="measurements")
    arguments.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # for a process of the workers measurement
    arguments.add_argument("--bare", type=int, help=argparse.SUPPRESS)
    arguments.add_argument("--loops", type=int, help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.worker or chosen.bare:
        one_of_several(chosen.worker, chosen.bare, chosen.loops)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.only:
            load = os.getloadavg()[0]
            print(f"\n## {name.capitalize()}\n\nLoad before: {load:.1f} on {len(os.sched_getaffinity(0))} cores.\n")
            {"overhead": overhead, "start": start, "workers": workers}[name](Path(folder), chosen.trials)


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a Markdown table."""
    titles = list(titles)
    for row in (titles, ["---"] * len(titles), *rows):
        print(f"| {' | '.join(row)} |")


def verdict(kind: str, figure: float, met: bool, unit: str) -> None:
    print(f"\n{figure:.2f}{unit}, target {TARGETS[kind]:g}{unit}: {'met' if met else 'missed'}")


def study_in(folder: Path, n_trials: int, sampler: str = "tpe") -> Study:
    space, _ = Space.read(SPACE, {})
    cfg = SweepConfig(n_trials=n_trials, sampler=sampler, pruner="successive_halving")
    return Study.open("toy", folder, cfg, space, ["eval/loss"], [])


# --- overhead -----------------------------------------------------------------------------------------------


class Clock:
    """A toy objective that records when it starts."""

    def __init__(self, on_event: Listener = ignore_event) -> None:
        self.on_event = on_event
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __call__(self, trial: Trial) -> float:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())
        rate = float(trial.params["trainer.lr"])
        for step in RUNGS:
            trial.report(rate + 1 / step, step)
            self.on_event(Event("rung", trial.number, step=step, value=rate + 1 / step))
            trial.should_prune()
        return rate

    def milliseconds(self) -> tuple[list[float], list[float]]:
        """The wall-clock and the processor milliseconds of each trial, sorted."""
        return gaps(self.wall), gaps(self.cpu)


def gaps(times: list[float]) -> list[float]:
    return sorted(1e3 * (after - before) for before, after in pairwise(times))


def overhead(folder: Path, n_trials: int) -> None:
    """Print the milliseconds per trial of ftlab's worker and of bare Optuna."""
    sides: list[tuple[str, Callable[[Path, int], Clock]]] = [
        ("bare Optuna", by_optuna),
        ("ftlab's worker", by_worker),
        ("ftlab's worker and the driver's lines", lambda place, count: by_driver(place, count, io.StringIO())),
        ("ftlab's worker and the driver's live table", lambda place, count: by_driver(place, count, Screen())),
    ]
    found = [(name, side(folder / name.replace(" ", "-"), n_trials).milliseconds()) for name, side in sides]
    base = statistics.median(found[0][1][0])
    table(
        ("one process, SQLite", "median ms", "p95 ms", "processor median ms", "median / bare Optuna's"),
        (
            (name, *(f"{ms:.1f}" for ms in figures), f"{figures[0] / base:.2f}")
            for name, (wall, cpu) in found
            for figures in [(statistics.median(wall), wall[int(0.95 * len(wall))], statistics.median(cpu))]
        ),
    )
    mine = max(statistics.median(wall) for _, (wall, _) in found[1:])
    verdict("overhead", mine, mine <= TARGETS["overhead"], " ms")
    words = ["experiment=quickstart", "trainer.lr=1e-4", "lora.r=8"]
    print(f"\nComposing a configuration: {1e3 * min(timed(lambda: composition(words)) for _ in range(10)):.0f} ms.")


def timed(function: Callable[[], object]) -> float:
    """The seconds of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def by_worker(folder: Path, n_trials: int) -> Clock:
    study, clock = study_in(folder, n_trials), Clock()
    study.set_pruner(RUNGS)
    work(study, clock)
    return clock


class Screen(io.StringIO):
    """A text buffer that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def by_driver(folder: Path, n_trials: int, file: io.StringIO) -> Clock:
    study = study_in(folder, n_trials)
    study.set_pruner(RUNGS)
    with Board(study, Terminal(file)).open() as board:
        clock = Clock(board.on_event)
        work(study, clock, board.on_event)
    return clock


def by_optuna(folder: Path, n_trials: int) -> Clock:
    folder.mkdir()
    space, clock = Space.read(SPACE, {})[0], Clock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{folder}/study.db", {"connect_args": {"timeout": 60}}, heartbeat_interval=60, grace_period=180
        )
    study = optuna.create_study(
        storage=storage,
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=RUNGS[0], reduction_factor=3),
    )

    def objective(trial: Trial) -> float:
        space.suggest(trial)
        return clock(trial)

    study.optimize(objective, n_trials=n_trials)
    return clock


# --- start --------------------------------------------------------------------------------------------------


def start(folder: Path, n_trials: int) -> None:
    """Print the seconds until a worker would load the model, compared with importing the training libraries."""
    words = ["--multirun", "experiment=quickstart", "tracker=none", *SPACE, f"run_dir={folder / 'start'}"]
    words += ["sweep.study=start", "sweep.n_trials=20", "sweep.retries=1000", "sweep.max_failures=1000"]
    seconds_to(STARTED, words)  # creates the study, which exists before a driver starts a worker
    known = rungs_of(composition(["experiment=quickstart"]).config)
    order = WorkerOrder.of(Study.load(str(folder / "start")), None, known).environment()
    imports, joined, driven = [], [], []
    for _ in range(STARTS):
        imports.append(seconds_to(IMPORTED, []))
        joined.append(seconds_to(STARTED, [], order))
        driven.append(seconds_to(STARTED, words))
    own = statistics.median(joined) - statistics.median(imports)
    sides = [
        ("importing the training libraries", imports),
        ("a worker", joined),
        ("a driver that is itself the worker", driven),
    ]
    table(
        ("seconds", "median", "range", "/ imports"),
        (
            (
                name,
                f"{middle:.2f}",
                f"{min(found):.2f} to {max(found):.2f}",
                f"{middle / statistics.median(imports):.2f}",
            )
            for name, found in sides
            for middle in [statistics.median(found)]
        ),
    )
    verdict("start", own, own <= TARGETS["start"], " s")


def seconds_to(code: str, words: list[str], order: dict[str, str] | None = None) -> float:
    """The seconds until a child process prints the time."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(order or {})}
    began = time.time()
    done = subprocess.run([sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        raise SystemExit(f"a worker did not reach its first trial:\n{done.stdout}{done.stderr}")
    return float(done.stdout.split()[-1]) - began


# --- workers ------------------------------------------------------------------------------------------------


def compute(loops: int) -> int:
    """Occupy one core, almost without using memory."""
    total = 0
    for number in range(loops):
        total = (total * 31 + number) & 0xFFFF
    return total


def loops_of(seconds: float) -> int:
    began = time.perf_counter()
    compute(2_000_000)
    return int(2_000_000 * seconds / (time.perf_counter() - began))


def workers(folder: Path, n_trials: int) -> None:
    """Print the trials per hour of one worker and of two, compared with bare processes."""
    loops = loops_of(SECONDS)
    hourly = {
        (kind, count): TRIALS_A_WORKER * count * 3600 / spent(kind, count, folder, loops)
        for kind in ("bare processes", "workers")
        for count in (1, 2)
    }
    table(
        (f"trials of {SECONDS:g} s an hour", "one", "two", "two / one"),
        (
            (kind, f"{hourly[kind, 1]:.0f}", f"{hourly[kind, 2]:.0f}", f"{hourly[kind, 2] / hourly[kind, 1]:.2f}")
            for kind in ("bare processes", "workers")
        ),
    )
    gain = hourly["workers", 2] / hourly["workers", 1]
    verdict("workers", gain, gain >= TARGETS["workers"], "x")


def spent(kind: str, count: int, folder: Path, loops: int) -> float:
    """The seconds from the start of the first trial to the end of the last."""
    place = folder / f"workers-{count}"
    what = ["--bare", str(TRIALS_A_WORKER)]
    if kind == "workers":
        study_in(place, TRIALS_A_WORKER * count, "random")
        what = ["--worker", str(place)]
    command = [sys.executable, __file__, *what, "--loops", str(loops)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    times = [float(word) for process in processes for word in process.communicate()[0].split()]
    return max(times) - min(times)


def one_of_several(folder: Path | None, bare: int | None, loops: int) -> None:
    """Run this process's share of the trials, and print when each starts and ends."""

    def run(trial: object) -> float:
        print(time.time())
        compute(loops)
        print(time.time())
        return 0.0

    if folder is None:
        for number in range(bare or 0):
            run(number)
    else:
        work(study_in(folder, Study.load(str(folder)).target, "random"), run)


if __name__ == "__main__":
    main()
