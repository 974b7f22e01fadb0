"""What is recorded of a run while it runs and at its end: summary, metrics, tracker, times, memory."""

import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from ftlab import sources, stages, tasks, trackers
from ftlab.config import ExperimentConfig
from ftlab.errors import Stopped
from ftlab.evaluate import Scores
from ftlab.experiment.device import device_name, peak_flops
from ftlab.experiment.interface import Outcome, Run
from ftlab.experiment.prepare import Prepared
from ftlab.memory.meter import Meter
from ftlab.out_of_memory import explain_oom, oom_remedies
from ftlab.registry import OWN
from ftlab.run_report import report_pruned, report_run
from ftlab.summary import BaseModel, Metrics, Objective, Summary
from ftlab.tasks.task import rates
from ftlab.terminal import Bar
from ftlab.trackers.jsonl import JsonlTracker
from ftlab.train.checkpoint import Checkpoint
from ftlab.versions import versions

PACKAGES = ("ftlab", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "hydra-core", "wandb")
KEPT = ("trainable_parameters", "parameters", "data_sha256", "model", "seconds", "vram", "objective")  # at the tracker


def _packages_of_parts(cfg: ExperimentConfig) -> list[str]:
    """The other packages that provide the task, source, stage and trackers of a run."""
    chosen = [(tasks, cfg.data.task), (sources, cfg.data.source), (stages, cfg.trainer.stage)]
    chosen += [(trackers, name) for name in trackers.chosen_names(cfg.tracker)]
    found = (provider for kind, name in chosen for provider in kind.providers().get(name, []))
    return sorted({provider.package for provider in found} - {OWN})


