"""The 8-bit AdamW of one kernel against bitsandbytes' own CUDA optimizer, and that the host runs ahead of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ftlab.config import TrainerConfig
from ftlab.fast.flat import Flat
from ftlab.train.optim import build_optimizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")
kinds = pytest.mark.parametrize("kind", ["AdamW8bit", "PagedAdamW8bit"])
CODES, LARGEST = ("state1", "state2"), ("absmax1", "absmax2")
ROUNDING = 4 * 2.0**-23  # units in the last place
# bitsandbytes' power function has an absolute error of 1e-7, beside 1 - beta2^step of about 1e-3 * step.
CORRECTION = 5e-4
# Moments within rounding of the midpoint of two codes; those lie at least a hundredth of the value apart.
FLIPPED = 1e-4


def optimizer(kind: str, p: nn.Parameter, *, ours: bool, weight_decay: float = 0.1) -> Any:
    import bitsandbytes as bnb

    from ftlab.fast.adam import fused

    made = getattr(bnb.optim, kind)
    return (fused(made) if ours else made)([p], lr=1e-3, betas=(0.9, 0.999), weight_decay=weight_decay)


def parameter(n: int) -> nn.Parameter:
    torch.manual_seed(7)
    return nn.Parameter(0.02 * torch.randn(n, device=CUDA))


def flat() -> nn.Parameter:
    """As the fast step has its adapters: matrices without a gap inside a group, groups in whole blocks, B of zeros."""
    torch.manual_seed(7)
    groups = []
    for width, outs in [(576, [576, 192, 192]), (576, [1536, 1536]), (1536, [577])] * 6:
        groups.append([nn.Parameter(0.02 * torch.randn(16, width, device=CUDA)) for _ in outs])
        groups.append([nn.Parameter(torch.zeros(out, 16, device=CUDA)) for out in outs])
    return Flat(groups).parameter


def gradient(p: Tensor, step: int) -> Tensor:
    """Ordinary ones, and blocks of zeros, of large, of tiny ones, of all magnitudes; NaN and infinity among them."""
    made = torch.Generator(CUDA).manual_seed(step)
    g = torch.randn(p.numel(), generator=made, device=CUDA)
    g[256 * step : 256 * (step + 3)] = 0
    g[20480:30720] *= 1e4
    g[30720:40960] *= 1e-14
    g[40960:51200] *= 10 ** (8 * torch.rand(10240, generator=made, device=CUDA) - 7)
    g[51200:61440:5] = 0
    g[70000 + step], g[70300], g[70600] = float("nan"), float("inf"), -float("inf")
    return g


def copy_state(source: dict[str, Any], target: dict[str, Any]) -> None:
    torch.cuda.synchronize()
    for key in (*CODES, *LARGEST):
        target[key].copy_(source[key])
    torch.cuda.synchronize()


def assert_same(mine: dict[str, Any], other: dict[str, Any], step: int) -> None:
    """States of two optimizers that made the same step of the same state."""
    torch.cuda.synchronize()
    for key, largest in zip(CODES, LARGEST, strict=True):
        off = (mine[largest] - other[largest]).abs() / other[largest].clamp(min=1e-37)
        assert off.max() <= 1e-6, f"step {step}: {largest} off by {off.max():.1e} of itself at {int(off.argmax())}"
        values = other["qmap" + key[-1]].cpu()
        one, two = mine[key].cpu().long(), other[key].cpu().long()
        unlike = one != two
        share = unlike.double().mean()
        at = unlike.nonzero().flatten()[:5]
        message = f"step {step}: {int(unlike.sum())} codes of {key} differ: {one[at].tolist()}, not {two[at].tolist()}"
        assert share <= FLIPPED, f"{message}, at {at.tolist()}"
        gap = (values[one] - values[two]).abs().max()
        assert gap < 0.0145, f"{message}; at most by {gap:.1e} of the block's largest"


def assert_moved(mine: Tensor, other: Tensor, before: Tensor, step: int) -> None:
    """Parameters after the same step of `before`."""
    allowed = ROUNDING * torch.maximum(before.abs(), other.abs()) + CORRECTION * (other - before).abs()
    over = (mine - other).abs() - allowed
    worst = int(over.argmax())
    assert not mine.isnan().any(), f"step {step}: {int(mine.isnan().sum())} parameters are NaN"
    assert over[worst] <= 0, (
        f"step {step}: {int((over > 0).sum())} parameters differ, worst at {worst}: "
        f"{float(before[worst]):.9g} became {float(mine[worst]):.9g}, not {float(other[worst]):.9g}"
    )


@kinds
@pytest.mark.parametrize("numbers", [1_000_192, 1_000_001, None], ids=["whole", "tail", "flat"])
def test_each_of_fifty_steps_is_bitsandbytes(kind: str, numbers: int | None) -> None:
    p, q = (parameter(numbers) if numbers else flat() for _ in range(2))
    ours, theirs = optimizer(kind, p, ours=True), optimizer(kind, q, ours=False)
    for step in range(50):
        p.grad = q.grad = gradient(p, step)
        for group in (*ours.param_groups, *theirs.param_groups):
            group["lr"] = 0.0 if step == 20 else 1e-3 * (1 - step / 60)
        before = p.detach().clone()
        ours.step(), theirs.step()
        mine, other = ours.state[p], theirs.state[q]
        assert mine["step"] == other["step"] == step + 1
        assert_moved(p.detach(), q.detach(), before, step)
        assert_same(mine, other, step)
        with torch.no_grad():
            q.copy_(p)
        copy_state(mine, other)


@kinds
def test_fifty_steps_end_where_bitsandbytes_ends(kind: str) -> None:
    """Nothing copied between: what a code that flipped leads to stays small."""
    p, q = parameter(1_000_192), parameter(1_000_192)
    ours, theirs, began = optimizer(kind, p, ours=True), optimizer(kind, q, ours=False), p.detach().clone()
    for step in range(50):
        p.grad = q.grad = gradient(p, step)
        ours.step(), theirs.step()
    off, way = (p - q).detach().norm(), (q.detach() - began).norm()
    assert off <= 2e-3 * way, f"{off / way:.1e} of the way apart"


@kinds
def test_zeros_without_gradients_stay_zero(kind: str) -> None:
    p = flat()
    empty = p.detach() == 0
    made = optimizer(kind, p, ours=True)
    for step in range(5):
        p.grad = gradient(p, step).where(~empty, 0.0)
        made.step()
    assert (p.detach()[empty] == 0).all()
    assert (p.detach()[~empty] != 0).all()


@kinds
def test_the_host_does_not_wait(kind: str) -> None:
    p = parameter(1_000_192)
    made = optimizer(kind, p, ours=True)
    p.grad = gradient(p, 0)
    made.step()
    made.step()
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    slept = torch.cuda.Event()
    slept.record()
    made.step()
    assert not slept.query(), "the step returned only after what the device had to do before it"
    torch.cuda.synchronize()


@kinds
def test_a_checkpoint_holds_the_steps_still_to_be_done(kind: str, tmp_path: Path) -> None:
    p, q = parameter(1_000_192), parameter(1_000_192)
    made = optimizer(kind, p, ours=True)
    for step in range(4):
        p.grad = gradient(p, step)
        if step == 3:
            torch.cuda._sleep(1_000_000_000)
        made.step()
    torch.save(made.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True, map_location="cpu")
    torch.cuda.synchronize()
    theirs = optimizer(kind, q, ours=False)
    theirs.load_state_dict(saved)
    for key in (*CODES, *LARGEST):
        apart = (theirs.state[q][key].cpu() != made.state[p][key].cpu()).sum()
        assert apart == 0, f"{int(apart)} of {key} were saved before the device had written them"
    with torch.no_grad():
        q.copy_(p)
    p.grad = q.grad = gradient(p, 4)
    before = p.detach().clone()
    made.step(), theirs.step()
    assert_moved(p.detach(), q.detach(), before, 4)
    assert_same(made.state[p], theirs.state[q], 4)


@kinds
def test_a_resumed_run_makes_the_same_steps_bit_for_bit(kind: str) -> None:
    p = parameter(1_000_192)
    made = optimizer(kind, p, ours=True)
    for step in range(3):
        p.grad = gradient(p, step)
        made.step()
    q = nn.Parameter(p.detach().clone())
    resumed = optimizer(kind, q, ours=True)
    resumed.load_state_dict(made.state_dict())
    for step in range(3, 6):
        p.grad = q.grad = gradient(p, step)
        made.step(), resumed.step()
    torch.cuda.synchronize()
    assert torch.equal(p, q)
    assert all(torch.equal(made.state[p][key].cpu(), resumed.state[q][key].cpu()) for key in CODES)


def test_no_learning_rate_or_step_compiles_anew() -> None:
    from ftlab.fast import adam

    p = parameter(8192)
    made = optimizer("AdamW8bit", p, ours=True)
    p.grad = torch.ones_like(p)
    made.step()
    kernels = adam._update.device_caches[torch.cuda.current_device()][0]
    compiled = len(kernels)
    for lr in [0.0, 1.0, 1, 0, 1e-30, *[1e-3] * 20]:
        made.param_groups[0]["lr"] = lr
        made.step()
    assert len(kernels) == compiled


def test_more_numbers_than_31_bits_count() -> None:
    n = 2**31 + 1024
    if torch.cuda.mem_get_info()[0] < 14 * n:
        pytest.skip("needs 30 GB of GPU memory")
    pattern = torch.randn(1024, device=CUDA)
    p = nn.Parameter(pattern.repeat(n // 1024))
    made = optimizer("AdamW8bit", p, ours=True)
    p.grad = p.detach()
    made.step()
    first, last = p.detach()[:1024], p.detach()[-1024:]
    assert not torch.equal(first, pattern)
    assert torch.equal(first, last)
    assert torch.equal(made.state[p]["state1"][:1024], made.state[p]["state1"][-1024:])


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
def test_one_float32_tensor_on_cuda_gets_the_kernel(name: str) -> None:
    cfg = TrainerConfig(optim=name)
    made = build_optimizer([parameter(8192)], cfg)
    assert type(made).__name__.startswith("Fused")
    others = [[parameter(8192), parameter(8192)], [nn.Parameter(torch.zeros(8192, device=CUDA, dtype=torch.bfloat16))]]
    assert all(not type(build_optimizer(tensors, cfg)).__name__.startswith("Fused") for tensors in others)
