"""Every Triton kernel on the device against the torch operation of its name, at the sizes of real models."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from ftlab.fast import operands, ops
from ftlab.fast.operands import Dropout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CUDA = torch.device("cuda")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "bfloat16", "float16"])
bf16 = torch.bfloat16


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@contextmanager
def plain() -> Iterator[None]:
    """Operations in plain torch on the device, products in float32 not rounded to TF32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_kernels", lambda x: None)
        yield


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal up to rounding in ours' dtype, relative to the largest value."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    error = (ours.double() - theirs.double()).abs().max()
    assert error <= TOLERANCE[ours.dtype] * theirs.double().abs().max()


def random(*shape: int, dtype: torch.dtype = bf16) -> Tensor:
    return torch.randn(*shape, device=CUDA).to(dtype)


def drop_of(p: float, seed: int = 1, site: int = 5) -> Dropout:
    return Dropout(p, torch.tensor([seed], device=CUDA), site)


def test_kernels_are_what_runs() -> None:
    assert ops._kernels(torch.empty(1, device=CUDA)) is not None, "Triton is missing"


@pytest.mark.parametrize("seed", [0, -1, 2**62 + 12345])
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.9])
@pytest.mark.parametrize("shape", [(1, 1), (1023, 577), (1024, 4096)])
def test_masks_are_the_cpus_bit_for_bit(seed: int, p: float, shape: tuple[int, int]) -> None:
    kept = operands.kept(shape, Dropout(p, torch.tensor([seed]), 1))
    assert torch.equal((ops.dropout(torch.ones(shape, device=CUDA), drop_of(p, seed, 1)) != 0).cpu(), kept)


def test_every_kernel_draws_the_same_mask() -> None:
    drop, ones = drop_of(0.3), torch.ones(300, 576, device=CUDA)
    kept = operands.kept(ones.shape, drop)
    _, normed, _, _ = ops.add_rms_norm(ones, None, torch.ones(576, device=CUDA), 1e-6, 0.0, drop)
    _, gated = ops.gated(torch.ones(300, 2 * 576, device=CUDA), "silu", drop)
    product = torch.zeros_like(ones)
    ops.lora_dx_(product, torch.ones(300, 8, device=CUDA), torch.ones(8, 576, device=CUDA), drop)
    for part in (normed, gated, product):
        assert torch.equal(part != 0, kept)


def test_a_replayed_graph_draws_the_mask_of_the_new_seed() -> None:
    drop, x = drop_of(0.5, seed=1), torch.ones(64, 256, device=CUDA)
    first = ops.dropout(x, drop)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        dropped = ops.dropout(x, drop)
    graph.replay()
    assert torch.equal(dropped, first)
    drop.seed.fill_(2)
    graph.replay()
    assert torch.equal(dropped, ops.dropout(x, drop_of(0.5, seed=2)))
    assert not torch.equal(dropped, first)


@dtypes
@pytest.mark.parametrize("p", [None, 0.1])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(("rows", "width"), [(1024, 4096), (1000, 576), (1, 8192), (32 * 777, 128), (99, 96)])
def test_norm(dtype: torch.dtype, p: float | None, offset: float, rows: int, width: int) -> None:
    drop = None if p is None else drop_of(p)
    x, residual, dy, dstream = (random(rows, width, dtype=dtype) for _ in range(4))
    weight = random(width, dtype=dtype)
    ours = ops.add_rms_norm(x, residual, weight, 1e-6, offset, drop)
    _, _, stream, rstd = ours
    backward = (dy, stream, rstd, weight, offset, dstream)
    dx = ops.add_rms_norm_backward(*backward)
    alone = ops.add_rms_norm(x, None, weight, 1e-6, offset, drop)[0]
    with plain():
        for one, other in zip(ours, ops.add_rms_norm(x, residual, weight, 1e-6, offset, drop), strict=True):
            close(one, other)
        close(dx, ops.add_rms_norm_backward(*backward))
        close(alone, ops.add_rms_norm(x, None, weight, 1e-6, offset, drop)[0])
    assert torch.equal(stream, x + residual)


