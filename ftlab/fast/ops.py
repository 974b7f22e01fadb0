"""Operations on flat tensors, with hand-written forward and backward passes, without autograd.

T is the number of tokens of a flat batch. Tensors are contiguous in their last dimension. A function whose name ends
in an underscore writes into its first argument. On a CPU this is plain torch. On CUDA the functions of the same name in
`ftlab.fast.kernels` run instead if Triton is installed. Only `Dropout`'s masks are random.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ftlab.fast.operands import Dropout, Member, kept

IGNORED = -100


def dropout(x: Tensor, drop: Dropout | None) -> Tensor:
    """Return x [T, width] with elements dropped; x itself if `drop` is None or its p is 0."""
    if drop is None or drop.p == 0:
        return x
    if kernels := _kernels(x):
        dropped: Tensor = kernels.dropout(x, drop)
        return dropped
    return (x.float() * drop.scale).mul_(kept(x.shape, drop)).to(x.dtype)


def add_rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, offset: float, drop: Dropout | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y, dropout(y), stream, rstd: stream = x + residual [T, width], y = rms_norm(stream) * (offset + weight).

    With offset 0 the normalised value is rounded before the product, as in LlamaRMSNorm; with another offset it is not,
    as in Gemma3RMSNorm. rstd is float32 [T]. stream is x itself if `residual` is None.
    """
    if kernels := _kernels(x):
        normed: tuple[Tensor, Tensor, Tensor, Tensor] = kernels.add_rms_norm(x, residual, weight, eps, offset, drop)
        return normed
    stream = x if residual is None else x + residual
    wide = stream.float()
    rstd = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if offset == 0:
        y = weight.to(x.dtype) * (wide * rstd).to(x.dtype)
    else:
        y = (wide * rstd * (offset + weight.float())).to(x.dtype)
    return y, dropout(y, drop), stream, rstd.squeeze(-1)


def add_rms_norm_backward(
    dy: Tensor, stream: Tensor, rstd: Tensor, weight: Tensor, offset: float, dstream: Tensor | None
) -> Tensor:
    """Return the gradient [T, width] of the norm's input, plus `dstream`. The weight is frozen."""
    if kernels := _kernels(dy):
        dx: Tensor = kernels.add_rms_norm_backward(dy, stream, rstd, weight, offset, dstream)
        return dx
    normed = stream.float() * rstd[:, None]
    inner = dy.float() * (offset + weight.float())
    wide = (inner - normed * (inner * normed).mean(-1, keepdim=True)) * rstd[:, None]
    return (wide if dstream is None else wide + dstream).to(dy.dtype)


def gated(gu: Tensor, act: str, drop: Dropout | None) -> tuple[Tensor, Tensor]:
    """Return (y, dropout(y)) with y = act(gate) * up [T, I] for gu = gate | up [T, 2 * I]; act: "silu", "gelu_tanh"."""
    if kernels := _kernels(gu):
        both: tuple[Tensor, Tensor] = kernels.gated(gu, act, drop)
        return both
    gate, up = gu.chunk(2, dim=-1)
    y = (F.silu(gate) if act == "silu" else F.gelu(gate, approximate="tanh")) * up
    return y, dropout(y, drop)


def gated_backward(dy: Tensor, gu: Tensor, act: str) -> Tensor:
    """Return the gradient [T, 2 * I] of gu. It may overwrite gu."""
    if kernels := _kernels(gu):
        dgu: Tensor = kernels.gated_backward(dy, gu, act)
        return dgu
    gate, up = gu.float().chunk(2, dim=-1)
    value, slope = _act(gate, act)
    return torch.cat([dy * up * slope, dy * value], dim=-1).to(gu.dtype)


def _act(gate: Tensor, act: str) -> tuple[Tensor, Tensor]:
    """Return the activation and its derivative. Both activations are gate * sigmoid(inner), where inner is the gate
    itself (silu) or twice the argument of gelu's tanh."""
    if act == "silu":
        inner, dinner = gate, torch.ones_like(gate)
    else:
        inner = GELU * (gate + CUBIC * gate.pow(3))
        dinner = GELU * (1 + 3 * CUBIC * gate.pow(2))
    sigmoid = torch.sigmoid(inner)
    value = gate * sigmoid
    return value, sigmoid + value * (1 - sigmoid) * dinner


GELU = 2 * (2 / torch.pi) ** 0.5
CUBIC = 0.044715


def rotate_(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, head_dim: int) -> None:
    """Apply the rotary embedding in place to the first `heads` heads of qkv [T, n * head_dim].

    cos and sin are float32 [T, head_dim] with two equal halves (rotate_half). The result is rounded once.
    """
    if kernels := _kernels(qkv):
        kernels.rotate_(qkv, cos, sin, heads, head_dim)
        return
    turned = qkv[:, : heads * head_dim].view(-1, heads, head_dim)
    turned.copy_(_rotated(turned, cos, sin))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x [T, heads, head_dim] rotated by the angles of cos and sin, in float32."""
    x = x.float()
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def pack_rotated(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the gradient [T, (H + 2 * KV) * D] of qkv before `rotate_`, from dq [T, H, D] and dk, dv [T, KV, D]."""
    if kernels := _kernels(dq):
        packed: Tensor = kernels.pack_rotated(dq, dk, dv, cos, sin)
        return packed
    turned = [_rotated(part, cos, -sin).to(dq.dtype) for part in (dq, dk)]
    return torch.cat([*turned, dv], dim=1).flatten(1)


