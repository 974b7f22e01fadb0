"""Rows that installed packages provide: each entry point of the group `ftlab.sources` is a source, and so is each
module here with an attribute SOURCE; `data.source` names it.

Rows of files and of the Hub (`data.source=table`) and rows that tasks generate are not listed here.
"""

from ftlab.registry import Registry
from ftlab.sources.source import RowSource

__all__ = ["RowSource", "broken", "get", "names", "providers", "unknown", "usable"]

_registry: Registry[RowSource] = Registry("data.source", __name__, "SOURCE", "ftlab.sources.source:RowSource")
names, get, unknown, providers = _registry.names, _registry.get, _registry.unknown, _registry.providers
usable, broken = _registry.usable, _registry.broken