class Records:
    """The summary of a run in progress, its metrics and its trackers. Nothing is written before `begin`."""

    def __init__(self, run: Run) -> None:
        self.run, self.cfg, self.folder, self.terminal = run, run.cfg, run.folder, run.terminal
        self.meter = Meter(run.accelerator.device)
        self.tracker: trackers.Trackers | None = None
        self.bar: Bar | None = None
        self.began = time.perf_counter()
        self.begun = False  # whether the folder belongs to this run
        self.flops_per_token = 0.0
        self.summary = Summary(
            status="running",
            run_name=self.cfg.run_name,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            objective=Objective(self.cfg.objective),
            versions=versions((*PACKAGES, *_packages_of_parts(self.cfg))),
            device=device_name(run.accelerator.device),
        )

    # --- at the beginning ---------------------------------------------------------------------------------------

    def begin(self, prepared: Prepared) -> None:
        """Start writing the folder, once data and settings are checked. Base scores of an interrupted run are reused.

        Raises:
            RunDirError: the run in the folder was started with other data.
        """
        unknown = self.folder.check_sources(prepared.sources, self.cfg.force)
        if unknown:
            self.terminal.note(
                f"{self.folder.path} has no hash of {', '.join(unknown)} (it is damaged, or from an older version): "
                "changes to them cannot be detected"
            )
        for line in [] if self.cfg.force else self.folder.set_damaged_aside(self.run.composition.tree):
            self.terminal.warn(line)
        self.folder.begin(self.run.composition, self.cfg.force, prepared.sources)
        self.begun = True
        before, summary = self.folder.summary, self.summary
        summary.started = before.started or summary.started
        summary.base, summary.intervals.base = before.base, before.intervals.base
        summary.tracker_ids = before.tracker_ids
        summary.model = BaseModel(sha256=before.model.sha256 if before.model else {})
        summary.data_sha256, summary.sources, summary.data = prepared.splits.sha256, prepared.sources, prepared.counts

    def describe(self, prepared: Prepared) -> None:
        """Print notes and warnings on the data."""
        for note in (*prepared.splits.notes, *prepared.notes):
            self.terminal.note(note)
        for warning in prepared.warnings(self.cfg):
            self.terminal.warn(warning)

    def open_tracker(self, resumed: Checkpoint | None) -> None:
        """Continue metrics.jsonl and the trackers' records from the checkpoint, or start them."""
        jsonl = JsonlTracker(self.folder / "metrics.jsonl")
        damaged = jsonl.truncate(resumed.step if resumed else -1)
        if damaged:
            self.terminal.warn(damaged)
        config = {**self.run.composition.tree, "data_sha256": self.summary.data_sha256}
        kind: trackers.Kind = "trial" if self.run.trial else "run"
        start = trackers.Start(self.folder.path, self.cfg.run_name, config, kind=kind, warn=self.terminal.warn)
        chosen = trackers.settings(self.cfg.tracker)
        self.tracker = trackers.Trackers(chosen, start, jsonl, self.summary.tracker_ids)
        self.summary.tracker_ids = self.tracker.ids
        self.write()

    # --- while it runs --------------------------------------------------------------------------------------------

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Run a part of the run as a phase: record its seconds and its memory peaks."""
        kind = "eval" if name.startswith("evaluate") else name
        with self.terminal.phase(name), self.meter.phase(kind), self.clock(kind), self.explain_oom(name):
            yield

    def explain_oom(self, phase: str) -> AbstractContextManager[None]:
        """A context that turns an out-of-memory error into one message with lighter settings."""
        return explain_oom(phase, *oom_remedies(self.cfg, phase))

    @contextmanager
    def clock(self, kind: str) -> Iterator[None]:
        """Add the seconds of a part of the run to those of its kind."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = self.summary.seconds
            seconds[kind] = round(seconds.get(kind, 0.0) + time.perf_counter() - started, 3)

    @contextmanager
    def training(self, steps: int, done: int) -> Iterator[None]:
        """The training phase, with a progress bar over its steps."""
        try:
            with self.terminal.progress(steps, done) as self.bar:
                yield
        finally:
            self.bar = None

    def step(self, metrics: Metrics, step: int) -> None:
        """Record the metrics of training steps, with memory use and model FLOPs utilization (MFU)."""
        limit = (peak_flops(self.run.accelerator.device) or 0) * self.run.ranks.world
        if limit and "perf/tokens_per_second" in metrics:
            metrics = {**metrics, "perf/mfu": metrics["perf/tokens_per_second"] * self.flops_per_token / limit}
        self.log({**metrics, **self.meter.metrics()}, step)

    def log(self, metrics: Metrics, step: int) -> None:
        """Record metrics, and show them while training."""
        if self.bar:
            self.bar.update(step, metrics)
        if self.tracker:
            self.tracker.log(metrics, step)

    def add_scores(self, of: str, scores: Scores) -> None:
        """Add scores of the `base` or of the `tuned` model to the summary."""
        getattr(self.summary, of).update(scores.metrics)
        getattr(self.summary.intervals, of).update(scores.intervals)

    def write(self) -> None:
        """Write summary.json."""
        self.summary.write(self.folder / "summary.json")

    # --- at the end ---------------------------------------------------------------------------------------------

    def finish(self, validation: Scores, rows: list[dict[str, Any]]) -> Outcome:
        """Write all files of a finished run, show the result. `rows` are the predictions on test; a trial has none."""
        step = int(self.summary.step or 0)
        if not self.run.trial:
            self.folder.write_rows("predictions.jsonl", rows)
            self.log({key: v for key, v in self.summary.tuned.items() if key.startswith("test/")}, step)
        outcome = self._ended("finished", validation)
        self._lost_terminal()
        lines = self._close_tracker(rows, step)
        self.write()
        report_run(self.folder, self.summary, self.terminal, lines)
        return outcome

    def prune(self, reason: str, last: Scores, step: int) -> Outcome:
        """Record that the sweep pruned the run after its `last` evaluation, and remove its checkpoints."""
        summary = self.summary
        summary.reason, summary.step = reason, step
        summary.tuned, summary.intervals.tuned = dict(last.metrics), dict(last.intervals)
        summary.intervals.base = {}
        outcome = self._ended("pruned", last)
        lines = self._close_tracker([], step)
        self.write()
        if not self.cfg.sweep.keep_pruned:
            shutil.rmtree(self.run.checkpoints.folder, ignore_errors=True)
        report_pruned(self.folder, summary, self.terminal)
        for line in lines:
            self.terminal.note(line)
        return outcome

    def ended_early(self, error: BaseException) -> None:
        """Record in the summary that the run was stopped or failed."""
        self.summary.status = "stopped" if isinstance(error, Stopped) else "failed"
        self.summary.error = f"{type(error).__name__}: {error}"
        self.summary.vram = self.meter.peaks
        self._lost_terminal()
        with suppress(OSError):  # if the disk is full, the original error matters more
            if self.tracker:
                self._tag()
                self.tracker.close(exit_code=getattr(error, "exit_code", 1))
        with suppress(OSError):
            if self.begun:
                self.write()

    def _ended(self, status: str, validation: Scores) -> Outcome:
        summary = self.summary
        summary.status, summary.vram = status, self.meter.peaks
        summary.objective.value = validation.metrics[self.cfg.objective]
        summary.seconds["total"] = round(time.perf_counter() - self.began, 3)
        return Outcome({**summary.metrics, **validation.metrics}, summary, self.folder.path)

    def _close_tracker(self, rows: list[dict[str, Any]], step: int) -> list[str]:
        if self.tracker is None:
            return []
        task = tasks.get(self.cfg.data.task)
        shown = [metric.field for metric in rates(task)]
        columns = ["question", "gold", "base_pred", "pred", *shown, *(f"base_{name}" for name in shown)]
        columns += ["reason"] if "reason" in task.recorded else []
        if not self.run.trial:
            self.tracker.table("predictions", columns, [[row[c] for c in columns] for row in rows], step)
        numbers = {f"base/{key}": value for key, value in self.summary.base.items()}
        tree = self.summary.tree()
        self.tracker.summary({**numbers, **self.summary.tuned, **{key: tree[key] for key in KEPT if key in tree}})
        self._tag()
        return self.tracker.close()

    def _tag(self) -> None:
        """Tag a trial with how it ended; a stopped trial has not ended."""
        if self.run.trial and self.tracker and self.summary.status != "stopped":
            self.tracker.tag(self.summary.status)

    def _lost_terminal(self) -> None:
        if self.terminal.lost:
            self.summary.terminal = f"lost during the run: {self.terminal.lost}"
