"""What a stage is: a way to train, above the loop. `ftlab/stages/sft.py` is the first; docs/extending.md shows another.

Stages are looked up without torch, so this module and they import it inside functions or for types only.
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
    """A model on its device. `decoder` are its layers for the fast path, where that knows them; `flat` says whether
    rows of one batch do not see each other."""

    model: "nn.Module"
    decoder: "Decoder | None"
    accelerator: "Accelerator"
    flat: bool


class Hooks(Protocol):
    """What a stage is given of the run that it trains in, and through which it reports."""

    stop: "StopSignal"
    ranks: "Ranks"
    checkpoints: "Checkpoints"
    trace: Path  # where a torch trace of steps is written (`trainer.profile`)
    vram_limit_gib: float | None  # what torch may hold of the GPU; None: all that is free

    def evaluate(self, step: int) -> "Scores":
        """Score the model on validation, after so many optimizer steps; may end the training by an exception."""

    def record(self, metrics: "Metrics", step: int) -> None:
        """Put metrics of training on record."""

    def note(self, line: str) -> None:
        """Tell the user something."""

    def warn(self, line: str) -> None:
        """Tell the user of something that is likely not wanted."""

    def training(self, steps: int, done: int, epochs: float) -> AbstractContextManager[None]:
        """The block trains: so many steps in all, which see each sample so often, `done` of them before."""

    def setting(self, setting: "StepSetting") -> None:
        """Put on record how rows went through the model."""


class Stage(Protocol):
    """A way to train. `needs` is the kind of rows that it makes its samples of, which the task must be able to give;
    `metrics` are those of its own evaluation; `answers` says whether an evaluation also has the model answer, which the
    task judges. A stage with settings of its own has a dataclass `options` of them, which are set by
    `trainer.options.NAME=VALUE`; it reads them by `ftlab.options.settings(self.options, cfg.trainer.options)`."""

    name: str
    needs: str
    metrics: Sequence[Metric]
    answers: bool

    def encode(self, tokens: "Sequence[Tokens]", cfg: "ExperimentConfig") -> "EncodedSet[Any]":
        """The samples that rows as tokens make, those of one split; what does not fit `data.max_length` is counted."""

    def evaluate(self, loaded: LoadedModel, samples: "Sequence[Sample]", cfg: "ExperimentConfig") -> dict[str, float]:
        """The stage's metrics by name. `loaded.decoder` is there only where it can be asked as it is. A stage calls
        `loaded.model` in evaluation mode and inside `loaded.accelerator.autocast()`."""

    def fit(
        self,
        loaded: LoadedModel,
        samples: "Sequence[Sample]",
        cfg: "ExperimentConfig",
        hooks: Hooks,
        resume: "Checkpoint | None",
    ) -> "Progress":
        """Train the model's trainable tensors, or go on from a checkpoint, and leave the best ones in the model.

        Raises:
            TrainingError: training cannot go on; the last good checkpoint stays.
            Stopped: a signal came; the same call resumes.
        """
