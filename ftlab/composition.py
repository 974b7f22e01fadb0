"""Hydra composes `conf/` and `sweeps/` into a typed, checked ExperimentConfig. Never imports torch.

Every override is checked before Hydra composes, so that the message for a misspelt group, option or key names
the nearest valid one, and `+key` of an unknown key is refused instead of dropped.
"""

import difflib
import os
import re
import shlex
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, ValidationError
from omegaconf.errors import OmegaConfBaseException

from ftlab import config, rules, stages, tasks, trackers
from ftlab.allowlist import guarded
from ftlab.conf_folders import ConfFoldersPath
from ftlab.config import ExperimentConfig
from ftlab.errors import ConfigError
from ftlab.redact import MASK, known, redact, redact_message, redact_tree
from ftlab.shell import quoted
from hydra_plugins import ftlab_sweeper

PACKAGE = Path(__file__).resolve().parent


def _shipped(name: str) -> Path:
    """A top-level folder of the repository, which a wheel holds inside the package."""
    return PACKAGE / name if (PACKAGE / name).is_dir() else PACKAGE.parent / name


CONF = _shipped("conf")
SWEEPS = _shipped("sweeps")

TRUST = "model.trust_remote_code"
UNTYPED = (
    f"{TRUST}=true comes from a configuration file (or is not literally true), where it has no effect, since it lets "
    f"Python files of the model's folder run here. Read them, then pass {TRUST}=true in this command, or remove it"
)
BEST = "best"  # the experiment file that a study's report writes
PATH_KEYS = ("data.path", "run_dir", "lora.init_from", "model.id")

# Names of these keys in other tools.
ALIASES = {
    "learning_rate": "trainer.lr",
    "lora_rank": "lora.r",
    "rank": "lora.r",
    "lora_r": "lora.r",
    "alpha": "lora.lora_alpha",
    "dropout": "lora.lora_dropout",
    "lora_target": "lora.target_modules",
    "lora_target_modules": "lora.target_modules",
    "per_device_train_batch_size": "trainer.micro_batch_size",
    "train_batch_size": "trainer.global_batch_size",
    "batch_size": "trainer.global_batch_size",
    "gradient_accumulation_steps": "trainer.global_batch_size",
    "per_device_eval_batch_size": "eval.batch_size",
    "num_train_epochs": "trainer.epochs",
    "num_epochs": "trainer.epochs",
    "steps": "trainer.max_steps",
    "save_steps": "trainer.save_every",
    "eval_steps": "eval.every",
    "logging_steps": "trainer.log_every",
    "save_total_limit": "trainer.keep",
    "gradient_checkpointing": "trainer.activation_checkpointing",
    "optimizer": "trainer.optim",
    "scheduler": "trainer.lr_scheduler_type",
    "lr_scheduler": "trainer.lr_scheduler_type",
    "warmup_ratio": "trainer.warmup_steps",
    "train_on_inputs": "trainer.loss_on",
    "max_seq_length": "data.max_length",
    "max_length": "data.max_length",
    "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "dataset": "data.path",
    "dataset_name": "data.hub_id",
    "val_set_size": "data.validation",
    "model_name_or_path": "model.id",
    "base_model": "model.id",
    "torch_dtype": "model.dtype",
    "load_in_4bit": "quant.load_in_4bit",
    "output_dir": "run_dir",
    "report_to": "tracker",
    "metric_for_best_model": "objective",
}


class SweepsSource(ConfigSource):
    """Serves the top-level folder `sweeps/` as the config group `sweep`."""

    @staticmethod
    def scheme() -> str:
        return "sweeps"

    def _file(self, config_path: str) -> Path | None:
        group, _, name = config_path.partition("/")
        return SWEEPS / self._normalize_file_name(name) if group == "sweep" and name else None

    def load_config(self, config_path: str) -> ConfigResult:
        file = self._file(config_path)
        if file is None or not file.is_file():
            raise ConfigLoadError(f"Config not found: {config_path}")
        text = file.read_text(encoding="utf-8")
        return ConfigResult(
            config=cast(DictConfig, OmegaConf.create(text)),
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header=self._get_header_dict(text),
        )

    def available(self) -> bool:
        return SWEEPS.is_dir()

    def is_group(self, config_path: str) -> bool:
        return config_path in ("", "sweep")

    def is_config(self, config_path: str) -> bool:
        file = self._file(config_path)
        return file is not None and file.is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "":
            return ["sweep"] if results_filter in (None, ObjectType.GROUP) else []
        if config_path == "sweep" and results_filter in (None, ObjectType.CONFIG):
            return sorted(file.stem for file in SWEEPS.glob("*.yaml"))
        return []


