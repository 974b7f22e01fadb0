"""Samplers and pruners from a SweepConfig.

Every trial's draws are seeded with `sweep.sampler_seed` and the trial's number. So a restarted sweep continues as if it
had never stopped, and workers that start together do not draw the same configuration.
"""

import importlib.util
import random
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

from optuna import Study as OptunaStudy
from optuna import pruners, samplers
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ftlab.config import SweepConfig
from ftlab.errors import ConfigError
from ftlab.sweep.space import Space

# Packages that a sampler or pruner imports on first use.
NEEDS = {"gp": ("scipy", "torch"), "cmaes": ("cmaes",), "qmc": ("scipy",), "wilcoxon": ("scipy",)}
LARGEST_GRID = 100_000
DEFAULT_TRIALS = 20


def chosen(cfg: SweepConfig, space: Space) -> str:
    """The sampler's name, with `auto` resolved.

    Raises:
        ConfigError: `grid` for a space that cannot be listed or is too large.
    """
    size = space.size()
    name = cfg.sampler
    if name == "auto":
        whole = space.enumerable and size is not None and (cfg.n_trials is None or cfg.n_trials >= size)
        name = "grid" if whole else "tpe"
    if name == "grid" and size is None:
        endless = ", ".join(f"{d.key} ({d.describe()})" for d in space.dimensions if d.grid() is None)
        raise ConfigError(
            f"sweep.sampler=grid needs values that can be listed, unlike {endless}: "
            "list them with choice(...) or range(...), or choose sweep.sampler=tpe"
        )
    if name == "grid" and size is not None and size > LARGEST_GRID:
        raise ConfigError(
            f"sweep.sampler={cfg.sampler} would run a grid of {size:,} points (at most {LARGEST_GRID:,}): "
            "choose sweep.sampler=tpe with sweep.n_trials=N"
        )
    return name


def target(cfg: SweepConfig, space: Space) -> int:
    """The number of finished trials at which the sweep ends."""
    if cfg.n_trials is not None:
        return cfg.n_trials
    return (space.size() or 0) if chosen(cfg, space) == "grid" else DEFAULT_TRIALS


