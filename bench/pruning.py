"""Measure what pruning saves: python bench/pruning.py --out DIR [--seeds 5] [--trials 16] [--steps 60] [--minutes M]

The same space and number of trials are searched with four methods, each with several sampler seeds, on the included
base model:

    successive_halving, hyperband    TPE; hopeless trials are stopped at a rung, as ftlab does it
    none                             TPE; every trial runs to its end, as in hydra-optuna-sweeper, which cannot prune
    random                           random draws; every trial runs to its end

Each search is `python -m ftlab --multirun` in a process of its own. Its trials run one after another, so that what the
sampler and the pruner know does not depend on the speed of the machine. `--workers` searches run at once.
hydra-optuna-sweeper waits for each batch of trials; that costs idle time and no steps, and does not happen here.

Searches in DIR are resumed: the same command finishes what was stopped. After `--minutes` everything is stopped and the
results so far are printed. A method is then compared with the unpruned search over the number of trials that both have
finished. DIR/<method>-<seed>.log is the output of each search, and DIR/pruning.md and DIR/pruning.json hold the
figures.

*Steps* are the optimizer steps of all trials that were started. *Best* is the highest validation score of a completed
trial. The best of many is biased upward, in the same way for each method. Its 95 % interval is Wilson's, over the
validation rows. A search reaches the *same best* if its best lies in the interval of the unpruned search with the same
seed, or above it. *Seconds* are those in which trials ran; other searches on the same cores or GPU lengthen them.

Further words are overrides for all searches: python bench/pruning.py --out DIR quant=none
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ftlab.errors import FtlabError
from ftlab.run_dir import RunDir
from ftlab.sql.intervals import wilson
from ftlab.sweep.study import Study, TrialRow

ROOT = Path(__file__).resolve().parents[1]
# The long ones come first, so that the short ones fill the workers at the end.
WAYS = {
    "none": ["sweep.sampler=tpe", "sweep.pruner=none"],
    "random": ["sweep.sampler=random", "sweep.pruner=none"],
    "hyperband": ["sweep.sampler=tpe", "sweep.pruner=hyperband"],
    "successive_halving": ["sweep.sampler=tpe", "sweep.pruner=successive_halving"],
}
UNPRUNED = "none"
SPACE = [
    "trainer.lr=tag(log,interval(5e-5,2e-2))",
    "lora.r=choice(4,8,16,32)",
    "lora.target_modules=choice(all-linear,attention,mlp,qv)",
]
RUNGS = 5
TARGET = 0.5  # steps of a pruned search, as a share of those of the unpruned one
ENDING_S = 30  # seconds that a search has to write its checkpoint after SIGTERM


def main() -> None:
    settings = parsed()
    settings.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    run_all(settings)
    found = [search for way in WAYS for seed in range(settings.seeds) if (search := Search.read(settings, way, seed))]
    text = "\n".join(report(found, settings, time.monotonic() - begun))
    (settings.out / "pruning.md").write_text(text + "\n", encoding="utf-8")
    (settings.out / "pruning.json").write_text(json.dumps([asdict(one) for one in found], indent=1), encoding="utf-8")
    print(text)


def parsed() -> argparse.Namespace:
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("--out", type=Path, required=True, help="folder of the studies")
    known.add_argument("--seeds", type=int, default=5, help="sampler seeds, one search each")
    known.add_argument("--trials", type=int, default=16, help="finished trials of a search")
    known.add_argument("--steps", type=int, default=60, help="optimizer steps of a whole trial")
    known.add_argument("--rows", type=int, default=100, help="validation rows")
    known.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="searches at once")
    known.add_argument("--minutes", type=float, help="minutes after which everything is stopped and reported")
    known.add_argument("overrides", nargs="*", help="overrides for every search")
    return known.parse_args()


# --- running ------------------------------------------------------------------------------------------------


def run_all(settings: argparse.Namespace) -> None:
    """Run the unfinished searches, `--workers` at a time, until all are finished or the time is over."""
    deadline = time.monotonic() + 60 * settings.minutes if settings.minutes else float("inf")
    todo = [(way, seed) for way in WAYS for seed in range(settings.seeds) if not finished(settings, way, seed)]
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    try:
        while (todo or running) and time.monotonic() < deadline:
            while todo and len(running) < settings.workers:
                running[todo[0]] = start(settings, *todo[0])
                del todo[0]
            time.sleep(0.2)
            for search, process in list(running.items()):
                if process.poll() is not None:
                    del running[search]
                    announce(search, process.returncode)
    finally:
        end(list(running.values()))


def start(settings: argparse.Namespace, way: str, seed: int) -> "subprocess.Popen[bytes]":
    """Start one search as a user would."""
    every = max(1, round(settings.steps / RUNGS))
    words = [
        "experiment=quickstart",
        "tracker=none",
        *SPACE,
        *WAYS[way],
        f"trainer.max_steps={settings.steps}",
        f"trainer.warmup_steps={settings.steps // 6}",
        f"trainer.save_every={settings.steps}",
        f"eval.every={every}",
        f"data.validation={settings.rows}",
        f"sweep.study={way}-{seed}",
        f"sweep.sampler_seed={seed}",
        f"sweep.n_trials={settings.trials}",
        f"sweep.max_failures={settings.trials}",
        f"run_dir={folder_of(settings, way, seed)}",
        *settings.overrides,
    ]
    environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with open(settings.out / f"{way}-{seed}.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "ftlab", "--multirun", *words], env=environment, stdout=log, stderr=log
        )


def announce(search: tuple[str, int], code: int) -> None:
    print(f"{search[0]}-{search[1]}: {'done' if code == 0 else f'ended with {code}, see its log'}", file=sys.stderr)


def end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Stop the searches that still run; the same command resumes their trials."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + ENDING_S
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        process.kill()


def folder_of(settings: argparse.Namespace, way: str, seed: int) -> Path:
    return Path(settings.out).resolve() / f"{way}-{seed}"


def finished(settings: argparse.Namespace, way: str, seed: int) -> bool:
    search = Search.read(settings, way, seed)
    return search is not None and len(search.trials) >= settings.trials


# --- reading ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A completed or pruned trial; its steps and seconds include those of failed trials before it."""

    number: int
    state: str
    score: float | None
    steps: int
    seconds: float


