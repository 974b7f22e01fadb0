"""Training stages, such as supervised fine-tuning: each module here with an attribute STAGE, and each entry point of
the group `ftlab.stages`. `trainer.stage` names one of them."""

from typing import Any

from ftlab.registry import Registry

__all__ = ["broken", "get", "names", "own", "providers", "unknown", "usable"]

_registry: Registry[Any] = Registry("trainer.stage", __name__, "STAGE", "ftlab.stages.stage:Stage")
names, get, unknown, providers = _registry.names, _registry.get, _registry.unknown, _registry.providers
usable, broken, own = _registry.usable, _registry.broken, _registry.own
