"""The training loop: rows in, optimizer steps, evaluations and checkpoints out."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from ftlab.config import OBJECTIVES, ExperimentConfig
from ftlab.data.encode import Encoded
from ftlab.errors import Stopped, TrainingError
from ftlab.train.attention import rows_of
from ftlab.train.batches import Plan, flatten, micro_batches
from ftlab.train.checkpoint import Checkpoint, Checkpoints, rng_state, trainable
from ftlab.train.loss import summed_loss
from ftlab.train.optim import build_optimizer, build_schedule
from ftlab.train.signals import StopSignal

Metrics = dict[str, float]


class Scores(Protocol):
    """What an evaluation returns: metrics by key, and confidence intervals of some of them."""

    @property
    def metrics(self) -> Metrics: ...

    @property
    def intervals(self) -> dict[str, tuple[float, float]]: ...


# Without a GPU nothing is gained by longer flat batches.
CPU_BATCH_TOKENS = 4096


@dataclass
class Progress:
    """Everything of a run's state that is neither weights, optimizer, schedule nor random generators."""

    step: int = 0
    tokens: int = 0  # of all rows seen, prompts included
    seconds: float = 0.0  # spent in steps, evaluations left out
    loss_sum: float = 0.0  # over the steps since the last record
    loss_steps: int = 0
    evaluated: int | None = None  # the step of the last evaluation
    best: int | None = None  # the step of the best one
    best_metrics: Metrics = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)  # of the best evaluation, or of the last without load_best
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    worse: int = 0  # evaluations since the best one
    done: bool = False  # stopped early


