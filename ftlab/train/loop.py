"""The training loop: optimizer steps on samples, evaluations and checkpoints."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from ftlab.data.encode import Sample
from ftlab.errors import Stopped, TrainingError
from ftlab.out_of_memory import is_out_of_memory, oom_remedies
from ftlab.train.batches import micro_batches, tokens_of, trained_of
from ftlab.train.checkpoint import rng_state, set_rng
from ftlab.train.learner import Intervals, Learner, Metrics, Progress
from ftlab.train.optim import allocate_state
from ftlab.train.ranks import Ranks
from ftlab.train.signals import StopSignal
from ftlab.train.step import Step, gradient_reaches

T = TypeVar("T")

# The number of steps after which the host waits for their losses from the GPU.
MOST_PENDING = 50


class Trainer:
    """What all learners on one model share: the model, its device, and the `step` that computes gradients.

    The loop knows samples and steps, but neither tasks nor trackers. With several `ranks`, each process runs this loop
    on its share of every step's samples. The first process evaluates and saves, and broadcasts its results to the
    others.
    """

    def __init__(
        self,
        model: nn.Module,
        step: Step,
        *,
        accelerator: Accelerator,
        note: Callable[[str], None],
        stop: StopSignal,
        trace: Path,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        self.model, self.step, self.accelerator, self.device = model, step, accelerator, accelerator.device
        self.note, self.stop, self.trace = note, stop, trace
        self.learner: Learner | None = None  # the one that is being trained

    def train(self, learner: Learner) -> Progress:
        """Train one learner to its end. With `trainer.load_best` the model has the best weights afterwards.

        Raises:
            TrainingError: a loss or gradient is not finite, or memory does not suffice for one row.
            Stopped: a stop signal was received; the checkpoint of the last complete step is on disk.
        """
        progress, cfg = learner.progress, learner.cfg.trainer
        self._switch_to(learner)
        self.model.train()
        if not learner.over:
            self.prepare(learner)
        learner.clock = time.perf_counter()
        if learner.evaluation_due:  # the run was stopped during an evaluation, or it has 0 steps
            self._evaluate(learner)
            self._save(learner)
        with self._profiler(cfg.profile) as advance:
            learner.clock = time.perf_counter()
            while not learner.over:
                lr = self.update(learner)
                advance()
                last = progress.step == learner.order.steps
                if progress.step % cfg.log_every == 0 or last:
                    learner.record(learner.window(lr), progress.step)
                improved = learner.evaluation_due and self._evaluate(learner)
                stop = self.ranks.any(self.stop.name)
                if progress.step % cfg.save_every == 0 or improved or progress.done or last or stop:
                    self._save(learner)
                if stop:
                    raise Stopped(f"{stop}: stopped after step {progress.step}, its checkpoint is on disk")
        self.step.pause(over=True)
        self._load_best(learner)
        return progress

    def _switch_to(self, learner: Learner) -> None:
        """Make this learner the one that is trained."""
        if learner is self.learner:
            return
        if self.learner:
            self.learner.end_turn()
        self.step.attach(learner.trained)
        learner.begin_turn()
        self.learner = learner

    # --- one optimizer step -------------------------------------------------------------------------------

    def update(self, learner: Learner) -> float:
        """Make one optimizer step of a learner; return its learning rate."""
        self._switch_to(learner)
        samples = learner.next_samples()
        loss = self._gradients(learner, self.ranks.share(samples), trained_of(samples))
        self.ranks.sum_(learner.trained.parameters, loss)
        if learner.progress.step == learner.began_at:
            self._check_reached(learner)
        norm = self._retry_lighter(learner, lambda: self._clip(learner))
        learner.pending.append((learner.progress.step + 1, loss, norm))
        if self.device.type == "cpu" or len(learner.pending) == MOST_PENDING:
            learner.collect_losses()
        self._retry_lighter(learner, learner.scaled.step)
        return learner.advance(tokens_of(samples))

    def _gradients(self, learner: Learner, samples: Sequence[Sample], trained: int | None = None) -> torch.Tensor:
        """Compute the gradients of the mean loss over the step's trained tokens, independent of the micro-batches, and
        return that loss. If `samples` are only this process's share, `trained` is the number of trained tokens of the
        whole step."""
        rng = rng_state() if self.device.type == "cuda" else None

        def restore_random() -> None:
            if rng:
                set_rng(rng)

        counted = trained or trained_of(samples)
        return self._retry_lighter(learner, lambda: self._accumulate(learner, samples, counted), restore_random)

    def _retry_lighter(
        self, learner: Learner, part: Callable[[], T], before_again: Callable[[], None] = lambda: None
    ) -> T:
        """Run a part of a step. After an out-of-memory error it runs again in a lighter setting, until it returns.
        `before_again` is called before each further attempt.

        Raises:
            TrainingError: there is no lighter setting.
        """
        while True:
            try:
                return part()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                message = str(error)
            torch.cuda.empty_cache()  # only here: the frames of the error hold the batch until they are gone
            changed = self.step.lighten()
            if changed is None:
                raise self._oom_error(learner, message)
            before_again()
            self.note(f"out of memory: continuing with {changed}; the rows of the step stay the same")

    def _accumulate(self, learner: Learner, samples: Sequence[Sample], trained: int) -> torch.Tensor:
        total = torch.zeros((), device=self.device)
        self._begin(learner, empty=not samples)
        for number, part in enumerate(micro_batches(samples, self.step.micro)):
            seed = micro_seed(learner.cfg.seed, learner.progress.step, self.ranks.number(number))
            total += self.step.accumulate(part, trained, seed, first=number == 0)
        return total / trained

    def _begin(self, learner: Learner, *, empty: bool) -> None:
        """Begin a new step. If this process's share of it is `empty`, its gradients are zeros."""
        self.step.begin()
        if not self.ranks.alone:  # a seed per process and step: processes differ, and a resumed run draws the same
            torch.manual_seed(micro_seed(learner.cfg.seed, learner.progress.step, self.ranks.rank))
        if not empty:
            return
        for parameter in learner.trained.parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        if self.accelerator.scaler is not None:  # it is initialised by the first loss that it scales
            self.accelerator.scaler.scale(torch.zeros((), device=self.device))

    def _clip(self, learner: Learner) -> torch.Tensor:
        limit = learner.cfg.trainer.max_grad_norm or math.inf
        norm: torch.Tensor = self.accelerator.clip_grad_norm_(learner.trained.parameters, limit)
        return norm

    # --- before the first step --------------------------------------------------------------------------------

    def prepare(self, *learners: Learner) -> None:
        """Choose the setting for the samples of these learners. On a GPU, try it on the longest samples, with
        everything allocated that each step needs.

        Raises:
            TrainingError: memory does not suffice.
        """
        for learner in learners:
            self._switch_to(learner)
            if self.device.type == "cuda":
                allocate_state(learner.optimizer)
        most = self.ranks.most(max(learner.cfg.trainer.global_batch_size for learner in learners))
        samples = [sample for learner in learners for sample in learner.samples]
        longest = sorted(samples, key=lambda sample: sample.tokens)[-most:]
        self.step.choose(longest)
        if self.device.type == "cuda":
            saved = rng_state()
            self._gradients(learners[-1], longest)
            set_rng(saved)
        self.note(str(self.step))

    def _check_reached(self, learner: Learner) -> None:
        """Raise TrainingError if the gradient of all trained tensors of a module is absent or 0."""
        reached, unreached = gradient_reaches(learner.trained.tensors)
        lost = sorted(unreached.keys() - reached.keys())
        if lost:
            raise TrainingError(
                f"no gradient reaches {', '.join(lost)} ({unreached[lost[0]][0]} and others): it would not be trained. "
                "Leave it out of lora.target_modules and lora.modules_to_save"
            )
        if unreached:
            names = [name for group in unreached.values() for name in group]
            self.note(f"{len(names)} trained tensors got no gradient in the first step, among them {names[0]}")

    def _oom_error(self, learner: Learner, message: str) -> TrainingError:
        first = message.splitlines()[0].split(". GPU ")[0]
        ways = [*self.step.chooser.remedies(self.step.setting), *oom_remedies(learner.cfg, "train")]
        return TrainingError(
            f"out of GPU memory with trainer.micro_batch_size={self.step.micro} ({first}). "
            f"{self.step.chooser.oom_report()}Try: {', '.join(ways)}"
        )

    # --- evaluation, checkpoints ----------------------------------------------------------------------------

    def _evaluate(self, learner: Learner) -> bool:
        """Evaluate on validation; return whether the result is the best so far."""

        def scores() -> tuple[Metrics, Intervals]:
            found = learner.evaluate(learner.progress.step)
            return found.metrics, found.intervals

        learner.collect_losses()
        self.step.pause()
        try:
            metrics, intervals = self.ranks.broadcast_from_first(scores)
        except Stopped:
            self._save(learner)
            raise
        improved = learner.record_evaluation(metrics, intervals)
        if learner.progress.done:
            cfg = learner.cfg
            self.note(f"early stopping: no better {cfg.objective} in {cfg.trainer.early_stopping} evaluations")
        self.model.train()
        learner.clock = time.perf_counter()
        return improved

    def _save(self, learner: Learner) -> None:
        learner.collect_losses()
        if self.ranks.first:
            learner.save()
        learner.clock = time.perf_counter()

    def _load_best(self, learner: Learner) -> None:
        progress = learner.progress
        if not learner.cfg.trainer.load_best or progress.best in (None, progress.step):
            return
        best = learner.checkpoints.at(int(progress.best or 0)) if self.ranks.first else None
        whole = self.ranks.broadcast_from_first(lambda: best is not None)
        if not whole:  # the last weights are kept and scored, so that scores and weights agree
            progress.best = None
            self._evaluate(learner)
            return
        if best:  # only the first process uses the weights afterwards
            best.restore_weights(learner.trained.tensors)
        self.note(f"the weights of step {progress.best} scored best and are kept")

    @contextmanager
    def _profiler(self, steps: int) -> Iterator[Callable[[], Any]]:
        """Record a torch trace of `steps` steps after one warm-up step, for chrome://tracing or Perfetto."""
        if not steps or not self.ranks.first:
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
    """Return the seed of one micro-batch's random numbers, the same in a resumed run as in an uninterrupted one."""
    return (seed * 1_000_003 + step) * 1_009 + number
