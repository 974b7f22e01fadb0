"""What the report reads from a trial's run folder: intervals, steps, answers on validation."""

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
    """The runs of a trial, by seed: its own folder, or one folder below it for each seed."""
    if (folder / "config.yaml").is_file():
        return [RunDir(folder)]
    seeds = [path for path in folder.glob("seed-*") if path.name[5:].isdigit() and (path / "config.yaml").is_file()]
    return [RunDir(path) for path in sorted(seeds, key=lambda path: int(path.name[5:]))]


def completed(entry: Entry, runs: list[RunDir], metric: str, seeds: int, deviation: float | None) -> Entry:
    """The trial with the records of its runs on its first objective. `seeds` is the number of runs of a complete trial,
    `deviation` the standard deviation between them where there are several."""
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
    found = answers(runs[0], metric, _rows_of(entry))
    rate = sum(answer.hit for answer in found.values()) / max(1, len(found))
    same = abs(rate - entry.values[0]) < 1e-9  # else the evaluation was of other data than this score
    between = summaries[0].intervals.tuned.get(metric)
    return replace(entry, interval=between, answers=found if same else {}, test=_on_test(summaries[0], metric))


def _rows_of(entry: Entry) -> str:
    """The hash of the rows that a trial was validated on; answers to other rows must not be paired."""
    return str(entry.sources.get("validation", {}).get("sha256", ""))


def _on_test(summary: Summary, metric: str) -> str:
    """A run's score on the test split as text; empty where the metric has no counterpart there."""
    name = metric.replace("eval/", "test/")
    value, between = summary.tuned.get(name), summary.intervals.tuned.get(name)
    if name == metric or value is None:
        return ""
    if not declared.of(name).is_rate:
        return f"{name} {value:.4f}"
    return f"{name} {percent(value)}" + (f" (95 % interval: {span(between)})" if between else "")


def _reach(summary: Summary, metric: str) -> tuple[float, float] | None:
    """How far the interval of a run's metric reaches below and above its value."""
    between, value = summary.intervals.tuned.get(metric), summary.tuned.get(metric)
    return None if between is None or value is None else (value - between[0], between[1] - value)


def answers(run: RunDir, metric: str, of: str = "") -> dict[str, Answer]:
    """The answer to each validation row by its id, prefixed with `of`, from the latest `ftlab eval run=DIR
    split=validation`; empty where that was never run, or where the metric is not a mean over rows."""
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
