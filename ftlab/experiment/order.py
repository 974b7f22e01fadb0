"""One experiment, top to bottom: data, base, its scores, adapter, training, scores again, records."""

from ftlab import provenance
from ftlab.composition import Composition, to_tree
from ftlab.config import ExperimentConfig
from ftlab.disk import room_for
from ftlab.errors import Pruned
from ftlab.evaluate import prediction_rows
from ftlab.experiment import result
from ftlab.experiment.base import Base, checkin
from ftlab.experiment.device import quiet
from ftlab.experiment.evaluations import Evaluations, report_ended
from ftlab.experiment.interface import Outcome, Run, Trial
from ftlab.experiment.prepare import Prepared, prepare
from ftlab.experiment.records import Records
from ftlab.experiment.training import train
from ftlab.rules import check
from ftlab.run_dir import RunDir
from ftlab.run_report import report_finished, report_pruned
from ftlab.summary import Summary
from ftlab.terminal import Terminal
from ftlab.train.ranks import Ranks
from ftlab.train.signals import StopSignal


def run(
    experiment: ExperimentConfig | Composition, terminal: Terminal | None = None, trial: Trial | None = None
) -> Outcome:
    """Run an experiment, resume it, or show its result if its folder holds it finished or pruned.

    Raises:
        InputError: configuration, data, weights or run folder cannot be used.
        TrainingError: training cannot go on; the last good checkpoint stays.
        Stopped: SIGTERM or SIGINT was received; the same call resumes the run.
    """
    composition = experiment if isinstance(experiment, Composition) else bare(experiment)
    with RunDir(composition.config.run_dir).claim() as folder:
        folder.check_same(composition.tree, composition.config.force)
        return run_in(folder, composition, terminal or Terminal(), trial)


def bare(cfg: ExperimentConfig) -> Composition:
    """Wrap a configuration that was made in Python, without Hydra."""
    return Composition(check(cfg), to_tree(cfg), {}, [], set())


def run_in(
    folder: RunDir,
    composition: Composition,
    terminal: Terminal,
    trial: Trial | None = None,
    ranks: Ranks | None = None,
) -> Outcome:
    """Do `run` in a folder that this process has claimed and checked. With several `ranks`, the others `follow`."""
    ended = _ended(folder, composition, terminal)
    if ended:
        report_ended(folder, trial)
        return Outcome(ended.metrics, ended, folder.path)
    with (ranks.stop if ranks else StopSignal()).caught() as stop:
        return _lead(Run(composition, folder, terminal, stop, trial, ranks or Ranks()))


def _ended(folder: RunDir, composition: Composition, terminal: Terminal) -> Summary | None:
    """Show the run if the folder holds it finished or pruned, and return its summary."""
    cfg = composition.config
    finished = None if cfg.force else folder.done(cfg.trainer.max_steps)
    pruned = None if cfg.force or finished else folder.pruned(composition.tree)
    if finished or pruned:
        provenance.check_reported(folder, cfg, terminal)
    if finished:
        report_finished(folder, finished, terminal)
    elif pruned:
        report_pruned(folder, pruned, terminal)
    return finished or pruned


def _lead(run: Run) -> Outcome:
    """Run the experiment and record in summary.json how it ended, whatever happens."""
    quiet()
    records = Records(run)
    try:
        with room_for(f"run_dir={run.folder.path}", run.folder.path):
            return _in_order(run, records)
    except BaseException as error:
        records.ended_early(error)
        raise


def _in_order(run: Run, records: Records) -> Outcome:
    cfg, terminal = run.cfg, run.terminal
    terminal.config(run.composition.tree, run.composition.changed)
    with records.phase("data"), run.at_once():
        prepared = prepared_by_all(run)
    records.begin(prepared)
    records.describe(prepared)
    resumed = run.checkpoints.newest()
    run.ranks.broadcast_from_first(lambda: resumed and resumed.step)
    records.open_tracker(resumed)
    evaluations = Evaluations(run, records, prepared)
    with records.phase("load"), run.at_once():
        base = Base(run, records)
        loaded = base.load(prepared)
    if resumed or records.summary.base:
        base.record_files(resumed=True)
    base_scores = None if run.trial else evaluations.of_base(loaded, before_kept=base.record_files)
    base.record_files()
    with records.explain_oom("adapter"), run.at_once():
        loaded = base.adapt(loaded)
    try:
        with terminal.phase("train"), records.meter.phase("train"), records.explain_oom("train"):
            validation = train(run, records, evaluations, loaded, prepared, resumed)
    except Pruned as reason:
        last, step = evaluations.newest()
        outcome = records.prune(str(reason), last, step)
        evaluations.keep_answers(step)
        checkin(run, loaded.model)
        return outcome
    test = None if run.trial else evaluations.of(loaded, prepared.test, "evaluate tuned on test")
    for scores in (validation, test):
        if scores:
            records.add_scores("tuned", scores)
    with records.explain_oom("save"):
        result.save(loaded.model, prepared.tokenizer, base.located, run.folder, cfg, records.summary)
    if run.trial:
        best = records.summary.best_step if cfg.trainer.load_best else None
        evaluations.keep_answers(int(records.summary.step or 0) if best is None else best)
        checkin(run, loaded.model)
    return records.finish(validation, prediction_rows(prepared.test, base_scores, test) if test else [])


def prepared_by_all(run: Run) -> Prepared:
    """Read data and tokenizer, in the first process before the others, and check that all processes read the same rows.

    Raises:
        ConfigError: another process reads other data.
    """
    with run.ranks.first_before_others():
        prepared = prepare(run.cfg)
    run.ranks.check_same({"the data's sha256": prepared.splits.sha256})
    return prepared
