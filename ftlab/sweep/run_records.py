"""What a trial's run folder adds to the study: intervals, steps, answers on validation."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ftlab import declared
from ftlab.metrics import name_of
from ftlab.run_dir import RunDir
from ftlab.summary import Summary
from ftlab.sweep.entry import Answer, Entry
from ftlab.sweep.statistics import over_seeds
from ftlab.tasks import Task
from ftlab.terminal import percent, span


def runs(folder: Path) -> list[RunDir]:
    """The runs of a trial: its folder, or one below it for each seed, by seed."""
    if (folder / "config.yaml").is_file():
        return [RunDir(folder)]
    seeds = [path for path in folder.glob("seed-*") if path.name[5:].isdigit() and (path / "config.yaml").is_file()]
    return [RunDir(path) for path in sorted(seeds, key=lambda path: int(path.name[5:]))]


def completed(entry: Entry, runs: list[RunDir], metric: str, seeds: int, deviation: float | None) -> Entry:
    """The trial with what its runs recorded of its first objective. `seeds`: runs it has when it is complete;
    `deviation`: the standard deviation between them, where there are several."""
    summaries = [run.summary for run in runs]
    if not summaries:
        return entry
    done = [summary.step for summary in summaries if summary.step is not None]
    planned = summaries[0].planned_steps
    entry = replace(
        entry,
        step=sum(done) if done else None,
        planned=seeds * planned if planned else None,
        sources=summaries[0].known_sources,
    )
    if not entry.scored:
        return entry
    if deviation is not None:
        reaches = [reach for reach in (_reach(summary, metric) for summary in summaries) if reach]
        between = over_seeds(entry.values[0], deviation, seeds, reaches, rate=declared.of(metric).is_rate)
        return replace(entry, interval=between, note=f"{seeds} seeds")
    told = answers(runs[0], metric, _rows_of(entry))
    rate = sum(answer.hit for answer in told.values()) / max(1, len(told))
    same = abs(rate - entry.values[0]) < 1e-9  # an evaluation on other data is none of this score
    between = summaries[0].intervals.tuned.get(metric)
    return replace(entry, interval=between, answers=told if same else {}, test=_on_test(summaries[0], metric))


def _rows_of(entry: Entry) -> str:
    """A name for the rows that a trial was validated on: those of other rows are not paired."""
    return str(entry.sources.get("validation", {}).get("sha256", ""))


def _on_test(summary: Summary, metric: str) -> str:
    """What a run scored on test, in words; empty where the metric has no such counterpart."""
    name = metric.replace("eval/", "test/")
    value, between = summary.tuned.get(name), summary.intervals.tuned.get(name)
    if name == metric or value is None:
        return ""
    if not declared.of(name).is_rate:
        return f"{name} {value:.4f}"
    return f"{name} {percent(value)}" + (f" (95 %: {span(between)})" if between else "")


def _reach(summary: Summary, metric: str) -> tuple[float, float] | None:
    """How far the interval of a run's metric reaches below and above its value."""
    between, value = summary.intervals.tuned.get(metric), summary.tuned.get(metric)
    return None if between is None or value is None else (value - between[0], between[1] - value)


def answers(run: RunDir, metric: str, of: str = "") -> dict[str, Answer]:
    """What each row of validation adds to a metric, `of` which rows these are part of its name, from what `ftlab eval
    run=DIR split=validation` wrote last; empty where it has not been asked, or the metric is no rate of rows."""
    task = declared.task_of(metric) if declared.of(metric).field else None
    for file in run.evaluated() if task else []:
        rows = run.read_rows(f"evaluations/{file.name}")
        if task and rows and all(row.get("split") == "eval" for row in rows):
            return _judged(rows, task, name_of(metric), of)
    return {}


def _judged(rows: list[dict[str, Any]], task: Task, metric: str, of: str) -> dict[str, Answer]:
    try:
        judgements = {of + json.dumps(row.get("id"), sort_keys=True): task.read(row) for row in rows}
    except KeyError:
        return {}
    return {
        name: Answer(found.hits[metric], found.cluster or name)
        for name, found in judgements.items()
        if metric in found.hits
    }
