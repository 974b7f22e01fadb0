"""The state of a GPU after trials fail: one sweep of the embedded base with every way in which a trial can end. Without
a GPU the same sweep runs with a simulated out-of-memory error, and memory is not measured."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial

import ftlab
from ftlab import models
from ftlab.config import SweepConfig
from ftlab.sweep.events import Event
from ftlab.sweep.limits import Memory
from ftlab.sweep.space import Space
from ftlab.sweep.study import Study
from ftlab.sweep.trial import TrialRunner
from ftlab.sweep.worker import work
from ftlab.train.loop import Trainer

CUDA = torch.cuda.is_available()
GIB = 1 << 30
ALLOWED_GIB = 2.0  # of GPU memory, so that a large batch does not fit into it on any GPU
KEPT_GIB = 0.25  # what the libraries may keep for themselves: cuBLAS takes a workspace of torch's memory

needs_gpu = pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
PLACES = [
    pytest.param("cpu", marks=pytest.mark.skipif(CUDA, reason="the same as with a GPU")),
    pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu]),
]

FIXED = [
    "experiment=quickstart",
    "quant=none",
    "tracker=none",
    "objective=eval/loss",
    "data.validation=4",
    "data.test_rows=4",
    "trainer.warmup_steps=0",
    "trainer.max_steps=2",
    "trainer.log_every=1",
    "trainer.save_every=2",
    "eval.every=1",
    "eval.batch_size=4",
    "eval.max_new_tokens=2",
]
HOPELESS = 1e-9
SPACE = ["trainer.lr=choice(2e-3,1e-3,5e-4,2e-4,1e-9,1e30)", "trainer.micro_batch_size=choice(4,{rows})"]
# What happens to each trial, its learning rate, and whether its micro-batch is too large; no two are equal.
STORY = [
    ("complete", 2e-3, False),
    ("out of memory", 2e-3, True),
    ("complete", 1e-3, False),
    ("exception", 2e-4, False),
    ("not a number", 1e30, False),
    ("pruned", HOPELESS, False),
    ("complete", 5e-4, False),
]
NAMES = [name for name, _, _ in STORY]


@dataclass
class SweepRecord:
    """The study, and what was seen of the GPU before each trial."""

    study: Study
    free: list[float] = field(default_factory=list)  # GiB, the kept base counted as free
    left: list[float] = field(default_factory=list)  # GiB that torch holds beyond the kept base
    kept: list[float] = field(default_factory=list)  # GiB of the base
    loads: int = 0

    def trial(self, name: str) -> FrozenTrial:
        return self.study.trials()[NAMES.index(name)]


@pytest.fixture(scope="module", params=PLACES)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SweepRecord]:
    """The sweep, run once."""
    rows = 256 if request.param == "cuda" else 8
    fixed = [*FIXED, f"trainer.global_batch_size={rows}", f"data.train_rows={2 * rows}"]
    space, _ = Space.read([text.format(rows=rows) for text in SPACE], {})
    first = [{"trainer.lr": lr, "trainer.micro_batch_size": rows if large else 4} for _, lr, large in STORY]
    cfg = SweepConfig(n_trials=NAMES.count("complete") + 1, sampler="random", pruner="median", first=first)
    study = Study.open("gpu", tmp_path_factory.mktemp("gpu") / "study", cfg, space, ["eval/loss"], fixed)
    with scarce(request.param, rows):
        yield searched(study)


@contextmanager
def scarce(place: str, rows: int) -> Iterator[None]:
    """Too little memory for a micro-batch of so many rows."""
    if place == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(share())
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    accumulate = Trainer._accumulate

    def run_out(trainer: Trainer, *given: Any) -> Any:
        if trainer.step.micro == rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        return accumulate(trainer, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_accumulate", run_out)
        yield


def share() -> float:
    """Of the GPU's memory."""
    return ALLOWED_GIB * GIB / torch.cuda.get_device_properties(0).total_memory


def searched(study: Study) -> SweepRecord:
    """Run the story's trials, and measure the GPU before each and after the last."""
    found = SweepRecord(study)
    broken = NAMES.index("exception")

    def on_event(event: Event) -> None:
        if event.kind == "started":
            measure(found, trials.bases)
        if (event.kind, event.number, event.step) == ("rung", broken, 1):
            raise RuntimeError("something broke in the middle of training")

    load = models.load_base

    def counted(*args: Any, **more: Any) -> Any:
        found.loads += 1
        return load(*args, **more)

    trials = TrialRunner(study, on_event)
    study.optuna.pruner = Hopeless()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load_base", counted)
        work(study, trials, on_event, memory=Memory(trials.bases), restart=lambda: pytest.fail("memory was lost"))
    measure(found, trials.bases)
    return found


