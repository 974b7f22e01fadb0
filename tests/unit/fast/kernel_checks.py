"""Every Triton kernel against the torch operation of its name, in Triton's interpreter. Started by test_kernels.py."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ftlab.fast import ops
from ftlab.fast.operands import Dropout

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE))
drops = pytest.mark.parametrize("drop", [None, Dropout(0.3, torch.tensor([-(2**40) - 3]), 5)], ids=["plain", "drop"])


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The kernels, interpreted, where the interpreter's bfloat16 rounds and multiplies as a GPU's does."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    other_conversion, lang_patch, dot = (
        interpreter._convert_float,
        interpreter._patch_lang_tensor,
        interpreter.InterpreterBuilder.create_dot,
    )

    def convert(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) == (tl.bfloat16, tl.float32):
            return np.ascontiguousarray(data).view(np.uint16).astype(np.uint32) << 16
        if (source, target) == (tl.float32, tl.bfloat16):
            bits = np.ascontiguousarray(data).view(np.uint32)
            return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return other_conversion(data, source, target, rounding)

    def wide(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle(
            convert(handle.data, tl.bfloat16, tl.float32, None).view(np.float32), tl.float32
        )

    def scalars(tensor: Any, scope: Any) -> None:
        lang_patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    monkeypatch.setattr(interpreter, "_patch_lang_tensor", scalars)
    monkeypatch.setattr(
        interpreter.InterpreterBuilder, "create_dot", lambda self, a, b, *more: dot(self, wide(a), wide(b), *more)
    )
    torch.manual_seed(0)
    from ftlab.fast import kernels

    return kernels


def close(ours: Tensor, theirs: Tensor) -> None:
    """Equal up to rounding in ours' dtype, relative to the largest value."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    error = (ours.double() - theirs.double()).abs().max()
    assert error <= TOLERANCE[ours.dtype] * theirs.double().abs().max()


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype)


@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (9, 576), (1, 4099)])
def test_masks_are_the_cpus_bit_for_bit(kernels: Any, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x = random(*shape, dtype=dtype)
    for seed in (0, 1, -1, 2**62 + 12345):
        for site in (0, 1, 16, 999):
            for p in (1e-9, 0.1, 0.5, 0.9):
                drop = Dropout(p, torch.tensor([seed]), site)
                assert torch.equal(kernels.dropout(x, drop), ops.dropout(x, drop))


@dtypes
@drops
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize(("rows", "width"), [(1, 576), (7, 64), (33, 128), (5, 96), (3, 256), (2, 4096)])
def test_add_rms_norm(
    kernels: Any, dtype: torch.dtype, drop: Dropout | None, offset: float, add: bool, rows: int, width: int
) -> None:
    x, weight = random(rows, width, dtype=dtype), random(width, dtype=dtype)
    residual = random(rows, width, dtype=dtype) if add else None
    ours = kernels.add_rms_norm(x, residual, weight, 1e-6, offset, drop)
    theirs = ops.add_rms_norm(x, residual, weight, 1e-6, offset, drop)
    for one, other in zip(ours, theirs, strict=True):
        close(one, other)
    assert (ours[1] is ours[0]) == (drop is None)
    assert (ours[2] is x) == (not add)


@dtypes
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize(("rows", "width"), [(1, 576), (7, 64), (33, 128), (5, 96), (2, 4096)])
def test_add_rms_norm_backward(
    kernels: Any, dtype: torch.dtype, offset: float, add: bool, rows: int, width: int
) -> None:
    dy, stream, dstream = (random(rows, width, dtype=dtype) for _ in range(3))
    rstd, weight = torch.rand(rows) + 0.5, random(width, dtype=dtype)
    arguments = (dy, stream, rstd, weight, offset, dstream if add else None)
    close(kernels.add_rms_norm_backward(*arguments), ops.add_rms_norm_backward(*arguments))


@dtypes
def test_norms_read_rows_of_a_wider_tensor(kernels: Any, dtype: torch.dtype) -> None:
    x, residual, dstream = (random(5, 200, dtype=dtype)[:, :96] for _ in range(3))
    weight, rstd = random(96, dtype=dtype), torch.rand(5)
    close(
        kernels.add_rms_norm(x, residual, weight, 1e-6, 0.0, None)[0],
        ops.add_rms_norm(x, residual, weight, 1e-6, 0.0, None)[0],
    )
    arguments = (x, residual, rstd, weight, 0.0, dstream)
    close(kernels.add_rms_norm_backward(*arguments), ops.add_rms_norm_backward(*arguments))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # of a sigmoid far below zero, which is 0 then
@dtypes
@drops
@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 72), (2, 1536), (1, 2053)])
def test_gated(kernels: Any, dtype: torch.dtype, drop: Dropout | None, act: str, rows: int, width: int) -> None:
    gu, dy = 3 * random(rows, 2 * width, dtype=dtype), random(rows, width, dtype=dtype)
    for one, other in zip(kernels.gated(gu, act, drop), ops.gated(gu, act, drop), strict=True):
        close(one, other)
    close(kernels.gated_backward(dy, gu.clone(), act), ops.gated_backward(dy, gu.clone(), act))


