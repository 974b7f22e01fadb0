"""The code that a configuration may run: ftlab's sweeper and the launchers of its extras, by their exact names.

Hydra calls whatever a `_target_` names, and Python's logging whatever `class`, `()` and `ext://` name, so a YAML file
could run anything that is installed. `GuardedLoader` replaces Hydra's loader and checks each configuration before Hydra
uses it: in a run, in `--multirun`, for `--cfg`, `--info` and `--help`, and in a launcher's processes. Settings that a
launcher runs as commands are accepted only on the command line of this call.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import hydra._internal.hydra as hydra_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from ftlab.conf_folders import Repository
from ftlab.errors import ConfigError

SWEEPER = "hydra_plugins.ftlab_sweeper.FtlabSweeper"
# Settings of launchers that a file may change. The others are run as commands, or name a machine or folder.
JOBLIB = frozenset({"n_jobs", "prefer", "require", "verbose", "timeout"})
SUBMITIT = frozenset(
    {
        *("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name"),
        *("partition", "qos", "comment", "constraint", "exclude", "gres", "account", "stderr_to_stdout"),
        *("cpus_per_gpu", "gpus_per_task", "mem_per_gpu", "mem_per_cpu"),
        *("signal_delay_s", "max_num_timeout", "array_parallelism"),
    }
)
RAY = frozenset(
    {
        *(f"ray.init.{name}" for name in ("num_cpus", "num_gpus", "object_store_memory")),
        *(f"ray.remote.{name}" for name in ("num_cpus", "num_gpus", "memory")),
    }
)
LAUNCHERS: dict[str, frozenset[str]] = {
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher": frozenset(),
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher": JOBLIB,
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher": SUBMITIT,
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher": SUBMITIT,
    "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher": RAY,
    "hydra_plugins.hydra_ray_launcher.ray_aws_launcher.RayAWSLauncher": frozenset(),
}
OPTIONS = ("basic", "joblib", "submitit_local", "submitit_slurm", "ray", "ray_aws")
HANDLERS = ("logging.StreamHandler",)
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
LOGGING = ("hydra_logging", "job_logging")
CALLING = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")  # keys that Hydra interprets as a call
OWN_RECORD = ".hydra"
DEEPEST = 60  # largest depth of a configuration; resolvers could create an infinite one

Tree = DictConfig | ListConfig
Path = tuple[str, ...]


class GuardedLoader(ConfigLoaderImpl):
    """Hydra's loader, which raises for configurations that `check` refuses."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        named = [place for place in config_search_path.get_path() if place.provider in ("main", "command-line")]
        _check_places([str(place.path) for place in named], "--config-path")
        super().__init__(config_search_path)
        self.repository = Repository(config_search_path)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Return the checked configuration.

        Raises:
            ConfigError: it would run something that is not on the allowlist.
        """
        if config_name is None:  # Hydra's help about itself would use Hydra's own sweeper and log file
            overrides = ["hydra/sweeper=ftlab", "hydra/job_logging=none", *overrides]
        cfg = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        check(cfg, OverridesParser.create().parse_overrides(overrides))
        return cfg

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        """Return the options of a group. If no configuration changes the search path, they are read directly from the
        repository: Hydra's loader would copy it for each group, with the configurations of all plug-ins."""
        if config_name is None and not overrides:
            return list(self.repository.get_group_options(group_name, results_filter))
        return super().get_group_options(group_name, results_filter, config_name, overrides)

    def _process_config_searchpath(self, config_name: str | None, parsed_overrides: list[Override], repo: Any) -> None:
        typed: list[Any] = [o.value() for o in parsed_overrides if o.get_key_element() == "hydra.searchpath"]
        primary = repo.load_config(config_path=config_name) if config_name else None
        written = OmegaConf.select(primary.config, "hydra.searchpath") if primary else None
        for places in (*typed, written):
            _check_places([str(place) for place in places or ()], "hydra.searchpath")
        super()._process_config_searchpath(config_name, parsed_overrides, repo)


@contextmanager
def guarded() -> Iterator[None]:
    """Check every configuration that Hydra composes inside of this context."""
    names = vars(hydra_module)
    before = names["ConfigLoaderImpl"]
    names["ConfigLoaderImpl"] = GuardedLoader
    try:
        yield
    finally:
        names["ConfigLoaderImpl"] = before


