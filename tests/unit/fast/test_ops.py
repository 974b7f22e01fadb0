"""Forward and backward by hand against transformers' modules and autograd; dropout masks; dequantisation."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from ftlab.fast import operands, ops
from ftlab.fast.operands import Dropout

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = list(TOLERANCE)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal up to rounding in ours' dtype, relative to the largest value."""
    assert ours.shape == theirs.shape
    error = (ours.double() - theirs.double()).abs().max()
    assert error <= TOLERANCE[ours.dtype] * theirs.double().abs().max()


def drop_of(p: float = 0.1, seed: int = 1, site: int = 0) -> Dropout:
    return Dropout(p, torch.tensor([seed]), site)


def mask(shape: tuple[int, ...], p: float = 0.5, seed: int = 1, site: int = 0) -> Tensor:
    return operands.kept(shape, drop_of(p, seed, site))


def agreement(one: Tensor, other: Tensor) -> float:
    """Standard deviations by which two masks of p = 0.5 agree more or less often than chance."""
    return abs(float((one == other).double().mean()) - 0.5) * 2 * math.sqrt(one.numel())


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(p: float) -> None:
    x = torch.ones(512, 1024)
    dropped = ops.dropout(x, drop_of(p))
    share = float((dropped == 0).double().mean())
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / x.numel())
    torch.testing.assert_close(dropped[dropped != 0], torch.full_like(dropped[dropped != 0], 1 / (1 - p)))


def test_dropout_of_zero_is_the_tensor_itself() -> None:
    x = torch.ones(3, 5)
    assert ops.dropout(x, None) is x
    assert ops.dropout(x, drop_of(0.0)) is x


def test_a_mask_follows_from_seed_and_site() -> None:
    assert torch.equal(mask((64, 96)), mask((64, 96)))
    assert not torch.equal(mask((64, 96), seed=1), mask((64, 96), seed=2))
    assert not torch.equal(mask((64, 96), seed=1), mask((64, 96), seed=1 + 2**32))
    assert not torch.equal(mask((64, 96), seed=-1), mask((64, 96), seed=1))


@pytest.mark.parametrize("width", [576, 1000, 4096])
def test_neighbouring_elements_and_rows_fall_out_independently(width: int) -> None:
    kept = mask((256, width))
    for across in range(1, 65):
        assert agreement(kept[:, across:], kept[:, :-across]) < 5
    for down in (1, 2, 3, 4, 8, 16, 32, 64, 128):
        assert agreement(kept[down:], kept[:-down]) < 5


def test_seeds_and_sites_are_independent() -> None:
    masks = [mask((128, 1024), seed=seed, site=site) for seed in range(5) for site in range(9)]
    masks += [mask((128, 1024), seed=2**40 + seed) for seed in range(3)]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert agreement(one, other) < 5.5


def test_no_mask_is_another_one_moved() -> None:
    one, other = mask((1, 4096), site=3)[0], mask((1, 4096), site=4)[0]
    for shift in range(256):
        assert agreement(one.roll(shift), other) < 5.5
        assert agreement(one[torch.arange(4096) ^ shift], other) < 5.5


def test_rows_and_columns_fall_out_evenly() -> None:
    kept = mask((2048, 2048), p=0.1).double()
    spread = math.sqrt(0.1 * 0.9 / 2048)
    for dim in (0, 1):
        assert abs(float(kept.mean(dim).std()) / spread - 1) < 0.1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("norm", "offset"), [(LlamaRMSNorm, 0.0), (Gemma3RMSNorm, 1.0)])
def test_add_rms_norm_is_transformers_norm_of_the_sum(dtype: torch.dtype, norm: Any, offset: float) -> None:
    module = norm(96, eps=1e-6).to(dtype)
    module.weight.data.normal_()
    x, residual = torch.randn(2, 7, 96).to(dtype)
    y, yd, stream, rstd = ops.add_rms_norm(x, residual, module.weight.data, 1e-6, offset, drop_of(0.3))
    assert torch.equal(stream, x + residual)
    assert torch.equal(y, module(stream))
    assert torch.equal(yd, ops.dropout(y, drop_of(0.3)))
    torch.testing.assert_close(rstd, stream.float().pow(2).mean(-1).add(1e-6).rsqrt())


