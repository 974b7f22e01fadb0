"""Tasks that a model is trained and scored on: each module here with an attribute TASK is one, and so is each entry
point of the group `ftlab.tasks`.

`data.task` names it. A task is defined in one module or one small package; there is no list of them to maintain.
Importing a task imports neither torch nor the libraries that judge answers.
"""

from ftlab.registry import Registry
from ftlab.tasks.task import Judgement, Task

__all__ = ["Judgement", "Task", "broken", "get", "names", "own", "providers", "unknown", "usable"]

_registry: Registry[Task] = Registry("data.task", __name__, "TASK", "ftlab.tasks.task:Task")
names, get, unknown, providers = _registry.names, _registry.get, _registry.unknown, _registry.providers
usable, broken, own = _registry.usable, _registry.broken, _registry.own
