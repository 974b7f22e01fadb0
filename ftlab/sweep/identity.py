"""The record that identifies a study, compared when a sweep joins it; and rules between a sweep's settings."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import optuna

from ftlab import declared, run_dir
from ftlab.composition import Composition, flatten
from ftlab.config import DataConfig, SweepConfig
from ftlab.errors import ConfigError
from ftlab.metrics import Direction
from ftlab.redact import redact, redact_tree
from ftlab.run_dir import FREE_KEYS, FREE_NODES, SPLITS, defaults
from ftlab.summary import Sources
from ftlab.sweep.space import Space
from ftlab.versions import versions

PACKAGES = ("ftlab", "optuna", "torch", "transformers", "peft", "bitsandbytes")
# The least number of seeds: Wilcoxon's test is significant from four pairs on (1/16 < 0.1), and a fifth can be saved.
WILCOXON_SEEDS = 5
NO_ROWS = ("data.name", "data.prompt", "data.max_length")  # keys of data that do not change the rows
MOST_SHOWN = 20  # differing keys that a message lists
REMEDY = "give this one another name with sweep.study=NAME"


def directions_of(objectives: list[str], given: Any) -> list[Direction]:
    """`maximize` or `minimize` for each objective; `sweep.direction` overrides the metrics' own."""
    if given is not None:
        return [*given] if isinstance(given, list) else [given]
    return [declared.of(name).direction or "minimize" for name in objectives]


def check(cfg: SweepConfig, space: Space, objectives: list[str]) -> None:
    """Rules between the sweep's settings and its space.

    Raises:
        ConfigError: lists all violated rules.
    """
    problems = []
    if len(objectives) > 1 and cfg.pruner != "none":
        problems.append(
            f"sweep.pruner={cfg.pruner}: Optuna cannot prune a search for several objectives "
            f"({', '.join(objectives)}): choose sweep.pruner=none"
        )
    if cfg.seeds > 1 and any(dimension.key == "seed" for dimension in space.dimensions):
        problems.append(f"sweep.seeds={cfg.seeds} already varies seed, which the sweep searches too: remove one")
    if cfg.pruner == "wilcoxon" and cfg.seeds < WILCOXON_SEEDS:
        problems.append(
            f"sweep.pruner=wilcoxon compares trials seed by seed and cannot prune with fewer than {WILCOXON_SEEDS}: "
            f"set sweep.seeds={WILCOXON_SEEDS} or more, or choose sweep.pruner=median"
        )
    if problems:
        raise ConfigError(*problems)
    for guess in cfg.first:
        if not isinstance(guess, Mapping):
            raise ConfigError(f"sweep.first lists {guess}, not a map of searched keys: write {{trainer.lr: 2e-4}}")
        space.values(guess)


def rises(metric: str, objectives: Sequence[str], directions: Sequence[str]) -> bool:
    """Whether a higher metric is better: by the study's direction if it is an objective, else by its definition."""
    aims = dict(zip(objectives, directions, strict=True))
    return aims[metric] == "maximize" if metric in aims else declared.of(metric).rises


def configuration(compose: Callable[[list[str]], Composition], space: Space) -> dict[str, Any]:
    """The values that all trials share by dotted key, whether from the command line or a file, without searched keys,
    keys that may differ, and secrets. A value that depends on a searched group has the key `GROUP=OPTION KEY` for each
    option.

    `compose` composes a configuration from overrides on top of the sweep's own; about 0.1 s per option.
    """
    searched = set(space.keys)
    base = _kept(compose([]))
    options = {}
    for dimension in (one for one in space.dimensions if one.key not in base):  # a group, or a whole node
        for override in map(dimension.override, dimension.grid() or []):
            with suppress(ConfigError):  # an option that is valid with certain values of other keys only
                options[override] = _kept(compose([override]))
    different = {key for values in options.values() for key, v in values.items() if key not in base or base[key] != v}
    found = {key: value for key, value in base.items() if key not in searched | different}
    for override, values in options.items():
        found |= {f"{override} {key}": values[key] for key in (different & values.keys()) - searched}
    plain: dict[str, Any] = json.loads(json.dumps(found, sort_keys=True))
    return plain


