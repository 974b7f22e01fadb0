"""Kinds of work that a model is trained and scored on: each module here with an attribute TASK is one.

`data.task` names it. A task is declared in one module or one small package; nothing lists them by hand. Importing a
task imports neither torch nor what it judges with.
"""

from ftlab import registry
from ftlab.tasks.task import Judgement, Task

__all__ = ["Judgement", "Task", "get", "names"]


def names() -> list[str]:
    """Every task that `data.task` may name."""
    return list(_tasks())


def get(name: str) -> Task:
    """The task of that name; KeyError where there is none."""
    return _tasks()[name]


def _tasks() -> dict[str, Task]:
    return registry.find(__name__, __path__, "TASK")
