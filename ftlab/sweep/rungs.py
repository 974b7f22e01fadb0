"""Rungs: the optimizer steps after which a trial is evaluated and may be pruned."""

from ftlab.config import ExperimentConfig


def rungs_of(cfg: ExperimentConfig) -> list[int] | None:
    """Optimizer steps after which a trial is evaluated; None where it trains for epochs, whose steps the data decides.
    Needs no torch, and workers need not compose a configuration for it."""
    return None if cfg.trainer.max_steps is None else evaluated(cfg.trainer.max_steps, cfg.eval.every)


def evaluated(steps: int, every: int | None) -> list[int]:
    """Every `every`th of `steps` steps, and the last; the last alone if `every` is None."""
    return sorted({*range(every, steps, every), steps}) if every else [steps]