def test_norm_without_residual_or_dropout_copies_nothing() -> None:
    x = torch.randn(3, 64)
    y, yd, stream, _ = ops.add_rms_norm(x, None, torch.ones(64), 1e-6, 0.0, None)
    assert stream is x
    assert yd is y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("norm", "offset"), [(LlamaRMSNorm, 0.0), (Gemma3RMSNorm, 1.0)])
@pytest.mark.parametrize("through", [True, False])
def test_norm_gradient_is_autograds(dtype: torch.dtype, norm: Any, offset: float, through: bool) -> None:
    module = norm(96, eps=1e-6)
    module.weight.data.normal_()
    stream, dy, dstream = torch.randn(3, 7, 96).to(dtype)
    wide = stream.float().requires_grad_()
    module(wide).backward(dy.float())
    expected = wide.grad + dstream.float() if through else wide.grad
    _, _, _, rstd = ops.add_rms_norm(stream, None, module.weight.data, 1e-6, offset, None)
    close(
        ops.add_rms_norm_backward(dy, stream, rstd, module.weight.data, offset, dstream if through else None), expected
    )


ACTS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", ACTS)
def test_gated_and_its_gradient_are_the_formula(dtype: torch.dtype, act: str) -> None:
    gu, dy = (3 * torch.randn(9, 2 * 72)).to(dtype), torch.randn(9, 72).to(dtype)
    wide = gu.float().requires_grad_()
    gate, up = wide.chunk(2, -1)
    product = ACTS[act](gate) * up
    product.backward(dy.float())
    y, yd = ops.gated(gu, act, drop_of(0.3))
    close(y, product.detach())
    assert torch.equal(yd, ops.dropout(y, drop_of(0.3)))
    assert ops.gated(gu, act, None)[1].shape == y.shape
    close(ops.gated_backward(dy, gu, act), wide.grad)


