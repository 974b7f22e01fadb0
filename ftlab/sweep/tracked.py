"""The study as a run of its own in the trackers: leaderboard, counts and the report page, beside the trials' runs."""

from collections.abc import Mapping
from typing import Any

from ftlab import trackers
from ftlab.sweep import tables
from ftlab.sweep.study import Study
from ftlab.sweep.study_report import Report
from ftlab.terminal import Terminal


def record(study: Study, found: Report, node: Mapping[str, Any], terminal: Terminal) -> None:
    """Record the state of the study in the trackers that the node `tracker` chooses: once for each number of finished
    trials, always in the same run."""
    chosen, counts = trackers.settings(node), study.counts()
    before = study.optuna.user_attrs.get("tracked", {})
    if not chosen.chosen or before.get("finished") == counts.finished:
        return
    config = {"space": study.space.record(), "objectives": study.objectives, "fixed": list(study.fixed)}
    start = trackers.Start(
        study.folder, study.name, config, group=study.name, tags=("study",), kind="study", warn=terminal.warn
    )
    ids = before.get("ids") or ({"wandb": before["id"]} if before.get("id") else {})  # "id" is of an earlier version
    tracker = trackers.Trackers(chosen, start, ids=ids)
    board = tables.leaderboard(found.sweep)
    tracker.table("leaderboard", list(board.head), [list(row) for row in board.rows], counts.finished)
    tracker.page("report", study.folder / "report.html", counts.finished)
    best = study.best()
    tracker.summary(
        {
            "complete": counts.complete,
            "pruned": counts.pruned,
            "failed": counts.failed,
            **({f"best/{key}": value for key, value in best.params.items()} if best else {}),
            **(dict(zip(study.objectives, best.values, strict=True)) if best and best.values else {}),
        }
    )
    study.optuna.set_user_attr("tracked", {"ids": tracker.ids, "finished": counts.finished})
    for line in tracker.close():
        terminal.note(line)
