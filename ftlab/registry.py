"""Parts that are found, not listed: every module of a package that holds an object of a given name."""

import importlib
import pkgutil
from collections.abc import Iterable
from functools import lru_cache
from typing import Any


def find(package: str, path: Iterable[str], attribute: str) -> dict[str, Any]:
    """The objects called `attribute` in the modules of a package, by module, in alphabetical order.

    `path` is the package's `__path__`: a folder added to it adds its modules. Modules without the attribute are left
    out.
    """
    return _find(package, tuple(path), attribute)


@lru_cache(maxsize=16)
def _find(package: str, path: tuple[str, ...], attribute: str) -> dict[str, Any]:
    modules = sorted(module.name for module in pkgutil.iter_modules(path))
    found = {name: getattr(importlib.import_module(f"{package}.{name}"), attribute, None) for name in modules}
    return {name: part for name, part in found.items() if part is not None}
