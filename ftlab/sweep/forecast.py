"""GPU memory that a trial would need: a closed form, corrected by measurements of trials of the same study."""

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
    """The measured peak of allocated memory of a run during training, in GiB, and the closed form's estimate for the
    setting in which it trained."""

    features: tuple[object, ...]
    estimated: estimate.Estimate
    gib: float


class Forecast:
    """Forecasts GiB for configurations of a study from its most similar runs; each trial is read once."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.measured: list[MeasuredRun] = []
        self._read: set[int] = set()

    def __call__(self, cfg: ExperimentConfig) -> float:
        """The peak GiB that training would allocate in the leanest setting that the configuration allows; the plain
        closed form as long as nothing has been measured.

        Raises:
            WeightsError: the architecture cannot be found.
        """
        self._measure_finished()
        return estimate.estimate(cfg, [(run.estimated, run.gib) for run in self._nearest(cfg)])

    def _measure_finished(self) -> None:
        for trial in self.study.trials():
            if trial.state in FINISHED and trial.number not in self._read:
                self._read.add(trial.number)
                if not _resumed(trial):
                    self.measured += measured(folder_of(self.study, trial))

    def _nearest(self, cfg: ExperimentConfig) -> list[MeasuredRun]:
        """The runs most similar to `cfg`, several if they are equally similar."""
        if not self.measured:
            return []
        features, batch = features_of(cfg, estimate.leanest(cfg)), estimate.parts(cfg).batch

        def likeness(run: MeasuredRun) -> Likeness:
            agree = (float(mine == theirs) for mine, theirs in zip(features, run.features, strict=True))
            return (*agree, -round(abs(math.log(batch / run.estimated.batch)), 6))

        most = max(map(likeness, self.measured))
        return [run for run in self.measured if likeness(run) == most]


def features_of(cfg: ExperimentConfig, setting: Setting) -> tuple[object, ...]:
    """Features that determine the closed form's error, most important first; the batch size comes after these."""
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
    """The measurements of the runs in a trial's folder. There is none without a GPU, where the runs were removed, or
    after an OOM, since that peak belongs to a setting that did not fit."""
    for run in runs(folder):
        summary = run.summary
        gib, setting = _train_peak(summary), summary.setting
        if gib and summary.status in ("finished", "pruned") and setting and not setting.ran_out:
            with suppress(FtlabError):
                cfg = typed_from_tree(tree_of(run))
                taken = Setting(setting.micro, setting.cached, setting.share)
                yield MeasuredRun(features_of(cfg, taken), estimate.parts(cfg, taken), gib)


def _train_peak(summary: Summary) -> float:
    """The peak GiB allocated during training; evaluation has batches of its own."""
    return summary.vram.get("train", {}).get("allocated", 0.0)


def _resumed(trial: FrozenTrial) -> bool:
    """Whether the trial was resumed: its last attempt may have trained too few batches for a measurement."""
    return "original" in trial.user_attrs
