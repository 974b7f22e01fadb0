"""Rungs: the optimizer steps after which a trial is evaluated, and may be pruned."""

from ftlab.config import ExperimentConfig


def rungs_of(cfg: ExperimentConfig) -> list[int] | None:
    """Optimizer steps after which a trial is evaluated; None where it trains for epochs, whose steps the data decides.
    Known without torch, so that no worker needs to compose a configuration for it."""
    return None if cfg.trainer.max_steps is None else evaluated(cfg.trainer.max_steps, cfg.eval.every)


def evaluated(steps: int, every: int | None) -> list[int]:
    """Every `every`th of so many steps (nothing: none of them), and the last."""
    return sorted({*range(every, steps, every), steps}) if every else [steps]
