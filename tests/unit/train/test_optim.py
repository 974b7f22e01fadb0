"""Optimizers and schedules by their names in the configuration."""

from typing import Any

import pytest
import torch

from ftlab.config import OPTIMIZERS, SCHEDULES, TrainerConfig
from ftlab.train.optim import allocate_state, build_optimizer, build_schedule


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(8, 4096)), torch.nn.Parameter(torch.randn(16))]


def rates(steps: int, **fields: object) -> list[float]:
    cfg = TrainerConfig(lr=1.0, **fields)  # type: ignore[arg-type]
    optimizer = build_optimizer(parameters(), cfg)
    schedule = build_schedule(optimizer, cfg, steps)
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_downhill(name: str) -> None:
    held = parameters()
    optimizer = build_optimizer(held, TrainerConfig(optim=name, lr=1e-2))
    values = []
    for _ in range(10):
        loss = torch.stack([p.square().mean() for p in held]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.item())
    assert values == sorted(values, reverse=True)


def test_settings_reach_the_optimizer() -> None:
    cfg = TrainerConfig(lr=3e-4, weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6)
    group = build_optimizer(parameters(), cfg).param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (3e-4, 0.1)
    assert (group["betas"], group["eps"]) == ((0.8, 0.95), 1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_built(name: str) -> None:
    assert all(0 <= rate <= 1 for rate in rates(12, lr_scheduler_type=name, warmup_steps=3))


def test_warm_up_counts_steps_or_a_part_of_all() -> None:
    assert rates(10, warmup_steps=5, lr_scheduler_type="constant_with_warmup") == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1]
    )
    assert rates(10, warmup_steps=0.2, lr_scheduler_type="constant_with_warmup")[:3] == [0, 0.5, 1]


def test_cosine_ends_near_zero() -> None:
    found = rates(100, warmup_steps=0, lr_scheduler_type="cosine")
    assert found[0] == 1
    assert found[50] == pytest.approx(0.5)
    assert found[-1] < 1e-3


def test_a_run_of_no_steps_has_a_schedule() -> None:
    cfg = TrainerConfig()
    assert build_schedule(build_optimizer(parameters(), cfg), cfg, 0).get_last_lr()[0] >= 0


def stepped(optim: str, *, early: bool) -> tuple[torch.Tensor, dict[str, Any]]:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(5000))
    optimizer = build_optimizer([parameter], TrainerConfig(optim=optim, lr=1e-2))
    if early:
        allocate_state(optimizer)
        assert optimizer.state[parameter]
    for seed in range(3):
        parameter.grad = torch.randn(5000, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
    return parameter.detach(), dict(optimizer.state[parameter])


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_state_given_early_changes_nothing(optim: str) -> None:
    weights, state = stepped(optim, early=True)
    own_weights, own_state = stepped(optim, early=False)
    assert torch.equal(weights, own_weights)
    assert state.keys() == own_state.keys()
    for key, value in state.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(own_state[key])), key


def test_state_that_is_there_is_kept() -> None:
    parameter = torch.nn.Parameter(torch.ones(8))
    optimizer = build_optimizer([parameter], TrainerConfig(optim="adamw", lr=1e-2))
    parameter.grad = torch.ones(8)
    optimizer.step()
    before = optimizer.state[parameter]["exp_avg"].clone()
    allocate_state(optimizer)
    assert torch.equal(optimizer.state[parameter]["exp_avg"], before)
