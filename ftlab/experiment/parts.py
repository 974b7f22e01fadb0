"""What a run is given, and what it returns."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from accelerate import Accelerator

from ftlab.composition import Composition
from ftlab.config import ExperimentConfig
from ftlab.errors import Stopped
from ftlab.experiment.device import make_accelerator
from ftlab.models import Bases
from ftlab.run_dir import RunDir
from ftlab.summary import Metrics, Summary
from ftlab.terminal import Terminal
from ftlab.train.checkpoint import Checkpoints
from ftlab.train.ranks import Ranks
from ftlab.train.signals import StopSignal

OnEvaluation = Callable[[Metrics, int], None]  # a validation evaluation: its metrics, its step


@dataclass(frozen=True)
class Outcome:
    """What a run leaves behind: validation `metrics` of the weights that it ends with, beside what they cost
    (`vram/peak_allocated_gib`, `train/seconds`). The summary's `status` is finished, or pruned where `on_evaluation`
    gave the run up: the metrics are then those of the last evaluation."""

    metrics: Metrics
    summary: Summary
    folder: Path

    @property
    def objective(self) -> float:
        """The metric that the configuration names."""
        return self.metrics[self.summary.objective.name]


@dataclass(frozen=True)
class Trial:
    """A run as one of a sweep's, which chooses by validation scores: the test split is left alone, and so is the base,
    which scores the same in every trial; `evaluations/validation.jsonl` holds the answers on validation. The tracker
    is tagged with how the run ends.

    `on_evaluation` is called with each validation evaluation of the training, once: on resuming first with those that
    lie in metrics.jsonl. It may raise `Pruned`, which gives the run up, unless the training is over. `bases` is the
    base-model cache. `vram_limit_gib` is what torch may hold of the GPU while it trains; a setting that is estimated to
    need more is not chosen where another can be.
    """

    on_evaluation: OnEvaluation = lambda metrics, step: None
    bases: Bases = field(default_factory=Bases)
    vram_limit_gib: float | None = None


@dataclass(frozen=True)
class Run:
    """What all parts of a run share, given before it begins."""

    composition: Composition
    folder: RunDir
    terminal: Terminal
    stop: StopSignal
    trial: Trial | None = None
    ranks: Ranks = field(default_factory=Ranks)

    @property
    def cfg(self) -> ExperimentConfig:
        """The configuration."""
        return self.composition.config

    @cached_property
    def accelerator(self) -> Accelerator:
        """Device and precision."""
        return make_accelerator(self.cfg)

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        return Checkpoints(self.folder / "checkpoints", self.cfg.trainer.keep, self.terminal.warn)

    def at_once(self) -> AbstractContextManager[None]:
        """Where a signal need not wait; of several processes none may leave a meeting before its end."""
        return self.stop.at_once() if self.ranks.alone else nullcontext()

    def heed_stop(self, rows: int) -> None:
        """Between two batches of an evaluation.

        Raises:
            Stopped: a signal came.
        """
        if self.stop:
            raise Stopped(f"{self.stop.name}: stopped during an evaluation")


@contextmanager
def silent() -> Iterator[Terminal]:
    """The terminal of a process beside the first: nobody sees it."""
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings(action="ignore"):
        yield Terminal(nowhere)