@dtypes
@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("rows", "width"), [(1024, 14336), (333, 1536), (1, 28672)])
def test_gated(dtype: torch.dtype, act: str, rows: int, width: int) -> None:
    gu, dy = 3 * random(rows, 2 * width, dtype=dtype), random(rows, width, dtype=dtype)
    ours, dgu = ops.gated(gu, act, drop_of(0.1)), ops.gated_backward(dy, gu.clone(), act)
    with plain():
        for one, other in zip(ours, ops.gated(gu, act, drop_of(0.1)), strict=True):
            close(one, other)
        close(dgu, ops.gated_backward(dy, gu, act))


def test_offsets_past_two_to_the_31st() -> None:
    if torch.cuda.mem_get_info()[0] < 24 * 2**30:
        pytest.skip("needs 24 GiB of free device memory")
    gu = torch.zeros(40000, 2 * 28672, dtype=bf16, device=CUDA)
    gu[-1] = random(2 * 28672)
    last = gu[-1:].clone()
    y, _ = ops.gated(gu, "silu", None)
    assert torch.equal(y[-1:], ops.gated(last, "silu", None)[0])
    dy = torch.ones_like(y)
    assert torch.equal(ops.gated_backward(dy, gu, "silu")[-1:], ops.gated_backward(dy[-1:], last, "silu"))


