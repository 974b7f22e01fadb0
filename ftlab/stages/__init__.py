"""Ways to train: each module here with an attribute STAGE is one, `trainer.stage` names it."""

from typing import Any

from ftlab import registry


def names() -> list[str]:
    """Every stage that `trainer.stage` may name."""
    return list(_stages())


def get(name: str) -> Any:
    """The stage of that name; KeyError where there is none."""
    return _stages()[name]


def _stages() -> dict[str, Any]:
    return registry.find(__name__, __path__, "STAGE")
