"""The training loop: rows in, optimizer steps, evaluations and checkpoints out."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from ftlab import declared
from ftlab.config import ExperimentConfig
from ftlab.data.encode import Encoded
from ftlab.errors import Stopped, TrainingError
from ftlab.shortage import lighter, out_of_memory
from ftlab.train.batches import RowOrder, micro_batches, trained_of
from ftlab.train.checkpoint import Checkpoint, Checkpoints, rng_state
from ftlab.train.optim import allocate_state, build_optimizer, build_schedule
from ftlab.train.ranks import Ranks
from ftlab.train.signals import StopSignal
from ftlab.train.step import Step, gradient_reaches

T = TypeVar("T")
Metrics = dict[str, float]


class Scores(Protocol):
    """What an evaluation returns: metrics by key, and confidence intervals of some of them."""

    @property
    def metrics(self) -> Metrics: ...

    @property
    def intervals(self) -> dict[str, tuple[float, float]]: ...


# Steps whose results may be on their way from the GPU before the host asks for them.
MOST_PENDING = 50


@dataclass
class Progress:
    """Everything of a run's state that is neither weights, optimizer, schedule nor random generators."""

    step: int = 0
    tokens: int = 0  # of all rows seen, prompts included
    seconds: float = 0.0  # spent in steps, evaluations left out
    loss_sum: float = 0.0  # over the steps since the last record
    loss_steps: int = 0
    window_tokens: int = 0  # and so are these two
    window_seconds: float = 0.0
    evaluated: int | None = None  # the step of the last evaluation
    best: int | None = None  # the step of the best one
    best_metrics: Metrics = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)  # of the best evaluation, or of the last without load_best
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    worse: int = 0  # evaluations since the best one
    done: bool = False  # stopped early


