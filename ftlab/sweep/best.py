"""The experiment file of the best trial, which `--config-dir STUDY_FOLDER experiment=best` composes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra import compose
from omegaconf import OmegaConf

from ftlab import trackers
from ftlab.composition import CONF, composition, flatten, hydra_session, load_tree
from ftlab.disk import write_atomic
from ftlab.errors import ConfigError
from ftlab.redact import MASK

# Keys for a run's folder, name and group: another run of the same configuration has its own.
LEFT_OUT = ("run_dir", "run_name", "force", "tracker.group")
LEFT_OUT_NODES = ("sweep.",)
HEAD = "# @package _global_\n"


@dataclass(frozen=True)
class ComposedConfig:
    """A configuration, and the option of each group that it was composed from."""

    tree: Mapping[str, Any]
    choices: Mapping[str, Any]

    @classmethod
    def of_run(cls, run: Path) -> "ComposedConfig":
        """The configuration in a run folder. Without Hydra's record it has no choices.

        Raises:
            ConfigError: config.yaml cannot be read.
        """
        tree = load_tree(run / "config.yaml")
        try:
            hydra = load_tree(run / ".hydra" / "hydra.yaml").get("hydra") or {}
        except ConfigError:
            hydra = {}
        return cls(tree, _choices(tree, hydra))

    @classmethod
    def of_overrides(cls, overrides: Sequence[str]) -> "ComposedConfig":
        """The configuration that these overrides compose to now.

        Raises:
            ConfigError: they do not compose to a valid configuration (any more).
        """
        found = composition(overrides)
        return cls(found.tree, _choices(found.tree, found.hydra))


def write(folder: Path, recipe: ComposedConfig, comment: str) -> list[str]:
    """Write `folder`/experiment/best.yaml. Returns the keys whose values differ between what the file composes to
    and the recipe: none, unless a value is a secret, which is left out.

    Raises:
        ConfigError: the file does not compose to a valid configuration.
        OSError: the folder cannot be written.
    """
    (folder / "experiment").mkdir(parents=True, exist_ok=True)
    body = experiment(recipe.tree, recipe.choices)
    write_atomic(folder / "experiment" / "best.yaml", f"{HEAD}# {comment}\n{body}")
    made = kept(composition(["experiment=best"], config_dir=str(folder)).tree)
    wanted = kept(recipe.tree)
    return sorted(key for key in {*made, *wanted} if made.get(key) != wanted.get(key))


def experiment(tree: Mapping[str, Any], choices: Mapping[str, Any]) -> str:
    """The YAML that turns the defaults into `tree`: the options of its groups, then every value that differs from
    them. Masked values are left out."""
    groups = {group: option for group, option in choices.items() if _shipped(group, option)}
    before = flatten(_unchecked([f"{group}={_written(option)}" for group, option in groups.items()]))
    different = {key: value for key, value in kept(tree).items() if key not in before or before[key] != value}
    nested: dict[str, Any] = {}
    for key, value in different.items():
        if value != MASK:
            _put(nested, key.split("."), _escaped(value))
    defaults = {"defaults": [{f"override /{group}": option} for group, option in groups.items()]}
    return OmegaConf.to_yaml(OmegaConf.create({**(defaults if groups else {}), **nested}))


def kept(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted keys of a configuration that an experiment file carries over."""
    flat = flatten(dict(tree))
    return {k: v for k, v in flat.items() if k not in LEFT_OUT and not k.startswith(LEFT_OUT_NODES)}


def _choices(tree: Mapping[str, Any], hydra: Mapping[str, Any]) -> dict[str, Any]:
    """The option of each group, as Hydra recorded it; of several trackers it records none."""
    found = (hydra.get("runtime") or {}).get("choices")
    if not isinstance(found, Mapping):
        return {}
    return {**found, "tracker": trackers.chosen_names(tree.get("tracker") or {}) or trackers.NONE}


def _shipped(group: str, option: Any) -> bool:
    """Whether an option belongs to ftlab. Experiments and sweeps do not count: their values are written out."""
    return group == "tracker" or (
        group != "experiment" and "/" not in group and (CONF / group / f"{option}.yaml").is_file()
    )


def _written(option: Any) -> str:
    """One option or several, in the form of an override."""
    return f"[{','.join(option)}]" if isinstance(option, list) else str(option)


def _unchecked(overrides: Sequence[str]) -> dict[str, Any]:
    """The values of options as Hydra composes them, unchecked: an option may leave required values to the user."""
    with hydra_session():
        tree = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)
    return cast(dict[str, Any], tree)


def _put(node: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        node = node.setdefault(name, {})
    node[path[-1]] = value


def _escaped(value: Any) -> Any:
    """The value with `${` escaped, which OmegaConf would take for an interpolation."""
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
