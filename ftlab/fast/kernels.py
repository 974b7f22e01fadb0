"""The operations of `ftlab.fast.ops` as Triton kernels. See there for shapes and meaning.

No function waits for the device, depends on values of the data or autotunes, so every one may be captured in a CUDA
graph. Block sizes depend on widths only. Offsets have 64 bits where tokens * width may exceed 2^31. Functions whose
name starts with an underscore run on the device; each is followed by the function that launches it.

Arithmetic between loading and storing is float32. The hash of an element for its dropout mask is the same in all
kernels and on a CPU (`operands.kept`).
"""

# Triton has no types, and its kernels none that mypy could check.
# mypy: disable-error-code="import-untyped, import-not-found", allow-untyped-defs, allow-incomplete-defs
# mypy: allow-untyped-decorators

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ftlab.fast.operands import Dropout, Member

# These arguments of a dropout differ from site to site. Triton would compile a kernel for each of their values.
DROPS = ["site", "threshold"]


def _numbers(drop: Dropout | None, x: Tensor) -> tuple[bool, Tensor, int, int, float]:
    """Return a kernel's arguments DROP, seed, site, threshold and factor; without dropout they are not read."""
    if drop is None or drop.p == 0:
        return False, x, 0, 0, 1.0
    return True, drop.seed, drop.site, drop.threshold, drop.scale


