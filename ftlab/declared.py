"""All declared metrics, found by key: those of every run, of each task and of each stage."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ftlab import stages, tasks
from ftlab.metrics import RUN, Metric, name_of
from ftlab.tasks import Task


def of(key: str) -> Metric:
    """Return the metric of a key (`eval/loss`, `test/sql_ast_match/nested`, `train/lr`). An unknown key, such as of a
    task that is not installed, gets a plain metric with its name as the title and no direction.
    """
    name = name_of(key)
    found = _own().get(name) or _every().get(name)
    return found.metric if found else Metric(name, name, "")


def task_of(key: str) -> Task | None:
    """Return the task that declares the metric of a key, or None."""
    name = name_of(key)
    found = (task for task in tasks.usable() if any(metric.name == name for metric in task.metrics))
    return next(found, None)


def known() -> list[Metric]:
    """Return every metric, in the order in which tables show them: the run's, the stages', the tasks'."""
    return [found.metric for found in _every().values()]


def objectives(task: str | None = None, stage: str | None = None) -> dict[str, Metric]:
    """Return the metrics that `objective` and `sweep.rung_metric` may name, by key: metrics on validation, of one task
    and one stage or of all of them."""
    parts = [*([tasks.get(task)] if task else tasks.usable()), *([stages.get(stage)] if stage else stages.usable())]
    found: dict[str, Metric] = {}
    for metric in (metric for part in parts for metric in part.metrics if metric.objective):
        found.setdefault(f"eval/{metric.name}", metric)
    return found


def costs() -> dict[str, Metric]:
    """Return the numbers of a run that a sweep may also optimise, by key."""
    return {metric.name: metric for metric in RUN if metric.objective}


def in_order(keys: Iterable[str]) -> list[str]:
    """Return the keys of one split in the order of tables: rates first, metrics without a direction last. Keys for
    single kinds of row are left out, and so are metrics that are hidden by another one (`Metric.hidden_by`)."""
    metrics = {key: of(key) for key in keys if key.count("/") == 1}
    own = list(_own())  # the first of all, so that no other package is imported for metrics of ftlab
    known_names = own if all(metric.name in own for metric in metrics.values()) else list(_every())
    present = {metric.name for metric in metrics.values()}
    shown = [key for key, metric in metrics.items() if metric.hidden_by not in present]

    def place(key: str) -> tuple[bool, bool, int, str]:
        metric = metrics[key]
        at = known_names.index(metric.name) if metric.name in known_names else len(known_names)
        return metric.direction is None, not metric.is_rate, at, key

    return sorted(shown, key=place)


def markdown() -> str:
    """Return the table of keys in docs/metrics.md; `python -m ftlab.declared` prints it."""
    lines = ["| key | what | unit | better |", "| --- | --- | --- | --- |"]
    better = {"maximize": "more", "minimize": "less", None: ""}
    for metric in known():
        alone = metric.by_bucket and not metric.field  # computed only for single kinds of row
        keys = [] if alone else [f"`{key}`" for key in metric.keys]
        keys += [f"`eval/{metric.name}/KIND`"] if metric.by_bucket else []
        lines.append(f"| {', '.join(keys)} | {metric.help} | {metric.unit} | {better[metric.direction]} |")
    return "\n".join(lines)


def refused(task: str | None, stage: str | None) -> list[str]:
    """Why a task and a stage cannot be chosen: one declares a metric otherwise than another part does, by whose
    declaration the metric would be shown."""
    chosen = {f"data.task={task}": tasks.get(task)} if task else {}
    chosen |= {f"trainer.stage={stage}": stages.get(stage)} if stage else {}
    own = {*map(id, tasks.own()), *map(id, stages.own())}
    others = _own() if all(id(part) in own for part in chosen.values()) else _every()
    return [
        f"{part} and {others[metric.name].part} declare the metric {metric.name} differently: rename it in {part}"
        for part, declaring in chosen.items()
        for metric in declaring.metrics
        if metric.name in others and others[metric.name].metric != metric
    ]


@dataclass(frozen=True)
class Declaration:
    """A metric, and the part that declares it, by what chooses the part."""

    part: str
    metric: Metric


def _own() -> dict[str, Declaration]:
    """The metrics of ftlab's own parts, for which no other package is imported."""
    return _collected(tuple(tasks.own()), tuple(stages.own()))


def _every() -> dict[str, Declaration]:
    """Those of all parts, the first declaration of each name: ftlab's own before those of other packages."""
    own_tasks, own_stages = tasks.own(), stages.own()
    return _collected(
        (*own_tasks, *(task for task in tasks.usable() if task not in own_tasks)),
        (*own_stages, *(stage for stage in stages.usable() if stage not in own_stages)),
    )


@lru_cache(maxsize=16)
def _collected(known_tasks: Sequence[Task], known_stages: Sequence[Any]) -> dict[str, Declaration]:
    parts: dict[str, Iterable[Metric]] = {"every run": RUN}
    parts |= {f"trainer.stage={stage.name}": stage.metrics for stage in known_stages}
    parts |= {f"data.task={task.name}": task.metrics for task in known_tasks}
    found: dict[str, Declaration] = {}
    for part, metrics in parts.items():
        for metric in metrics:
            found.setdefault(metric.name, Declaration(part, metric))
    return found


if __name__ == "__main__":
    print(markdown())