class TrackersSource(ConfigSource):
    """Serves every tracker as an option of the config group `tracker`: its settings with their defaults."""

    @staticmethod
    def scheme() -> str:
        return "trackers"

    def load_config(self, config_path: str) -> ConfigResult:
        if not self.is_config(config_path):
            raise ConfigLoadError(f"Config not found: {config_path}")
        name = self._normalize_file_name(config_path.partition("/")[2]).removesuffix(".yaml")
        return ConfigResult(
            config=OmegaConf.create(trackers.defaults(name)),
            path=f"{self.scheme()}://{self.path}",
            provider=self.provider,
            header=self._get_header_dict(""),
        )

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path in ("", "tracker")

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.partition("/")
        return group == "tracker" and name.removesuffix(".yaml") in (*trackers.names(), trackers.NONE)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "":
            return ["tracker"] if results_filter in (None, ObjectType.GROUP) else []
        if config_path == "tracker" and results_filter in (None, ObjectType.CONFIG):
            return [*trackers.names(), trackers.NONE]
        return []


class OwnPaths(SearchPathPlugin):
    """Puts `sweeps/` and the trackers on Hydra's search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("ftlab", "sweeps://sweeps")
        search_path.append("ftlab", "trackers://trackers")


def register() -> None:
    """Register the schema, the sweeper, config groups and packages' options with Hydra; may be called again."""
    config.register()
    ftlab_sweeper.register()
    for plugin in (SweepsSource, TrackersSource, OwnPaths, ConfFoldersPath):
        Plugins.instance().register(plugin)


@dataclass(frozen=True)
class Composition:
    """A checked experiment with Hydra's record of it."""

    config: ExperimentConfig
    tree: dict[str, Any]  # the resolved configuration as plain containers
    hydra: dict[str, Any]
    overrides: list[str]
    changed: set[str]  # dotted keys whose value differs from the defaults of config.yaml


def compose(overrides: Sequence[str] = (), *, config_dir: str | None = None) -> ExperimentConfig:
    """The experiment that `python -m ftlab OVERRIDES` runs.

    Raises:
        ConfigError: an override or a rule across keys is wrong; all problems are listed.
    """
    return composition(overrides, config_dir=config_dir).config


def composition(overrides: Sequence[str] = (), *, config_dir: str | None = None) -> Composition:
    """`compose`, with Hydra's own record and the keys that differ from the defaults."""
    overrides = normalise(overrides)
    with hydra_session():
        extra = search_path(config_dir)
        check_overrides(overrides, extra=extra)
        whole = _composed([*overrides, *extra])
        plain = _plain(whole)
        if whole.hydra.runtime.choices.get("experiment") == BEST:  # an earlier version may have written it
            plain["tracker"] = trackers.modern(plain["tracker"])
        tree, base = without_secrets(plain), flatten(_plain(_default(_sources())))
        trusted = allows_code(overrides)
        if tree["model"]["trust_remote_code"] and not trusted:
            raise ConfigError(UNTYPED)
        changed = {key for key, value in flatten(tree).items() if base.get(key) != value}
        return Composition(
            typed_from_tree(tree, trusted),
            tree,
            _hydra_record(whole),
            list(overrides),
            changed - {"run_dir", "run_name", "model.name"},
        )


@contextmanager
def hydra_session() -> Iterator[None]:
    """Set up Hydra's global state for `conf/`, and clear it at the end."""
    register()
    GlobalHydra.instance().clear()
    with guarded(), initialize_config_dir(str(CONF), version_base="1.3", job_name="ftlab"):
        yield


def search_path(config_dir: str | None) -> list[str]:
    """The override that adds the folder of `--config-dir` to Hydra's search path."""
    if config_dir is None:
        return []
    folder = Path(config_dir).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"--config-dir={config_dir} is not a folder")
    return [f"hydra.searchpath=[{quoted('file://' + str(folder))}]"]