def angles(tokens: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin with doubled halves."""
    turns = torch.arange(tokens)[:, None] * 10000 ** -torch.linspace(0, 1, head_dim // 2)
    doubled = torch.cat([turns, turns], -1)
    return doubled.cos(), doubled.sin()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 96, 256])
def test_rotation_is_transformers_and_leaves_v_alone(dtype: torch.dtype, head_dim: int) -> None:
    heads, kv, tokens = 4, 2, 5
    qkv = torch.randn(tokens, (heads + 2 * kv) * head_dim).to(dtype)
    cos, sin = angles(tokens, head_dim)
    q, k, v = qkv.unflatten(-1, (-1, head_dim)).split([heads, kv, kv], dim=1)
    q_turned, k_turned = apply_rotary_pos_emb(q.float()[None], k.float()[None], cos[None], sin[None], unsqueeze_dim=2)
    expected = torch.cat([q_turned[0], k_turned[0], v.float()], dim=1).flatten(1)
    ops.rotate_(qkv, cos, sin, heads + kv, head_dim)
    close(qkv, expected)
    assert torch.equal(qkv[:, -kv * head_dim :], v.flatten(1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_is_the_gradient_of_rotation(dtype: torch.dtype) -> None:
    heads, kv, head_dim, tokens = 4, 2, 32, 5
    cos, sin = angles(tokens, head_dim)
    qkv = torch.randn(tokens, (heads + 2 * kv) * head_dim, requires_grad=True)
    q, k, v = qkv.unflatten(-1, (-1, head_dim)).split([heads, kv, kv], dim=1)
    turned = apply_rotary_pos_emb(q[None], k[None], cos[None], sin[None], unsqueeze_dim=2)
    grads = [torch.randn_like(part).to(dtype) for part in (q, k, v)]
    torch.autograd.backward([turned[0][0], turned[1][0], v], [grad.float() for grad in grads])
    close(ops.pack_rotated(*grads, cos, sin), qkv.grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lora_up_adds_every_member_to_its_own_columns(dtype: torch.dtype) -> None:
    h, y = torch.randn(5, 20).to(dtype), torch.randn(5, 70).to(dtype)
    b1, b2 = torch.randn(32, 8).to(dtype), torch.randn(16, 12).to(dtype)
    expected = y.float()
    expected[:, :32] += 2 * h[:, :8].float() @ b1.float().T
    expected[:, 50:66] += 2 * h[:, 8:].float() @ b2.float().T
    ops.lora_up_(y, h, [(0, 32, 0, 8, b1), (50, 66, 8, 20, b2)], 2.0)
    close(y, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [None, 0.0, 0.3])
def test_lora_dx_is_the_gradient_through_dropout(dtype: torch.dtype, p: float | None) -> None:
    drop = None if p is None else drop_of(p)
    dx, dh, a = torch.randn(5, 48).to(dtype), torch.randn(5, 12).to(dtype), torch.randn(12, 48).to(dtype)
    x = torch.randn(5, 48, requires_grad=True)
    kept = ops.dropout(torch.ones(5, 48), drop)
    (x * kept @ a.float().T).backward(dh.float())
    expected = dx.float() + x.grad
    ops.lora_dx_(dx, dh, a, drop)
    close(dx, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.25, torch.tensor(0.25)])
def test_cross_entropy_and_its_gradient_are_autograds(dtype: torch.dtype, scale: Tensor | float) -> None:
    logits = (4 * torch.randn(6, 131)).to(dtype)
    targets = torch.tensor([0, 130, -100, 7, -100, 64])
    wide = logits.float().clone().requires_grad_()
    expected = F.cross_entropy(wide, targets, reduction="sum")
    (expected * 0.25).backward()
    loss = ops.cross_entropy_(logits, targets, scale)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected.detach())
    close(logits, wide.grad)
    assert (logits[targets == -100] == 0).all()


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dequantise_is_bitsandbytes_into_a_block_of_rows(kind: str, nested: bool, dtype: torch.dtype) -> None:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Params4bit

    dense = torch.randn(48, 64).to(dtype)
    weight = Params4bit(dense, requires_grad=False, quant_type=kind, compress_statistics=nested).to("cpu")
    stacked = torch.full((112, 64), 7.0, dtype=dtype)
    ops.dequantise(weight, stacked[32:80])
    assert torch.equal(stacked[32:80], dequantize_4bit(weight.data, weight.quant_state))
    assert (stacked[:32] == 7).all()
    assert (stacked[80:] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (6, 2), (8, 1)])
def test_decode_attention_sees_its_row_up_to_its_length(
    dtype: torch.dtype, window: int | None, heads: int, kv: int
) -> None:
    lengths, size = [1, 9, 0, 12], 12
    q = torch.randn(4, heads, 32).to(dtype)
    k, v = torch.randn(2, 4, size, kv, 32).to(dtype)
    attended = ops.decode_attention(q, k, v, torch.tensor(lengths, dtype=torch.int32), 0.3, window)
    for row, length in enumerate(lengths):
        first = 0 if window is None else max(0, length - window)
        keys, values = (
            part[row, first:length].float().repeat_interleave(heads // kv, 1).transpose(0, 1) for part in (k, v)
        )
        if length == 0:
            assert (attended[row] == 0).all()
        else:
            expected = F.scaled_dot_product_attention(q[row, :, None].float(), keys, values, scale=0.3)
            close(attended[row], expected[:, 0])


def test_storing_writes_k_and_v_at_slot_and_position_only() -> None:
    heads, kv, head_dim = 4, 2, 8
    qkv = torch.randn(3, (heads + 2 * kv) * head_dim)
    k_cache, v_cache = torch.zeros(2, 5, 6, kv, head_dim)
    slots, positions = torch.tensor([4, 0, 2]), torch.tensor([5, 0, 3])
    ops.store_kv_(qkv, k_cache, v_cache, slots, positions)
    _, k, v = qkv.unflatten(-1, (-1, head_dim)).split([heads, kv, kv], dim=1)
    for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
        assert torch.equal(k_cache[slot, position], k[row])
        assert torch.equal(v_cache[slot, position], v[row])
    assert int((k_cache != 0).any(-1).any(-1).sum()) == 3
