"""A worker: runs one trial after another from a study until enough are finished.

Whatever happens to a trial, the study records it with its cause, and the next trial starts:

    error, OOM, NaN          failed; `cause` in one line, the traceback in error.txt of the trial's folder
    over its time limit      failed; if it hangs even then, a watchdog records it and restarts the process
    SIGTERM, SIGINT          interrupted, to be resumed without using up a retry; the worker ends with `Stopped`
    SIGKILL                  found dead by another worker (`Study.reap`), and resumed
    SIGSTOP                  once over its time limit, killed by the driver or another worker (`Study.kill_overdue`)
    one too many             discarded: several workers may ask for the last trial at once
    duplicate                not run: it copies the values of a finished trial with equal parameters
"""

import faulthandler
import math
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from ftlab.errors import FtlabError, Stopped, TrainingError
from ftlab.redact import redact_message
from ftlab.run_dir import RunDir
from ftlab.sweep.events import Event, Listener, ignore_event
from ftlab.sweep.limits import GRACE_S, Memory, Overdue, start_again, time_limit
from ftlab.sweep.study import FINISHED, Study, folder_of, take_folder
from ftlab.train.signals import StopSignal

Values = float | tuple[float, ...]
RunTrial = Callable[[Trial], Values]

POLL_S = 1.0  # between two checks of the trials of other workers
MOST_REDRAWS = 3  # draws of configurations that run elsewhere, before the worker waits for such a trial
MOST_STORAGE_ERRORS = 5  # in a row, before the worker gives up


class Failed(Exception):
    """The trial failed, and its cause is recorded."""


class TrialInterrupted(BaseException):
    """The trial was interrupted and stays as it is, for `Study.reap` to enqueue it again."""


def work(
    study: Study,
    run_trial: RunTrial,
    on_event: Listener = ignore_event,
    stop: StopSignal | None = None,
    *,
    memory: Memory | None = None,
    restart: Callable[[], None] = start_again,
    grace_s: float = GRACE_S,
) -> None:
    """Run trials until the study needs no more. `run_trial` returns the values of the study's objectives and may
    raise `optuna.TrialPruned`. `restart` replaces the process if a trial hangs or leaks GPU memory.

    Raises:
        Stopped: a signal arrived, in a trial or between two.
        TrainingError: more than `sweep.max_failures` trials have failed.
    """
    stop = StopSignal() if stop is None else stop  # false until a signal arrives
    memory = memory or Memory()
    try:
        Worker(study, run_trial, on_event, stop, memory, restart, grace_s).run()
    finally:
        memory.close()


