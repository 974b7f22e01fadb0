"""Optimizer and learning-rate schedule."""

import math
from importlib.util import find_spec
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from ftlab.config import TrainerConfig


def build_optimizer(parameters: list[torch.nn.Parameter], cfg: TrainerConfig) -> Optimizer:
    """Return the optimizer that `cfg.optim` names. `adamw` is torch's. The 8-bit ones are bitsandbytes' (block-wise
    state, optionally paged to the host). If there is only one float32 tensor on CUDA to train, the fused kernel of
    `ftlab.fast.adam` makes their steps."""
    arguments: dict[str, Any] = {
        "lr": cfg.lr,
        "betas": (cfg.adam_beta1, cfg.adam_beta2),
        "eps": cfg.adam_epsilon,
        "weight_decay": cfg.weight_decay,
    }
    if cfg.optim == "adamw":
        return torch.optim.AdamW(parameters, **arguments, fused=parameters[0].is_cuda)
    import bitsandbytes as bnb

    kind = {"adamw_8bit": bnb.optim.AdamW8bit, "paged_adamw_8bit": bnb.optim.PagedAdamW8bit}[cfg.optim]
    if _alone(parameters) and find_spec("triton") is not None:
        from ftlab.fast.adam import fused

        kind = fused(kind)
    optimizer: Optimizer = kind(parameters, **arguments)
    return optimizer


def allocate_state(optimizer: Optimizer) -> None:
    """Allocate now the optimizer state (zeros) that the first step would create. The setting of the steps is then
    chosen from the memory that is really free."""
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            if optimizer.state[parameter]:
                continue
            if isinstance(optimizer, torch.optim.AdamW):
                count = torch.zeros((), device=parameter.device if group["fused"] else "cpu")
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = {"step": count, **moments}
            else:
                optimizer.init_state(group, parameter, number, place)  # type: ignore[attr-defined]


def _alone(parameters: list[torch.nn.Parameter]) -> bool:
    return len(parameters) == 1 and parameters[0].is_cuda and parameters[0].dtype == torch.float32


def build_schedule(optimizer: Optimizer, cfg: TrainerConfig, steps: int) -> LRScheduler:
    """Return transformers' schedule `cfg.lr_scheduler_type` over `steps` optimizer steps."""
    warmup = cfg.warmup_steps if cfg.warmup_steps >= 1 else cfg.warmup_steps * steps
    schedule: LRScheduler = get_scheduler(
        cfg.lr_scheduler_type, optimizer, num_warmup_steps=math.ceil(warmup), num_training_steps=max(1, steps)
    )
    return schedule