@dtypes
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize(("heads", "kv"), [(9, 3), (32, 8), (4, 1)])
def test_rotation(kernels: Any, dtype: torch.dtype, head_dim: int, heads: int, kv: int) -> None:
    tokens = 3
    turns = torch.randn(tokens, head_dim // 2).repeat(1, 2)
    cos, sin = turns.cos(), turns.sin()
    ours = random(tokens, (heads + 2 * kv) * head_dim, dtype=dtype)
    theirs = ours.clone()
    kernels.rotate_(ours, cos, sin, heads + kv, head_dim)
    ops.rotate_(theirs, cos, sin, heads + kv, head_dim)
    close(ours, theirs)
    parts = theirs.view(tokens, -1, head_dim).split([heads, kv, kv], dim=1)
    close(kernels.pack_rotated(*parts, cos, sin), ops.pack_rotated(*parts, cos, sin))
    scattered = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in parts]
    close(kernels.pack_rotated(*scattered, cos, sin), ops.pack_rotated(*parts, cos, sin))


@dtypes
@pytest.mark.parametrize("tokens", [1, 70])
@pytest.mark.parametrize("ranks", [[4], [24], [8, 24, 16], [256, 1], [16, 16, 16, 8]])
def test_lora_up(kernels: Any, dtype: torch.dtype, tokens: int, ranks: list[int]) -> None:
    outs = [130, 64, 200, 33][: len(ranks)]
    members, column, rank = [], 3, 2
    for out, r in zip(outs, ranks, strict=True):
        members.append((column, column + out, rank, rank + r, random(out, r, dtype=dtype)))
        column, rank = column + out, rank + r
    ours, h = random(tokens, column + 5, dtype=dtype), random(tokens, rank, dtype=dtype)
    theirs = ours.clone()
    kernels.lora_up_(ours, h, members, 0.7)
    ops.lora_up_(theirs, h, members, 0.7)
    close(ours, theirs)
    assert torch.equal(ours[:, :3], theirs[:, :3])
    assert torch.equal(ours[:, column:], theirs[:, column:])


@dtypes
@pytest.mark.parametrize("rank", [1, 4, 24, 96, 256])
@pytest.mark.parametrize(("tokens", "width"), [(1, 576), (70, 130)])
def test_lora_dx(kernels: Any, dtype: torch.dtype, rank: int, tokens: int, width: int) -> None:
    drop = Dropout(0.3, torch.tensor([7]), 3)
    ours, dh, a = (
        random(tokens, width, dtype=dtype),
        random(tokens, rank, dtype=dtype),
        random(rank, width, dtype=dtype),
    )
    theirs = ours.clone()
    kernels.lora_dx_(ours, dh, a, drop)
    ops.lora_dx_(theirs, dh, a, drop)
    close(ours, theirs)