def _composed(overrides: list[str]) -> DictConfig:
    try:
        return hydra_compose("config", overrides=overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(redact_message(explain(error))) from None


@lru_cache(maxsize=1)
def _default(sources: Hashable) -> DictConfig:
    """What config.yaml composes to without overrides; callers must not change it."""
    return _composed([])


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """Resolved plain containers without Hydra's node; missing and unresolvable values are errors."""
    job = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    try:
        missing = OmegaConf.missing_keys(job)
        if missing:
            raise ConfigError(*(f"{key} has no value: set {key}=VALUE" for key in sorted(missing)))
        return cast(dict[str, Any], OmegaConf.to_container(job, resolve=True))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from None


def without_secrets(tree: dict[str, Any]) -> dict[str, Any]:
    """A tree with all known secrets masked (`run_name=x-${oc.env:HF_TOKEN}`), so that what is trained is what is
    recorded. Paths and connections must work, so they stay; they are masked when they are written."""
    masked: dict[str, Any] = redact_tree(tree, known)
    for node, key in (("sweep", "storage"), ("data", "path"), ("model", "id"), ("lora", "init_from")):
        masked[node][key] = tree[node][key]
    name = str(tree["run_name"])
    masked["run_name"] = redact(name).replace(MASK, "redacted")  # it names a folder
    masked["run_dir"] = str(tree["run_dir"]).replace(name, masked["run_name"])
    return masked


def _hydra_record(cfg: DictConfig) -> dict[str, Any]:
    """Hydra's own node, unresolved, since some of its values exist only while Hydra runs a job."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg.hydra, resolve=False, enum_to_str=True))


def typed_from_tree(tree: dict[str, Any], trust_remote_code: bool = False) -> ExperimentConfig:
    """An ExperimentConfig from plain containers, such as a run's config.yaml. Its value of `model.trust_remote_code` is
    ignored: the argument `trust_remote_code` is what the user gave in this command.

    Raises:
        ConfigError: an unknown key, a wrong type or a broken rule.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(ExperimentConfig), tree)
        typed = cast(ExperimentConfig, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from None
    typed.model.trust_remote_code = trust_remote_code
    return rules.check(typed)


def to_tree(cfg: ExperimentConfig) -> dict[str, Any]:
    """Plain containers of a typed configuration, the counterpart of `typed_from_tree`."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(cfg)))


def composed_tree(group: str, option: str) -> dict[str, Any]:
    """The configuration that `group=option` composes to, e.g. with the whole `data` node of `data=sql_synth`."""
    with hydra_session():
        check_overrides([f"{group}={option}"])
        return _plain(_composed([f"{group}={option}"]))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def allows_code(overrides: Sequence[str]) -> bool:
    """Whether the last override of `model.trust_remote_code` is literally true, so that a model's own code may run."""
    said = [text.lstrip("+").partition("=") for text in overrides]
    values = [value.strip().lower() for key, _, value in said if key.strip() == TRUST]
    return values[-1:] == ["true"]


# --- overrides, checked before Hydra composes -----------------------------------------------------------


def normalise(overrides: Sequence[str]) -> list[str]:
    """The overrides with those that they imply.

    `~` at the start of a path is the home folder (Hydra's grammar uses that character otherwise). Another `model.id`
    replaces the model of the chosen option, so its name follows from the id and the option's package does not apply.
    `data.task` sets the objective to the task's headline metric. A `trainer.stage` that measures no loss sets
    `sweep.rung_metric` to its own metric, and the objective too if its model generates no answers. `trainer.epochs` on
    the command line takes precedence over an experiment's `trainer.max_steps`.
    """
    given = {text.partition("=")[0].lstrip("+"): text.partition("=")[2] for text in overrides}
    implied = []
    if "model.id" in given:
        label = Path(given["model.id"].strip("'\"")).name or "model"
        implied = [f"model.name={quoted(label)}", "model.package=null"]
    if (task := given.get("data.task", "").strip("'\"")) and task in tasks.names():
        implied.append(f"objective=eval/{tasks.get(task).headline}")
    implied += _of_stage(given.get("trainer.stage", "").strip("'\""))
    if "trainer.epochs" in given:
        implied.append("trainer.max_steps=null")
    overrides = [_open(text) for text in map(_with_home, overrides)]
    return [*overrides, *(text for text in implied if text.partition("=")[0] not in given)]


def _of_stage(name: str) -> list[str]:
    """The overrides that a stage without a loss implies: they name its first metric that may be an objective."""
    if not name or name not in stages.names():
        return []
    stage = stages.get(name)
    own = [f"eval/{metric.name}" for metric in stage.metrics if metric.objective]
    if not own or "eval/loss" in own:
        return []
    return [f"sweep.rung_metric={own[0]}", *([] if stage.answers else [f"objective={own[0]}"])]


def _open(text: str) -> str:
    """The override with `++` if it is a setting that a part defines, since no option may have set it yet."""
    return f"++{text.lstrip('+')}" if text.lstrip("+").startswith(config.OPTIONS) else text


def _with_home(text: str) -> str:
    key, equals, value = text.partition("=")
    if equals and key.lstrip("+") in PATH_KEYS and value.startswith("~"):
        return f"{key}={quoted(os.path.expanduser(value))}"
    return text


def check_overrides(overrides: Sequence[str], *, multirun: bool = False, extra: Sequence[str] = ()) -> None:
    """Refuse overrides that Hydra would drop, misread or reject without a suggestion. Needs a Hydra session.

    Raises:
        ConfigError: every wrong override, each with the nearest valid ones.
    """
    groups = config_groups(extra)
    problems = [problem for text in overrides if (problem := _problem(text, groups, multirun))]
    if problems:
        raise ConfigError(*map(redact_message, problems))


def config_groups(extra: Sequence[str] = ()) -> dict[str, list[str]]:
    """Every config group with its options."""
    groups = {name: list(options) for name, options in _options(_sources()).items()}
    for folder in extra:
        _add_folder(groups, folder)
    return groups


@lru_cache(maxsize=1)
def _options(sources: Hashable) -> dict[str, list[str]]:
    """The groups on Hydra's search path; callers must not change them."""
    loader = _loader()
    return {name: loader.get_group_options(name) for name in loader.list_groups("") if name != "hydra"}


def _loader() -> ConfigLoader:
    hydra = GlobalHydra.instance().hydra
    if hydra is None:
        raise RuntimeError("config groups are available in a Hydra session only: use with hydra_session()")
    return hydra.config_loader


def _sources() -> Hashable:
    """A key for caching what Hydra finds: the search path, the files of its folders with their sizes and modification
    times, and the names of the nodes in its config store."""
    path = tuple((place.provider, place.path) for place in _loader().get_search_path().get_path())
    folders = [SWEEPS, *(Path(str(place).removeprefix("file://")) for _, place in path if place)]
    stored = frozenset(flatten(ConfigStore.instance().repo))
    return path, tuple(map(_stamps, folders)), stored, tuple(trackers.names())


def _stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Each configuration file below a folder with its size and modification time; empty if there is no folder."""
    files = sorted(folder.rglob("*.yaml"))
    return tuple((str(file), (found := file.stat()).st_size, found.st_mtime_ns) for file in files)


def _add_folder(groups: dict[str, list[str]], override: str) -> None:
    """Options of a `--config-dir`, which Hydra itself adds to its loader only while composing."""
    _, _, listed = override.partition("[")
    folder = Path(listed.rstrip("]").strip('"').removeprefix("file://"))
    for file in folder.glob("*/*.yaml"):
        groups.setdefault(file.parent.name, []).append(file.stem)


def _problem(text: str, groups: dict[str, list[str]], multirun: bool) -> str | None:
    try:
        override = OverridesParser.create().parse_override(text)
    except (HydraException, OmegaConfBaseException):
        return _grammar_problem(text)
    key = override.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return "hydra.run.dir is not used: name the run's folder with run_dir=DIR" if key == "hydra.run.dir" else None
    if override.type == OverrideType.DEL:
        return f"{text} deletes a key, but the configuration's keys are fixed: set {key}=null or another value"
    if override.is_sweep_override() and not multirun:
        return f"{text} names several values: add --multirun to try them all, or quote the value: {_quoted_form(text)}"
    if key in groups:
        return _option_problem(override, groups[key])
    if config.is_key(key):
        return None
    if key.startswith("tracker."):
        return trackers.unknown(key) if key.split(".")[1] not in trackers.names() else None
    near = suggestions(key, groups)
    return f"{key} is not a key or group of the configuration. Did you mean: {', '.join(near)}?"


def _option_problem(override: Override, options: list[str]) -> str | None:
    group = override.key_or_group
    if isinstance(override.value(), Glob):  # it matches existing options only
        return None
    values = [override.value()] if not override.is_sweep_override() else list(override.sweep_string_iterator())
    listed = [one for value in values for one in (value if isinstance(value, list) else [value])]
    for value in listed:
        if value is None:
            return f"{group}=null chooses no option: leave {group}= out, or choose one of: {', '.join(options)}"
        if str(value).strip("'\"") not in options:
            near = difflib.get_close_matches(str(value), options, n=3, cutoff=0.3)
            hint = f" Did you mean: {', '.join(near)}?" if near else ""
            return f"{group}={value} is not an option of {group}.{hint} Options: {', '.join(options)}"
    return None


def _grammar_problem(text: str) -> str:
    if "=" not in text:
        return f"{text!r} is not of the form key=value"
    return f"{text}: the value has characters that Hydra's grammar reserves. Quote it: {_quoted_form(text)}"


def _quoted_form(text: str) -> str:
    key, _, value = text.partition("=")
    return shlex.quote(f"{key}={quoted(value)}")


def suggestions(key: str, groups: dict[str, list[str]] | None = None, n: int = 3) -> list[str]:
    """The valid keys most similar to a wrong one: first by other tools' names, then by the spelling of the whole key or
    of its last part."""
    known = [*config.known_keys(), *trackers.keys(), *(groups or {})]
    last = key.rpartition(".")[2]
    lasts = {name.rpartition(".")[2]: name for name in known}
    alias = difflib.get_close_matches(last, ALIASES, n=1, cutoff=0.85)
    exact = [name for name in known if name.rpartition(".")[2] == last]
    whole = difflib.get_close_matches(key, known, n=n, cutoff=0.5)
    part = [lasts[name] for name in difflib.get_close_matches(last, lasts, n=n, cutoff=0.5)]
    ranked = sorted({*whole, *part}, key=lambda name: -_likeness(key, name))
    found = dict.fromkeys([ALIASES[a] for a in alias] + exact + ranked)
    return list(found)[:n] or list(difflib.get_close_matches(key, known, n=n, cutoff=0.0))


def _likeness(key: str, name: str) -> float:
    last = difflib.SequenceMatcher(None, key.rpartition(".")[2], name.rpartition(".")[2]).ratio()
    return max(difflib.SequenceMatcher(None, key, name).ratio(), 0.85 * last)


TYPE_WORDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "text"}


def explain(error: Exception) -> str:
    """A short message for an exception of Hydra, OmegaConf or YAML, with the file if it names one."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem_mark.name}:{error.problem_mark.line + 1}: not YAML ({error.problem})"
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    file = re.match(r"In '[^']*': ", first)
    return (file[0] if file else "") + _cause(error)


def _cause(error: Exception) -> str:
    cause = error
    while not isinstance(cause, OmegaConfBaseException) and (cause.__cause__ or cause.__context__):
        cause = cast(Exception, cause.__cause__ or cause.__context__)
    key = getattr(cause, "full_key", None) or ""
    message = str(getattr(cause, "msg", None) or cause).strip().splitlines()[0]
    if isinstance(cause, ValidationError) and key:
        value = getattr(cause, "value", None)
        for name, words in TYPE_WORDS.items():
            if message.endswith(f"could not be converted to {name}"):
                shown = message.split("'")[1] if "'" in message else value
                return f"{key}={shown} must be {words}"
        if "is not a valid bool" in message:
            return f"{key}={value} must be true or false"
        if "not Optional" in message:
            return f"{key}=null must have a value"
    if "not in" in message and (key.startswith("tracker.") or "'tracker." in str(error)):
        return trackers.unknown(re.findall(r"tracker\.[\w.]+", f"{error} {key}")[0])
    if "not in '" in message and key:
        return f"{key} is not a key of the configuration. Did you mean: {', '.join(suggestions(key))}?"
    return f"{key}: {message}" if key and key not in message else message


def load_tree(file: Path) -> dict[str, Any]:
    """A resolved configuration that a run wrote."""
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read as a configuration ({str(error).splitlines()[0]})") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: contains no configuration")
    if isinstance(tree.get("tracker"), dict):
        tree["tracker"] = trackers.modern(tree["tracker"])
    return tree
