"""The work of the processes after the first one (rank > 0) in a run with several processes."""

from ftlab.composition import Composition
from ftlab.errors import RunDirError
from ftlab.experiment.base import Base
from ftlab.experiment.device import quiet
from ftlab.experiment.evaluations import Evaluations
from ftlab.experiment.interface import Run, silent
from ftlab.experiment.order import prepared_by_all
from ftlab.experiment.records import Records
from ftlab.experiment.training import train
from ftlab.run_dir import RunDir
from ftlab.train.ranks import Ranks


def follow(composition: Composition, ranks: Ranks) -> None:
    """Train together with the first process, without output or records; the first process does everything else.

    Raises:
        RunDirError: this process cannot read the checkpoint from which the first process resumes.
        ConfigError: this process reads other data.
    """
    with silent() as terminal:
        run = Run(composition, RunDir(composition.config.run_dir), terminal, ranks.stop, ranks=ranks)
        quiet()
        records, prepared = Records(run), prepared_by_all(run)
        step = ranks.broadcast_from_first(lambda: None)
        resumed = None if step is None else run.checkpoints.at(step)
        if step is not None and resumed is None:
            raise RunDirError(
                f"run_dir={run.cfg.run_dir}: process {ranks.rank} cannot find the checkpoint of step {step}, from "
                "which process 0 resumes. Choose a run_dir=DIR on a file system that all hosts share"
            )
        with records.explain_oom("load"):
            base = Base(run, records)
            loaded = base.load(prepared)
        with records.explain_oom("train"):
            train(run, records, Evaluations(run, records, prepared), base.adapt(loaded), prepared, resumed)
