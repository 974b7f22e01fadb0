"""The training of a run by its stage: what the stage gets from the run, and what it reports back."""

from collections.abc import Iterator
from contextlib import contextmanager

from ftlab import stages
from ftlab.evaluate import Scores
from ftlab.experiment.evaluations import Evaluations
from ftlab.experiment.interface import Run
from ftlab.experiment.prepare import Prepared
from ftlab.experiment.records import Records
from ftlab.stages.stage import LoadedModel
from ftlab.summary import StepSetting
from ftlab.train.checkpoint import Checkpoint


class RunHooks:
    """The callbacks of a run that its stage uses: see `ftlab.stages.stage.Hooks`."""

    def __init__(self, run: Run, records: Records, evaluations: Evaluations, loaded: LoadedModel) -> None:
        self.records, self.evaluations, self.loaded = records, evaluations, loaded
        self.stop, self.ranks, self.checkpoints = run.stop, run.ranks, run.checkpoints
        self.trace = run.folder / "profile" / "trace.json"
        self.vram_limit_gib = run.trial.vram_limit_gib if run.trial else None
        self.note, self.warn, self.record = run.terminal.note, run.terminal.warn, records.step

    def evaluate(self, step: int) -> Scores:
        """Score the model on validation."""
        return self.evaluations.on_validation(self.loaded, step)

    @contextmanager
    def training(self, steps: int, done: int, epochs: float) -> Iterator[None]:
        """Show and record the training; evaluations from before a resume are reported to the sweep first."""
        summary = self.records.summary
        summary.planned_steps = steps
        self.evaluations.report_recorded()
        with self.records.training(steps, done):
            yield
        summary.epochs = epochs

    def setting(self, setting: StepSetting) -> None:
        """Record the setting of the step, so that a run that ends early has it too."""
        self.records.summary.setting = setting


def train(
    run: Run,
    records: Records,
    evaluations: Evaluations,
    loaded: LoadedModel,
    prepared: Prepared,
    resumed: Checkpoint | None,
) -> Scores:
    """Train, and return the validation scores of the weights that the model has afterwards."""
    summary = records.summary
    if not run.ranks.alone:
        summary.processes = run.ranks.world
    hooks = RunHooks(run, records, evaluations, loaded)
    progress = stages.get(run.cfg.trainer.stage).fit(loaded, prepared.train.rows, run.cfg, hooks, resumed)
    summary.seconds["train"] = round(progress.seconds, 3)
    summary.step, summary.best_step = progress.step, progress.best
    return Scores(progress.metrics, progress.intervals)
