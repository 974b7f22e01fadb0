"""The training loop: samples in, optimizer steps, evaluations and checkpoints out."""

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

# Steps whose results may be on their way from the GPU before the host asks for them.
MOST_PENDING = 50


class Trainer:
    """What all learners on one model share: the model, its device, and the `step` that computes gradients.

    The loop knows samples and steps, neither tasks nor trackers. Where there are several `ranks`, each runs this loop
    on its share of every step's samples; the first one evaluates and saves, and the others take over what it found.
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
        self.learner: Learner | None = None  # whose turn it is

    def train(self, learner: Learner) -> Progress:
        """Train one learner to its end, and leave the model with its best weights (`trainer.load_best`).

        Raises:
            TrainingError: a loss or gradient that is not finite, or too little memory for one row.
            Stopped: a signal came; the checkpoint of the last whole step is on disk.
        """
        progress, cfg = learner.progress, learner.cfg.trainer
        self._switch_to(learner)
        self.model.train()
        if not learner.over:
            self.prepare(learner)
        learner.clock = time.perf_counter()
        if learner.evaluation_due:  # a run stopped inside an evaluation owes it; a run of 0 steps has only this
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
        """It is this learner's turn."""
        if learner is self.learner:
            return
        if self.learner:
            self.learner.end_turn()
        self.step.attach(learner.trained)
        learner.begin_turn()
        self.learner = learner

    # --- one optimizer step -------------------------------------------------------------------------------

    def update(self, learner: Learner) -> float:
        """One optimizer step of a learner; its learning rate."""
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
        """Gradients of the mean loss over the step's trained tokens, whatever the micro-batches; the loss. `trained`
        is the number of those tokens where `samples` are not all of the step's: sums over all are then wanted."""
        rng = rng_state() if self.device.type == "cuda" else None

        def restore_random() -> None:
            if rng:
                set_rng(rng)

        counted = trained or trained_of(samples)
        return self._retry_lighter(learner, lambda: self._accumulate(learner, samples, counted), restore_random)

    def _retry_lighter(
        self, learner: Learner, part: Callable[[], T], before_again: Callable[[], None] = lambda: None
    ) -> T:
        """A part of a step, which may be run again as long as it has not returned; in lighter settings each time that
        memory runs out.

        Raises:
            TrainingError: there is no lighter one.
        """
        while True:
            try:
                return part()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                message = str(error)
            torch.cuda.empty_cache()  # only now that the error's frames have let go of the batch
            changed = self.step.lighten()
            if changed is None:
                raise self._oom_error(learner, message)
            before_again()
            self.note(f"out of memory: going on with {changed}, the step's rows unchanged")

    def _accumulate(self, learner: Learner, samples: Sequence[Sample], trained: int) -> torch.Tensor:
        total = torch.zeros((), device=self.device)
        self._begin(learner, empty=not samples)
        for number, part in enumerate(micro_batches(samples, self.step.micro)):
            seed = micro_seed(learner.cfg.seed, learner.progress.step, self.ranks.number(number))
            total += self.step.accumulate(part, trained, seed, first=number == 0)
        return total / trained

    def _begin(self, learner: Learner, *, empty: bool) -> None:
        """A new step; of an `empty` one the gradients are zeros."""
        self.step.begin()
        if not self.ranks.alone:  # no two processes draw the same, and a resumed one what it would have drawn
            torch.manual_seed(micro_seed(learner.cfg.seed, learner.progress.step, self.ranks.rank))
        if not empty:
            return
        for parameter in learner.trained.parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        if self.accelerator.scaler is not None:  # which begins with the first loss that it scales
            self.accelerator.scaler.scale(torch.zeros((), device=self.device))

    def _clip(self, learner: Learner) -> torch.Tensor:
        limit = learner.cfg.trainer.max_grad_norm or math.inf
        norm: torch.Tensor = self.accelerator.clip_grad_norm_(learner.trained.parameters, limit)
        return norm

    # --- before the first step --------------------------------------------------------------------------------

    def prepare(self, *learners: Learner) -> None:
        """Settle how the samples of these learners go through the model, and on a GPU try that on the longest ones,
        with all that is held at every step in its place.

        Raises:
            TrainingError: too little memory.
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
        """Raises TrainingError where the loss does not reach what is to be trained."""
        reached, unreached = gradient_reaches(learner.trained.tensors)
        lost = sorted(unreached.keys() - reached.keys())
        if lost:
            raise TrainingError(
                f"no gradient reaches {', '.join(lost)} ({unreached[lost[0]][0]} and others): it would stay as it is. "
                "Leave it out of lora.target_modules and lora.modules_to_save"
            )
        if unreached:
            names = [name for group in unreached.values() for name in group]
            self.note(f"{len(names)} trained tensors got no gradient in the first step, first {names[0]}")

    def _oom_error(self, learner: Learner, message: str) -> TrainingError:
        first = message.splitlines()[0].split(". GPU ")[0]
        ways = [*self.step.chooser.remedies(self.step.setting), *oom_remedies(learner.cfg, "train")]
        return TrainingError(
            f"out of GPU memory with trainer.micro_batch_size={self.step.micro} ({first}). "
            f"{self.step.chooser.oom_report()}Try: {', '.join(ways)}"
        )

    # --- evaluation, checkpoints ----------------------------------------------------------------------------

    def _evaluate(self, learner: Learner) -> bool:
        """Evaluate on validation; whether it is the best so far."""

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
            self.note(f"early stop: no better {cfg.objective} in {cfg.trainer.early_stopping} evaluations")
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
        if not whole:  # the weights at hand are scored, so that scores and weights agree
            progress.best = None
            self._evaluate(learner)
            return
        if best:  # the first process alone goes on with them
            best.restore_weights(learner.trained.tensors)
        self.note(f"the weights of step {progress.best} scored best and are kept")

    @contextmanager
    def _profiler(self, steps: int) -> Iterator[Callable[[], Any]]:
        """A torch trace of so many steps after one warm-up step, for chrome://tracing or Perfetto."""
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
    """The seed of one micro-batch's random numbers: a resumed run draws what the whole one would have drawn."""
    return (seed * 1_000_003 + step) * 1_009 + number
