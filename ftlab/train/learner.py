"""The state of one adapter in training. What all adapters on a model share is in `ftlab.train.loop`."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from ftlab import declared
from ftlab.config import ExperimentConfig
from ftlab.data.encode import Sample
from ftlab.errors import TrainingError
from ftlab.fast.flat import Trainable
from ftlab.train.batches import RowOrder
from ftlab.train.checkpoint import Checkpoint, Checkpoints, rng_state, set_rng
from ftlab.train.optim import build_optimizer, build_schedule

Metrics = dict[str, float]
Intervals = dict[str, tuple[float, float]]
LOSS = "eval/loss"  # equal objectives are ranked by it, if it is measured


class Scores(Protocol):
    """The result of an evaluation: metrics by key, and confidence intervals of some of them."""

    @property
    def metrics(self) -> Metrics: ...

    @property
    def intervals(self) -> Intervals: ...


@dataclass
class Progress:
    """The state of a run besides weights, optimizer, schedule and random generators."""

    step: int = 0
    tokens: int = 0  # of all rows trained on, prompts included
    seconds: float = 0.0  # spent in steps, without evaluations
    loss_sum: float = 0.0  # this and the next three are since metrics were last recorded
    loss_steps: int = 0
    window_tokens: int = 0
    window_seconds: float = 0.0
    evaluated: int | None = None  # the step of the last evaluation
    best: int | None = None  # the step of the best one
    best_metrics: Metrics = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)  # of the best evaluation; without load_best, of the last one
    intervals: Intervals = field(default_factory=dict)
    worse: int = 0  # evaluations since the best one
    done: bool = False  # stopped early


class Learner:
    """One adapter in training, or all weights: its tensors, its samples and their order, optimizer, schedule, random
    numbers, progress and checkpoints. Several learners can take turns on one model without affecting each other.

    `evaluate(step)` returns validation scores; `record(metrics, step)` is called with all metrics. Losses and gradient
    norms stay on the device until metrics are recorded, or until an evaluation or a checkpoint, so that the host does
    not wait for each step.
    """

    def __init__(
        self,
        trained: Trainable,
        samples: Sequence[Sample],
        cfg: ExperimentConfig,
        *,
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        evaluate: Callable[[int], Scores],
        record: Callable[[Metrics, int], None],
    ) -> None:
        trainer = cfg.trainer
        self.trained, self.samples, self.cfg, self.checkpoints = trained, samples, cfg, checkpoints
        self.evaluate, self.record = evaluate, record
        self.order = RowOrder.of(len(samples), trainer.global_batch_size, trainer.max_steps, trainer.epochs, cfg.seed)
        self.optimizer = build_optimizer(trained.parameters, trainer)
        self.schedule = build_schedule(self.optimizer, trainer, self.order.steps)
        self.scaled = accelerator.prepare(self.optimizer)  # unscales float16 gradients; else the optimizer itself
        self.scales = accelerator.scaler is not None  # scaled gradients may overflow; such a step is skipped
        self.progress = Progress()
        self.began_at = 0  # the number of steps before the first one of this process
        # Step, loss and gradient norm of each step since the last `collect_losses`.
        self.pending: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self.clock = 0.0  # the time until which the seconds of steps are counted
        self.norm = 0.0
        self.random = rng_state()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Resume from a checkpoint."""
        state = checkpoint.restore(self.trained.tensors, self.optimizer, self.schedule)
        self.progress = Progress(**state)
        self.began_at = self.progress.step
        self.random = rng_state()

    def save(self) -> None:
        """Write the checkpoint of the current step. With `trainer.load_best` the best checkpoint is kept."""
        best = self.progress.best if self.cfg.trainer.load_best else None
        self.checkpoints.save(self.trained.tensors, self.optimizer, self.schedule, asdict(self.progress), best)

    # --- turns ------------------------------------------------------------------------------------------------

    def begin_turn(self) -> None:
        """Continue where this learner's last turn ended, with its own random numbers."""
        set_rng(self.random)
        self.clock = time.perf_counter()

    def end_turn(self) -> None:
        """Save the random state before another learner is trained."""
        self.collect_losses()
        self.random = rng_state()

    # --- steps ------------------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether no step is left."""
        return self.progress.done or self.progress.step >= self.order.steps

    def next_samples(self) -> list[Any]:
        """Return the samples of the next step."""
        return [self.samples[i] for i in self.order.indices(self.progress.step)]

    def advance(self, tokens: int) -> float:
        """Count a step of `tokens` tokens, and advance the schedule; return the step's learning rate."""
        lr = float(self.schedule.get_last_lr()[0])
        self.schedule.step()
        self.progress.step += 1
        self.progress.tokens += tokens
        self.progress.window_tokens += tokens
        return lr

    def collect_losses(self) -> None:
        """Read the losses and gradient norms of the steps since the last call from the device.

        Raises:
            TrainingError: one of them is not finite. The run ends before anything computed with it is saved.
        """
        pairs = [torch.stack([loss, norm]).double() for _, loss, norm in self.pending]
        numbers = torch.stack(pairs).tolist() if pairs else []
        steps = [step for step, _, _ in self.pending]
        self.pending = []
        for step, (loss, norm) in zip(steps, numbers, strict=True):
            if not math.isfinite(loss):
                raise self._not_finite("loss", loss, step)
            if not math.isfinite(norm) and not self.scales:
                raise self._not_finite("gradient norm", norm, step)
            self.progress.loss_sum += loss
            self.progress.loss_steps += 1
            self.norm = norm
        now = time.perf_counter()
        self.progress.seconds += now - self.clock
        self.progress.window_seconds += now - self.clock
        self.clock = now

    def window(self, lr: float) -> Metrics:
        """Return the metrics to record: mean loss and tokens per second since the last call, and tokens per second of
        the whole run."""
        self.collect_losses()
        progress = self.progress
        loss = progress.loss_sum / progress.loss_steps
        rate = progress.window_tokens / max(progress.window_seconds, 1e-9)
        progress.loss_sum, progress.loss_steps = 0.0, 0
        progress.window_tokens, progress.window_seconds = 0, 0.0
        return {
            "train/loss": loss,
            "train/lr": lr,
            "train/grad_norm": self.norm,
            "perf/tokens_per_second": rate,
            "perf/tokens_per_second_mean": progress.tokens / max(progress.seconds, 1e-9),
        }

    # --- evaluations ------------------------------------------------------------------------------------------

    @property
    def evaluation_due(self) -> bool:
        """Whether validation must be scored now. This includes an evaluation during which the run was stopped."""
        progress, every = self.progress, self.cfg.eval.every
        if progress.evaluated == progress.step:
            return False
        return progress.step == self.order.steps or bool(every and progress.step and progress.step % every == 0)

    def record_evaluation(self, metrics: Metrics, intervals: Intervals) -> bool:
        """Record the scores of the current step; return whether they are the best so far.

        Raises:
            TrainingError: the objective or the loss is not finite after a step.
        """
        progress, cfg = self.progress, self.cfg
        for key in {cfg.objective, LOSS} & metrics.keys():
            if progress.step and not math.isfinite(metrics[key]):
                raise self._not_finite(key, metrics[key], progress.step)
        progress.evaluated = progress.step
        improved = progress.best is None or self._rank(metrics) > self._rank(progress.best_metrics)
        if improved:
            progress.best, progress.best_metrics, progress.worse = progress.step, metrics, 0
        else:
            progress.worse += 1
            patience = cfg.trainer.early_stopping
            progress.done = progress.done or (patience is not None and progress.worse >= patience)
        if improved or not cfg.trainer.load_best:
            progress.metrics, progress.intervals = metrics, intervals
        return improved

    def _rank(self, metrics: Metrics) -> tuple[float, float]:
        """Return the sort key of an evaluation: greater is better, and equal objectives are ranked by loss."""
        value = metrics[self.cfg.objective]
        return (value if declared.of(self.cfg.objective).rises else -value), -metrics.get(LOSS, 0.0)

    def _not_finite(self, what: str, value: float, step: int) -> TrainingError:
        kept = self.checkpoints.newest()
        where = f"the checkpoint of step {kept.step} is kept" if kept else "no checkpoint was written yet"
        return TrainingError(
            f"{what}={value} at step {step}; {where}. "
            f"Lower trainer.lr={self.cfg.trainer.lr:g}, or raise trainer.warmup_steps"
        )
