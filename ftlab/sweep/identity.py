"""What makes two sweeps the same study, and which settings go together."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import optuna

from ftlab.config import OBJECTIVES, SweepConfig
from ftlab.errors import ConfigError
from ftlab.redact import redact
from ftlab.run_dir import FREE_KEYS, FREE_NODES
from ftlab.sweep.space import Space
from ftlab.versions import versions

Direction = Literal["maximize", "minimize"]

PACKAGES = ("ftlab", "optuna", "torch", "transformers", "peft", "bitsandbytes")
# Pairs of seeds below which Wilcoxon's test cannot be sure (1/16 < 0.1 takes four), and one more to save.
WILCOXON_SEEDS = 5
REMEDY = "name this one differently with sweep.study=NAME"


def directions_of(objectives: list[str], given: Any) -> list[Direction]:
    """`maximize` or `minimize` of each objective; what `sweep.direction` says wins."""
    if given is not None:
        return [*given] if isinstance(given, list) else [given]
    return ["maximize" if OBJECTIVES.get(name, False) else "minimize" for name in objectives]


def check(cfg: SweepConfig, space: Space, objectives: list[str]) -> None:
    """Rules between the sweep's settings and its space.

    Raises:
        ConfigError: lists all that are broken.
    """
    problems = []
    if len(objectives) > 1 and cfg.pruner != "none":
        problems.append(
            f"sweep.pruner={cfg.pruner}: Optuna cannot prune a search for several objectives "
            f"({', '.join(objectives)}): choose sweep.pruner=none"
        )
    if cfg.seeds > 1 and any(dimension.key == "seed" for dimension in space.dimensions):
        problems.append(f"sweep.seeds={cfg.seeds} already varies seed, which the sweep searches too: leave one out")
    if cfg.pruner == "wilcoxon" and cfg.seeds < WILCOXON_SEEDS:
        problems.append(
            f"sweep.pruner=wilcoxon compares trials seed by seed and is sure of nothing below {WILCOXON_SEEDS}: "
            f"set sweep.seeds={WILCOXON_SEEDS} or more, or choose sweep.pruner=median"
        )
    if problems:
        raise ConfigError(*problems)
    for guess in cfg.first:
        if not isinstance(guess, Mapping):
            raise ConfigError(f"sweep.first lists {guess}, which is no map of swept keys: write {{trainer.lr: 2e-4}}")
        space.values(guess)


def record(
    cfg: SweepConfig, space: Space, objectives: list[str], directions: Sequence[str], fixed: list[str]
) -> dict[str, Any]:
    """What makes two sweeps the same study."""
    return {
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
    """The study's own space, after it was found to be what is wanted; a new study is told what it is.

    Raises:
        ConfigError: the study is another; every difference is listed.
    """
    before = study.user_attrs
    if "space" not in before:
        if study.get_trials(deepcopy=False):
            raise ConfigError(f"the database holds a study {study.study_name} of another tool: {REMEDY}")
        for key, value in {"versions": versions(PACKAGES), **wanted}.items():  # the space last: now it is complete
            study.set_user_attr(key, value)
        return space
    problems = differences(before, wanted, tuple(wanted))
    if problems:
        raise ConfigError(f"the study {study.study_name} is of another sweep:\n" + "\n".join(problems) + f"\n{REMEDY}")
    return Space.from_record(before["space"])


def differences(old: Mapping[str, Any], new: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    lines = []
    for key in keys:
        if key == "space":
            lines += Space.differences(old[key], new[key])
        elif key == "fixed":
            lines += [f"{text} in the study, not now" for text in old[key] if text not in new[key]]
            lines += [f"{text} now, not in the study" for text in new[key] if text not in old[key]]
        elif old[key] != new[key]:
            lines.append(f"sweep.{key}: {_words(old[key])} in the study, {_words(new[key])} now")
    return [f"  {line}" for line in lines]


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