def sampler(
    cfg: SweepConfig,
    space: Space,
    lock: Callable[[], AbstractContextManager[Any]],
    forgiven: frozenset[int] = frozenset(),
) -> BaseSampler:
    """The sampler of a study. `lock` keeps workers from taking the same grid point. The grid points of the failed
    trials `forgiven`, given by number, may run again.

    Raises:
        ConfigError: its package is missing, or the space cannot be listed as a grid.
    """
    name = chosen(cfg, space)
    _require("sweep.sampler", name)
    if name == "grid":
        return Grid(space, target(cfg, space), cfg.sampler_seed, lock, forgiven)
    if name == "qmc":  # the study counts its sequence, which one seed must scramble for all workers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return samplers.QMCSampler(
                scramble=True, seed=cfg.sampler_seed, warn_independent_sampling=False, warn_asynchronous_seeding=False
            )
    startup = max(4, min(10, target(cfg, space) // 3))  # random trials before the model is used
    make: dict[str, Callable[[int], BaseSampler]] = {
        "random": lambda seed: samplers.RandomSampler(seed=seed),
        # constant_liar: running trials count as tried, since several workers or drivers may share the study.
        "tpe": lambda seed: samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True),
        "gp": lambda seed: samplers.GPSampler(seed=seed, n_startup_trials=startup),
        "cmaes": lambda seed: samplers.CmaEsSampler(
            seed=seed, n_startup_trials=startup, warn_independent_sampling=False
        ),
    }
    return Seeded(make[name], cfg.sampler_seed)


def pruner(cfg: SweepConfig, rungs: Sequence[int]) -> BasePruner:
    """The pruner for trials that report at `rungs`, in optimizer steps (multiples of eval.every); values must be
    reported by those steps. Wilcoxon compares seeds instead: its values are reported by the index of the seed.

    Raises:
        ConfigError: too few rungs, or a missing package.
    """
    if cfg.pruner == "none":
        return pruners.NopPruner()
    check_pruner(cfg)
    if cfg.pruner == "wilcoxon":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return _patient(cfg, Own(pruners.WilcoxonPruner(n_startup_steps=max(2, cfg.warmup_rungs))))
    rungs = sorted(rungs)
    _check_rungs(cfg, len(rungs))
    first, last = rungs[cfg.warmup_rungs], rungs[-1]
    factor = 3 if len(rungs) >= 4 else 2
    startup = max(1, min(5, (cfg.n_trials or DEFAULT_TRIALS) // 4))
    make: dict[str, Callable[[], BasePruner]] = {
        "median": lambda: Own(pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=first)),
        "successive_halving": lambda: pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=factor),
        "hyperband": lambda: pruners.HyperbandPruner(min_resource=first, max_resource=last, reduction_factor=factor),
    }
    return _patient(cfg, make[cfg.pruner]())


def check_pruner(cfg: SweepConfig) -> None:
    """Refuse a pruner whose package is missing.

    Raises:
        ConfigError: names the packages to install.
    """
    _require("sweep.pruner", cfg.pruner)


def _check_rungs(cfg: SweepConfig, rungs: int) -> None:
    """Check that a rung before the last remains to prune at: pruning at the last one saves nothing."""
    waits = {"sweep.warmup_rungs": cfg.warmup_rungs}
    if cfg.patience is not None:
        waits["sweep.patience"] = cfg.patience + 1  # and one rung to compare with
    key, wait = max(waits.items(), key=lambda item: item[1])
    if rungs - 1 > wait:
        return
    held = f", and {key}={getattr(cfg, key.removeprefix('sweep.'))} uses up the earlier ones" if wait else ""
    raise ConfigError(
        f"sweep.pruner={cfg.pruner} would never act: a trial is evaluated {rungs} times in training, the last time at "
        f"its end, where nothing is left to prune{held}: set a lower eval.every=STEPS"
    )


def _patient(cfg: SweepConfig, inner: BasePruner) -> BasePruner:
    if cfg.patience is None:
        return inner
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return pruners.PatientPruner(inner, patience=cfg.patience)


def _require(key: str, name: str) -> None:
    missing = [package for package in NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]
    if missing:
        words = " and ".join(missing)
        raise ConfigError(f"{key}={name} needs the package {words}: pip install {' '.join(missing)}")


class Seeded(BaseSampler):
    """Creates a sampler for every trial, seeded with the trial's number."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._inner = make(seed)

    def before_trial(self, study: OptunaStudy, trial: FrozenTrial) -> None:
        # Hashed, since consecutive seeds would give neighbouring trials similar random streams.
        self._inner = self._make(random.Random(f"{self._seed} {trial.number}").getrandbits(31))
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: OptunaStudy, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: OptunaStudy, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: OptunaStudy, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: OptunaStudy, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._inner.after_trial(study, trial, state, values)


class Own(BasePruner):
    """A pruner that compares a trial with those of its own study only, not with imported ones."""

    def __init__(self, inner: BasePruner) -> None:
        self._inner = inner

    def prune(self, study: OptunaStudy, trial: FrozenTrial) -> bool:
        return self._inner.prune(cast(OptunaStudy, _OwnTrials(study)), trial)


class _OwnTrials:
    """The part of Optuna's study that pruners use, without imported trials."""

    def __init__(self, study: OptunaStudy) -> None:
        self._study, self.direction = study, study.direction

    def get_trials(self, deepcopy: bool = True, states: tuple[TrialState, ...] | None = None) -> list[FrozenTrial]:
        return [trial for trial in self._study.get_trials(deepcopy=deepcopy, states=states) if own(trial)]

    @property
    def best_trial(self) -> FrozenTrial:
        """Raises ValueError if no trial is complete, as Optuna's does."""
        best = max if self.direction == StudyDirection.MAXIMIZE else min
        return best(self.get_trials(False, (TrialState.COMPLETE,)), key=lambda trial: trial.values[0])


class Grid(BaseSampler):
    """Every point of the grid once, in the order written; if fewer are wanted, in random order. A point whose trial was
    interrupted or is `forgiven` may run again. Optuna's GridSampler goes by trial numbers, which retries and
    `sweep.first` shift."""

    def __init__(
        self,
        space: Space,
        wanted: int,
        seed: int,
        lock: Callable[[], AbstractContextManager[Any]],
        forgiven: frozenset[int] = frozenset(),
    ) -> None:
        self._space, self._lock, self._forgiven = space, lock, forgiven
        self._order = list(range(space.size() or 0))
        if wanted < len(self._order):
            random.Random(seed).shuffle(self._order)

    def before_trial(self, study: OptunaStudy, trial: FrozenTrial) -> None:
        with self._lock():
            storage = study._storage
            now = storage.get_trial(trial._trial_id)
            if "point" in now.system_attrs:
                return
            others = [t for t in storage.get_all_trials(study._study_id, deepcopy=False) if t.number != trial.number]
            taken = {point_of(other, self._space) for other in others if occupies(other, self._forgiven)}
            given = {**now.system_attrs.get("fixed_params", {}), **now.params}
            fitting = [point for point in self._order if self._fits(point, given)]
            free = [point for point in fitting if point not in taken]
            # If no point is free, the trial is one too many, which Study.surplus detects.
            storage.set_trial_system_attr(trial._trial_id, "point", (free or fitting)[0])

    def _fits(self, point: int, given: dict[str, Any]) -> bool:
        return not given or given.items() <= self._space.at(point).items()

    def infer_relative_search_space(self, study: OptunaStudy, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: OptunaStudy, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: OptunaStudy, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        point = study._storage.get_trial(trial._trial_id).system_attrs["point"]
        return self._space.at(int(point))[param_name]


def point_of(trial: FrozenTrial, space: Space) -> int | None:
    """The index of a trial's grid point; None if it has none yet."""
    point = trial.system_attrs.get("point")
    return space.index({**trial.system_attrs.get("fixed_params", {}), **trial.params}) if point is None else int(point)


def own(trial: FrozenTrial) -> bool:
    """Whether the trial is the study's own and was not imported from another study."""
    return "from" not in trial.user_attrs


def occupies(trial: FrozenTrial, forgiven: frozenset[int] = frozenset()) -> bool:
    """Whether the trial's configuration is done, running or known to fail in this study. Failed trials that are
    `forgiven`, given by number, may be tried again."""
    if trial.state is TrialState.FAIL:
        return failed(trial) and trial.number not in forgiven
    return own(trial)


def failed(trial: FrozenTrial) -> bool:
    """Whether the trial really failed: it was neither interrupted nor discarded as surplus."""
    attrs = trial.user_attrs
    return trial.state is TrialState.FAIL and not attrs.get("surplus") and not attrs.get("interrupted")
