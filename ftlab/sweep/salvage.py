"""A study whose database is damaged, made anew from the folders of its trials.

A trial that ended is in its folder with its parameters, its scores and the evaluations that its pruner heard of; one
that was under way goes on there. What only the database knew is lost: failed trials and their causes, and the state of
samplers that keep one.
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
    """Give a new study, without any trial, those of the folders, under their numbers; a line that counts them."""
    numbers = {int(path.name) for path in study.folder.iterdir() if path.name.isdigit() and path.is_dir()}
    made = [trial_of(study, number) if number in numbers else _gap() for number in range(max(numbers, default=-1) + 1)]
    for trial in made:
        study.optuna.add_trial(trial)
    states = [trial.state for trial in made]
    ended, waiting = (
        states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED),
        states.count(TrialState.WAITING),
    )
    return (
        f"{ended} finished trials taken from their folders, {waiting} to go on; failed ones and their causes are lost"
    )


def trial_of(study: Study, number: int) -> FrozenTrial:
    """The trial of a folder: as it ended, or to go on where it has not."""
    folder = study.folder / str(number)
    runs = [RunDir(path) for path in sorted(folder.glob("seed-*"))] or [RunDir(folder)]
    try:
        params = study.space.params_of(_overrides(runs[0]))
    except InputError:  # not known any more
        return _gap()
    common: Attributes = {"params": params, "distributions": study.space.distributions()}
    ends = [run.done(None) or run.ended_pruned() for run in runs]
    heard = {step: study.reported(value) for step, value in _rungs(study, runs[0]).items()}
    if any(end is not None and end.status == "pruned" for end in ends):
        return create_trial(state=TrialState.PRUNED, intermediate_values=heard, **common)
    whole = [end for end in ends if end is not None]
    if len(whole) < max(1, study.cfg.seeds):
        return create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": params}, **common)
    seeds = [[end.metrics[name] for name in study.objectives] for end in whole]
    return create_trial(
        state=TrialState.COMPLETE,
        values=[statistics.fmean(values) for values in zip(*seeds, strict=True)],
        intermediate_values={} if study.cfg.pruner == "wilcoxon" else heard,
        user_attrs=_attributes(whole, seeds),
        **common,
    )


def _attributes(ends: list[Summary], seeds: list[list[float]]) -> Attributes:
    """What a trial says of itself at its end."""
    losses = [end.metrics["eval/loss"] for end in ends if "eval/loss" in end.metrics]
    found: Attributes = {"loss": statistics.fmean(losses)} if losses else {}
    if len(seeds) > 1:
        found["seed_values"] = seeds
        found["deviation"] = [statistics.stdev(values) for values in zip(*seeds, strict=True)]
    return found


def _rungs(study: Study, run: RunDir) -> dict[int, float]:
    """The values that the pruner heard of, by optimizer step."""
    name = study.cfg.rung_metric
    return {row["step"]: float(row[name]) for row in run.read_metrics() if row.get(name) is not None}


def _overrides(run: RunDir) -> list[str]:
    """The overrides that a run was composed from.

    Raises:
        InputError: they are not there.
    """
    try:
        found = yaml.safe_load((run / ".hydra/overrides.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        found = None
    if not isinstance(found, list):
        raise InputError(f"{run.path}: its overrides are lost")
    return [str(text) for text in found]


def _gap() -> FrozenTrial:
    """Stands for a number without a folder, so that the next ones keep theirs; counts nowhere."""
    return create_trial(state=TrialState.FAIL, user_attrs={"surplus": True})