def check(cfg: DictConfig, typed: Sequence[Override]) -> None:
    """Refuse a composed configuration that would run code, and fix the checked values, so that they cannot resolve
    differently later. `typed` are the overrides of this call.

    Raises:
        ConfigError: lists every key whose value is not on the allowlist.
    """
    hydra = OmegaConf.to_container(cfg.hydra, resolve=False) if "hydra" in cfg else {}
    assert isinstance(hydra, dict)
    problems = list(dict.fromkeys([*_calls(cfg, (), set()), *_started(hydra)]))
    if not any(problem.startswith("hydra.callbacks.") for problem in problems):
        problems += _callbacks(hydra)
    problems += [*_commands(hydra, typed), *_environment(hydra, typed)]
    if hydra.get("output_subdir") not in (None, OWN_RECORD):
        given = hydra["output_subdir"]
        problems.append(f"hydra.output_subdir={given} has no effect: ftlab writes {OWN_RECORD}/ itself. Remove it")
    logs = {name: _plain(cfg.hydra, name) for name in LOGGING if name in hydra}
    problems += [problem for name, node in logs.items() for problem in _logging(node, ("hydra", name))]
    if problems:
        raise ConfigError(*problems)
    if hydra:
        _fix(cfg.hydra, logs)


def _fix(hydra: DictConfig, logs: Mapping[str, Any]) -> None:
    """Keep Hydra from calling anything inside a launcher or sweeper, and set the loggers to their checked values."""
    with read_write(hydra), open_dict(hydra):
        hydra["output_subdir"] = None  # Hydra's own record would contain secrets
        for name, node in logs.items():
            hydra[name] = node
        for name in ("launcher", "sweeper"):
            with open_dict(hydra[name]):
                hydra[name]["_recursive_"] = False


def _check_places(places: Sequence[str], key: str) -> None:
    """Refuse search paths other than folders: a package would be imported, which runs its code."""
    foreign = [place for place in places if "://" in place and not place.startswith(("file://", "sweeps://"))]
    if foreign:
        raise ConfigError(f"{key}={foreign[0]} is not a folder: configurations are read from folders only, so name one")


# --- what is called --------------------------------------------------------------------------------------------


def _calls(node: Any, path: Path, seen: set[int]) -> Iterator[str]:
    """Yield a problem for each key, at any depth, that Hydra interprets as a call, with interpolations resolved."""
    if isinstance(node, (dict, list)):  # what some resolvers return
        node = OmegaConf.create(node)
    if not isinstance(node, Tree) or id(node) in seen:
        return
    if len(path) > DEEPEST:
        raise ConfigError(f"{'.'.join(path[:4])}... is nested more than {DEEPEST} levels deep: write a flatter value")
    seen.add(id(node))
    if node._is_none() or node._is_missing():
        return
    for key in node.keys() if isinstance(node, DictConfig) else range(len(node)):
        here = (*path, str(key))
        if str(key) in CALLING and here not in (("hydra", "launcher", "_target_"), ("hydra", "sweeper", "_target_")):
            yield _refusal(here, _shown(node, key), "ftlab calls nothing from this key. Remove it")
            continue
        yield from _calls(_value(node, key), here, seen)


def _value(node: Tree, key: Any) -> Any:
    """Return a value with its interpolation resolved; None if that needs values known only while a job runs."""
    try:
        return node[key]
    except OmegaConfBaseException:
        return None


def _shown(node: Tree, key: Any) -> str:
    raw = OmegaConf.to_container(node, resolve=False)
    return str(raw[key] if isinstance(raw, (dict, list)) else raw)


def _callbacks(hydra: Mapping[Any, Any]) -> Iterator[str]:
    callbacks = hydra.get("callbacks")
    if callbacks:
        name = next(iter(callbacks)) if isinstance(callbacks, Mapping) else str(callbacks)
        yield f"hydra.callbacks.{name} is refused: ftlab has no callbacks, and Hydra would call it. Remove it"


def _started(hydra: Mapping[Any, Any]) -> Iterator[str]:
    """Yield a problem if the launcher or the sweeper is not, by its literal name, on the allowlist."""
    for name, allowed, options in (("launcher", tuple(LAUNCHERS), OPTIONS), ("sweeper", (SWEEPER,), ("ftlab",))):
        node = hydra.get(name)
        target = node.get("_target_") if isinstance(node, Mapping) else node
        if name in hydra and target not in allowed:
            yield _refusal(("hydra", name, "_target_"), target, f"only hydra/{name}={'|'.join(options)} is allowed")
    foreign = [key for key in _mapping(hydra.get("sweeper")) if key not in ("_target_", "params")]
    if foreign:
        yield f"hydra.sweeper.{foreign[0]} is not a setting of ftlab's sweeper, which has hydra.sweeper.params only"


