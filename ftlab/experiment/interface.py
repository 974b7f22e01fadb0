"""The inputs of a run and its outcome."""

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

OnEvaluation = Callable[[Metrics, int], None]  # called with the metrics of a validation evaluation and its step


@dataclass(frozen=True)
class Outcome:
    """The result of a run: validation `metrics` of its final weights, and its costs (`vram/peak_allocated_gib`,
    `train/seconds`). The summary's `status` is finished, or pruned if `on_evaluation` raised Pruned: the metrics are
    then those of the last evaluation."""

    metrics: Metrics
    summary: Summary
    folder: Path

    @property
    def objective(self) -> float:
        """The value of the metric that `objective` names."""
        return self.metrics[self.summary.objective.name]


@dataclass(frozen=True)
class Trial:
    """How a run takes part in a sweep. A sweep selects by validation scores, so a trial scores neither the test split
    nor the base, whose scores are the same in every trial. `evaluations/validation.jsonl` holds its answers on
    validation, and the tracker is tagged with how the run ends.

    `on_evaluation` is called once for each validation evaluation during training; a resumed run first reports those in
    metrics.jsonl. It may raise `Pruned`, which ends the run early unless training is over. `bases` is the base-model
    cache. `vram_limit_gib` limits the GPU memory of torch during training; settings that are estimated to need more are
    avoided if there are others.
    """

    on_evaluation: OnEvaluation = lambda metrics, step: None
    bases: Bases = field(default_factory=Bases)
    vram_limit_gib: float | None = None


@dataclass(frozen=True)
class Run:
    """The inputs that all parts of a run share, given before it begins."""

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
        """A context in which a signal stops the run at once; with several processes it has no effect, because no
        process may leave a collective operation early."""
        return self.stop.at_once() if self.ranks.alone else nullcontext()

    def heed_stop(self, rows: int) -> None:
        """Check for a stop signal, between two batches of an evaluation.

        Raises:
            Stopped: a signal was received.
        """
        if self.stop:
            raise Stopped(f"{self.stop.name}: stopped during an evaluation")


@contextmanager
def silent() -> Iterator[Terminal]:
    """A terminal that shows nothing, for all processes but the first; Python's warnings are off meanwhile."""
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings(action="ignore"):
        yield Terminal(nowhere)
