"""One trial of a study: compose its configuration, run it once per seed, and score it on validation."""

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
from optuna.trial import Trial

from ftlab import experiment
from ftlab.composition import Composition, composition
from ftlab.config import ExperimentConfig
from ftlab.errors import Pruned
from ftlab.experiment.interface import OnEvaluation
from ftlab.memory import estimate as memory
from ftlab.models import Bases
from ftlab.shell import quoted
from ftlab.summary import Metrics
from ftlab.sweep.events import Event, Listener, ignore_event
from ftlab.sweep.limits import Memory
from ftlab.sweep.rungs import evaluated
from ftlab.sweep.study import Study, folder_of
from ftlab.sweep.worker import Values, work
from ftlab.terminal import Terminal
from ftlab.train.batches import RowOrder
from ftlab.train.signals import StopSignal

Estimator = Callable[[ExperimentConfig], float]


def search(
    study: Study,
    on_event: Listener = ignore_event,
    stop: StopSignal | None = None,
    *,
    config_dir: str | None = None,
    estimate: Estimator = memory.estimate,
    rungs: list[int] | None = None,
) -> None:
    """Run trials of experiments until the study needs no more; `work` says what it raises.

    `estimate` forecasts the peak GPU memory in GiB of the leanest training setting. A configuration above
    `sweep.vram_limit_gib` is not run; the others choose settings below it. `rungs` are the optimizer steps after which
    a trial is evaluated, if they are known.

    Raises:
        ConfigError: trials are evaluated too rarely for `sweep.pruner`.
    """
    trials = TrialRunner(study, on_event, config_dir=config_dir, estimate=estimate)
    study.set_pruner(trials.rungs() if rungs is None else rungs)
    work(study, trials, on_event, stop, memory=Memory(trials.bases))


class TrialRunner:
    """Runs the trials of a study in this process, for `work`. The base model stays loaded between trials that share it.

    The terminal output of a trial goes to output.txt in its folder.
    """

    def __init__(
        self,
        study: Study,
        on_event: Listener = ignore_event,
        *,
        config_dir: str | None = None,
        estimate: Estimator = memory.estimate,
    ) -> None:
        self.study, self.on_event = study, on_event
        self.config_dir, self.estimate = config_dir, estimate
        self.bases = Bases()

    def rungs(self) -> list[int]:
        """Optimizer steps after which a trial is evaluated, if no searched key changes them."""
        cfg = composition(self.study.fixed, config_dir=self.config_dir).config
        trainer, rows = cfg.trainer, len(experiment.prepare(cfg).train.rows) if cfg.trainer.max_steps is None else 1
        steps = RowOrder.of(rows, trainer.global_batch_size, trainer.max_steps, trainer.epochs, cfg.seed).steps
        return evaluated(steps, cfg.eval.every)

    def __call__(self, trial: Trial) -> Values:
        """Run a trial. Returns the values of the study's objectives, with several seeds their means.

        Raises:
            optuna.TrialPruned: the pruner stopped the trial, or it would not fit into `sweep.vram_limit_gib`.
            FtlabError: the configuration cannot be run.
        """
        folder = folder_of(self.study, trial)
        folder.mkdir(parents=True, exist_ok=True)
        seeds: list[tuple[float, ...]] = []
        losses: list[float] = []
        for place, run in enumerate(self._runs(trial, folder)):
            if place == 0:
                self._check_memory(trial, run.config)
            metrics = self._run(run, folder, self._on_evaluation(trial) if place == 0 else _unpruned)
            seeds.append(tuple(metrics[name] for name in self.study.objectives))
            losses += [metrics["eval/loss"]] if "eval/loss" in metrics else []
            self._report_seed(trial, place, seeds[-1][0])
        if losses:
            trial.set_user_attr("loss", statistics.fmean(losses))  # by which trials of equal values are ordered
        means = tuple(map(statistics.fmean, zip(*seeds, strict=True)))
        if len(seeds) > 1:
            trial.set_user_attr("seed_values", [list(values) for values in seeds])
            trial.set_user_attr("deviation", [statistics.stdev(values) for values in zip(*seeds, strict=True)])
        return means[0] if len(means) == 1 else means

    def _runs(self, trial: Trial, folder: Path) -> Iterator[Composition]:
        """The trial's configuration: one run in its folder, or one run per seed in a folder below it."""
        first = self._composed(trial, folder)
        count = self.study.cfg.seeds
        if count == 1:
            yield first
            return
        for seed in range(first.config.seed, first.config.seed + count):
            yield self._composed(trial, folder / f"seed-{seed}", f"seed={seed}")

    def _composed(self, trial: Trial, folder: Path, *more: str) -> Composition:
        study = self.study
        name = "-".join([f"{study.name}-{trial.number}", *(text.replace("=", "-") for text in more)])
        return composition(
            [
                f"tracker.group={quoted(study.name)}",
                *study.fixed,
                *study.space.overrides(study.space.suggest(trial)),
                f"run_dir={quoted(str(folder))}",
                f"run_name={quoted(name)}",
                f"sweep.keep_pruned={str(study.cfg.keep_pruned).lower()}",
                *more,
            ],
            config_dir=self.config_dir,
        )

    def _run(self, run: Composition, folder: Path, on_evaluation: OnEvaluation) -> Metrics:
        """The metrics of the finished run: validation scores, time and memory."""
        with open(folder / "output.txt", "a", encoding="utf-8") as file:
            trial = experiment.Trial(on_evaluation, self.bases, self.study.cfg.vram_limit_gib)
            outcome = experiment.run(run, Terminal(file), trial)
        if outcome.summary.status == "pruned":
            raise optuna.TrialPruned
        return outcome.metrics

    def _on_evaluation(self, trial: Trial) -> OnEvaluation:
        """A callback that reports each evaluation to the study by optimizer step and stops the trial if the pruner asks
        for it. Wilcoxon compares whole seeds instead, and with several objectives nothing is pruned."""
        study, reported = self.study, set[int]()
        silent = study.cfg.pruner == "wilcoxon" or len(study.directions) > 1

        def report(metrics: Metrics, step: int) -> None:
            value = metrics[study.cfg.rung_metric]
            fresh = not silent and step not in reported
            if fresh:
                reported.add(step)
                trial.report(study.reported(value), step)
            self.on_event(Event("rung", trial.number, step=step, value=value))
            if fresh and trial.should_prune():
                raise Pruned(f"{study.cfg.rung_metric}={value:g} at step {step}: sweep.pruner={study.cfg.pruner}")

        return report

    def _report_seed(self, trial: Trial, place: int, value: float) -> None:
        """Report a seed's objective to the Wilcoxon pruner; after the last seed there is nothing left to prune."""
        if self.study.cfg.pruner != "wilcoxon":
            return
        trial.report(value, place)
        if place + 1 < self.study.cfg.seeds and trial.should_prune():
            raise optuna.TrialPruned

    def _check_memory(self, trial: Trial, cfg: ExperimentConfig) -> None:
        limit = self.study.cfg.vram_limit_gib
        if limit is None:
            return
        needed = self.estimate(cfg)
        trial.set_constraint("vram_gib", needed - limit)  # the sampler learns which configurations fit
        if needed > limit:
            cause = f"needs at least {needed:.1f} GiB, above sweep.vram_limit_gib={limit:g}: not run"
            trial.set_user_attr("cause", cause)
            raise optuna.TrialPruned


def _unpruned(metrics: Metrics, step: int) -> None:
    """The callback of later seeds, which are never pruned."""