def lora_up_(y: Tensor, h: Tensor, members: Sequence[Member], scale: float) -> None:
    """Add scale * h[:, from:to] @ B.T to y[:, from:to] for every member of the stack; y [T, out], h [T, R]."""
    if kernels := _kernels(y):
        kernels.lora_up_(y, h, members, scale)
        return
    for start, end, first, last, b in members:
        y[:, start:end].addmm_(h[:, first:last], b.T, alpha=scale)


def lora_dx_(dx: Tensor, dh: Tensor, a: Tensor, drop: Dropout | None) -> None:
    """Add dropout's mask / (1 - p) * (dh [T, R] @ a [R, in]) to dx [T, in]."""
    if drop is None or drop.p == 0:
        dx.addmm_(dh, a)
    elif kernels := _kernels(dx):
        kernels.lora_dx_(dx, dh, a, drop)
    else:
        dx.add_(dropout(dh @ a, drop))


def cross_entropy_(logits: Tensor, targets: Tensor, scale: Tensor | float) -> Tensor:
    """Return the summed cross entropy (float32) of logits [S, V] at int64 targets [S]. Targets of -100 are ignored.

    The logits are overwritten with the gradient of the loss, times `scale`. Arithmetic is float32.
    """
    if kernels := _kernels(logits):
        summed: Tensor = kernels.cross_entropy_(logits, targets, scale)
        return summed
    counted = targets != IGNORED
    column = targets.clamp(min=0)[:, None]
    wide = logits.float()  # the logits themselves where they are float32
    shares = wide.logsumexp(-1, keepdim=True)
    loss = (shares - wide.gather(1, column)).squeeze(1).masked_fill(~counted, 0).sum()
    wide.sub_(shares).exp_().scatter_add_(1, column, wide.new_full(column.shape, -1.0))
    wide.mul_(scale).masked_fill_(~counted[:, None], 0)
    if wide is not logits:
        logits.copy_(wide)
    return loss


def dequantise(weight: Any, out: Tensor) -> None:
    """Dequantize a 4-bit weight of bitsandbytes (`Params4bit`: nf4, fp4) into out [rows, columns]. The result is the
    same as that of bitsandbytes, bit for bit.

    `out` is contiguous and float32, bfloat16 or float16. It may be a block of rows of a bigger tensor.
    """
    state = weight.quant_state
    if (kernels := _kernels(out)) and kernels.dequantises(weight):
        kernels.dequantise(weight, out)
        return
    from bitsandbytes.functional import dequantize_blockwise

    scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    arguments = (weight.data, scales, state.blocksize, state.quant_type, state.shape, out.dtype)
    out.copy_(torch.ops.bitsandbytes.dequantize_4bit.default(*arguments))


def decode_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float, window: int | None) -> Tensor:
    """Return the attention [B, H, D] of one new token for each row, q [B, H, D], to the KV cache k, v [B, S, KV, D].

    Row b attends to its first lengths[b] positions (int32 [B], the new token's included), or to the last `window` of
    these. A row of length 0 gives zeros. Heads are grouped: head h reads the cache's head h // (H / KV). The softmax is
    float32. Masked positions have no effect if they are finite; on CUDA they are not read.
    """
    if kernels := _kernels(q):
        decoded: Tensor = kernels.decode_attention(q, k, v, lengths, scale, window)
        return decoded
    longest = max(1, int(lengths.max()))
    at = torch.arange(longest, device=q.device)
    seen = at < lengths[:, None]
    if window is not None:
        seen &= at >= lengths[:, None] - window
    k, v = (part[:, :longest].transpose(1, 2) for part in (k, v))
    # The query heads that share a head of the cache become the rows of one head, so that the cache is read once.
    grouped = q.reshape(len(q), k.shape[1], -1, q.shape[-1])
    attended = F.scaled_dot_product_attention(grouped, k, v, attn_mask=seen[:, None, None], scale=scale)
    return attended.reshape(q.shape).masked_fill_((lengths == 0)[:, None, None], 0)


def store_kv_(qkv: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, positions: Tensor) -> None:
    """Write the K and V of each row of qkv [B, (H + 2 * KV) * D] into the caches [rows, S, KV, D].

    slots and positions are int64 [B]: the row of the cache, and the position in it.
    """
    if kernels := _kernels(qkv):
        kernels.store_kv_(qkv, k_cache, v_cache, slots, positions)
        return
    width = k_cache.shape[2] * k_cache.shape[3]
    k_cache[slots, positions] = qkv[:, -2 * width : -width].view(-1, *k_cache.shape[2:])
    v_cache[slots, positions] = qkv[:, -width:].view(-1, *v_cache.shape[2:])


def on_gpu() -> bool:
    """Whether the operations can run as Triton kernels, which a CUDA graph can capture."""
    return _triton() is not None


def _kernels(x: Tensor) -> ModuleType | None:
    """The module of Triton kernels, for a tensor on CUDA."""
    return _triton() if x.is_cuda else None


@cache
def _triton() -> ModuleType | None:
    if find_spec("triton") is None:
        return None
    from ftlab.fast import kernels

    return kernels
