"""Options that installed packages bring: folders of YAML files, which are on Hydra's search path behind ftlab's own.

A package declares its folder as an entry point: `[project.entry-points."ftlab.conf"] mypackage = "mypackage.conf"`. In
it lie files as in `conf/`, `model/NAME.yaml` and `sweep/NAME.yaml` among them. What they compose to is looked at as
whatever else is composed (`ftlab/allowlist.py`).
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
PACKAGE = "package "  # what Hydra's name for the provider of such a folder begins with
OWN = ("main", "ftlab")  # Hydra's names for conf/ and sweeps/
NOT_OPTIONS = ("hydra", "schema")


@dataclass(frozen=True)
class ConfFolder:
    """The folder that a package declares; what is wrong with it in place of one that is not there."""

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
        why = "is not there"
    except Exception as error:  # whatever a package does when it is looked for
        found, why = None, f"cannot be found ({type(error).__name__}: {first_line(error)})"
    if found:
        return ConfFolder(provider, found)
    declares = f"the package {provider.package} declares the configuration folder {provider.target}, which {why}"
    return ConfFolder(
        provider, None, f"{declares}: its options are missing. Repair it, or pip uninstall {provider.package}"
    )


def _places(target: str) -> Iterator[Path]:
    """Where the folder `package.folder` may lie: below its package, which is not imported for that. Only where another
    place was made for the folder when the package was installed, the packages around it are."""
    top, *rest = target.split(".")
    spec = find_spec(top)
    for place in (spec and spec.submodule_search_locations) or ():
        yield Path(place, *rest)
    inner = find_spec(target)
    for place in (inner and inner.submodule_search_locations) or ():
        yield Path(place)


class ConfFoldersPath(SearchPathPlugin):
    """Puts the folders on Hydra's search path; one that is not there costs a line."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in folders():
            if folder.path:
                search_path.append(f"{PACKAGE}{folder.provider.package}", f"file://{folder.path}")
            else:
                _tell(folder.problem)


@lru_cache(maxsize=64)
def _tell(line: str) -> None:
    """One line on stderr, once a process."""
    print(f"ftlab: {line}", file=sys.stderr)


class Repository(ConfigRepository):
    """Hydra's files by name, none of which stands for two where a package brings it."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        """The configuration of that name.

        Raises:
            ConfigError: a package has it, and so has ftlab, another package or a folder that is named for this call.
        """
        group, _, name = config_path.rpartition("/")
        having = [source for source in self.sources if group and source.provider not in NOT_OPTIONS]
        having = [source for source in having if source.is_config(config_path)]
        brought = [source.provider.removeprefix(PACKAGE) for source in having if source.provider.startswith(PACKAGE)]
        if brought and len(having) > 1:
            places = " and ".join(_described(source.provider, source.path) for source in having)
            remedy = f"rename its file, or pip uninstall {brought[0]}"
            raise ConfigError(f"{group}={name} is ambiguous, since {places} have an option of that name: {remedy}")
        return super().load_config(config_path)


def _described(provider: str, path: str) -> str:
    if provider.startswith(PACKAGE):
        return f"the {provider}"
    return "ftlab" if provider in OWN else f"the folder {path}"