def shared(sources: Sources, composed: Mapping[str, Any], space: Space) -> Sources:
    """Those `sources` of one configuration that all trials share; `composed` is the result of `configuration`."""
    keys = [f"data.{name}" for name in flatten(asdict(DataConfig(name="", source="")))]
    options = (key.rpartition(" ")[2] for key in (*composed, *space.keys))
    keys += [key for key in options if key.startswith("data.options.")]
    depends = {key: [name for name in keys if name not in NO_ROWS] for key in SPLITS}
    depends |= {"template": ["data.prompt"], "tokenizer": ["model.id", "model.revision", "model.package"]}
    return {key: sources[key] for key, names in depends.items() if all(name in composed for name in names)}


def _kept(composed: Composition) -> dict[str, Any]:
    flat = flatten(redact_tree(composed.tree))
    return {key: value for key, value in flat.items() if key not in FREE_KEYS and not key.startswith(FREE_NODES)}


def record(
    cfg: SweepConfig,
    space: Space,
    objectives: list[str],
    directions: Sequence[str],
    fixed: list[str],
    composed: Mapping[str, Any] | None = None,
    sources: Sources | None = None,
) -> dict[str, Any]:
    """The record that identifies a study. `composed` comes from `configuration` and `sources` from `shared`; a worker
    that only joins the study leaves them out."""
    return {
        **({} if composed is None else {"configuration": dict(composed)}),
        **({} if sources is None else {"sources": sources}),
        "objectives": objectives,
        "directions": list(directions),
        "fixed": sorted(redact(text) for text in fixed if _matters(text)),
        "seeds": cfg.seeds,
        "rung_metric": cfg.rung_metric,
        "space": space.record(),
    }


def _matters(override: str) -> bool:
    key = override.partition("=")[0].lstrip("+")
    return key != "tracker" and key not in FREE_KEYS and not key.startswith(FREE_NODES)


def agreed(study: optuna.Study, space: Space, wanted: dict[str, Any]) -> Space:
    """The study's recorded space, after a check that its record equals `wanted`; a new study is given that record.

    Raises:
        ConfigError: the records differ; every difference is listed.
    """
    before = study.user_attrs
    if "space" not in before:
        if study.get_trials(deepcopy=False):
            raise ConfigError(f"the database has a study {study.study_name} of another tool: {REMEDY}")
        for key, value in {
            "versions": versions(PACKAGES),
            **wanted,
        }.items():  # the space last, which marks the record as complete
            study.set_user_attr(key, value)
        return space
    problems = differences(before, wanted, tuple(wanted))
    if problems:
        remedy = f"restore the data, or {REMEDY}" if differences(before, wanted, ("sources",)) else REMEDY
        raise ConfigError(
            f"the study {study.study_name} belongs to another sweep:\n" + "\n".join(problems) + f"\n{remedy}"
        )
    for key in ("configuration", "sources"):
        if key in wanted and key not in before:  # an older ftlab did not record them
            study.set_user_attr(key, wanted[key])
    return Space.from_record(before["space"])


def differences(old: Mapping[str, Any], new: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """One line per difference between two records; keys that one of them lacks are not compared."""
    lines = []
    for key in (key for key in keys if key in old and key in new):
        if key == "space":
            lines += Space.differences(old[key], new[key])
        elif key == "fixed":
            lines += [f"{text} in the study, not now" for text in old[key] if text not in new[key]]
            lines += [f"{text} now, not in the study" for text in new[key] if text not in old[key]]
        elif key == "configuration":
            texts = set(old.get("fixed", ())) ^ set(new.get("fixed", ()))
            lines += _values(old[key], new[key], {text.partition("=")[0].lstrip("+") for text in texts})
        elif key == "sources":
            lines += run_dir.differences(old[key], new[key], "in the study")
        elif old[key] != new[key]:
            lines.append(f"sweep.{key}: {_words(old[key])} in the study, {_words(new[key])} now")
    return [f"  {line}" for line in lines]


def _values(old: Mapping[str, Any], new: Mapping[str, Any], listed: set[str]) -> list[str]:
    """One line per key in which two configurations differ, without those `listed` already."""
    usual = flatten(defaults())  # keys that an older ftlab did not have had today's default

    def of(values: Mapping[str, Any], key: str) -> Any:
        return values.get(key, usual.get(key.rpartition(" ")[2]))

    keys = [key for key in sorted({*old, *new}) if key not in listed and of(old, key) != of(new, key)]
    lines = [f"{key}: {_words(of(old, key))} in the study, {_words(of(new, key))} now" for key in keys[:MOST_SHOWN]]
    return [*lines, f"and {len(keys) - MOST_SHOWN} more"] if len(keys) > MOST_SHOWN else lines


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
