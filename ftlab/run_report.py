"""Prints the result of a finished run: answers, scores and next commands. No torch."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from ftlab import tasks
from ftlab.config import DataConfig
from ftlab.errors import InputError
from ftlab.run_dir import RunDir, tree_of
from ftlab.summary import Summary
from ftlab.tasks.task import Task, right
from ftlab.terminal import Terminal


def report_finished(folder: RunDir, summary: Summary, terminal: Terminal) -> None:
    """Print that the run is finished, and its result again."""
    terminal.note(f"{folder.path} already holds this run, finished; force=true runs it again")
    report_run(folder, summary, terminal)


def report_pruned(folder: RunDir, summary: Summary, terminal: Terminal) -> None:
    """Print at which step a sweep pruned the run, and its scores at that step."""
    terminal.scores({}, summary.tuned, {"tuned": summary.intervals.tuned})
    where = f"pruned at step {summary.step} of {summary.planned_steps}"
    terminal.note(f"{folder.path} holds this run, {where}; force=true runs it to the end")


def report_run(folder: RunDir, summary: Summary, terminal: Terminal, tracker_lines: Sequence[str] = ()) -> None:
    """Print answers, scores and next commands. A tracker's line is a command, or a note that holds a URL."""
    task = task_of(folder)
    terminal.predictions(folder.read_rows("predictions.jsonl"), right(task) if task else ())
    terminal.scores(summary.base, summary.tuned, {"base": summary.intervals.base, "tuned": summary.intervals.tuned})
    where = folder.path
    terminal.note(f"everything is in {where}/ (predictions.jsonl, summary.json, metrics.jsonl)")
    run = shlex.quote(f"run={where}")
    asked = "".join(f' {name}="{text}"' for name, text in task.sample.items()) if task else ""
    commands = [
        f"python -m ftlab predict {run}{asked}",
        f"python -m ftlab eval {run} split=validation",
        "python -m ftlab runs" + ("" if where.parent == Path("outputs") else f" {shlex.quote(str(where.parent))}"),
    ]
    for line in tracker_lines:
        if "://" in line:
            terminal.note(line)
        else:
            commands.append(line)
    terminal.next_commands(commands)


def task_of(folder: RunDir) -> Task | None:
    """Return the task of a run; None if its configuration is damaged or the task is not installed."""
    try:
        name = tree_of(folder).get("data", {}).get("task", DataConfig.task)
        return tasks.get(name)
    except (InputError, KeyError, AttributeError):
        return None