class Worker:
    """The state of `work`."""

    def __init__(
        self,
        study: Study,
        run_trial: RunTrial,
        on_event: Listener,
        stop: StopSignal,
        memory: Memory,
        restart: Callable[[], None],
        grace_s: float,
    ) -> None:
        self.study, self.run_trial, self.on_event, self.stop = study, run_trial, on_event, stop
        self.memory, self.restart, self.grace_s = memory, restart, grace_s
        self.redraws = 0
        self.storage_errors = 0
        self.leaks = False  # whether a trial leaked GPU memory
        self.current: int | None = None  # the trial whose end is still to be reported

    def run(self) -> None:
        """Run one trial after another."""
        self.study.reap(idle=True)
        while left := self.study.left(counts := self.study.counts()):
            self._heed_stop()
            if counts.failed > self.study.cfg.max_failures:
                raise self._too_many_failures()
            if counts.running >= left:  # other workers run the rest, unless they die
                time.sleep(POLL_S)
                self.study.kill_overdue()
            else:
                self._next()
            self.study.reap(idle=True)
            if self.leaks:
                self.restart()

    def _next(self) -> None:
        """Run one trial through Optuna, which sends heartbeats meanwhile."""
        try:
            self.study.optuna.optimize(self._objective, n_trials=1, catch=(Failed,))
            self.storage_errors = 0
        except StorageInternalError as error:
            self._tolerate(error)
        except TrialInterrupted as interrupted:
            self.current = None
            self.study.reap(idle=True)
            if not isinstance(interrupted.__cause__, StorageInternalError):
                raise Stopped(f"{interrupted}; run the same command again to resume") from None
            self._tolerate(interrupted.__cause__)
        except (UpdateFinishedTrialError, ValueError, AssertionError):  # Optuna's errors for a trial that has ended
            if not self._ended_elsewhere():
                raise
        self._report_end()

    def _objective(self, trial: Trial) -> Values:
        """Run a trial, or copy the result of a finished one with equal parameters."""
        params = self.study.space.suggest(trial)
        self.current = trial.number
        self.on_event(Event("started", trial.number, params))
        self._discard_surplus(trial)
        finished = self._finished_equal(trial)
        try:
            return self._copied(trial, finished) if finished else self._ran(trial)
        finally:
            self.redraws = 0

    # --- trials that need not run -----------------------------------------------------------------------------

    def _discard_surplus(self, trial: Trial) -> None:
        if self.study.surplus(trial.number):
            trial.set_user_attr("surplus", True)
            raise Failed("one too many")

    def _finished_equal(self, trial: Trial) -> FrozenTrial | None:
        """A finished trial with equal parameters. If such a trial is still running elsewhere, this one is discarded so
        that the sampler draws again; after `MOST_REDRAWS` equal draws the worker waits for the other trial."""
        while (other := self.study.equal(trial)) is not None:
            if other.state in FINISHED:
                return other
            if self.redraws < MOST_REDRAWS:
                self.redraws += 1
                trial.set_user_attr("surplus", True)
                raise Failed("another worker runs the same configuration")
            self._wait(trial)
        return None

    def _wait(self, trial: Trial) -> None:
        try:
            self._heed_stop()
            time.sleep(POLL_S)
        except (Stopped, KeyboardInterrupt):
            self.study.stopped(trial)
            raise TrialInterrupted(f"stopped before trial {trial.number}") from None
        self.study.reap()

    def _copied(self, trial: Trial, finished: FrozenTrial) -> Values:
        """Copy the result of a finished trial with equal parameters."""
        trial.set_user_attr("same_as", finished.number)
        for name in ("deviation", "seed_values", "loss"):
            if name in finished.user_attrs:
                trial.set_user_attr(name, finished.user_attrs[name])
        for step, value in finished.intermediate_values.items():
            trial.report(value, step)
        if finished.state is TrialState.PRUNED:
            raise optuna.TrialPruned
        return _values(finished.values)

    # --- trials that run ----------------------------------------------------------------------------------------

    def _ran(self, trial: Trial) -> Values:
        self._note(trial, free_gib_before=self.memory.last)
        take_folder(self.study, trial)
        try:
            with time_limit(self.study.cfg.trial_limit_s, lambda: self._hung(trial), self.grace_s):
                values = self._checked(self.run_trial(trial))
            failure, pruned = None, False
        except optuna.TrialPruned:
            failure, pruned = None, True
        except (Stopped, KeyboardInterrupt):
            self.study.stopped(trial)
            raise TrialInterrupted(f"stopped in trial {trial.number}") from None
        except StorageInternalError as error:
            raise TrialInterrupted from error
        except (Exception, Overdue) as error:
            failure = self._recorded(trial, error)
        # By now the error has been released, and with it the frames that held the model.
        free = self.memory.settle()
        self._note(trial, free_gib_after=free)
        if self.memory.drifted(free):
            self.leaks = True
        if failure:
            raise Failed(failure)
        if pruned:
            raise optuna.TrialPruned
        return values

    def _checked(self, values: Values) -> Values:
        """The values, if none is NaN: Optuna would fail the trial without a message."""
        named = zip(self.study.objectives, values if isinstance(values, tuple) else (values,), strict=True)
        lost = [name for name, value in named if math.isnan(value)]
        if lost:
            raise TrainingError(f"{', '.join(lost)} of the finished trial is not a number (NaN): it has no score")
        return values

    def _recorded(self, trial: Trial, error: BaseException) -> str:
        """Record a failure; returns its cause in one line."""
        folder = folder_of(self.study, trial)
        cause = in_one_line(error)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(redact_message("".join(traceback.format_exception(error))), encoding="utf-8")
        self._note(trial, cause=cause, vram_peak_gib=peak_gib(folder))
        return cause

    def _hung(self, trial: Trial) -> None:
        """In the watchdog's thread: fail the trial, record where it hangs, and restart the process without it."""
        limit = self.study.cfg.trial_limit_s
        cause = f"it hung: {self.grace_s:g} s after sweep.trial_limit_s={limit:g} it could not be interrupted"
        storage = self.study.optuna._storage
        with suppress(Exception):
            folder = folder_of(self.study, trial)
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / "error.txt", "w", encoding="utf-8") as file:
                print(cause, file=file, flush=True)
                faulthandler.dump_traceback(file)
        with suppress(Exception):  # else the restarted process would find the trial and resume it
            storage.set_trial_user_attr(trial._trial_id, "cause", cause)
            storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        self.restart()

    def _note(self, trial: Trial, **attrs: Any) -> None:
        """Set user attributes of a trial where they are not None and the trial has not ended elsewhere."""
        with suppress(UpdateFinishedTrialError):
            for name, value in attrs.items():
                if value is not None:
                    trial.set_user_attr(name, value)

    # --- between trials -----------------------------------------------------------------------------------------

    def _heed_stop(self) -> None:
        if self.stop:
            raise Stopped(f"{self.stop.name}: stopped between two trials; run the same command again to resume")

    def _too_many_failures(self) -> TrainingError:
        """The error that ends the sweep, with the last cause and the remedy."""
        limit, rows = self.study.cfg.max_failures, self.study.leaderboard()
        failed = [row for row in rows if row.state == "failed"]
        last = max(failed, key=lambda row: row.number)
        return TrainingError(
            f"{len(failed)} trials failed (sweep.max_failures={limit}). "
            f"The last of them, {last.number}: {last.cause} (traceback in {last.folder}/error.txt). "
            f"Remove the cause, then resume with sweep.max_failures={len(failed) + limit}"
        )

    def _tolerate(self, error: StorageInternalError) -> None:
        """Wait for a busy database; raise once it has failed `MOST_STORAGE_ERRORS` times in a row."""
        self.storage_errors += 1
        if self.storage_errors >= MOST_STORAGE_ERRORS:
            cause = in_one_line(error.__cause__ or error)
            raise TrainingError(f"the study's database keeps failing ({cause}); run the same command again to resume")
        time.sleep(POLL_S * self.storage_errors)

    def _ended_elsewhere(self) -> bool:
        """Whether our trial was ended elsewhere: by a process that took this one for dead, or by the watchdog."""
        return any(t.number == self.current and t.state.is_finished() for t in self.study.trials())

    def _report_end(self) -> None:
        number, self.current = self.current, None
        for trial in self.study.trials() if number is not None else ():
            if trial.number == number and trial.state.is_finished():
                self.on_event(Event("ended", number, row=self.study.row(trial)))


def in_one_line(error: BaseException) -> str:
    """The cause of a failure as the study records it."""
    text = " ".join(redact_message(str(error)).split("\n")) if isinstance(error, FtlabError | Overdue) else ""
    first = (redact_message(str(error)).strip().splitlines() or [""])[0]
    return (text or f"{type(error).__name__}: {first}".rstrip(": "))[:500]


def peak_gib(folder: Path) -> float | None:
    """The largest peak of allocated GPU memory in GiB that the runs in a trial's folder have recorded."""
    summaries = [RunDir(path).summary for path in (folder, *folder.glob("seed-*"))]
    return max((summary.peak_gib for summary in summaries if summary.status), default=None)


def _values(values: list[float]) -> Values:
    return values[0] if len(values) == 1 else tuple(values)
