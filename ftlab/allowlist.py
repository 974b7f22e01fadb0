"""What a configuration may start: ftlab's sweeper and the launchers of its extras, by their exact names.

Hydra calls whatever a `_target_` names, and Python's logging whatever `class`, `()` and `ext://` name, so that a YAML
file could run anything that is installed. `GuardedLoader` composes in Hydra's place and looks at each configuration
before Hydra sees it: in a run, in `--multirun`, for `--cfg`, `--info` and `--help`, and in a launcher's processes.
What a launcher runs as a command counts only where it is typed for this call.
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
# Settings of launchers that a file may change. The others are run as commands, or say where to.
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
CALLING = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")  # what Hydra reads as a call
OWN_RECORD = ".hydra"
DEEPEST = 60  # levels of a configuration; resolvers could make one without an end

Tree = DictConfig | ListConfig
Path = tuple[str, ...]


class GuardedLoader(ConfigLoaderImpl):
    """Hydra's loader, which hands out nothing that `check` refuses."""

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
        """The checked configuration.

        Raises:
            ConfigError: it would start something that is not on the list.
        """
        if config_name is None:  # Hydra's help about itself, with Hydra's own sweeper and log file
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
        """The options of a group. Where no configuration changes the search path, they are read from the repository
        itself: Hydra's loader would copy it for each group, with every configuration that any plug-in has stored."""
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
    """Whatever Hydra composes inside is checked."""
    names = vars(hydra_module)
    before = names["ConfigLoaderImpl"]
    names["ConfigLoaderImpl"] = GuardedLoader
    try:
        yield
    finally:
        names["ConfigLoaderImpl"] = before


def check(cfg: DictConfig, typed: Sequence[Override]) -> None:
    """Refuse a composed configuration that would run code, and fix what was checked, so that nothing resolves to
    something else later. `typed` are the overrides of this call.

    Raises:
        ConfigError: every key that names something which is not on the list.
    """
    hydra = OmegaConf.to_container(cfg.hydra, resolve=False) if "hydra" in cfg else {}
    assert isinstance(hydra, dict)
    problems = list(dict.fromkeys([*_calls(cfg, (), set()), *_started(hydra)]))
    if not any(problem.startswith("hydra.callbacks.") for problem in problems):
        problems += _callbacks(hydra)
    problems += [*_commands(hydra, typed), *_environment(hydra, typed)]
    if hydra.get("output_subdir") not in (None, OWN_RECORD):
        problems.append(f"hydra.output_subdir={hydra['output_subdir']} is not used: ftlab writes {OWN_RECORD}/ itself")
    logs = {name: _plain(cfg.hydra, name) for name in LOGGING if name in hydra}
    problems += [problem for name, node in logs.items() for problem in _logging(node, ("hydra", name))]
    if problems:
        raise ConfigError(*problems)
    if hydra:
        _fix(cfg.hydra, logs)


def _fix(hydra: DictConfig, logs: Mapping[str, Any]) -> None:
    """Nothing inside a launcher or a sweeper is called, whatever it resolves to; loggers are as checked."""
    with read_write(hydra), open_dict(hydra):
        hydra["output_subdir"] = None  # Hydra's record would have secrets in it
        for name, node in logs.items():
            hydra[name] = node
        for name in ("launcher", "sweeper"):
            with open_dict(hydra[name]):
                hydra[name]["_recursive_"] = False


def _check_places(places: Sequence[str], key: str) -> None:
    """A package would be imported, which runs it."""
    foreign = [place for place in places if "://" in place and not place.startswith(("file://", "sweeps://"))]
    if foreign:
        raise ConfigError(f"{key}={foreign[0]} is no folder, and a configuration is read from folders only: name one")


# --- what is called --------------------------------------------------------------------------------------------


def _calls(node: Any, path: Path, seen: set[int]) -> Iterator[str]:
    """Keys that Hydra reads as calls, wherever they stand; what interpolations and resolvers stand for included."""
    if isinstance(node, (dict, list)):  # what some resolvers return
        node = OmegaConf.create(node)
    if not isinstance(node, Tree) or id(node) in seen:
        return
    if len(path) > DEEPEST:
        raise ConfigError(f"{'.'.join(path[:4])}... is nested more than {DEEPEST} levels deep: write it out")
    seen.add(id(node))
    if node._is_none() or node._is_missing():
        return
    for key in node.keys() if isinstance(node, DictConfig) else range(len(node)):
        here = (*path, str(key))
        if str(key) in CALLING and here not in (("hydra", "launcher", "_target_"), ("hydra", "sweeper", "_target_")):
            yield _refusal(here, _shown(node, key), "nothing is called from here")
            continue
        yield from _calls(_value(node, key), here, seen)