class Trainer:
    """Trains the trainable parameters of `model` on `rows`.

    `evaluate(step)` returns validation scores, `record(metrics, step)` hears of every metric. Both are
    the caller's: the loop knows nothing of SQL or of trackers. `flat` is false where rows must go through
    the model one by one.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: list[Encoded],
        cfg: ExperimentConfig,
        *,
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        evaluate: Callable[[int], Scores],
        record: Callable[[Metrics, int], None],
        note: Callable[[str], None],
        stop: StopSignal,
        flat: bool,
        trace: Path,
    ) -> None:
        self.model, self.rows, self.cfg, self.accelerator = model, rows, cfg, accelerator
        self.checkpoints, self.stop, self.flat, self.trace = checkpoints, stop, flat, trace
        self.evaluate, self.record, self.note = evaluate, record, note
        self.device = accelerator.device
        trainer = cfg.trainer
        self.plan = Plan.of(len(rows), trainer.global_batch_size, trainer.max_steps, trainer.epochs, cfg.seed)
        self.parameters = list(trainable(model).values())
        self.optimizer = build_optimizer(self.parameters, trainer)
        self.schedule = build_schedule(self.optimizer, trainer, self.plan.steps)
        self.scaled = accelerator.prepare(self.optimizer)  # unscales float16 gradients, else the optimizer itself
        self.progress = Progress()
        self.micro = 1

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        state = checkpoint.restore(self.model, self.optimizer, self.schedule)
        self.progress = Progress(**state)

    def train(self) -> Progress:
        """Run the plan to its end and leave the model with its best weights (`trainer.load_best`).

        Raises:
            TrainingError: a loss or gradient that is not finite, or too little memory for one row.
            Stopped: a signal came; the checkpoint of the last whole step is on disk.
        """
        progress, cfg = self.progress, self.cfg.trainer
        self.model.train()
        if progress.step < self.plan.steps and not progress.done:
            self.micro = self._micro_batch_size()
        if self._evaluation_due():  # a run stopped inside an evaluation owes it; a run of 0 steps has only this
            self._evaluate()
            self._save()
        with self._profiler() as advance:
            while progress.step < self.plan.steps and not progress.done:
                metrics = self._step()
                advance()
                last = progress.step == self.plan.steps
                if progress.step % cfg.log_every == 0 or last:
                    self.record(self._window(metrics), progress.step)
                improved = self._evaluation_due() and self._evaluate()
                if progress.step % cfg.save_every == 0 or improved or progress.done or last or self.stop:
                    self._save()
                if self.stop:
                    raise Stopped(f"{self.stop.name}: stopped after step {progress.step}, its checkpoint is on disk")
        self._load_best()
        return progress

    # --- one optimizer step -------------------------------------------------------------------------------

    def _step(self) -> Metrics:
        started = time.perf_counter()
        progress = self.progress
        rows = [self.rows[i] for i in self.plan.indices(progress.step)]
        loss = self._gradients(rows)
        if not math.isfinite(loss):
            raise self._not_finite("loss", loss)
        norm = self._clip()
        lr = float(self.schedule.get_last_lr()[0])
        self.scaled.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.tokens += sum(len(row.input_ids) for row in rows)
        progress.loss_sum += loss
        progress.loss_steps += 1
        progress.seconds += time.perf_counter() - started
        return {"train/lr": lr, "train/grad_norm": norm}

    def _gradients(self, rows: list[Encoded]) -> float:
        """Gradients of the mean loss over the step's trained tokens, whatever the micro-batches; the loss."""
        while True:
            rng = rng_state() if self.device.type == "cuda" else None
            try:
                return self._accumulate(rows)
            except torch.cuda.OutOfMemoryError as error:
                smaller = self._smaller()
                if smaller is None:
                    raise self._too_large(error) from None
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            if rng:
                torch.set_rng_state(rng["cpu"])
                torch.cuda.set_rng_state_all(rng["cuda"])
            self.micro = smaller
            self.note(f"out of memory: going on with trainer.micro_batch_size={smaller}, the step's rows unchanged")

    def _accumulate(self, rows: list[Encoded]) -> float:
        trained = sum(len(row.input_ids) - row.trained_from for row in rows)
        total = torch.zeros((), device=self.device)
        for part in micro_batches(rows, self.micro):
            batch = flatten(part, self.device)
            with rows_of(batch.lengths):  # in the backward pass too: activation checkpointing runs layers again there
                with self.accelerator.autocast():
                    loss = summed_loss(self.model, batch)
                self.accelerator.backward(loss / trained)
            total += loss.detach()
        return float(total) / trained

    def _clip(self) -> float:
        limit = self.cfg.trainer.max_grad_norm or math.inf
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, limit))
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            raise self._not_finite("gradient norm", norm)
        return norm

    def _not_finite(self, what: str, value: float) -> TrainingError:
        step = self.progress.step + (what != "eval/loss")
        kept = self.checkpoints.newest()
        where = f"the checkpoint of step {kept.step} is kept" if kept else "no checkpoint was written yet"
        return TrainingError(
            f"{what}={value} at step {step}; {where}. "
            f"Lower trainer.lr={self.cfg.trainer.lr:g}, or raise trainer.warmup_steps"
        )

    # --- micro-batches ------------------------------------------------------------------------------------

    def _micro_batch_size(self) -> int:
        """The configured size, or for `auto` the largest that fits, found by trying on the longest rows."""
        if not self.flat:
            return 1
        if self.cfg.trainer.micro_batch_size != "auto":
            return int(self.cfg.trainer.micro_batch_size)
        size = self.cfg.trainer.global_batch_size
        longest = sorted(self.rows, key=lambda row: len(row.input_ids))[-size:]
        if self.device.type == "cpu":
            fitting = max(1, CPU_BATCH_TOKENS // len(longest[-1].input_ids))
            return max(d for d in range(1, size + 1) if size % d == 0 and d <= fitting)
        self.micro = size
        saved = rng_state()
        self._gradients(longest)
        self.optimizer.zero_grad(set_to_none=True)
        torch.set_rng_state(saved["cpu"])
        torch.cuda.set_rng_state_all(saved["cuda"])
        return self.micro

    def _smaller(self) -> int | None:
        if self.cfg.trainer.micro_batch_size != "auto" or self.micro == 1:
            return None
        size = self.cfg.trainer.global_batch_size
        return max(d for d in range(1, self.micro) if size % d == 0)

    def _too_large(self, error: Exception) -> TrainingError:
        remedies = ["data.max_length", "quant=nf4", "trainer.activation_checkpointing=true"]
        if self.cfg.trainer.micro_batch_size != "auto" and self.micro > 1:
            remedies.insert(0, "trainer.micro_batch_size=auto")
        first = str(error).splitlines()[0]
        return TrainingError(
            f"out of GPU memory with trainer.micro_batch_size={self.micro} ({first}). Try: {', '.join(remedies)}"
        )

    # --- records, evaluation, checkpoints -------------------------------------------------------------------

    def _window(self, metrics: Metrics) -> Metrics:
        """The metrics to record: the mean loss since the last record, and rates over the run so far."""
        progress = self.progress
        loss = progress.loss_sum / progress.loss_steps
        progress.loss_sum, progress.loss_steps = 0.0, 0
        rate = progress.tokens / max(progress.seconds, 1e-9)
        return {"train/loss": loss, **metrics, "perf/tokens_per_second": rate}

    def _evaluation_due(self) -> bool:
        progress, every = self.progress, self.cfg.eval.every
        if progress.evaluated == progress.step:
            return False
        return progress.step == self.plan.steps or bool(every and progress.step and progress.step % every == 0)

    def _evaluate(self) -> bool:
        """Evaluate on validation; whether it is the best so far."""
        progress, cfg = self.progress, self.cfg
        try:
            scores = self.evaluate(progress.step)
        except Stopped:
            self._save()
            raise
        if progress.step and not math.isfinite(scores.metrics["eval/loss"]):
            raise self._not_finite("eval/loss", scores.metrics["eval/loss"])
        progress.evaluated = progress.step
        improved = progress.best is None or self._rank(scores.metrics) > self._rank(progress.best_metrics)
        if improved:
            progress.best, progress.best_metrics, progress.worse = progress.step, scores.metrics, 0
        else:
            progress.worse += 1
            self._stop_early()
        if improved or not cfg.trainer.load_best:
            progress.metrics, progress.intervals = scores.metrics, scores.intervals
        self.model.train()
        return improved

    def _stop_early(self) -> None:
        patience = self.cfg.trainer.early_stopping
        if patience is not None and self.progress.worse >= patience:
            self.progress.done = True
            self.note(f"early stop: no better {self.cfg.objective} in {patience} evaluations")

    def _rank(self, metrics: Metrics) -> tuple[float, float]:
        """Better is greater; equal scores are ranked by loss."""
        value = metrics[self.cfg.objective]
        return (value if OBJECTIVES[self.cfg.objective] else -value), -metrics["eval/loss"]

    def _save(self) -> None:
        best = self.progress.best if self.cfg.trainer.load_best else None
        self.checkpoints.save(self.model, self.optimizer, self.schedule, asdict(self.progress), best)

    def _load_best(self) -> None:
        progress = self.progress
        if not self.cfg.trainer.load_best or progress.best in (None, progress.step):
            return
        best = self.checkpoints.at(int(progress.best or 0))
        if best is None:  # damaged: the weights at hand are scored, so that scores and weights agree
            progress.best = None
            self._evaluate()
            return
        best.restore_weights(self.model)
        self.note(f"the weights of step {progress.best} scored best and are kept")

    @contextmanager
    def _profiler(self) -> Iterator[Callable[[], Any]]:
        """A torch trace of `trainer.profile` steps after one warm-up step, for chrome://tracing or Perfetto."""
        steps = self.cfg.trainer.profile
        if not steps:
            with nullcontext():
                yield lambda: None
            return
        from torch.profiler import profile, schedule

        def write(profiler: Any) -> None:
            self.trace.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self.trace))
            self.note(f"trace of {steps} steps: {self.trace}")

        with profile(schedule=schedule(wait=0, warmup=1, active=steps, repeat=1), on_trace_ready=write) as profiler:
            yield profiler.step
