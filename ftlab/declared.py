"""All metrics that a run may have, found by key: those of every run, of each task and of each stage."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ftlab import stages, tasks
from ftlab.metrics import RUN, Metric, name_of
from ftlab.tasks import Task


def of(key: str) -> Metric:
    """The metric of a key (`eval/loss`, `test/sql_ast_match/nested`, `train/lr`). Of an unknown key, as in a run whose
    task is not installed, a plain metric that has its name for a title, and of which neither more nor less is better.
    """
    name = name_of(key)
    return _by_name().get(name) or Metric(name, name, "")


def task_of(key: str) -> Task | None:
    """The task that declares the metric of a key; None where none does."""
    name = name_of(key)
    found = (task for task in tasks.usable() if any(metric.name == name for metric in task.metrics))
    return next(found, None)


def known() -> list[Metric]:
    """Every metric, in the order in which tables show them: the run's, the stages', the tasks'."""
    return list(_by_name().values())


def objectives(task: str | None = None, stage: str | None = None) -> dict[str, Metric]:
    """What `objective` and `sweep.rung_metric` may name, by key: metrics on validation, of one task and one stage or of
    all of them."""
    parts: list[Iterable[Metric]] = [part.metrics for part in ([tasks.get(task)] if task else tasks.usable())]
    parts += [part.metrics for part in ([stages.get(stage)] if stage else stages.usable())]
    names = [metric.name for part in parts for metric in part if metric.objective]
    return {f"eval/{name}": _by_name()[name] for name in names if name in _by_name()}


def costs() -> dict[str, Metric]:
    """Numbers of a run that a sweep may also aim at, by key."""
    return {metric.name: metric for metric in RUN if metric.objective}


def in_order(keys: Iterable[str]) -> list[str]:
    """Keys of one split as tables list them: none by kind of row, rates first, what has no direction last, and of two
    names of one number the one that is shown."""
    known_names = list(_by_name())
    metrics = {key: of(key) for key in keys if key.count("/") == 1}
    present = {metric.name for metric in metrics.values()}
    shown = [key for key, metric in metrics.items() if metric.hidden_by not in present]

    def place(key: str) -> tuple[bool, bool, int, str]:
        metric = metrics[key]
        at = known_names.index(metric.name) if metric.name in known_names else len(known_names)
        return metric.direction is None, not metric.is_rate, at, key

    return sorted(shown, key=place)


def markdown() -> str:
    """The table of keys in docs/metrics.md: `python -m ftlab.declared` prints it."""
    lines = ["| key | what | unit | better |", "| --- | --- | --- | --- |"]
    better = {"maximize": "more", "minimize": "less", None: ""}
    for metric in known():
        alone = metric.by_bucket and not metric.field  # given by kind of row alone
        keys = [] if alone else [f"`{key}`" for key in metric.keys]
        keys += [f"`eval/{metric.name}/KIND`"] if metric.by_bucket else []
        lines.append(f"| {', '.join(keys)} | {metric.help} | {metric.unit} | {better[metric.direction]} |")
    return "\n".join(lines)


def refused(chosen: Iterable[str]) -> list[str]:
    """Why some of the parts that a configuration has chosen (`data.task=shout`) cannot be used: one declares a metric
    otherwise than another part does. Where it is not chosen, such a part has no metrics."""
    found = _collected(*_parts()).refused
    return [found[part] for part in chosen if part in found]


def _by_name() -> dict[str, Metric]:
    return _collected(*_parts()).metrics


def _parts() -> tuple[tuple[Task, ...], tuple[Any, ...]]:
    """Tasks and stages, ftlab's own first: where two declare a metric differently, the first one counts."""
    return (
        tuple(sorted(tasks.usable(), key=lambda task: not tasks.is_own(task.name))),
        tuple(sorted(stages.usable(), key=lambda stage: not stages.is_own(stage.name))),
    )


@dataclass(frozen=True)
class Declarations:
    """All metrics by name, and why a part's are left out, by what chooses the part."""

    metrics: dict[str, Metric]
    refused: dict[str, str]


@lru_cache(maxsize=16)
def _collected(known_tasks: Sequence[Task], known_stages: Sequence[Any]) -> Declarations:
    parts: dict[str, Iterable[Metric]] = {"every run": RUN}
    parts |= {f"trainer.stage={stage.name}": stage.metrics for stage in known_stages}
    parts |= {f"data.task={task.name}": task.metrics for task in known_tasks}
    found: dict[str, Metric] = {}
    owner: dict[str, str] = {}
    refused: dict[str, str] = {}
    for part, metrics in parts.items():
        other = [metric.name for metric in metrics if found.get(metric.name, metric) != metric]
        if other:
            refused[part] = f"{part} declares the metric {other[0]} otherwise than {owner[other[0]]}: rename it"
            continue
        for metric in metrics:
            found.setdefault(metric.name, metric)
            owner.setdefault(metric.name, part)
    return Declarations(found, refused)


if __name__ == "__main__":
    print(markdown())
