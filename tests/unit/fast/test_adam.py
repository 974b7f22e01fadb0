"""The 8-bit AdamW of one kernel: in Triton's interpreter against the same algorithm in torch, and bitsandbytes' own.

Triton decides when it is imported whether it interprets, so this file runs itself once more, interpreted.
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ftlab.config import TrainerConfig
from ftlab.train.optim import build_optimizer

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
inside = pytest.mark.skipif(not INTERPRETED, reason="runs inside test_the_kernel_in_tritons_interpreter")

CODES, LARGEST = ("state1", "state2"), ("absmax1", "absmax2")
SETTINGS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.995), "eps": 1e-8}


@pytest.mark.skipif(INTERPRETED, reason="is what runs this")
def test_the_kernel_in_tritons_interpreter(interpreted: Callable[[Path], None]) -> None:
    interpreted(Path(__file__))


def maps() -> tuple[Tensor, Tensor]:
    from bitsandbytes.functional import create_dynamic_map

    return create_dynamic_map(signed=True), create_dynamic_map(signed=False)


def midpoints(values: Tensor) -> Tensor:
    return (values[:-1] + values[1:]) * 0.5


def nearest(x: Tensor, values: Tensor) -> Tensor:
    """Codes of x by search; one whose sign bit is not that of x gives way to its neighbour."""
    codes = torch.searchsorted(midpoints(values), x.contiguous())
    wrong = values[codes].signbit() != x.signbit()
    return codes + wrong.int() * torch.where(x > 0, 1, -1)


def reference(p: Tensor, g: Tensor, state: dict[str, Any], config: dict[str, Any]) -> dict[str, Tensor]:
    """A step of bitsandbytes' CUDA kernel in torch: what p [blocks * 256] and its state become, nothing written.
    "x1" and "x2" are the moments as shares of their block's largest, which the codes are of."""
    (beta1, beta2), step, lr = config["betas"], state["step"] + 1, config["lr"]
    exact1, exact2 = (1 - beta**step for beta in config["betas"])
    g = g.view(-1, 256)
    finite = g.isfinite()
    s1 = state["qmap1"][state["state1"].view(-1, 256).long()] * state["absmax1"][:, None]
    s2 = state["qmap2"][state["state2"].view(-1, 256).long()] * state["absmax2"][:, None]
    s1 = torch.where(finite, s1 * beta1 + (1 - beta1) * g, 0.0)
    s2 = torch.where(finite, s2 * beta2 + (1 - beta2) * g * g, 0.0)
    new = {"absmax1": s1.abs().amax(1), "absmax2": s2.amax(1)}
    update = -lr * exact2**0.5 / exact1 * (s1 / (s2.sqrt() + config["eps"] * exact2**0.5))
    moved = (p.view(-1, 256) + update) * (1 - lr * config["weight_decay"])
    new["p"] = torch.where(finite, moved, p.view(-1, 256)).flatten()
    for x, s, largest, values, codes in [
        ("x1", s1, "absmax1", "qmap1", "state1"),
        ("x2", s2, "absmax2", "qmap2", "state2"),
    ]:
        new[x] = s / new[largest][:, None].where(new[largest][:, None] > 0, 1.0)
        new[codes] = nearest(new[x], state[values]).to(torch.uint8).flatten()
    new["state1"].view(-1, 256)[new["absmax1"] == 0] = 255
    return new


def differing(codes: Tensor, wanted: Tensor, x: Tensor, values: Tensor) -> Tensor:
    """Where codes [n] are not the wanted ones, although x is not within rounding of the midpoint of two."""
    between = midpoints(values)
    x = x.flatten()
    at = torch.searchsorted(between, x).clamp(max=254)
    gaps = torch.stack([(x - between[at]).abs(), (x - between[(at - 1).clamp(min=0)]).abs()]).amin(0)
    return (codes != wanted) & (gaps > 4e-7 * x.abs())


def gradients(n: int, step: int) -> Tensor:
    """Ordinary ones; blocks of zeros, of large, of tiny ones, of all magnitudes; zeros, NaN and infinity among them."""
    g = torch.randn(n, generator=torch.Generator().manual_seed(step))
    g[:256] = 0
    g[256:512] *= 1e4
    g[512:768] *= 1e-15
    g[768:1024] *= torch.logspace(-12, 2, 256)
    g[1024::7] = 0
    g[1100 + step], g[1200 + step], g[1300] = float("nan"), float("inf"), -float("inf")
    if step > 3:
        g[1536:1792] = 0
    return g