def _warps(elements: int) -> int:
    """Return the number of warps for sixteen elements per thread, which are two vector loads of bfloat16."""
    return int(min(16, max(1, triton.next_power_of_2(elements) // 512)))


@triton.jit
def _mix(x):
    x = (x ^ (x >> 16)) * tl.full([], 0x85EBCA6B, tl.uint32)
    x = (x ^ (x >> 13)) * tl.full([], 0xC2B2AE35, tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def _kept(index, seed_ptr, site, threshold):
    """The mask at row-major indices (any integers; their low 32 bits count)."""
    golden = tl.full([], 0x9E3779B9, tl.uint32)
    seed = tl.load(seed_ptr)
    low, high = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    first = _mix(low ^ _mix(site.to(tl.uint32) * golden + high))
    second = _mix(first + golden)
    x = index.to(tl.uint32) ^ first
    x = (x ^ (x >> 16)) * tl.full([], 0x85EBCA6B, tl.uint32)
    x = (x ^ (x >> 13) ^ second) * tl.full([], 0xC2B2AE35, tl.uint32)
    return (x ^ (x >> 16)) >= threshold.to(tl.uint32)


@triton.jit(do_not_specialize=DROPS)
def _dropout(x_ptr, out_ptr, count, seed_ptr, site, threshold, factor, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x = tl.load(x_ptr + at, mask=inside).to(tl.float32)
    x = tl.where(_kept(at, seed_ptr, site, threshold), x * factor, 0.0)
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), mask=inside)


def dropout(x: Tensor, drop: Dropout) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    block = 2048
    grid = (triton.cdiv(x.numel(), block),)
    _dropout[grid](x, out, x.numel(), drop.seed, drop.site, drop.threshold, drop.scale, block, num_warps=4)
    return out


@triton.jit(do_not_specialize=DROPS)
def _add_rms_norm(
    x_ptr, residual_ptr, weight_ptr, y_ptr, yd_ptr, stream_ptr, rstd_ptr,
    rows, width, x_stride, residual_stride, eps, offset, seed_ptr, site, threshold, factor,
    ADD: tl.constexpr, ROUND: tl.constexpr, DROP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    dtype = y_ptr.dtype.element_ty
    stream = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        residual = tl.load(residual_ptr + row * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
        rounded = (stream + residual).to(dtype)
        tl.store(stream_ptr + row * width + column, rounded, mask=inside)
        stream = rounded.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(stream * stream, axis=1) / width + eps)[:, None]
    tl.store(rstd_ptr + row, rstd, mask=row < rows)
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0)
    normed = stream * rstd
    if ROUND:
        y = (normed.to(dtype).to(tl.float32) * weight.to(dtype).to(tl.float32)).to(dtype)
    else:
        y = (normed * (offset + weight.to(tl.float32))).to(dtype)
    at = row * width + column
    tl.store(y_ptr + at, y, mask=inside)
    if DROP:
        yd = tl.where(_kept(at, seed_ptr, site, threshold), y.to(tl.float32) * factor, 0.0)
        tl.store(yd_ptr + at, yd.to(dtype), mask=inside)


def _tile(width: int) -> tuple[int, int]:
    """Return rows and columns per program: at least one whole row, and 1,024 elements if rows are short."""
    block = triton.next_power_of_2(width)
    return max(1, 1024 // block), block


def add_rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, offset: float, drop: Dropout | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, width = x.shape
    per_program, block = _tile(width)
    dropping, *numbers = _numbers(drop, x)
    y = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    yd = torch.empty_like(y) if dropping else y
    stream = x if residual is None else torch.empty_like(y)
    rstd = torch.empty(rows, dtype=torch.float32, device=x.device)
    other = x if residual is None else residual
    _add_rms_norm[(triton.cdiv(rows, per_program),)](
        x, other, weight, y, yd, stream, rstd,
        rows, width, x.stride(0), other.stride(0), eps, offset, *numbers,
        residual is not None, offset == 0, dropping, per_program, block, num_warps=_warps(per_program * block),
    )  # fmt: skip
    return y, yd, stream, rstd


@triton.jit
def _add_rms_norm_backward(
    dy_ptr, stream_ptr, rstd_ptr, weight_ptr, dstream_ptr, dx_ptr,
    rows, width, dy_stride, stream_stride, dstream_stride, offset,
    ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < width)
    rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
    dy = tl.load(dy_ptr + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
    normed = tl.load(stream_ptr + row * stream_stride + column, mask=inside, other=0.0).to(tl.float32) * rstd
    weight = tl.load(weight_ptr + column, mask=column < width, other=0.0).to(tl.float32)
    inner = dy * (offset + weight)
    dx = (inner - normed * (tl.sum(inner * normed, axis=1) / width)[:, None]) * rstd
    if ADD:
        dx += tl.load(dstream_ptr + row * dstream_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx_ptr + row * width + column, dx.to(dx_ptr.dtype.element_ty), mask=inside)


def add_rms_norm_backward(
    dy: Tensor, stream: Tensor, rstd: Tensor, weight: Tensor, offset: float, dstream: Tensor | None
) -> Tensor:
    rows, width = dy.shape
    per_program, block = _tile(width)
    dx = torch.empty((rows, width), dtype=dy.dtype, device=dy.device)
    other = dy if dstream is None else dstream
    _add_rms_norm_backward[(triton.cdiv(rows, per_program),)](
        dy, stream, rstd, weight, other, dx,
        rows, width, dy.stride(0), stream.stride(0), other.stride(0), offset,
        dstream is not None, per_program, block, num_warps=_warps(per_program * block),
    )  # fmt: skip
    return dx


@triton.jit
def _act(gate, SILU: tl.constexpr):
    """sigmoid(inner) and the derivative of inner, as ops._act."""
    if SILU:
        inner, dinner = gate, tl.full(gate.shape, 1.0, tl.float32)
    else:
        # 1.595769... is 2 * sqrt(2 / pi): tanh(z) = 2 * sigmoid(2 * z) - 1.
        square = gate * gate
        inner = 1.5957691216057308 * gate * (1 + 0.044715 * square)
        dinner = 1.5957691216057308 * (1 + 3 * 0.044715 * square)
    return tl.sigmoid(inner), dinner


@triton.jit(do_not_specialize=DROPS)
def _gated(
    gu_ptr, y_ptr, yd_ptr, width, gu_stride, seed_ptr, site, threshold, factor,
    SILU: tl.constexpr, DROP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    dtype = y_ptr.dtype.element_ty
    gate = tl.load(gu_ptr + row * gu_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gu_ptr + row * gu_stride + width + column, mask=inside, other=0.0).to(tl.float32)
    sigmoid, _ = _act(gate, SILU)
    y = ((gate * sigmoid).to(dtype).to(tl.float32) * up).to(dtype)
    at = row * width + column
    tl.store(y_ptr + at, y, mask=inside)
    if DROP:
        yd = tl.where(_kept(at, seed_ptr, site, threshold), y.to(tl.float32) * factor, 0.0)
        tl.store(yd_ptr + at, yd.to(dtype), mask=inside)


def gated(gu: Tensor, act: str, drop: Dropout | None) -> tuple[Tensor, Tensor]:
    tokens, width = gu.shape[0], gu.shape[1] // 2
    dropping, *numbers = _numbers(drop, gu)
    y = torch.empty((tokens, width), dtype=gu.dtype, device=gu.device)
    yd = torch.empty_like(y) if dropping else y
    block = min(2048, triton.next_power_of_2(width))
    grid = (tokens, triton.cdiv(width, block))
    _gated[grid](
        gu, y, yd, width, gu.stride(0), *numbers, act == "silu", dropping, block, num_warps=_warps(block)
    )  # fmt: skip
    return y, yd


@triton.jit
def _gated_backward(dy_ptr, gu_ptr, width, dy_stride, gu_stride, SILU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate_ptr = gu_ptr + row * gu_stride + column
    dy = tl.load(dy_ptr + row * dy_stride + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + width, mask=inside, other=0.0).to(tl.float32)
    sigmoid, dinner = _act(gate, SILU)
    value = gate * sigmoid
    slope = sigmoid + value * (1 - sigmoid) * dinner
    tl.store(gate_ptr, (dy * up * slope).to(gu_ptr.dtype.element_ty), mask=inside)
    tl.store(gate_ptr + width, (dy * value).to(gu_ptr.dtype.element_ty), mask=inside)


def gated_backward(dy: Tensor, gu: Tensor, act: str) -> Tensor:
    tokens, width = dy.shape
    block = min(2048, triton.next_power_of_2(width))
    grid = (tokens, triton.cdiv(width, block))
    _gated_backward[grid](dy, gu, width, dy.stride(0), gu.stride(0), act == "silu", block, num_warps=_warps(block))
    return gu


@triton.jit
def _rotate(
    qkv_ptr, cos_ptr, sin_ptr, stride, cos_stride, heads,
    HALF: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (head < heads) & (column < HALF)
    cos = tl.load(cos_ptr + token * cos_stride + column, mask=column < HALF, other=0.0)
    sin = tl.load(sin_ptr + token * cos_stride + column, mask=column < HALF, other=0.0)
    at = qkv_ptr + token * stride + head * (2 * HALF) + column
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, (first * cos - second * sin).to(qkv_ptr.dtype.element_ty), mask=inside)
    tl.store(at + HALF, (second * cos + first * sin).to(qkv_ptr.dtype.element_ty), mask=inside)


def _heads(heads: int, half: int) -> tuple[int, int]:
    """Return heads per program and columns of half a head, about 2,048 pairs of elements."""
    block = triton.next_power_of_2(half)
    return min(triton.next_power_of_2(heads), max(1, 2048 // block)), block


def rotate_(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, head_dim: int) -> None:
    per_program, block = _heads(heads, head_dim // 2)
    grid = (len(qkv), triton.cdiv(heads, per_program))
    _rotate[grid](
        qkv, cos, sin, qkv.stride(0), cos.stride(0), heads,
        head_dim // 2, per_program, block, num_warps=_warps(2 * per_program * block),
    )  # fmt: skip


@triton.jit
def _pack_rotated(
    dq_ptr, dk_ptr, dv_ptr, cos_ptr, sin_ptr, out_ptr, q_stride, k_stride, v_stride, cos_stride,
    Q: tl.constexpr, KV: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    half = column < HALF
    of_q, of_k, of_v = head < Q, (head >= Q) & (head < Q + KV), (head >= Q + KV) & (head < Q + 2 * KV)
    q = dq_ptr + token * q_stride + head * (2 * HALF) + column
    k = dk_ptr + token * k_stride + (head - Q) * (2 * HALF) + column
    v = dv_ptr + token * v_stride + (head - Q - KV) * (2 * HALF) + column
    first = tl.load(q, mask=of_q & half, other=0.0).to(tl.float32)
    first += tl.load(k, mask=of_k & half, other=0.0).to(tl.float32)
    first += tl.load(v, mask=of_v & half, other=0.0).to(tl.float32)
    second = tl.load(q + HALF, mask=of_q & half, other=0.0).to(tl.float32)
    second += tl.load(k + HALF, mask=of_k & half, other=0.0).to(tl.float32)
    second += tl.load(v + HALF, mask=of_v & half, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + token * cos_stride + column, mask=half, other=0.0)
    sin = tl.load(sin_ptr + token * cos_stride + column, mask=half, other=0.0)
    cos, sin = tl.where(of_v, 1.0, cos), tl.where(of_v, 0.0, sin)
    out = out_ptr + token * ((Q + 2 * KV) * 2 * HALF) + head * (2 * HALF) + column
    inside = (head < Q + 2 * KV) & half
    tl.store(out, (first * cos + second * sin).to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(out + HALF, (second * cos - first * sin).to(out_ptr.dtype.element_ty), mask=inside)


def pack_rotated(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    dq, dk, dv = (_whole_heads(part) for part in (dq, dk, dv))
    tokens, heads, head_dim = dq.shape
    total = heads + 2 * dk.shape[1]
    per_program, block = _heads(total, head_dim // 2)
    out = torch.empty((tokens, total * head_dim), dtype=dq.dtype, device=dq.device)
    _pack_rotated[(tokens, triton.cdiv(total, per_program))](
        dq, dk, dv, cos, sin, out, dq.stride(0), dk.stride(0), dv.stride(0), cos.stride(0),
        heads, dk.shape[1], head_dim // 2, per_program, block, num_warps=_warps(2 * per_program * block),
    )  # fmt: skip
    return out


def _whole_heads(x: Tensor) -> Tensor:
    """Return x [T, heads, D], copied if the heads of a token do not lie end to end."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()


@triton.jit
def _lora_up_tile(
    y_ptr, h_ptr, b_ptr, tile, rows, width, rank, y_stride, h_stride, b_stride, scale,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tile * BLOCK + tl.arange(0, BLOCK)
    added = tl.zeros([ROWS, BLOCK], tl.float32)
    for begin in range(0, rank, RANK):
        r = begin + tl.arange(0, RANK)[None, :]
        h = tl.load(h_ptr + row * h_stride + r, mask=(row < rows) & (r < rank), other=0.0)
        mine = (column < width)[:, None] & (r < rank)
        b = tl.load(b_ptr + column[:, None].to(tl.int64) * b_stride + r, mask=mine, other=0.0)
        added = tl.dot(h, tl.trans(b), added, input_precision="ieee")
    at = y_ptr + row * y_stride + column[None, :]
    inside = (row < rows) & (column < width)[None, :]
    y = tl.load(at, mask=inside, other=0.0).to(tl.float32) + scale * added
    tl.store(at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _lora_up(
    y_ptr, h_ptr, b1_ptr, b2_ptr, b3_ptr, rows, y_stride, h_stride, scale,
    start1, width1, first1, rank1, stride1, start2, width2, first2, rank2, stride2,
    start3, width3, first3, rank3, stride3,
    MEMBERS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """The members' tiles of columns follow each other on the grid's first axis."""
    tile = tl.program_id(0)
    second = tl.cdiv(width1, BLOCK)
    third = second + tl.cdiv(width2, BLOCK)
    if tile < second:
        _lora_up_tile(
            y_ptr + start1, h_ptr + first1, b1_ptr, tile,
            rows, width1, rank1, y_stride, h_stride, stride1, scale, ROWS, BLOCK, RANK,
        )  # fmt: skip
    if MEMBERS > 1:  # noqa: SIM102 - known when compiling
        if (tile >= second) & (tile < third):
            _lora_up_tile(
                y_ptr + start2, h_ptr + first2, b2_ptr, tile - second,
                rows, width2, rank2, y_stride, h_stride, stride2, scale, ROWS, BLOCK, RANK,
            )  # fmt: skip
    if MEMBERS > 2:  # noqa: SIM102 - known when compiling
        if tile >= third:
            _lora_up_tile(
                y_ptr + start3, h_ptr + first3, b3_ptr, tile - third,
                rows, width3, rank3, y_stride, h_stride, stride3, scale, ROWS, BLOCK, RANK,
            )  # fmt: skip


TOGETHER = 3  # members per launch: q, k and v


def lora_up_(y: Tensor, h: Tensor, members: Sequence[Member], scale: float) -> None:
    for i in range(0, len(members), TOGETHER):
        _lora_up_of(y, h, members[i : i + TOGETHER], float(scale))


def _lora_up_of(y: Tensor, h: Tensor, members: Sequence[Member], scale: float) -> None:
    none = (0, 0, 0, 0, members[0][4])  # an empty member has no tiles
    filled = [*members, *[none] * (TOGETHER - len(members))]
    rows, block, ranks = _product_tile(len(y), max(last - first for _, _, first, last, _ in members))
    tiles = sum(triton.cdiv(end - start, block) for start, end, *_ in members)
    numbers = [(start, end - start, first, last - first, b.stride(0)) for start, end, first, last, b in filled]
    _lora_up[(tiles, triton.cdiv(len(y), rows))](
        y, h, *(b for *_, b in filled), len(y), y.stride(0), h.stride(0), scale, *chain(*numbers),
        len(members), rows, block, ranks, num_warps=4, num_stages=2,
    )  # fmt: skip


def _product_tile(tokens: int, rank: int) -> tuple[int, int, int]:
    """Return the tokens, columns and ranks of one tile of a product whose inner dimension is a rank."""
    return (64 if tokens > 32 else 32), 128, min(64, max(16, triton.next_power_of_2(rank)))


@triton.jit(do_not_specialize=DROPS)
def _lora_dx(
    dx_ptr, dh_ptr, a_ptr, rows, width, rank, dx_stride, dh_stride, a_stride, seed_ptr, site, threshold, factor,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = (row[:, None] < rows) & (column[None, :] < width)
    added = tl.zeros([ROWS, BLOCK], tl.float32)
    for begin in range(0, rank, RANK):
        r = begin + tl.arange(0, RANK)
        dh = tl.load(
            dh_ptr + row[:, None] * dh_stride + r[None, :],
            mask=(row[:, None] < rows) & (r[None, :] < rank), other=0.0,
        )  # fmt: skip
        a = tl.load(
            a_ptr + r[:, None].to(tl.int64) * a_stride + column[None, :],
            mask=(r[:, None] < rank) & (column[None, :] < width), other=0.0,
        )  # fmt: skip
        added = tl.dot(dh, a, added, input_precision="ieee")
    kept = _kept(row[:, None] * width + column[None, :], seed_ptr, site, threshold)
    at = dx_ptr + row[:, None] * dx_stride + column[None, :]
    dx = tl.load(at, mask=inside, other=0.0).to(tl.float32) + tl.where(kept, added * factor, 0.0)
    tl.store(at, dx.to(dx_ptr.dtype.element_ty), mask=inside)


def lora_dx_(dx: Tensor, dh: Tensor, a: Tensor, drop: Dropout) -> None:
    (tokens, width), rank = dx.shape, dh.shape[1]
    rows, block, ranks = _product_tile(tokens, rank)
    _lora_dx[(triton.cdiv(width, block), triton.cdiv(tokens, rows))](
        dx, dh, a, tokens, width, rank, dx.stride(0), dh.stride(0), a.stride(0),
        drop.seed, drop.site, drop.threshold, drop.scale, rows, block, ranks, num_warps=4, num_stages=2,
    )  # fmt: skip


@triton.jit
def _cross_entropy(
    logits_ptr, targets_ptr, losses_ptr, scale, width, stride, SCALE_IN_MEMORY: tl.constexpr, BLOCK: tl.constexpr
):
    """Twice over a row: highest logit and sum of exponentials, each lane its own; then the gradient."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    target = tl.load(targets_ptr + row)
    counted = target != -100
    at_target = tl.load(logits_ptr + target, mask=counted, other=0.0).to(tl.float32)
    lanes = tl.arange(0, BLOCK)
    highest = tl.full([BLOCK], -1e30, tl.float32)
    summed = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, width, BLOCK):
        x = tl.load(logits_ptr + begin + lanes, mask=begin + lanes < width, other=-float("inf")).to(tl.float32)
        above = tl.maximum(highest, x)
        summed = summed * tl.exp(highest - above) + tl.exp(x - above)
        highest = above
    top = tl.max(highest, axis=0)
    share = top + tl.log(tl.sum(summed * tl.exp(highest - top), axis=0))
    tl.store(losses_ptr + row, tl.where(counted, share - at_target, 0.0))
    factor = tl.load(scale).to(tl.float32) if SCALE_IN_MEMORY else scale
    factor = tl.where(counted, factor, 0.0)
    tl.debug_barrier()  # no lane overwrites the target's logit before all have read it
    for begin in range(0, width, BLOCK):
        inside = begin + lanes < width
        x = tl.load(logits_ptr + begin + lanes, mask=inside, other=0.0).to(tl.float32)
        gradient = (tl.exp(x - share) - tl.where(begin + lanes == target, 1.0, 0.0)) * factor
        tl.store(logits_ptr + begin + lanes, gradient.to(logits_ptr.dtype.element_ty), mask=inside)


def cross_entropy_(logits: Tensor, targets: Tensor, scale: Tensor | float) -> Tensor:
    rows, width = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    block = min(8192, triton.next_power_of_2(width))
    in_memory = isinstance(scale, Tensor)
    number = scale if in_memory else float(scale)
    _cross_entropy[(rows,)](
        logits, targets, losses, number, width, logits.stride(0), in_memory, block, num_warps=_warps(block)
    )
    return losses.sum()


@triton.jit
def _dequantise(
    packed_ptr, code_ptr, scale_ptr, scales2_ptr, code2_ptr, offset_ptr, out_ptr, words,
    BITS: tl.constexpr, BITS2: tl.constexpr, NESTED: tl.constexpr, SIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Eight weights a word of 32 bits: byte k holds element 2k in its high and 2k + 1 in its low half.

    BITS is the logarithm of a block's words, BITS2 that of a block of nested scales. The product with the scale and
    the nested scale's sum are rounded on their own (the launch turns contraction off), as bitsandbytes does.
    """
    word = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    packed = tl.load(packed_ptr + word, mask=word < words, other=0, eviction_policy="evict_first")
    block = word >> BITS
    scale = tl.load(scale_ptr + block, mask=word < words, other=0)
    if NESTED:
        scale2 = tl.load(scales2_ptr + (block >> BITS2), mask=word < words, other=0.0)
        scale = tl.load(code2_ptr + scale.to(tl.int32)) * scale2 + tl.load(offset_ptr)
    element = tl.arange(0, 8)
    code = (packed[:, None] >> ((element ^ 1) * 4)[None, :]) & 15
    if SIGNED:  # fp4: a sign and seven magnitudes, so that zero keeps its sign
        value = tl.load(code_ptr + (code & 7))
        value = tl.where(code > 7, -value, value)
    else:
        value = tl.load(code_ptr + code)
    value = value * scale[:, None]
    out_ptr += tl.program_id(0).to(tl.int64) * (8 * BLOCK)
    at = (tl.arange(0, BLOCK) * 8)[:, None] + element[None, :]
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=(word < words)[:, None])


def dequantises(weight: Any) -> bool:
    """Whether the kernel supports this weight: nf4, whole words of eight weights, and blocks of a power of two. fp4 is
    not supported because the table that bitsandbytes uses on CUDA differs from its `code` in the last bit."""
    state = weight.quant_state
    if state.quant_type != "nf4":
        return False
    sizes = [state.blocksize, state.state2.blocksize] if state.nested else [state.blocksize]
    powers = all(size >= 8 and size & (size - 1) == 0 for size in sizes)
    return powers and weight.data.numel() % 4 == 0 and weight.data.data_ptr() % 4 == 0 and weight.data.is_contiguous()


def dequantise(weight: Any, out: Tensor) -> None:
    state, words = weight.quant_state, out.numel() // 8
    packed = weight.data.view(-1).view(torch.int32)
    second = state.state2 if state.nested else state  # these values are not read unless scales are nested
    block = 512  # four words per thread: few registers allow many warps, whose lookups hide each other's latency
    _dequantise[(triton.cdiv(words, block),)](
        packed, state.code, state.absmax, second.absmax, second.code, state.offset if state.nested else state.code,
        out, words, (state.blocksize // 8).bit_length() - 1, second.blocksize.bit_length() - 1,
        state.nested, state.quant_type == "fp4", block, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit
def _decode_attention(
    q_ptr, k_ptr, v_ptr, lengths_ptr, out_ptr, scale, window,
    q_row, q_head, k_row, k_position, k_head, v_row, v_position, v_head,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """One row and one head of the cache with the GROUP query heads that read it, filled up to ROWS."""
    row, kv = tl.program_id(0).to(tl.int64), tl.program_id(1)
    member, column, position = tl.arange(0, ROWS), tl.arange(0, BLOCK), tl.arange(0, POSITIONS)
    head = kv * GROUP + member
    length = tl.load(lengths_ptr + row)
    begin = tl.maximum(length - window, 0)
    mine = (member < GROUP)[:, None] & (column < D)[None, :]
    q = tl.load(q_ptr + row * q_row + head[:, None] * q_head + column[None, :], mask=mine, other=0.0)
    k_ptr += row * k_row + kv * k_head
    v_ptr += row * v_row + kv * v_head
    highest = tl.full([ROWS], -1e30, tl.float32)
    summed = tl.zeros([ROWS], tl.float32)
    attended = tl.zeros([ROWS, BLOCK], tl.float32)
    for at in range(begin, length, POSITIONS):
        seen = at + position < length
        there = seen[:, None] & (column < D)[None, :]
        where = (at + position).to(tl.int64)[:, None]
        k = tl.load(k_ptr + where * k_position + column[None, :], mask=there, other=0.0)
        v = tl.load(v_ptr + where * v_position + column[None, :], mask=there, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, -float("inf"))
        above = tl.maximum(highest, tl.max(scores, axis=1))
        shares = tl.exp(scores - above[:, None])
        fade = tl.exp(highest - above)
        summed = summed * fade + tl.sum(shares, axis=1)
        attended = tl.dot(shares.to(v.dtype), v, attended * fade[:, None], input_precision="ieee")
        highest = above
    attended = attended / tl.where(summed > 0, summed, 1.0)[:, None]
    out = out_ptr + (row * HEADS + head[:, None]) * D + column[None, :]
    tl.store(out, attended.to(out_ptr.dtype.element_ty), mask=mine)


def decode_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float, window: int | None) -> Tensor:
    rows, heads, head_dim = q.shape
    kv = k.shape[2]
    out = torch.empty((rows, heads, head_dim), dtype=q.dtype, device=q.device)
    block = triton.next_power_of_2(head_dim)
    positions = 64 if block <= 128 and q.element_size() == 2 else 32
    _decode_attention[(rows, kv)](
        q, k, v, lengths, out, float(scale), k.shape[1] if window is None else window,
        q.stride(0), q.stride(1), *k.stride()[:3], *v.stride()[:3],
        heads, heads // kv, head_dim, max(16, triton.next_power_of_2(heads // kv)), block, positions, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _store_kv(
    qkv_ptr, k_ptr, v_ptr, slots_ptr, positions_ptr, qkv_stride, start,
    k_row, k_position, k_head, v_row, v_position, v_head, KV: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < KV * D
    slot, position = tl.load(slots_ptr + row), tl.load(positions_ptr + row)
    head, element = column // D, column % D
    k = tl.load(qkv_ptr + row * qkv_stride + start + column, mask=inside)
    tl.store(k_ptr + slot * k_row + position * k_position + head * k_head + element, k, mask=inside)
    v = tl.load(qkv_ptr + row * qkv_stride + start + KV * D + column, mask=inside)
    tl.store(v_ptr + slot * v_row + position * v_position + head * v_head + element, v, mask=inside)


def store_kv_(qkv: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, positions: Tensor) -> None:
    kv, head_dim = k_cache.shape[2:]
    width = kv * head_dim
    block = triton.next_power_of_2(width)
    _store_kv[(len(qkv),)](
        qkv, k_cache, v_cache, slots, positions, qkv.stride(0), qkv.shape[1] - 2 * width,
        *k_cache.stride()[:3], *v_cache.stride()[:3], kv, head_dim, block, num_warps=_warps(block),
    )  # fmt: skip
