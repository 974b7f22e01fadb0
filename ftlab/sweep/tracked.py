"""The study as a run of its own at the tracker: leaderboard, counts and the report page, beside the trials' runs."""

from dataclasses import replace

from ftlab import trackers
from ftlab.config import TrackerConfig
from ftlab.sweep import tables
from ftlab.sweep.study import Study
from ftlab.sweep.study_report import Report
from ftlab.terminal import Terminal


def record(study: Study, found: Report, cfg: TrackerConfig, terminal: Terminal) -> None:
    """Record how the study stands; once for each number of finished trials, always in the same run."""
    counts = study.counts()
    before = study.optuna.user_attrs.get("tracked", {})
    if cfg.name == "none" or before.get("finished") == counts.finished:
        return
    tracker = trackers.open(
        replace(cfg, group=study.name, job_type="study", tags=[*cfg.tags, "study"]),
        study.folder,
        study.name,
        {"space": study.space.record(), "objectives": study.objectives, "fixed": list(study.fixed)},
        before.get("id"),
        terminal.warn,
    )
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
    study.optuna.set_user_attr("tracked", {"id": tracker.id, "finished": counts.finished})
    line = tracker.close()
    if line:
        terminal.note(line)
