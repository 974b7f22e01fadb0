"""Memory that a trial would take: the closed form, corrected by what trials of the same study took."""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial

from ftlab.composition import typed_from_tree
from ftlab.config import ExperimentConfig
from ftlab.errors import FtlabError
from ftlab.fast.plan import Setting
from ftlab.memory import estimate
from ftlab.run_dir import tree_of
from ftlab.summary import Summary
from ftlab.sweep.run_records import runs
from ftlab.sweep.study import FINISHED, Study, folder_of

Likeness = tuple[float, ...]


@dataclass(frozen=True)
class MeasuredRun:
    """A run's peak of allocated memory while it trained, in GiB, beside what the closed form says of the setting in
    which it did."""

    features: tuple[object, ...]
    estimated: estimate.Estimate
    gib: float


class Forecast:
    """Estimates GiB for configurations of a study, from its runs that are most like them; each trial is read once."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.measured: list[MeasuredRun] = []
        self._read: set[int] = set()

    def __call__(self, cfg: ExperimentConfig) -> float:
        """GiB that training would allocate at its peak in the leanest setting that the configuration allows; the closed
        form where nothing has been measured yet.

        Raises:
            WeightsError: the architecture is not to be found.
        """
        self._learn()
        return estimate.estimate(cfg, [(run.estimated, run.gib) for run in self._nearest(cfg)])

    def _learn(self) -> None:
        for trial in self.study.trials():
            if trial.state in FINISHED and trial.number not in self._read:
                self._read.add(trial.number)
                if not _taken_up(trial):
                    self.measured += measured(folder_of(self.study, trial))

    def _nearest(self, cfg: ExperimentConfig) -> list[MeasuredRun]:
        """The runs most like `cfg`, several where they are equally so."""
        if not self.measured:
            return []
        features, batch = features_of(cfg, estimate.leanest(cfg)), estimate.parts(cfg).batch

        def likeness(run: MeasuredRun) -> Likeness:
            agree = (float(mine == theirs) for mine, theirs in zip(features, run.features, strict=True))
            return (*agree, -round(abs(math.log(batch / run.estimated.batch)), 6))

        most = max(map(likeness, self.measured))
        return [run for run in self.measured if likeness(run) == most]


def features_of(cfg: ExperimentConfig, setting: Setting) -> tuple[object, ...]:
    """What decides by how much the closed form is wrong, the weightiest first; after these it is the batch's size."""
    trainer, lora = cfg.trainer, cfg.lora
    return (
        cfg.model.id,
        setting.checkpointed_fraction > 0,
        lora.r == 0,
        cfg.model.dtype,
        cfg.quant,
        trainer.loss_on,
        lora.use_dora,
        str(lora.target_modules),
    )


def measured(folder: Path) -> Iterator[MeasuredRun]:
    """What the runs in a trial's folder tell: nothing without a GPU, or where they were tidied away, or where memory
    ran out on the way, whose peak is that of what did not fit."""
    for run in runs(folder):
        summary = run.summary
        gib, setting = _train_peak(summary), summary.setting
        if gib and summary.status in ("finished", "pruned") and setting and not setting.ran_out:
            with suppress(FtlabError):
                cfg = typed_from_tree(tree_of(run))
                taken = Setting(setting.micro, setting.cached, setting.share)
                yield MeasuredRun(features_of(cfg, taken), estimate.parts(cfg, taken), gib)


def _train_peak(summary: Summary) -> float:
    """Evaluation has batches of its own, which say nothing of training's."""
    return summary.vram.get("train", {}).get("allocated", 0.0)


def _taken_up(trial: FrozenTrial) -> bool:
    """Whether an earlier attempt had trained part of it: the last one may have had no batch left to measure."""
    return "original" in trial.user_attrs