@dtypes
@pytest.mark.parametrize(("heads", "kv", "head_dim"), [(32, 8, 128), (9, 3, 64), (8, 4, 256), (32, 32, 96)])
def test_rotation(dtype: torch.dtype, heads: int, kv: int, head_dim: int) -> None:
    tokens = 777
    turns = torch.randn(tokens, head_dim // 2, device=CUDA).repeat(1, 2)
    cos, sin = turns.cos(), turns.sin()
    ours = random(tokens, (heads + 2 * kv) * head_dim, dtype=dtype)
    theirs = ours.clone()
    parts = theirs.clone().view(tokens, -1, head_dim).split([heads, kv, kv], dim=1)
    ops.rotate_(ours, cos, sin, heads + kv, head_dim)
    packed = ops.pack_rotated(*parts, cos, sin)
    with plain():
        ops.rotate_(theirs, cos, sin, heads + kv, head_dim)
        close(ours, theirs)
        close(packed, ops.pack_rotated(*parts, cos, sin))


@dtypes
@pytest.mark.parametrize("tokens", [1, 100, 1024])
@pytest.mark.parametrize("outs", [[4096, 1024, 1024], [576, 192, 192], [14336, 14336], [4096], [96] * 5])
@pytest.mark.parametrize("rank", [1, 8, 24, 32, 256])
def test_lora_up(dtype: torch.dtype, tokens: int, outs: list[int], rank: int) -> None:
    members, column = [], 0
    for i, out in enumerate(outs):
        members.append((column, column + out, i * rank, (i + 1) * rank, random(out, rank, dtype=dtype)))
        column += out
    ours, h = random(tokens, column, dtype=dtype), random(tokens, len(outs) * rank, dtype=dtype)
    theirs = ours.clone()
    ops.lora_up_(ours, h, members, 0.7)
    with plain():
        ops.lora_up_(theirs, h, members, 0.7)
    close(ours, theirs)


@dtypes
@pytest.mark.parametrize("rank", [1, 24, 96, 512])
@pytest.mark.parametrize(("tokens", "width"), [(1024, 4096), (1, 576), (100, 14336)])
def test_lora_dx(dtype: torch.dtype, rank: int, tokens: int, width: int) -> None:
    dh, a = random(tokens, rank, dtype=dtype), random(rank, width, dtype=dtype)
    ours = random(tokens, width, dtype=dtype)
    theirs = ours.clone()
    ops.lora_dx_(ours, dh, a, drop_of(0.1))
    with plain():
        ops.lora_dx_(theirs, dh, a, drop_of(0.1))
    close(ours, theirs)


@dtypes
@pytest.mark.parametrize(("rows", "width"), [(1024, 32000), (200, 128256), (64, 262144), (77, 50257), (3, 131)])
@pytest.mark.parametrize("on_device", [True, False])
def test_cross_entropy(dtype: torch.dtype, rows: int, width: int, on_device: bool) -> None:
    scale: Any = torch.tensor(0.25, device=CUDA) if on_device else 0.25
    ours, targets = 4 * random(rows, width, dtype=dtype), torch.randint(width, (rows,), device=CUDA)
    targets[::3] = -100
    theirs = ours.clone()
    loss = ops.cross_entropy_(ours, targets, scale)
    with plain():
        expected = ops.cross_entropy_(theirs, targets, scale)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    close(ours, theirs)
    assert (ours[::3] == 0).all()


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("blocksize", [64, 128, 512])
@dtypes
def test_dequantise_is_bitsandbytes_bit_for_bit(kind: str, nested: bool, blocksize: int, dtype: torch.dtype) -> None:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Params4bit

    options: dict[str, Any] = {"quant_type": kind, "compress_statistics": nested, "blocksize": blocksize}
    for shape in [(4096, 4096), (1024, 4096), (192, 576), (33, 1536)]:
        dense = torch.randn(shape, dtype=dtype) * 0.02
        weight = Params4bit(dense, requires_grad=False, **options).to(CUDA)
        stacked = torch.full((shape[0] + 7, shape[1]), 7.0, dtype=dtype, device=CUDA)
        ops.dequantise(weight, stacked[4:-3])
        bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
        theirs = dequantize_4bit(weight.data, weight.quant_state)
        assert torch.equal(stacked[4:-3].view(bits), theirs.view(bits))
        assert (stacked[:4] == 7).all()
        assert (stacked[-3:] == 7).all()


def test_a_weight_of_odd_size_goes_through_bitsandbytes() -> None:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Params4bit

    weight = Params4bit(torch.randn(3, 6), requires_grad=False).to(CUDA)
    out = torch.empty(3, 6, device=CUDA)
    ops.dequantise(weight, out)
    assert torch.equal(out, dequantize_4bit(weight.data, weight.quant_state))


@dtypes
@pytest.mark.parametrize(
    ("heads", "kv", "head_dim"), [(32, 8, 128), (9, 3, 64), (8, 4, 256), (32, 32, 96), (20, 1, 64)]
)
@pytest.mark.parametrize("window", [None, 1, 70])
def test_decode_attention(dtype: torch.dtype, heads: int, kv: int, head_dim: int, window: int | None) -> None:
    rows, size = 64, 300
    lengths = torch.randint(1, size + 1, (rows,), dtype=torch.int32, device=CUDA)
    lengths[3], lengths[5] = 0, size
    qkv = random(rows, (heads + 2 * kv) * head_dim, dtype=dtype)
    q = qkv[:, : heads * head_dim].view(rows, heads, head_dim)
    k, v = (random(rows, size, kv, head_dim, dtype=dtype) for _ in range(2))
    behind = torch.arange(size, device=CUDA) >= lengths[:, None]
    unread = [part.masked_fill(behind[:, :, None, None], float("nan")) for part in (k, v)]
    ours = ops.decode_attention(q, *unread, lengths, head_dim**-0.5, window)
    with plain():
        close(ours, ops.decode_attention(q, k, v, lengths, head_dim**-0.5, window))
    assert (ours[3] == 0).all()


@dtypes
def test_store_kv(dtype: torch.dtype) -> None:
    heads, kv, head_dim, rows = 32, 8, 128, 200
    qkv = random(rows, (heads + 2 * kv) * head_dim, dtype=dtype)
    ours = torch.zeros(2, 256, 300, kv, head_dim, dtype=dtype, device=CUDA)
    theirs = torch.zeros_like(ours)
    slots, positions = torch.randperm(256, device=CUDA)[:rows], torch.randint(300, (rows,), device=CUDA)
    ops.store_kv_(qkv, *ours, slots, positions)
    with plain():
        ops.store_kv_(qkv, *theirs, slots, positions)
    assert torch.equal(ours, theirs)
