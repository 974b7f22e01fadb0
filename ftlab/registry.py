"""Parts by name: those that ftlab ships, and those that installed packages add by an entry point.

A part of ftlab is a module of a package that holds an object of a given name (`ftlab/tasks/sql.py: TASK`). A part of
another package is an entry point (`[project.entry-points."ftlab.tasks"] shout = "mypackage.shout:TASK"`). It is
imported when it is asked for, so that a broken one hinders nothing else.
"""

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Generic, TypeVar, cast

from ftlab.errors import ConfigError, first_line

T = TypeVar("T")
OWN = "ftlab"  # the package that ftlab's own parts come from
# What brings a part that is not installed, by its group and name.
KNOWN: dict[str, dict[str, str]] = {"ftlab.trackers": {"tensorboard": "pip install 'ftlab[tensorboard]'"}}


@dataclass(frozen=True)
class Provider:
    """Where a part comes from: a distribution, and the module or `module:attribute` in it."""

    package: str
    target: str

    def __str__(self) -> str:
        return self.target if self.package == OWN else f"{self.target} of the package {self.package}"


class Registry(Generic[T]):
    """The parts of one kind, such as the tasks, by the names that a key of the configuration has for them."""

    def __init__(self, key: str, package: str, attribute: str) -> None:
        """`key` names a part in a configuration (`data.task`). `package` is the package of ftlab whose modules hold
        parts, as `attribute`; a folder added to its `__path__` adds its modules. The entry points' group has its name.
        """
        self.key = key
        self.package = package
        self.attribute = attribute
        self._broken: tuple[object, dict[str, str]] | None = None  # of the places where parts were looked for

    def names(self) -> list[str]:
        """Every name, in alphabetical order, those of parts that turn out to be broken included."""
        return sorted(self.providers())

    def providers(self) -> dict[str, list[Provider]]:
        """Where each name comes from: one place, unless several packages use it."""
        return _providers(self.package, self.attribute, *self._searched())

    def get(self, name: str) -> T:
        """The part of that name.

        Raises:
            KeyError: there is none.
            ConfigError: it cannot be imported, its object has another name, or several packages use the name.
        """
        providers = self.providers()[name]
        chosen = f"{self.key}={name}"
        if len(providers) > 1:
            packages = " and ".join(provider.package for provider in providers)
            raise ConfigError(f"{chosen} is ambiguous: the packages {packages} both bring it; uninstall one of them")
        (provider,) = providers
        module, _, attribute = provider.target.partition(":")
        try:
            part = getattr(importlib.import_module(module), attribute or self.attribute)
        except Exception as error:  # whatever a part from outside does when it is imported
            why = f"{type(error).__name__}: {first_line(error)}"
            remedy = (
                "repair or remove it" if provider.package == OWN else f"repair it, or pip uninstall {provider.package}"
            )
            raise ConfigError(f"{chosen}: {provider} cannot be imported ({why}): {remedy}") from error
        if part.name != name:  # a configuration could not name it
            raise ConfigError(f"{chosen}: {provider} calls itself {part.name}: both must have one name")
        return cast(T, part)

    def unknown(self, name: str) -> str:
        """What to say of a name that no part has: what to install for it where that is known, or the names like it."""
        chosen, there = f"{self.key}={name}", f"There are: {', '.join(self.names())}"
        if bring := KNOWN.get(self.package, {}).get(name):
            return f"{chosen} is not installed: {bring}. {there}"
        return f"{chosen} is not known.{nearest(name, self.names())} {there}"

    def usable(self) -> list[T]:
        """Every part that `get` returns, in alphabetical order of names; the others are left out."""
        broken = self.broken()
        return [self.get(name) for name in self.names() if name not in broken]

    def broken(self) -> dict[str, str]:
        """Why `get` refuses a name, for each that it does; each part is tried once a process."""
        searched = self._searched()
        if self._broken is None or self._broken[0] != searched:
            self._broken = searched, dict(self._refused())
        return self._broken[1]

    def _refused(self) -> Iterator[tuple[str, str]]:
        for name in self.names():
            try:
                self.get(name)
            except ConfigError as error:
                yield name, str(error)

    def _searched(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Where parts are looked for: the folders of ftlab's own, and those of installed packages."""
        return tuple(sys.modules[self.package].__path__), tuple(sys.path)


def nearest(name: str, names: Iterable[str]) -> str:
    """` Did you mean: …?` with the names most like one; empty where none is."""
    near = difflib.get_close_matches(str(name).lower(), list(names), n=3, cutoff=0.5)
    return f" Did you mean: {', '.join(near)}?" if near else ""


@lru_cache(maxsize=64)
def _providers(package: str, attribute: str, own: tuple[str, ...], path: tuple[str, ...]) -> dict[str, list[Provider]]:
    """`Registry.providers`; `path` is where `entry_points` looks by itself."""
    modules = sorted(module.name for module in pkgutil.iter_modules(own))
    found = {name: [Provider(OWN, f"{package}.{name}")] for name in modules if _has(f"{package}.{name}", attribute)}
    for point in entry_points(group=package):
        brought_by = point.dist.name if point.dist else "?"
        if brought_by != OWN:
            found.setdefault(point.name, []).append(Provider(brought_by, point.value))
    return found


def _has(module: str, attribute: str) -> bool:
    """Whether a module holds a part. One that cannot be imported is taken for one: whoever names it is told why."""
    try:
        return hasattr(importlib.import_module(module), attribute)
    except Exception:  # whatever a module does when it is imported; `get` says what
        return True
