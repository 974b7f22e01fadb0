"""Parts (tasks, sources, stages, trackers) by name: those of ftlab, and those that installed packages provide.

A part of ftlab is a module of a package that holds an object of a given name (`ftlab/tasks/sql.py: TASK`). A part of
another package is an entry point (`[project.entry-points."ftlab.tasks"] shout = "mypackage.shout:TASK"`). It is
imported only when it is used, so that a broken one does not affect the others.
"""

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from importlib.metadata import distributions
from operator import attrgetter
from typing import Any, Generic, TypeVar, cast

from ftlab.errors import ConfigError, first_line
from ftlab.metrics import Metric

T = TypeVar("T")
OPTIONS = "options"  # the attribute that holds the dataclass of a part's own settings; optional
OWN = "ftlab"  # the name of the package that provides ftlab's own parts
# How to install a part that is missing, by its group and name.
KNOWN: dict[str, dict[str, str]] = {"ftlab.trackers": {"tensorboard": "pip install 'ftlab[tensorboard]'"}}


@dataclass(frozen=True)
class Provider:
    """Where a part comes from: a package with its version, and the module or `module:attribute` in it."""

    package: str
    target: str
    version: str = ""

    def __str__(self) -> str:
        return self.target if self.package == OWN else f"{self.target} of the package {self.package}"