def _refusal(path: Path, value: object, why: str) -> str:
    return f"{'.'.join(path)}={value} is refused, because it could run any code: {why}"


def _mapping(node: Any) -> Mapping[Any, Any]:
    return node if isinstance(node, Mapping) else {}


# --- what is run as a command ------------------------------------------------------------------------------------


def _commands(hydra: Mapping[Any, Any], typed: Sequence[Override]) -> Iterator[str]:
    """Yield a problem for each setting of a launcher in a file that could run commands or use another machine."""
    node = _mapping(hydra.get("launcher"))
    target = node.get("_target_")
    plain, default = LAUNCHERS.get(str(target), frozenset()), _leaves(_default_launcher(target))
    for key, value in _leaves(node).items():
        same = key in default and default[key] == value
        if key in CALLING or same or _is_typed(f"hydra.launcher.{key}", typed) or (key in plain and _is_plain(value)):
            continue
        yield (
            f"hydra.launcher.{key}={value} is set in a file, but may run commands or use another machine, so it is "
            f"accepted on the command line only. Add hydra.launcher.{key}=VALUE to the command, or remove it"
        )


def _default_launcher(target: Any) -> Any:
    """Return the default settings of a launcher's package."""
    stored = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {}).values()
    nodes = [OmegaConf.to_container(OmegaConf.create(entry.node), resolve=False) for entry in stored]
    return next((node for node in nodes if _mapping(node).get("_target_") == target), {})


def _leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in _mapping(node).items():
        inner = _leaves(value, f"{prefix}{key}.")
        found |= inner if inner else {f"{prefix}{key}": value}
    return found


def _is_plain(value: Any) -> bool:
    """Whether a value is one line of literal text, or a number."""
    return not isinstance(value, (Mapping, list)) and str(value).isprintable() and "${" not in str(value)


def _is_typed(key: str, typed: Sequence[Override]) -> bool:
    """Whether an override sets the key, itself or within a node."""
    return any(key == over or key.startswith(f"{over}.") for override in typed for over in _keys_of(override))


def _keys_of(override: Override) -> Iterator[str]:
    """Yield the dotted keys that an override sets."""
    value = override.value()
    if isinstance(value, Mapping):
        yield from (f"{override.key_or_group}.{key}" for key in _leaves(value))
    elif not override.is_delete():
        yield override.key_or_group


def _environment(hydra: Mapping[Any, Any], typed: Sequence[Override]) -> Iterator[str]:
    """Yield a problem for each environment variable that a file sets: LD_PRELOAD or PATH could run programs."""
    job = _mapping(hydra.get("job"))
    copied = job.get("env_copy") or []
    for name in _mapping(job.get("env_set")):
        key = f"hydra.job.env_set.{name}"
        if name not in copied and not _is_typed(key, typed):
            yield f"{key} is set in a file, which is not allowed: set {name} in your shell, or add +{key}=VALUE"


# --- loggers -----------------------------------------------------------------------------------------------------


def _plain(hydra: DictConfig, name: str) -> Any:
    """Return a node of the logging configuration with all interpolations resolved."""
    try:
        node = hydra[name]
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"hydra.{name} cannot be resolved ({reason}): write its values out") from None


def _logging(node: Any, path: Path) -> Iterator[str]:
    """Yield a problem for each value that names a class, a function or an object, except terminal handlers."""
    items: list[tuple[Any, Any]] = list(enumerate(node)) if isinstance(node, list) else list(_mapping(node).items())
    for key, value in items:
        here = (*path, str(key))
        refers = isinstance(value, str) and value.startswith(("ext://", "cfg://"))
        is_class = key == "class" and not (value in HANDLERS and path[2:3] == ("handlers",) and len(path) == 4)
        if str(key).startswith(("(", ".")) or is_class or (refers and not (key == "stream" and value in STREAMS)):
            only = f"loggers may only write to the terminal: class {HANDLERS[0]}, stream {STREAMS[0]}"
            yield _refusal(here, value, only)
        else:
            yield from _logging(value, here)