class Trainer:
    """Trains the trainable parameters of `model` on `rows`, with the gradients that `step` computes.

    `evaluate(step)` returns validation scores, `record(metrics, step)` hears of every metric. Both are
    the caller's: the loop knows nothing of SQL or of trackers. Losses and gradient norms stay on the GPU until they
    are recorded, or something is evaluated or saved: the host does not wait for each step.

    Where there are several `ranks`, each runs this loop on its share of every step's rows; the first one evaluates and
    saves, and the others take over what it found.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: list[Encoded],
        cfg: ExperimentConfig,
        *,
        step: Step,
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        evaluate: Callable[[int], Scores],
        record: Callable[[Metrics, int], None],
        note: Callable[[str], None],
        stop: StopSignal,
        trace: Path,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        self.model, self.rows, self.cfg, self.step, self.accelerator = model, rows, cfg, step, accelerator
        self.checkpoints, self.stop, self.trace = checkpoints, stop, trace
        self.evaluate, self.record, self.note = evaluate, record, note
        self.device = accelerator.device
        trainer = cfg.trainer
        self.ranks.same(parameter.detach() for parameter in step.parameters)
        self.plan = RowOrder.of(len(rows), trainer.global_batch_size, trainer.max_steps, trainer.epochs, cfg.seed)
        self.optimizer = build_optimizer(step.parameters, trainer)
        self.schedule = build_schedule(self.optimizer, trainer, self.plan.steps)
        self.scaled = accelerator.prepare(self.optimizer)  # unscales float16 gradients, else the optimizer itself
        self.progress = Progress()
        self.began_at = 0  # the step before the first one of this process
        self.pending: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # step, loss, gradient norm since `_settle`
        self.clock = 0.0  # up to when the time of steps is counted
        self.norm = 0.0

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        state = checkpoint.restore(self.model, self.optimizer, self.schedule)
        self.progress = Progress(**state)
        self.began_at = self.progress.step

    def train(self) -> Progress:
        """Run the plan to its end and leave the model with its best weights (`trainer.load_best`).

        Raises:
            TrainingError: a loss or gradient that is not finite, or too little memory for one row.
            Stopped: a signal came; the checkpoint of the last whole step is on disk.
        """
        progress, cfg = self.progress, self.cfg.trainer
        self.model.train()
        if progress.step < self.plan.steps and not progress.done:
            self._prepare()
        self.clock = time.perf_counter()
        if self._evaluation_due():  # a run stopped inside an evaluation owes it; a run of 0 steps has only this
            self._evaluate()
            self._save()
        with self._profiler() as advance:
            self.clock = time.perf_counter()
            while progress.step < self.plan.steps and not progress.done:
                lr = self._step()
                advance()
                last = progress.step == self.plan.steps
                if progress.step % cfg.log_every == 0 or last:
                    self.record(self._window(lr), progress.step)
                improved = self._evaluation_due() and self._evaluate()
                stop = self.ranks.any(self.stop.name)
                if progress.step % cfg.save_every == 0 or improved or progress.done or last or stop:
                    self._save()
                if stop:
                    raise Stopped(f"{stop}: stopped after step {progress.step}, its checkpoint is on disk")
        self.step.pause(over=True)
        self._load_best()
        return progress

    # --- one optimizer step -------------------------------------------------------------------------------

    def _step(self) -> float:
        """One optimizer step; its learning rate."""
        progress = self.progress
        rows = [self.rows[i] for i in self.plan.indices(progress.step)]
        loss = self._gradients(self.ranks.share(rows), trained_of(rows))
        self.ranks.sum_(self.step.parameters, loss)
        if progress.step == self.began_at:
            self._check_reached()
        norm = self._affordable(self._clip)
        self.pending.append((progress.step + 1, loss, norm))
        if self.device.type == "cpu" or len(self.pending) == MOST_PENDING:
            self._settle()
        lr = float(self.schedule.get_last_lr()[0])
        self._affordable(self.scaled.step)
        self.schedule.step()
        progress.step += 1
        tokens = sum(row.tokens for row in rows)
        progress.tokens += tokens
        progress.window_tokens += tokens
        return lr

    def _settle(self) -> None:
        """Take in the losses and gradient norms of the steps since the last time; one that is not finite ends the run,
        before anything of it is saved."""
        pairs = [torch.stack([loss, norm]).double() for _, loss, norm in self.pending]
        numbers = torch.stack(pairs).tolist() if pairs else []
        steps = [step for step, _, _ in self.pending]
        self.pending = []
        for step, (loss, norm) in zip(steps, numbers, strict=True):
            if not math.isfinite(loss):
                raise self._not_finite("loss", loss, step)
            if not math.isfinite(norm) and self.accelerator.scaler is None:
                raise self._not_finite("gradient norm", norm, step)
            self.progress.loss_sum += loss
            self.progress.loss_steps += 1
            self.norm = norm
        now = time.perf_counter()
        self.progress.seconds += now - self.clock
        self.progress.window_seconds += now - self.clock
        self.clock = now

    def _gradients(self, rows: list[Encoded], trained: int | None = None) -> torch.Tensor:
        """Gradients of the mean loss over the step's trained tokens, whatever the micro-batches; the loss. `trained`
        is the number of those tokens where `rows` are not all of the step's: sums over all rows are then wanted."""
        rng = rng_state() if self.device.type == "cuda" else None

        def draw_again() -> None:
            if rng:
                torch.set_rng_state(rng["cpu"])
                torch.cuda.set_rng_state_all(rng["cuda"])

        return self._affordable(lambda: self._accumulate(rows, trained or trained_of(rows)), draw_again)

    def _affordable(self, part: Callable[[], T], before_again: Callable[[], None] = lambda: None) -> T:
        """A part of a step, which may be run again as long as it has not returned; in lighter settings each time that
        memory runs out.

        Raises:
            TrainingError: there is no lighter one.
        """
        while True:
            try:
                return part()
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                told = str(error)
            torch.cuda.empty_cache()  # only now that the error's frames have let go of the batch
            changed = self.step.lighten()
            if changed is None:
                raise self._too_large(told)
            before_again()
            self.note(f"out of memory: going on with {changed}, the step's rows unchanged")

    def _accumulate(self, rows: list[Encoded], trained: int) -> torch.Tensor:
        total = torch.zeros((), device=self.device)
        self._begin(empty=not rows)
        for number, part in enumerate(micro_batches(rows, self.step.micro)):
            seed = micro_seed(self.cfg.seed, self.progress.step, self.ranks.number(number))
            total += self.step.accumulate(part, trained, seed, first=number == 0)
        return total / trained

    def _begin(self, *, empty: bool) -> None:
        """A new step; of an `empty` one the gradients are zeros."""
        self.step.begin()
        if not self.ranks.alone:  # no two processes draw the same, and a resumed one what it would have drawn
            torch.manual_seed(micro_seed(self.cfg.seed, self.progress.step, self.ranks.rank))
        if not empty:
            return
        for parameter in self.step.parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        if self.accelerator.scaler is not None:  # which begins with the first loss that it scales
            self.accelerator.scaler.scale(torch.zeros((), device=self.device))

    def _clip(self) -> torch.Tensor:
        limit = self.cfg.trainer.max_grad_norm or math.inf
        norm: torch.Tensor = self.accelerator.clip_grad_norm_(self.step.parameters, limit)
        return norm

    def _not_finite(self, what: str, value: float, step: int) -> TrainingError:
        kept = self.checkpoints.newest()
        where = f"the checkpoint of step {kept.step} is kept" if kept else "no checkpoint was written yet"
        return TrainingError(
            f"{what}={value} at step {step}; {where}. "
            f"Lower trainer.lr={self.cfg.trainer.lr:g}, or raise trainer.warmup_steps"
        )

    # --- before the first step --------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Settle how rows go through the model, and on a GPU try that on the longest ones, with all that is held at
        every step in its place.

        Raises:
            TrainingError: too little memory.
        """
        most = self.ranks.most(self.cfg.trainer.global_batch_size)
        longest = sorted(self.rows, key=lambda row: row.tokens)[-most:]
        if self.device.type == "cuda":
            allocate_state(self.optimizer)
        self.step.choose(longest)
        if self.device.type == "cuda":
            saved = rng_state()
            self._gradients(longest)
            torch.set_rng_state(saved["cpu"])
            torch.cuda.set_rng_state_all(saved["cuda"])
        self.note(str(self.step))

    def _check_reached(self) -> None:
        """Raises TrainingError where the loss does not reach what is to be trained."""
        reached, unreached = gradient_reaches(self.model)
        lost = sorted(unreached.keys() - reached.keys())
        if lost:
            raise TrainingError(
                f"no gradient reaches {', '.join(lost)} ({unreached[lost[0]][0]} and others): it would stay as it is. "
                "Leave it out of lora.target_modules and lora.modules_to_save"
            )
        if unreached:
            names = [name for group in unreached.values() for name in group]
            self.note(f"{len(names)} trained tensors got no gradient in the first step, first {names[0]}")

    def _too_large(self, told: str) -> TrainingError:
        first = told.splitlines()[0].split(". GPU ")[0]
        ways = [*self.step.chooser.remedies(self.step.setting), *lighter(self.cfg, "train")]
        return TrainingError(
            f"out of GPU memory with trainer.micro_batch_size={self.step.micro} ({first}). "
            f"{self.step.chooser.shortage()}Try: {', '.join(ways)}"
        )

    # --- records, evaluation, checkpoints -------------------------------------------------------------------

    def _window(self, lr: float) -> Metrics:
        """The metrics to record: mean loss and tokens a second since the last record, and those of the run so far."""
        self._settle()
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

    def _evaluation_due(self) -> bool:
        progress, every = self.progress, self.cfg.eval.every
        if progress.evaluated == progress.step:
            return False
        return progress.step == self.plan.steps or bool(every and progress.step and progress.step % every == 0)

    def _evaluate(self) -> bool:
        """Evaluate on validation; whether it is the best so far."""
        self._settle()
        self.step.pause()
        progress, cfg = self.progress, self.cfg
        try:
            metrics, intervals = self.ranks.of_first(self._scores)
        except Stopped:
            self._save()
            raise
        if progress.step and not math.isfinite(metrics["eval/loss"]):
            raise self._not_finite("eval/loss", metrics["eval/loss"], progress.step)
        progress.evaluated = progress.step
        improved = progress.best is None or self._rank(metrics) > self._rank(progress.best_metrics)
        if improved:
            progress.best, progress.best_metrics, progress.worse = progress.step, metrics, 0
        else:
            progress.worse += 1
            self._stop_early()
        if improved or not cfg.trainer.load_best:
            progress.metrics, progress.intervals = metrics, intervals
        self.model.train()
        self.clock = time.perf_counter()
        return improved

    def _scores(self) -> tuple[Metrics, dict[str, tuple[float, float]]]:
        scores = self.evaluate(self.progress.step)
        return scores.metrics, scores.intervals

    def _stop_early(self) -> None:
        patience = self.cfg.trainer.early_stopping
        if patience is not None and self.progress.worse >= patience:
            self.progress.done = True
            self.note(f"early stop: no better {self.cfg.objective} in {patience} evaluations")

    def _rank(self, metrics: Metrics) -> tuple[float, float]:
        """Better is greater; equal scores are ranked by loss."""
        value = metrics[self.cfg.objective]
        return (value if declared.of(self.cfg.objective).rises else -value), -metrics["eval/loss"]

    def _save(self) -> None:
        self._settle()
        best = self.progress.best if self.cfg.trainer.load_best else None
        if self.ranks.first:
            self.checkpoints.save(self.model, self.optimizer, self.schedule, asdict(self.progress), best)
        self.clock = time.perf_counter()

    def _load_best(self) -> None:
        progress = self.progress
        if not self.cfg.trainer.load_best or progress.best in (None, progress.step):
            return
        best = self.checkpoints.at(int(progress.best or 0)) if self.ranks.first else None
        whole = self.ranks.of_first(lambda: best is not None)
        if not whole:  # the weights at hand are scored, so that scores and weights agree
            progress.best = None
            self._evaluate()
            return
        if best:  # the first process alone goes on with them
            best.restore_weights(self.model)
        self.note(f"the weights of step {progress.best} scored best and are kept")

    @contextmanager
    def _profiler(self) -> Iterator[Callable[[], Any]]:
        """A torch trace of `trainer.profile` steps after one warm-up step, for chrome://tracing or Perfetto."""
        steps = self.cfg.trainer.profile if self.ranks.first else 0
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


def micro_seed(seed: int, step: int, number: int) -> int:
    """The seed of one micro-batch's random numbers: a resumed run draws what the whole one would have drawn."""
    return (seed * 1_000_003 + step) * 1_009 + number