@dataclass(frozen=True)
class Search:
    """One study, with its finished trials in the order in which they started."""

    way: str
    seed: int
    trials: list[Trial]
    failed: int

    @classmethod
    def read(cls, settings: argparse.Namespace, way: str, seed: int) -> "Search | None":
        """The search as it is on disk; None if it has not started."""
        try:
            rows = Study.load(str(folder_of(settings, way, seed))).leaderboard()
        except FtlabError:
            return None
        done = sorted((row for row in rows if row.state in ("complete", "pruned", "failed")), key=lambda r: r.number)
        trials, steps, seconds = [], 0, 0.0
        for row in done:
            steps, seconds = steps + steps_of(row), seconds + (row.seconds or 0.0)
            if row.state != "failed":
                trials.append(Trial(row.number, row.state, row.value, steps, seconds))
                steps, seconds = 0, 0.0
        return cls(way, seed, trials, sum(row.state == "failed" for row in rows))

    def first(self, count: int) -> "Search":
        """The search as it was after `count` finished trials."""
        return Search(self.way, self.seed, self.trials[:count], self.failed)

    @property
    def steps(self) -> int:
        return sum(trial.steps for trial in self.trials)

    @property
    def seconds(self) -> float:
        return sum(trial.seconds for trial in self.trials)

    @property
    def pruned(self) -> int:
        return sum(trial.state == "pruned" for trial in self.trials)

    @property
    def best(self) -> float:
        """The best validation score; 0 if no trial is complete."""
        return max((trial.score for trial in self.trials if trial.score is not None), default=0.0)


def steps_of(row: TrialRow) -> int:
    """The optimizer steps of a trial; of a failed one, those up to its last evaluation."""
    summary = RunDir(row.folder).summary or {}
    return int(summary.get("step") or max(row.rungs, default=0))


