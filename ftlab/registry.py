"""Parts that are found, not listed: every module of a package that holds an object of a given name."""

import importlib
import pkgutil
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from ftlab.errors import InputError, first_line


def find(package: str, path: Iterable[str], attribute: str) -> dict[str, Any]:
    """The objects called `attribute` in the modules of a package, by module, in alphabetical order.

    `path` is the package's `__path__`: a folder added to it adds its modules. Modules without the attribute are left
    out.

    Raises:
        InputError: a module cannot be imported, or its object has another name.
    """
    return _find(package, tuple(path), attribute)


@lru_cache(maxsize=16)
def _find(package: str, path: tuple[str, ...], attribute: str) -> dict[str, Any]:
    modules = sorted(module.name for module in pkgutil.iter_modules(path))
    found = {name: getattr(_imported(f"{package}.{name}"), attribute, None) for name in modules}
    for name, part in found.items():
        if part is not None and part.name != name:  # a configuration could not name it
            raise InputError(f"the module {package}.{name} calls itself {part.name}: both must have one name")
    return {name: part for name, part in found.items() if part is not None}


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever a part from outside does when it is imported
        raise InputError(
            f"the module {module} cannot be imported ({type(error).__name__}: {first_line(error)}): mend or remove it"
        ) from error
