"""Parts by name: those that ftlab ships, and those that installed packages add by an entry point.

A part of ftlab is a module of a package that holds an object of a given name (`ftlab/tasks/sql.py: TASK`). A part of
another package is an entry point (`[project.entry-points."ftlab.tasks"] shout = "mypackage.shout:TASK"`). It is
imported when it is asked for, so that a broken one hinders nothing else.
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
OPTIONS = "options"  # the attribute of a part that has settings of its own, which others may lack
OWN = "ftlab"  # the package that ftlab's own parts come from
# What brings a part that is not installed, by its group and name.
KNOWN: dict[str, dict[str, str]] = {"ftlab.trackers": {"tensorboard": "pip install 'ftlab[tensorboard]'"}}


@dataclass(frozen=True)
class Provider:
    """Where a part comes from: a distribution with its version, and the module or `module:attribute` in it."""

    package: str
    target: str
    version: str = ""

    def __str__(self) -> str:
        return self.target if self.package == OWN else f"{self.target} of the package {self.package}"


class Registry(Generic[T]):
    """The parts of one kind, such as the tasks, by the names that a key of the configuration has for them."""

    def __init__(
        self,
        key: str,
        package: str,
        attribute: str,
        protocol: str = "",
        classes: bool = False,
        taken: Collection[str] = (),
    ) -> None:
        """`key` names a part in a configuration (`data.task`). `package` is the package of ftlab whose modules hold
        parts, as `attribute`; a folder added to its `__path__` adds its modules. The entry points' group has its name.
        A part must have what the class `protocol` has (`module:class`), which is imported for parts from outside only.
        `classes`: a part is a class, of which each use makes an instance. `taken` are names that the key has another
        meaning for, which no part can have.
        """
        self.key = key
        self.package = package
        self.attribute = attribute
        self.protocol = protocol
        self.classes = classes
        self.taken = taken
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
            ConfigError: it cannot be imported, is no such part, has another name, or several packages use the name.
        """
        providers = self.providers()[name]
        chosen = f"{self.key}={name}"
        if len(providers) > 1:
            raise ConfigError(ambiguous(chosen, [provider.package for provider in providers]))
        (provider,) = providers
        if name in self.taken:
            raise ConfigError(f"{chosen}: {provider} has a name with another meaning in ftlab: {_remedy(provider)}")
        try:
            with redirect_stdout(sys.stderr):  # a package that prints leaves what commands print readable by programs
                part = _object(provider.target, self.attribute)
            wrong = "" if provider.package == OWN else self._wrong(part)
        except (Exception, SystemExit) as error:  # whatever a part from outside does when it is imported
            why = f"{type(error).__name__}: {first_line(error)}"
            raise ConfigError(f"{chosen}: {provider} cannot be imported ({why}): {_remedy(provider)}") from error
        if wrong:
            raise ConfigError(f"{chosen}: {provider} {wrong}: {_remedy(provider)}")
        if part.name != name:  # a configuration could not name it
            raise ConfigError(f"{chosen}: {provider} calls itself {part.name}: both must have one name")
        return cast(T, part)

    def unknown(self, name: str, beside: Iterable[str] = ()) -> str:
        """What to say of a name that no part has: what to install for it where that is known, or the names like it.
        `beside` are names that the key takes beside those of parts."""
        names = [*beside, *self.names()]
        chosen, there = f"{self.key}={name}", f"There are: {', '.join(names)}"
        if bring := KNOWN.get(self.package, {}).get(name):
            return f"{chosen} is not installed: {bring}. {there}"
        if near := nearest(name, names):
            return f"{chosen} is not known.{near} {there}"
        return f"{chosen} is not known. {there}. If a package brings it, install that package"

    def usable(self) -> list[T]:
        """Every part that `get` returns, in alphabetical order of names; the others are left out."""
        broken = self.broken()
        return [self.get(name) for name in self.names() if name not in broken]

    def own(self) -> list[T]:
        """The same of ftlab's own parts; no other package is imported for it."""
        names = [name for name in self.names() if self.is_own(name)]
        broken = dict(self._refused(names))
        return [self.get(name) for name in names if name not in broken]

    def broken(self) -> dict[str, str]:
        """Why `get` refuses a name, for each that it does; each part is tried once a process."""
        searched = self._searched()
        if self._broken is None or self._broken[0] != searched:
            self._broken = searched, dict(self._refused(self.names()))
        return self._broken[1]

    def is_own(self, name: str) -> bool:
        """Whether ftlab itself ships the part."""
        return all(provider.package == OWN for provider in self.providers()[name])

    def _refused(self, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        for name in names:
            try:
                self.get(name)
            except ConfigError as error:
                yield name, str(error)

    def _searched(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Where parts are looked for: the folders of ftlab's own, and those of installed packages."""
        return tuple(sys.modules[self.package].__path__), tuple(sys.path)

    def _wrong(self, part: Any) -> str:
        """Why an object is no part of this kind; empty where it is one."""
        if isinstance(part, type) != self.classes:
            return "is no class" if self.classes else "is a class, not an instance of one"
        if lacking := [name for name in self._members() if not hasattr(part, name)]:
            return f"has no {', '.join(lacking)}"
        if wrong := _wrong_metrics(part):
            return wrong
        if type(part).__hash__ is None:
            return "can change: make its class @dataclass(frozen=True)"
        options = getattr(part, OPTIONS, None)
        return "" if options is None or is_dataclass(options) else f"has {OPTIONS} that are no dataclass"

    def _members(self) -> list[str]:
        """What a part must have: attributes and methods of the protocol, its options apart."""
        if not self.protocol:
            return ["name"]
        protocol = _object(self.protocol, "")
        names = dict.fromkeys([*protocol.__annotations__, *vars(protocol)])
        return [name for name in names if not name.startswith("_") and name != OPTIONS]


def outside(group: str) -> list[tuple[str, Provider]]:
    """What installed packages declare in a group of entry points: names, each with where it comes from."""
    return _declared(tuple(sys.path)).get(group, [])


def ambiguous(chosen: str, packages: list[str]) -> str:
    """What to say of a name that several packages bring."""
    others = [package for package in packages if package != OWN]
    remedy = f"pip uninstall {others[0]}" if len(others) == 1 else "uninstall one of them"
    return f"{chosen} is ambiguous: the packages {' and '.join(packages)} both bring it: {remedy}"


def nearest(name: str, names: Iterable[str]) -> str:
    """` Did you mean: …?` with the names most like one; empty where none is."""
    near = difflib.get_close_matches(str(name).lower(), list(names), n=3, cutoff=0.5)
    return f" Did you mean: {', '.join(near)}?" if near else ""


def _object(target: str, default: str) -> Any:
    """What `module:attribute` names; `default` is the attribute where the target is a module alone."""
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
    """`Registry.providers`; `path` is where installed packages are looked for."""
    modules = sorted(module.name for module in pkgutil.iter_modules(own))
    found = {name: [Provider(OWN, f"{package}.{name}")] for name in modules if _has(f"{package}.{name}", attribute)}
    for name, provider in _declared(path).get(package, []):
        found.setdefault(name, []).append(provider)
    return found


@lru_cache(maxsize=64)
def _declared(path: tuple[str, ...]) -> dict[str, list[tuple[str, Provider]]]:
    """`outside` for every group of ours; of a package that is installed twice the first counts, as for Python."""
    found: dict[str, list[tuple[str, Provider]]] = {}
    seen: set[str] = set()
    for distribution in distributions(path=list(path)):
        points = [point for point in distribution.entry_points if point.group.startswith(f"{OWN}.")]
        if not points or distribution.name in seen:  # to ask for names takes far longer than for entry points
            continue
        seen.add(distribution.name)
        for point in points:
            provider = Provider(distribution.name, point.value, distribution.version)
            found.setdefault(point.group, []).append((point.name, provider))
    return found


def _has(module: str, attribute: str) -> bool:
    """Whether a module holds a part. One that cannot be imported is taken for one: whoever names it is told why."""
    try:
        return hasattr(importlib.import_module(module), attribute)
    except Exception:  # whatever a module does when it is imported; `get` says what
        return True