class Registry(Generic[T]):
    """The parts of one kind, such as the tasks, by the names that a configuration key chooses them by."""

    def __init__(
        self,
        key: str,
        package: str,
        attribute: str,
        protocol: str = "",
        classes: bool = False,
        taken: Collection[str] = (),
    ) -> None:
        """`key` is the configuration key that names a part (`data.task`). `package` is the package of ftlab whose
        modules hold the parts, each as `attribute`; a folder added to its `__path__` adds its modules. The group of
        entry points has the same name. A part must have the members of the class `protocol` (`module:class`), which
        is imported only to check parts of other packages. `classes`: parts are classes, instantiated at each use.
        `taken` are names that have another meaning for the key, which no part can have.
        """
        self.key = key
        self.package = package
        self.attribute = attribute
        self.protocol = protocol
        self.classes = classes
        self.taken = taken
        self._broken: tuple[object, dict[str, str]] | None = None  # by the places that were searched

    def names(self) -> list[str]:
        """Every name in alphabetical order, including those of broken parts."""
        return sorted(self.providers())

    def providers(self) -> dict[str, list[Provider]]:
        """The providers of each name: one, unless several packages use the name."""
        return _providers(self.package, self.attribute, *self._searched())

    def get(self, name: str) -> T:
        """The part of that name.

        Raises:
            KeyError: no part has the name.
            ConfigError: it cannot be imported, is not such a part, has another name, or several packages use the name.
        """
        providers = self.providers()[name]
        chosen = f"{self.key}={name}"
        if len(providers) > 1:
            raise ConfigError(ambiguous(chosen, [provider.package for provider in providers]))
        (provider,) = providers
        if name in self.taken:
            raise ConfigError(f"{chosen}: {provider} has a name with another meaning in ftlab: {_remedy(provider)}")
        try:
            if provider.package == OWN:
                part, wrong = _object(provider.target, self.attribute), ""
            else:
                with redirect_stdout(sys.stderr):  # if a package prints, programs can still read a command's output
                    part = _object(provider.target, self.attribute)
                wrong = self._wrong(part)
        except (Exception, SystemExit) as error:  # code of another package may raise anything
            why = f"{type(error).__name__}: {first_line(error)}"
            raise ConfigError(f"{chosen}: {provider} cannot be imported ({why}): {_remedy(provider)}") from error
        if wrong:
            raise ConfigError(f"{chosen}: {provider} {wrong}: {_remedy(provider)}")
        if part.name != name:  # a configuration could not name it
            raise ConfigError(f"{chosen}: {provider} has the name {part.name}: name the entry point and the part alike")
        return cast(T, part)

    def unknown(self, name: str, beside: Iterable[str] = ()) -> str:
        """The message for a name that no part has: what to install for it if that is known, or the most similar names.
        `beside` are further names that the key accepts."""
        names = [*beside, *self.names()]
        chosen, there = f"{self.key}={name}", f"Available: {', '.join(names)}"
        if install := KNOWN.get(self.package, {}).get(name):
            return f"{chosen} is not installed: {install}. {there}"
        if near := nearest(name, names):
            return f"{chosen} does not exist.{near} {there}"
        return f"{chosen} does not exist. {there}. If a package provides it, install that package"

    def usable(self) -> list[T]:
        """Every part that is not broken, in alphabetical order of names."""
        broken = self.broken()
        return [self.get(name) for name in self.names() if name not in broken]

    def own(self) -> list[T]:
        """Every part of ftlab itself that is not broken; no other package is imported."""
        names = [name for name in self.names() if self.is_own(name)]
        broken = dict(self._refused(names))
        return [self.get(name) for name in names if name not in broken]

    def broken(self) -> dict[str, str]:
        """The reason for each name that `get` refuses; each part is tried once per process."""
        searched = self._searched()
        if self._broken is None or self._broken[0] != searched:
            self._broken = searched, dict(self._refused(self.names()))
        return self._broken[1]

    def is_own(self, name: str) -> bool:
        """Whether ftlab itself provides the part."""
        return all(provider.package == OWN for provider in self.providers()[name])

    def _refused(self, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        for name in names:
            try:
                self.get(name)
            except ConfigError as error:
                yield name, str(error)

    def _searched(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The folders that are searched for parts: those of ftlab, and those of installed packages."""
        return tuple(sys.modules[self.package].__path__), tuple(sys.path)

    def _wrong(self, part: Any) -> str:
        """Why an object is not a part of this kind; empty if it is one."""
        if isinstance(part, type) != self.classes:
            return "is not a class" if self.classes else "is a class, not an instance of one"
        if lacking := [name for name in self._members() if not hasattr(part, name)]:
            return f"has no {', '.join(lacking)}"
        if wrong := _wrong_metrics(part):
            return wrong
        if type(part).__hash__ is None:
            return "is not hashable: make its class @dataclass(frozen=True)"
        options = getattr(part, OPTIONS, None)
        return "" if options is None or is_dataclass(options) else f"has an attribute {OPTIONS} that is not a dataclass"

    def _members(self) -> list[str]:
        """What a part must have: the attributes and methods of the protocol, except its options."""
        if not self.protocol:
            return ["name"]
        protocol = _object(self.protocol, "")
        names = dict.fromkeys([*protocol.__annotations__, *vars(protocol)])
        return [name for name in names if not name.startswith("_") and name != OPTIONS]


def outside(group: str) -> list[tuple[str, Provider]]:
    """What installed packages declare in a group of entry points: names with their providers."""
    return _declared(tuple(sys.path)).get(group, [])


def ambiguous(chosen: str, packages: list[str]) -> str:
    """The message for a name that several packages provide."""
    others = [package for package in packages if package != OWN]
    remedy = f"pip uninstall {others[0]}" if len(others) == 1 else "uninstall one of them"
    return f"{chosen} is ambiguous: the packages {' and '.join(packages)} both provide it; {remedy}"


def nearest(name: str, names: Iterable[str]) -> str:
    """` Did you mean: …?` with the most similar names; empty if there are none."""
    near = difflib.get_close_matches(str(name).lower(), list(names), n=3, cutoff=0.5)
    return f" Did you mean: {', '.join(near)}?" if near else ""


def _object(target: str, default: str) -> Any:
    """The object at `module:attribute`; `default` is the attribute of a target that is a module only."""
    module, _, attribute = target.partition(":")
    return attrgetter(attribute or default)(importlib.import_module(module))


def _wrong_metrics(part: Any) -> str:
    """Why the metrics of a part cannot be shown; empty where they can, or where it has none."""
    metrics = getattr(part, "metrics", ())
    if foreign := [metric for metric in metrics if not isinstance(metric, Metric)]:
        return f"has metrics that are no ftlab.metrics.Metric ({foreign[0]!r})"
    names = [metric.name for metric in metrics]
    headline = getattr(part, "headline", None)
    if headline is not None and headline not in names:
        return f"has the headline {headline}, which is none of its metrics ({', '.join(names) or 'none'})"
    recorded = getattr(part, "recorded", None)
    lost = [] if recorded is None else [metric for metric in metrics if metric.field and metric.field not in recorded]
    return f"has the metric {lost[0].name} of the column {lost[0].field}, which `recorded` lacks" if lost else ""


def _remedy(provider: Provider) -> str:
    return "repair or remove it" if provider.package == OWN else f"repair it, or pip uninstall {provider.package}"


@lru_cache(maxsize=64)
def _providers(package: str, attribute: str, own: tuple[str, ...], path: tuple[str, ...]) -> dict[str, list[Provider]]:
    """`Registry.providers`; `path` is searched for installed packages."""
    modules = sorted(module.name for module in pkgutil.iter_modules(own))
    found = {name: [Provider(OWN, f"{package}.{name}")] for name in modules if _has(f"{package}.{name}", attribute)}
    for name, provider in _declared(path).get(package, []):
        found.setdefault(name, []).append(provider)
    return found


@lru_cache(maxsize=64)
def _declared(path: tuple[str, ...]) -> dict[str, list[tuple[str, Provider]]]:
    """`outside` for every group of ftlab; if a package is installed twice, the first counts, as in Python."""
    found: dict[str, list[tuple[str, Provider]]] = {}
    seen: set[str] = set()
    for distribution in distributions(path=list(path)):
        points = [point for point in distribution.entry_points if point.group.startswith(f"{OWN}.")]
        if not points or distribution.name in seen:  # reading a name takes far longer than reading entry points
            continue
        seen.add(distribution.name)
        for point in points:
            provider = Provider(distribution.name, point.value, distribution.version)
            found.setdefault(point.group, []).append((point.name, provider))
    return found


def _has(module: str, attribute: str) -> bool:
    """Whether a module holds a part. True if it cannot be imported, so that choosing it reports why."""
    try:
        return hasattr(importlib.import_module(module), attribute)
    except Exception:  # a module may raise anything; `get` reports it
        return True