def _value(node: Tree, key: Any) -> Any:
    """A value with its interpolation resolved; None where that needs what is only known while a job runs."""
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
    """The launcher and the sweeper, each by its literal name."""
    for name, allowed, options in (("launcher", tuple(LAUNCHERS), OPTIONS), ("sweeper", (SWEEPER,), ("ftlab",))):
        node = hydra.get(name)
        target = node.get("_target_") if isinstance(node, Mapping) else node
        if name in hydra and target not in allowed:
            yield _refusal(("hydra", name, "_target_"), target, f"only hydra/{name}={'|'.join(options)} may")
    foreign = [key for key in _mapping(hydra.get("sweeper")) if key not in ("_target_", "params")]
    if foreign:
        yield f"hydra.sweeper.{foreign[0]} is no setting: ftlab's sweeper takes hydra.sweeper.params"


def _refusal(path: Path, value: object, why: str) -> str:
    return f"{'.'.join(path)}={value} is refused: it could run any code, and {why}"


def _mapping(node: Any) -> Mapping[Any, Any]:
    return node if isinstance(node, Mapping) else {}


# --- what is run as a command ------------------------------------------------------------------------------------


def _commands(hydra: Mapping[Any, Any], typed: Sequence[Override]) -> Iterator[str]:
    """Settings of a launcher that are run as commands, or lead elsewhere, and stand in a file."""
    node = _mapping(hydra.get("launcher"))
    target = node.get("_target_")
    plain, default = LAUNCHERS.get(str(target), frozenset()), _leaves(_default_launcher(target))
    for key, value in _leaves(node).items():
        same = key in default and default[key] == value
        if key in CALLING or same or _is_typed(f"hydra.launcher.{key}", typed) or (key in plain and _is_plain(value)):
            continue
        yield (
            f"hydra.launcher.{key}={value} stands in a file, and may run commands or lead to another machine: "
            f"it counts only typed for this call. Add hydra.launcher.{key}=VALUE to the command, or remove it"
        )


def _default_launcher(target: Any) -> Any:
    """The settings with which a launcher's package ships."""
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
    """One line of text, as written, or a number."""
    return not isinstance(value, (Mapping, list)) and str(value).isprintable() and "${" not in str(value)


def _is_typed(key: str, typed: Sequence[Override]) -> bool:
    """Whether an override names the key, or gives a node around it that holds it."""
    return any(key == over or key.startswith(f"{over}.") for override in typed for over in _keys_of(override))


def _keys_of(override: Override) -> Iterator[str]:
    """The dotted keys to which an override gives values."""
    value = override.value()
    if isinstance(value, Mapping):
        yield from (f"{override.key_or_group}.{key}" for key in _leaves(value))
    elif not override.is_delete():
        yield override.key_or_group


def _environment(hydra: Mapping[Any, Any], typed: Sequence[Override]) -> Iterator[str]:
    """Variables can name programs and libraries that are run: LD_PRELOAD, PATH."""
    job = _mapping(hydra.get("job"))
    copied = job.get("env_copy") or []
    for name in _mapping(job.get("env_set")):
        key = f"hydra.job.env_set.{name}"
        if name not in copied and not _is_typed(key, typed):
            yield f"{key} stands in a file: set {name} in your shell, or type +{key}=VALUE, if you want it"


# --- loggers -----------------------------------------------------------------------------------------------------


def _plain(hydra: DictConfig, name: str) -> Any:
    """A node of the logging configuration as it is used, resolved once and for all."""
    try:
        node = hydra[name]
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException as error:
        raise ConfigError(f"hydra.{name} cannot be resolved ({str(error).splitlines()[0]}): write it out") from None


def _logging(node: Any, path: Path) -> Iterator[str]:
    """Whatever names a class, a function or an object, except handlers that write to the terminal."""
    items: list[tuple[Any, Any]] = list(enumerate(node)) if isinstance(node, list) else list(_mapping(node).items())
    for key, value in items:
        here = (*path, str(key))
        refers = isinstance(value, str) and value.startswith(("ext://", "cfg://"))
        is_class = key == "class" and not (value in HANDLERS and path[2:3] == ("handlers",) and len(path) == 4)
        if str(key).startswith(("(", ".")) or is_class or (refers and not (key == "stream" and value in STREAMS)):
            yield _refusal(here, value, f"loggers write to the terminal: class {HANDLERS[0]}, stream {STREAMS[0]}")
        else:
            yield from _logging(value, here)
