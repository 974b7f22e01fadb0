"""Every evaluation of a run: of the base, during training, and of the tuned model."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress

from ftlab.errors import Pruned
from ftlab.evaluate import Scores, Split, prediction_rows, scores_of_base
from ftlab.experiment.interface import Run, Trial
from ftlab.experiment.prepare import Prepared
from ftlab.experiment.records import Records
from ftlab.run_dir import OWN_ANSWERS, RunDir
from ftlab.stages.stage import LoadedModel
from ftlab.summary import Metrics


class Evaluations:
    """Scores models on the run's splits, records the scores, and reports those on validation to the sweep."""

    def __init__(self, run: Run, records: Records, prepared: Prepared) -> None:
        self.run, self.records, self.prepared = run, records, prepared
        self.last: tuple[Scores, int] | None = None  # the last evaluation during training, and its step
        self._reported: set[int] = set()  # steps of the evaluations that were reported to the sweep

    def of_base(self, base: LoadedModel, before_kept: Callable[[], None]) -> Scores:
        """Return the scores of the base on test, with its answers; those of an interrupted run are used again.
        `before_kept` is called before new scores are recorded, and may raise."""
        folder, known, test = self.run.folder, self.records.summary.base, self.prepared.test
        rows = folder.read_rows("predictions.jsonl")
        written = scores_of_base(test.task, rows) if test.stage.answers else Scores({}, {})
        ids = [row.get("id") for row in rows]
        scored = {key.partition("/")[0] for key in known}
        if written and ids == [row.id for row in test.rows] and {"eval", "test"} <= scored:
            return written
        for split in (self.prepared.validation, test):
            scores = self.of(base, split, f"evaluate base on {split.title}")
            self.records.add_scores("base", scores)
        before_kept()
        folder.write_rows("predictions.jsonl", prediction_rows(test, scores, None))
        self.records.write()
        return scores

    def of(self, loaded: LoadedModel, split: Split, phase: str) -> Scores:
        """Score a model on a split in a phase of its own, before or after training."""
        run = self.run
        with self.records.phase(phase), run.terminal.progress(len(split.rows), what="evaluate") as bar:

            def on_rows(done: int) -> None:
                bar.update(done, {})
                run.heed_stop(done)

            return split.score(loaded, on_rows, run.terminal.warn)

    def on_validation(self, loaded: LoadedModel, step: int) -> Scores:
        """Score the model on validation during training, record the scores and report them to the sweep."""
        run, records, split = self.run, self.records, self.prepared.validation
        with (
            records.meter.phase("eval"),
            records.clock("eval"),
            records.explain_oom("evaluate on validation"),
        ):
            scores = split.score(loaded, run.heed_stop, run.terminal.warn)
        records.log(scores.metrics, step)
        self.last = scores, step
        if run.trial:
            (run.folder / "evaluations").mkdir(exist_ok=True)
            run.folder.write_rows(_answers(step), prediction_rows(split, None, scores))
        self._report(scores.metrics, step)
        return scores

    def newest(self) -> tuple[Scores, int]:
        """Return the last evaluation during training, and its step."""
        if self.last is None:
            raise RuntimeError("a run was pruned before its first evaluation")
        return self.last

    def report_recorded(self) -> None:
        """Report the evaluations from before a resume to the sweep; they cannot prune the run, as it went on."""
        for metrics, step in recorded(self.run.folder) if self.run.trial else ():
            with suppress(Pruned):
                self._report(metrics, step)

    def keep_answers(self, step: int) -> None:
        """Keep a trial's validation answers of one step, for `compare` and the report, and delete the others."""
        folder = self.run.folder
        kept = folder / _answers(step)
        if kept.is_file():
            kept.replace(folder / "evaluations" / OWN_ANSWERS)
        for other in (folder / "evaluations").glob("step-*.jsonl"):
            other.unlink()

    def _report(self, metrics: Metrics, step: int) -> None:
        """Report an evaluation to the sweep, which may prune the run by raising Pruned; after the last step this is
        ignored. Scores that are NaN or infinite are not reported: training raises its own error for them."""
        trial = self.run.trial
        if trial is None or step in self._reported or not all(map(math.isfinite, metrics.values())):
            return
        self._reported.add(step)
        with suppress(Pruned) if step >= (self.records.summary.planned_steps or 0) else nullcontext():
            trial.on_evaluation(metrics, step)


def recorded(folder: RunDir) -> Iterator[tuple[Metrics, int]]:
    """Yield the validation evaluations in metrics.jsonl, each with its step."""
    for row in folder.read_metrics():
        scores = {key: value for key, value in row.items() if key.startswith("eval/")}
        if scores and None not in scores.values():  # null stands for NaN or infinity
            yield {key: float(value) for key, value in scores.items()}, row["step"]


def report_ended(folder: RunDir, trial: Trial | None) -> None:
    """Report the evaluations of a trial that had ended, but was killed before the sweep recorded it."""
    for metrics, step in recorded(folder) if trial else ():
        with suppress(Pruned):
            assert trial
            trial.on_evaluation(metrics, step)


def _answers(step: int) -> str:
    """Return the file for the answers of one evaluation until the trial has ended."""
    return f"evaluations/step-{step:06d}.jsonl"