def optimizer(kind: str, p: torch.nn.Parameter, *, ours: bool, **settings: Any) -> Any:
    import bitsandbytes as bnb

    from ftlab.fast.adam import fused

    made = getattr(bnb.optim, kind)
    return (fused(made) if ours else made)([p], **{**SETTINGS, "weight_decay": 0.0, **settings})


def parameter(n: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(0.02 * torch.randn(n, generator=torch.Generator().manual_seed(77)))


def stepped(made: Any, p: torch.nn.Parameter, steps: range) -> Any:
    for step in steps:
        p.grad = gradients(p.numel(), step).nan_to_num(0, 0, 0)
        made.step()
    return made.state[p]


@inside
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("n", [4096, 5000, 4096 + 256])
def test_twenty_steps_are_the_algorithms(n: int, weight_decay: float) -> None:
    p = parameter(n)
    made = optimizer("AdamW8bit", p, ours=True, weight_decay=weight_decay)
    whole = -(-n // 256) * 256
    before: dict[str, Any] = {"step": 0, "qmap1": maps()[0], "qmap2": maps()[1]}
    before |= {key: torch.zeros(whole, dtype=torch.uint8) for key in CODES}
    before |= {key: torch.zeros(whole // 256) for key in LARGEST}
    for step in range(20):
        p.grad, padded = gradients(n, step), torch.zeros(2, whole)
        padded[0, :n], padded[1, :n] = p.detach(), p.grad
        for group in made.param_groups:
            group["lr"] = 0.0 if step == 7 else 1e-3 / (step + 1)
        config = made.param_groups[0]
        wanted = reference(padded[0], padded[1], before, config)
        made.step()
        state = made.state[p]
        # Most of p is about 0.02, whose last bit is 2e-9, and an update 1e-3.
        torch.testing.assert_close(p.detach(), wanted["p"][:n], rtol=3e-7, atol=6e-9)
        for key, x, values in [("state1", "x1", "qmap1"), ("state2", "x2", "qmap2")]:
            wrong = differing(state[key], wanted[key][:n], wanted[x].flatten()[:n], state[values])
            assert not wrong.any(), (step, key, wrong.nonzero().flatten()[:5])
            before[key] = torch.nn.functional.pad(state[key], (0, whole - n), value=128 if key == "state1" else 0)
        for key in LARGEST:
            torch.testing.assert_close(state[key], wanted[key], rtol=4e-7, atol=0)
            before[key] = state[key].clone()
        before["step"] = step + 1
        assert state["step"] == step + 1


@inside
def test_a_nan_or_infinity_moves_nothing_but_the_others() -> None:
    p = parameter(4096)
    made, values = optimizer("AdamW8bit", p, ours=True, weight_decay=0.1), p.detach().clone()
    bad = torch.tensor([3, 300, 4095])
    p.grad = torch.ones(4096)
    p.grad[bad] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    made.step()
    still = p.detach() == values
    assert still.nonzero().flatten().tolist() == bad.tolist()
    assert made.state[p]["absmax1"].isfinite().all()


@inside
@pytest.mark.parametrize("which", ["signed", "unsigned", "even", "even, from 0"])
def test_every_value_gets_the_nearest_code(which: str) -> None:
    import triton
    import triton.language as tl

    from ftlab.fast import adam

    globals()["codes"] = adam._codes  # kernels see no names of a function
    globals()["tl"] = tl

    @triton.jit
    def look_up(x_ptr, out_ptr, table_ptr, SHIFT: tl.constexpr, FIRST: tl.constexpr, CELLS: tl.constexpr):  # type: ignore[no-untyped-def]
        at = tl.program_id(0) * 1024 + tl.arange(0, 1024)
        tl.store(out_ptr + at, codes(tl.load(x_ptr + at), table_ptr, SHIFT, FIRST, CELLS))  # type: ignore[name-defined] # noqa: F821

    evenly = torch.arange(256)
    signed, unsigned = maps()
    values = {"signed": signed, "unsigned": unsigned, "even": (evenly - 127.5) / 127.5, "even, from 0": evenly / 255}[
        which
    ]
    table = adam.table_of(values)
    assert table is not None
    between, powers = midpoints(values), 2.0 ** -torch.arange(0, 140)
    exact = torch.cat([values, between, powers, torch.tensor([0.0, -0.0, 1.0])])
    near = torch.cat([exact, exact.nextafter(torch.tensor(9.0)), exact.nextafter(torch.tensor(-9.0))])
    random = torch.logspace(-9, 0, 20000) * torch.rand(20000, generator=torch.Generator().manual_seed(0))
    x = torch.cat([near, -near, random, -random])
    x = x if bool(values.signbit().any()) else x[~x.signbit()]
    x = torch.nn.functional.pad(x, (0, -len(x) % 1024))
    out = torch.empty(len(x), dtype=torch.uint8)
    look_up[(len(x) // 1024,)](x, out, table.entries, table.shift, table.first, table.cells)
    wanted = nearest(x, values)
    wrong = (out != wanted) & ~torch.isin(x, between) & (x.abs() <= 1) & (x != 0)
    assert not wrong.any(), (x[wrong][:5], out[wrong][:5], wanted[wrong][:5])
    assert out[x == 1].eq(255).all()


@inside
def test_close_to_bitsandbytes_own_cpu_steps() -> None:
    """Which find the codes of small moments only roughly; without decay, as theirs comes before the update."""
    p, q = parameter(4096), parameter(4096)
    ours, theirs = optimizer("AdamW8bit", p, ours=True), optimizer("AdamW8bit", q, ours=False)
    for step in range(20):
        theirs.load_state_dict(ours.state_dict())
        with torch.no_grad():
            q.copy_(p)
        mine, other = stepped(ours, p, range(step, step + 1)), stepped(theirs, q, range(step, step + 1))
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)
        for key, largest in zip(CODES, LARGEST, strict=True):
            torch.testing.assert_close(mine[largest], other[largest], rtol=1e-6, atol=0)
            values = mine["qmap" + key[-1]]
            apart = (values[mine[key].long()] - values[other[key].long()]).view(-1, 256)[mine[largest] > 0].abs()
            assert apart.max() < 0.0145  # the widest gap between two codes
            assert (apart > 3e-5).float().mean() < 0.05


@inside
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("kind", ["AdamW8bit", "PagedAdamW8bit"])
@pytest.mark.parametrize("ours_first", [True, False])
def test_a_checkpoint_of_one_resumes_in_the_other(kind: str, ours_first: bool, tmp_path: Path) -> None:
    p = parameter(5000)
    first = optimizer(kind, p, ours=ours_first)
    stepped(first, p, range(3))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    q = torch.nn.Parameter(p.detach().clone())
    second = optimizer(kind, q, ours=not ours_first, lr=99.0)
    second.load_state_dict(saved)
    one, other = first.state[p], second.state[q]
    assert one.keys() == other.keys()
    for key in one.keys() - {"step"}:
        assert one[key].dtype == other[key].dtype
        assert torch.equal(one[key], other[key])
    stepped(first, p, range(3, 4)), stepped(second, q, range(3, 4))
    assert one["step"] == second.state[q]["step"] == 4
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)


@inside
def test_several_tensors_are_stepped_as_each_alone() -> None:
    from bitsandbytes.optim import AdamW8bit

    from ftlab.fast.adam import fused

    together, alone = [parameter(n) for n in (5000, 300, 4096)], [parameter(n) for n in (5000, 300, 4096)]
    both = fused(AdamW8bit)(together, **SETTINGS)
    single = [optimizer("AdamW8bit", p, ours=True, weight_decay=0.01) for p in alone]
    for step in range(3):
        for p in [*together, *alone]:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step + p.numel()))
        both.step()
        for made in single:
            made.step()
    for p, q in zip(together, alone, strict=True):
        assert torch.equal(p, q)
    assert both.state[together[1]]["state1"].dtype == torch.float32


def test_maps_that_no_table_holds_are_left_to_bitsandbytes() -> None:
    from ftlab.fast.adam import table_of

    good = maps()[0]
    twins = good.clone()
    twins[200] = twins[199]
    crowded = good.clone()
    crowded[200:203] = good[200] * (1 + torch.arange(3) * 1e-6)
    assert table_of(good) is not None
    assert [table_of(values) for values in (twins, crowded)] == [None, None]
    p = parameter(4096)
    made = optimizer("AdamW8bit", p, ours=True)
    made.name2qmap["dynamic"] = twins
    p.grad, before = torch.ones(4096), p.detach().clone()
    made.step()
    assert (p < before).all()


def test_gradients_of_another_kind_are_left_to_bitsandbytes() -> None:
    p = torch.nn.Parameter(torch.randn(4096).bfloat16())
    made = optimizer("AdamW8bit", p, ours=True)
    p.grad, before = torch.ones_like(p), p.detach().clone()
    made.step()
    made.step()
    assert (p <= before).all()
    assert made.state[p]["step"] == 2


def test_without_a_gradient_nothing_moves() -> None:
    p = parameter(4096)
    made, before = optimizer("AdamW8bit", p, ours=True), p.detach().clone()
    made.step()
    made.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
def test_a_cpu_keeps_bitsandbytes_own(name: str) -> None:
    made = build_optimizer([parameter(4096)], TrainerConfig(optim=name))
    assert type(made).__module__.startswith("bitsandbytes")