# --- comparing ----------------------------------------------------------------------------------------------


def report(found: list[Search], settings: argparse.Namespace, seconds: float) -> list[str]:
    """The report as lines of Markdown."""
    wanted = len(WAYS) * settings.seeds
    whole = sum(len(search.trials) >= settings.trials for search in found)
    lines = [
        f"{settings.trials} trials of {settings.steps} steps, {settings.seeds} sampler seeds, "
        f"{settings.rows} validation rows; {whole} of {wanted} searches are finished; "
        f"this run took {seconds:.0f} s.",
        "",
        *table(
            ("method", "searches", "trials", "pruned", "failed", "steps", "best", "95 %", "seconds"),
            (summary_of(way, group, settings.rows) for way in WAYS if (group := of(found, way))),
        ),
        "",
        "Mean over seeds, with the range in brackets.",
        "",
    ]
    rivals = {search.seed: search for search in found if search.way == UNPRUNED}
    rows = []
    for way in WAYS:
        pairs = [(s, rivals[s.seed]) for s in of(found, way) if way != UNPRUNED and s.seed in rivals]
        rows += [compared(way, pairs, settings.rows)] if pairs else []
    titles = ("method", "seeds", "steps / unpruned", "range", "seconds / unpruned", "best - unpruned", "same best")
    target = f"Target: the same best score with at most {TARGET:.0%} of the unpruned steps."
    singly = table(
        ("search", "trials", "pruned", "failed", "steps", "best", "95 %"),
        (row_of(search, settings.rows) for search in found if search.trials),
    )
    return [*lines, *table(titles, rows), "", target, "", *singly]


def of(found: list[Search], way: str) -> list[Search]:
    return [search for search in found if search.way == way and search.trials]


def row_of(search: Search, rows: int) -> tuple[str, ...]:
    counts = map(str, (len(search.trials), search.pruned, search.failed, search.steps))
    low, high = interval(search.best, rows)
    return f"{search.way}-{search.seed}", *counts, f"{search.best:.3f}", f"{low:.3f} to {high:.3f}"


def summary_of(way: str, group: list[Search], rows: int) -> tuple[str, ...]:
    def total(count: Callable[[Search], int]) -> str:
        return str(sum(map(count, group)))

    low, high = (statistics.fmean(ends) for ends in zip(*(interval(s.best, rows) for s in group), strict=True))
    return (
        way,
        str(len(group)),
        total(lambda search: len(search.trials)),
        total(lambda search: search.pruned),
        total(lambda search: search.failed),
        spread([search.steps for search in group], "{:.0f}"),
        spread([search.best for search in group], "{:.3f}"),
        f"{low:.3f} to {high:.3f}",
        spread([search.seconds for search in group], "{:.0f}"),
    )


def compared(way: str, pairs: list[tuple[Search, Search]], rows: int) -> tuple[str, ...]:
    """Compare a method with the unpruned search of the same seed, over the number of trials that both have finished."""
    even = [(a.first(len(b.trials)), b.first(len(a.trials))) for a, b in pairs if a.trials and b.trials]
    if not even:
        return (way, "0", *["-"] * 5)
    steps = [a.steps / b.steps for a, b in even]
    same = sum(a.best >= interval(b.best, rows)[0] for a, b in even)
    return (
        way,
        str(len(even)),
        f"{statistics.fmean(steps):.2f}",
        f"{min(steps):.2f} to {max(steps):.2f}",
        f"{statistics.fmean(a.seconds / b.seconds for a, b in even):.2f}",
        spread([a.best - b.best for a, b in even], "{:+.3f}"),
        f"{same} of {len(even)}",
    )


def interval(rate: float, rows: int) -> tuple[float, float]:
    return wilson(round(rate * rows), rows)


def spread(values: Sequence[float], form: str) -> str:
    return f"{form} ({form} to {form})".format(statistics.fmean(values), min(values), max(values))


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    titles = list(titles)
    return [f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows)]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the searches are stopped too
    main()
