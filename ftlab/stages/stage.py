"""The interface of a training stage, such as supervised fine-tuning (`ftlab/stages/sft.py`). docs/extending.md shows
another one.

Stages are looked up without torch, so this module and the stages import it only inside functions or for types.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ftlab.metrics import Metric

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

    from ftlab.config import ExperimentConfig
    from ftlab.data.encode import EncodedSet, Sample, Tokens
    from ftlab.fast.decoder import Decoder
    from ftlab.summary import Metrics, StepSetting
    from ftlab.train.checkpoint import Checkpoint, Checkpoints
    from ftlab.train.learner import Progress, Scores
    from ftlab.train.ranks import Ranks
    from ftlab.train.signals import StopSignal


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device. `decoder` is the model on the fast path, or None if that does not support it. `flat` says
    that rows of one flat batch do not influence each other."""

    model: "nn.Module"
    decoder: "Decoder | None"
    accelerator: "Accelerator"
    flat: bool


class Hooks(Protocol):
    """The run's side of a stage: what a stage uses of the run, and the callbacks by which it reports to it."""

    stop: "StopSignal"
    ranks: "Ranks"
    checkpoints: "Checkpoints"
    trace: Path  # the file of a torch trace of steps (`trainer.profile`)
    vram_limit_gib: float | None  # GPU memory that torch may hold, in GiB; None: all that is free

    def evaluate(self, step: int) -> "Scores":
        """Score the model on validation after `step` optimizer steps. An exception that it raises ends the training."""

    def record(self, metrics: "Metrics", step: int) -> None:
        """Record metrics of training."""

    def note(self, line: str) -> None:
        """Show a line to the user."""

    def warn(self, line: str) -> None:
        """Show a warning to the user."""

    def training(self, steps: int, done: int, epochs: float) -> AbstractContextManager[None]:
        """Return a context for the training: `steps` steps in total, of which `done` were made before, over `epochs`
        epochs."""

    def setting(self, setting: "StepSetting") -> None:
        """Record the setting of the steps."""


class Stage(Protocol):
    """A way to train. `needs` is the kind of rows from which it makes samples, which the task must provide.
    `metrics` are those of its own evaluation. `answers` says whether an evaluation also generates answers, which the
    task judges. A stage with settings of its own has a dataclass `options` of them, which are set by
    `trainer.options.NAME=VALUE`; it reads them by `ftlab.options.settings(self.options, cfg.trainer.options)`."""

    name: str
    needs: str
    metrics: Sequence[Metric]
    answers: bool

    def encode(self, tokens: "Sequence[Tokens]", cfg: "ExperimentConfig") -> "EncodedSet[Any]":
        """Return the samples of one split's tokenised rows, and the number of rows that do not fit
        `data.max_length`."""

    def evaluate(self, loaded: LoadedModel, samples: "Sequence[Sample]", cfg: "ExperimentConfig") -> dict[str, float]:
        """Return the stage's metrics by name. `loaded.decoder` is None unless it is ready for use. A stage calls
        `loaded.model` in evaluation mode and inside `loaded.accelerator.autocast()`."""

    def fit(
        self,
        loaded: LoadedModel,
        samples: "Sequence[Sample]",
        cfg: "ExperimentConfig",
        hooks: Hooks,
        resume: "Checkpoint | None",
    ) -> "Progress":
        """Train the model's trainable tensors, or resume from a checkpoint, and leave the best ones in the model.

        Raises:
            TrainingError: training cannot continue; the last good checkpoint is kept.
            Stopped: a stop signal was received; the same call resumes.
        """
