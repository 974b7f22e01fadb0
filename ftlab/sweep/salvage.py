"""Rebuilds a study with a damaged database from the folders of its trials.

The folder of a finished trial holds its parameters, scores and the evaluations reported to the pruner. An unfinished
trial is resumed in its folder. What only the database held is lost: failed trials with their causes, and the state of
stateful samplers.
"""

import statistics
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState, create_trial

from ftlab.errors import InputError
from ftlab.run_dir import RunDir
from ftlab.summary import Summary
from ftlab.sweep.study import Study

Attributes = dict[str, Any]


def refill(study: Study) -> str:
    """Add the trials of the folders, under their numbers, to a new study without trials. Returns a summary."""
    numbers = {int(path.name) for path in study.folder.iterdir() if path.name.isdigit() and path.is_dir()}
    made = [trial_of(study, number) if number in numbers else _gap() for number in range(max(numbers, default=-1) + 1)]
    for trial in made:
        study.optuna.add_trial(trial)
    states = [trial.state for trial in made]
    ended, waiting = (
        states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED),
        states.count(TrialState.WAITING),
    )
    return f"{ended} finished trials restored from their folders, {waiting} to resume; failed ones are lost"


def trial_of(study: Study, number: int) -> FrozenTrial:
    """The trial of a folder: finished as recorded, or waiting to be resumed."""
    folder = study.folder / str(number)
    runs = [RunDir(path) for path in sorted(folder.glob("seed-*"))] or [RunDir(folder)]
    try:
        params = study.space.params_of(_overrides(runs[0]))
    except InputError:  # its parameters are lost
        return _gap()
    common: Attributes = {"params": params, "distributions": study.space.distributions()}
    ends = [run.done(None) or run.ended_pruned() for run in runs]
    reported = {step: study.reported(value) for step, value in _rungs(study, runs[0]).items()}
    if any(end is not None and end.status == "pruned" for end in ends):
        return create_trial(state=TrialState.PRUNED, intermediate_values=reported, **common)
    whole = [end for end in ends if end is not None]
    if len(whole) < max(1, study.cfg.seeds):
        return create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": params}, **common)
    seeds = [[end.metrics[name] for name in study.objectives] for end in whole]
    return create_trial(
        state=TrialState.COMPLETE,
        values=[statistics.fmean(values) for values in zip(*seeds, strict=True)],
        intermediate_values={} if study.cfg.pruner == "wilcoxon" else reported,
        user_attrs=_attributes(whole, seeds),
        **common,
    )


def _attributes(ends: list[Summary], seeds: list[list[float]]) -> Attributes:
    """The user attributes that a trial sets when it is complete."""
    losses = [end.metrics["eval/loss"] for end in ends if "eval/loss" in end.metrics]
    found: Attributes = {"loss": statistics.fmean(losses)} if losses else {}
    if len(seeds) > 1:
        found["seed_values"] = seeds
        found["deviation"] = [statistics.stdev(values) for values in zip(*seeds, strict=True)]
    return found


def _rungs(study: Study, run: RunDir) -> dict[int, float]:
    """The values reported to the pruner, by optimizer step."""
    name = study.cfg.rung_metric
    return {row["step"]: float(row[name]) for row in run.read_metrics() if row.get(name) is not None}


def _overrides(run: RunDir) -> list[str]:
    """The overrides that a run was composed from.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        found = yaml.safe_load((run / ".hydra/overrides.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, list):
        raise InputError(f"{run.path}: its overrides are lost")
    return [str(text) for text in found]


def _gap() -> FrozenTrial:
    """A placeholder for a number without a folder, so that later trials keep their numbers; it is never counted."""
    return create_trial(state=TrialState.FAIL, user_attrs={"surplus": True})