@dtypes
@pytest.mark.parametrize("width", [5, 131, 8192, 20011])
@pytest.mark.parametrize("scale", [0.25, torch.tensor(0.25)], ids=["number", "tensor"])
def test_cross_entropy(kernels: Any, dtype: torch.dtype, width: int, scale: Tensor | float) -> None:
    ours, targets = 5 * random(4, width, dtype=dtype), torch.tensor([0, width - 1, -100, width // 2])
    theirs = ours.clone()
    close(kernels.cross_entropy_(ours, targets, scale), ops.cross_entropy_(theirs, targets, scale))
    close(ours, theirs)
    assert (ours[2] == 0).all()


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(("blocksize", "shape"), [(64, (75, 352)), (128, (70, 384)), (4096, (75, 352)), (64, (1, 8))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dequantise_bit_for_bit(
    kernels: Any, nested: bool, blocksize: int, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    from bitsandbytes.functional import dequantize_blockwise
    from bitsandbytes.nn import Params4bit

    dense = random(*shape, dtype=dtype)
    options = {"quant_type": "nf4", "compress_statistics": nested, "blocksize": blocksize}
    weight = Params4bit(dense, requires_grad=False, **options).to("cpu")
    state, packed = weight.quant_state, weight.data.flatten()
    scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if nested else state.absmax
    values = state.code[torch.stack([packed >> 4, packed & 15], dim=1).flatten().int()]
    expected = values * scales.repeat_interleave(blocksize)[: values.numel()]
    ours = torch.full((shape[0] + 5, shape[1]), 7.0, dtype=dtype)
    assert kernels.dequantises(weight)
    kernels.dequantise(weight, ours[3:-2])
    assert torch.equal(ours[3:-2], expected.view(shape).to(dtype))
    assert (ours[:3] == 7).all()
    assert (ours[-2:] == 7).all()


def test_a_weight_of_odd_size_is_left_to_bitsandbytes(kernels: Any) -> None:
    from bitsandbytes.nn import Params4bit

    weight = Params4bit(torch.randn(3, 6), requires_grad=False).to("cpu")
    assert not kernels.dequantises(weight)


@dtypes
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize(("heads", "kv"), [(9, 3), (8, 8), (20, 1)])
@pytest.mark.parametrize("window", [None, 1, 70])
def test_decode_attention(
    kernels: Any, dtype: torch.dtype, head_dim: int, heads: int, kv: int, window: int | None
) -> None:
    lengths = torch.tensor([1, 0, 64, 65, 150], dtype=torch.int32)
    q = random(5, (heads + 2 * kv) * head_dim, dtype=dtype)[:, : heads * head_dim].view(5, heads, head_dim)
    k, v = (random(5, 150, kv, head_dim, dtype=dtype) for _ in range(2))
    for row, length in enumerate(lengths):  # what lies behind a row's end is not read
        k[row, length:], v[row, length:] = float("nan"), float("nan")
    ours = kernels.decode_attention(q, k, v, lengths, head_dim**-0.5, window)
    close(ours, ops.decode_attention(q, k.nan_to_num(), v.nan_to_num(), lengths, head_dim**-0.5, window))
    assert (ours[1] == 0).all()


@dtypes
@pytest.mark.parametrize("head_dim", [64, 96])
def test_store_kv(kernels: Any, dtype: torch.dtype, head_dim: int) -> None:
    heads, kv = 6, 3
    qkv = random(4, (heads + 2 * kv) * head_dim, dtype=dtype)
    ours = torch.zeros(2, 9, 10, kv, head_dim, dtype=dtype)
    theirs = torch.zeros_like(ours)
    slots, positions = torch.tensor([8, 0, 3, 4]), torch.tensor([9, 0, 5, 5])
    kernels.store_kv_(qkv, *ours, slots, positions)
    ops.store_kv_(qkv, *theirs, slots, positions)
    assert torch.equal(ours, theirs)