class Hopeless(BasePruner):
    """Prunes the trial that the story says, however the others score."""

    def prune(self, study: Any, trial: FrozenTrial) -> bool:
        return bool(trial.params["trainer.lr"] == HOPELESS)


def measure(found: SweepRecord, bases: models.Bases) -> None:
    kept = bases.held_gib()
    found.kept.append(kept)
    if CUDA:
        found.free.append(torch.cuda.mem_get_info()[0] / GIB + kept)
        found.left.append(torch.cuda.memory_allocated() / GIB - kept)


def test_the_sweep_goes_on_whatever_happens(found: SweepRecord) -> None:
    wanted = {"complete": "COMPLETE", "pruned": "PRUNED"}
    assert [trial.state.name for trial in found.study.trials()] == [wanted.get(name, "FAIL") for name in NAMES]
    counts = found.study.counts()
    assert (counts.finished, counts.failed, counts.running) == (4, 3, 0)


def test_out_of_memory_is_the_cause_and_has_its_peak(found: SweepRecord) -> None:
    attrs = found.trial("out of memory").user_attrs
    assert "out of GPU memory with trainer.micro_batch_size=" in attrs["cause"]
    assert "Try: trainer.micro_batch_size=auto" in attrs["cause"]
    assert (found.study.folder / "1/error.txt").is_file()
    if CUDA:
        assert 0.05 < attrs["vram_peak_gib"] <= ALLOWED_GIB


def test_not_a_number_is_the_cause(found: SweepRecord) -> None:
    attrs = found.trial("not a number").user_attrs
    assert "nan" in attrs["cause"] or "inf" in attrs["cause"]
    assert "Lower trainer.lr=1e+30" in attrs["cause"]
    if CUDA:
        assert attrs["vram_peak_gib"] > 0


def test_an_exception_is_the_cause(found: SweepRecord) -> None:
    attrs = found.trial("exception").user_attrs
    assert attrs["cause"] == "RuntimeError: something broke in the middle of training"


def test_the_base_stays_loaded_from_a_trial_that_ended_well(found: SweepRecord) -> None:
    """A failed trial's base is not trusted, and loaded anew."""
    assert found.loads == 1 + found.study.counts().failed


@needs_gpu
@pytest.mark.gpu
def test_free_memory_is_what_it_was(found: SweepRecord) -> None:
    """Before every trial within 5 % of before the first, the kept base counted; and nothing of a trial is left, which
    on a large GPU the 5 % would not show."""
    assert [free >= 0.95 * found.free[0] for free in found.free] == [True] * (len(STORY) + 1)
    assert [left for left in found.left if left > KEPT_GIB] == []
    assert found.kept[1] > 0
    for trial in found.study.trials():
        attrs = trial.user_attrs
        assert attrs["free_gib_after"] >= 0.95 * attrs["free_gib_before"]


# As `python -m ftlab`, with little memory for the process.
TIGHT = """
import sys
import torch
if {share}:
    torch.cuda.set_per_process_memory_fraction({share})
from ftlab.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def on_the_command_line(folder: Path, rows: int, allowed: float) -> "tuple[subprocess.CompletedProcess[str], Study]":
    """A grid of two micro-batches in a process that may have a share of the GPU's memory (0: all)."""
    words = [*FIXED, f"trainer.global_batch_size={rows}", f"data.train_rows={2 * rows}", "sweep.study=tight"]
    words = ["--multirun", *words, f"trainer.micro_batch_size={rows},4"]
    command = [sys.executable, "-c", TIGHT.format(share=allowed), *words]
    path = os.pathsep.join([str(Path(ftlab.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done, Study.load(str(folder / "outputs/tight"))


@needs_gpu
@pytest.mark.gpu
def test_the_command_line_survives_a_batch_that_does_not_fit(tmp_path: Path) -> None:
    """One of two trials runs out of memory: exit code 0, no traceback, and the report names the cause."""
    done, study = on_the_command_line(tmp_path, 256, share())
    assert "Traceback" not in done.stdout + done.stderr
    rows = {row.params["trainer.micro_batch_size"]: row for row in study.leaderboard()}
    assert (rows[4].state, rows[256].state) == ("complete", "failed")
    assert "out of GPU memory" in str(rows[256].cause)
    assert rows[256].user_attrs["vram_peak_gib"] > 0
    assert "out of GPU memory" in (study.folder / "report.md").read_text()
