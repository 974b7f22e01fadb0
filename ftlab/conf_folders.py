"""Options that installed packages provide: folders of YAML files, on Hydra's search path behind ftlab's own.

A package declares its folder as an entry point: `[project.entry-points."ftlab.conf"] mypackage = "mypackage.conf"`. The
folder is laid out like `conf/`, with files such as `model/NAME.yaml` and `sweep/NAME.yaml`. What they compose to is
checked like any other configuration (`ftlab/allowlist.py`).
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin

from ftlab.errors import ConfigError, first_line
from ftlab.registry import Provider, outside

GROUP = "ftlab.conf"
PACKAGE = "package "  # prefix of the provider name that Hydra stores for such a folder
OWN = ("main", "ftlab")  # Hydra's names for conf/ and sweeps/
NOT_OPTIONS = ("hydra", "schema")


@dataclass(frozen=True)
class ConfFolder:
    """The folder that a package declares; `problem` is the message if the folder is missing."""

    provider: Provider
    path: Path | None
    problem: str = ""


def folders() -> list[ConfFolder]:
    """Every folder that an installed package declares, in alphabetical order of packages."""
    declared = sorted({provider for _, provider in outside(GROUP)}, key=lambda provider: provider.package)
    return [_found(provider) for provider in declared]


def _found(provider: Provider) -> ConfFolder:
    try:
        found = next((path for path in _places(provider.target) if path.is_dir()), None)
        why = "does not exist"
    except Exception as error:  # code of another package may raise anything
        found, why = None, f"cannot be found ({type(error).__name__}: {first_line(error)})"
    if found:
        return ConfFolder(provider, found)
    declares = f"the package {provider.package} declares the configuration folder {provider.target}, which {why}"
    return ConfFolder(
        provider, None, f"{declares}: its options are not available. Repair it, or pip uninstall {provider.package}"
    )


def _places(target: str) -> Iterator[Path]:
    """Paths where the folder `package.folder` may be. The first is below its package, which is not imported for this.
    If the package was installed with another path for the folder, the packages around it are imported."""
    top, *rest = target.split(".")
    spec = find_spec(top)
    for place in (spec and spec.submodule_search_locations) or ():
        yield Path(place, *rest)
    inner = find_spec(target)
    for place in (inner and inner.submodule_search_locations) or ():
        yield Path(place)


class ConfFoldersPath(SearchPathPlugin):
    """Puts the folders on Hydra's search path, and prints a line for each that is missing."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in folders():
            if folder.path:
                search_path.append(f"{PACKAGE}{folder.provider.package}", f"file://{folder.path}")
            else:
                _warn(folder.problem)


@lru_cache(maxsize=64)
def _warn(line: str) -> None:
    """Print a line to stderr, once per process."""
    print(f"ftlab: {line}", file=sys.stderr)


class Repository(ConfigRepository):
    """Hydra's configuration files by name. A file of a package must not share its name with another file."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """The configuration of that name.

        Raises:
            ConfigError: a package provides it, and so does ftlab, another package or a folder given for this call.
        """
        group, _, name = config_path.rpartition("/")
        having = [source for source in self.sources if group and source.provider not in NOT_OPTIONS]
        having = [source for source in having if source.is_config(config_path)]
        packages = [source.provider.removeprefix(PACKAGE) for source in having if source.provider.startswith(PACKAGE)]
        if packages and len(having) > 1:
            places = " and ".join(_described(source.provider, source.path) for source in having)
            remedy = f"rename its file, or pip uninstall {packages[0]}"
            raise ConfigError(f"{group}={name} is ambiguous: {places} both provide it; {remedy}")
        return super().load_config(config_path)


def _described(provider: str, path: str) -> str:
    if provider.startswith(PACKAGE):
        return f"the {provider}"
    return "ftlab" if provider in OWN else f"the folder {path}"
