"""Attention within the rows of a flat batch: torch's own varlen kernels on a GPU, row by row on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ftlab.fast.decoder import Attention, AttentionShape

# torch's number for a causal mask.
CAUSAL = 1


def inside(starts: Tensor, longest: int, dtype: torch.dtype) -> Attention:
    """Return the attention within rows of at most `longest` tokens. `starts` [rows + 1] are the rows' first positions
    and the end of the batch."""
    if not starts.is_cuda:
        return ByRow(starts.diff().tolist())
    return (Efficient if dtype == torch.float32 else Varlen)(starts.int(), longest)


class Varlen:
    """FlashAttention-2 as torch ships it. `starts` [rows + 1] (int32) are the rows' first positions and the end of the
    batch. No row has more than `longest` tokens."""

    def __init__(self, starts: Tensor, longest: int) -> None:
        self.starts, self.longest = starts, longest

    def forward(self, shape: AttentionShape, qkv: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `decoder.Attention`."""
        query, key, value = shape.split(qkv)
        o, *kept = torch.ops.aten._flash_attention_forward(
            query, key, value, *self._rows(), 0.0, True, False, **self._options(shape)
        )[:4]
        return o.flatten(1), (*kept,)

    def backward(
        self, shape: AttentionShape, do: Tensor, qkv: Tensor, o: Tensor, kept: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `decoder.Attention`."""
        query, key, value = shape.split(qkv)
        logsumexp, *random = kept
        whole = (-1, shape.heads, shape.head_dim)
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            do.view(whole), query, key, value, o.view(whole), logsumexp, *self._rows(), 0.0, True, *random,
            **self._options(shape),
        )  # fmt: skip
        return dq, dk, dv

    def _rows(self) -> tuple[Tensor, Tensor, int, int]:
        return self.starts, self.starts, self.longest, self.longest

    def _options(self, shape: AttentionShape) -> dict[str, float | int]:
        if shape.window is None or shape.window >= self.longest:
            return {"scale": shape.scale}
        return {"scale": shape.scale, "window_size_left": shape.window - 1, "window_size_right": 0}


class Efficient:
    """torch's memory-efficient attention, which supports float32. `starts` and `longest` are those of `Varlen`. The key
    and value of a group are copied for each of its query heads."""

    def __init__(self, starts: Tensor, longest: int) -> None:
        self.starts, self.longest = starts, longest

    def forward(self, shape: AttentionShape, qkv: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `decoder.Attention`."""
        o, logsumexp, *random = torch.ops.aten._efficient_attention_forward(
            *self._spread(shape, qkv), None, *self._rows(qkv), 0.0, CAUSAL, True, **self._options(shape)
        )[:4]
        return o[0].flatten(1), (logsumexp, *random)

    def backward(
        self, shape: AttentionShape, do: Tensor, qkv: Tensor, o: Tensor, kept: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `decoder.Attention`."""
        logsumexp, *random = kept
        whole = (1, -1, shape.heads, shape.head_dim)
        dq, dk, dv, _ = torch.ops.aten._efficient_attention_backward(
            do.view(whole), *self._spread(shape, qkv), None, o.view(whole), *self._rows(qkv), logsumexp, 0.0, *random,
            CAUSAL, False, **self._options(shape),
        )  # fmt: skip
        return dq[0], _gathered(shape, dk[0]), _gathered(shape, dv[0])

    def _spread(self, shape: AttentionShape, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (part[None] for part in shape.split(qkv))
        times = shape.heads // shape.kv_heads
        return query, key.repeat_interleave(times, dim=2), value.repeat_interleave(times, dim=2)

    def _rows(self, qkv: Tensor) -> tuple[Tensor, Tensor, int, int]:
        longest = min(self.longest, len(qkv))  # the kernel refuses a length above the number of tokens
        return self.starts, self.starts, longest, longest

    def _options(self, shape: AttentionShape) -> dict[str, float | int]:
        if shape.window is None or shape.window >= self.longest:
            return {"scale": shape.scale}
        return {"scale": shape.scale, "window_size": shape.window}


def _gathered(shape: AttentionShape, gradient: Tensor) -> Tensor:
    """Sum over the query heads that share a key: [tokens, heads, head_dim] to [tokens, kv_heads, head_dim]."""
    return gradient.reshape(-1, shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim).sum(2)


class ByRow:
    """torch's own attention, one row after another. `lengths` are the rows' numbers of tokens."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def forward(self, shape: AttentionShape, qkv: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `decoder.Attention`."""
        parts = [part.transpose(0, 1)[None] for part in shape.split(qkv)]
        with torch.enable_grad():
            leaves = [part.detach().requires_grad_() for part in parts]
            rows = zip(*(torch.split(leaf, self.lengths, dim=2) for leaf in leaves), strict=True)
            o = torch.cat([attend_row(shape, *row) for row in rows], dim=2)
        return o.detach()[0].transpose(0, 1).flatten(1), (o, *leaves)

    def backward(
        self, shape: AttentionShape, do: Tensor, qkv: Tensor, o: Tensor, kept: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `decoder.Attention`."""
        result, *leaves = kept
        given = do.view(-1, shape.heads, shape.head_dim).transpose(0, 1)[None]
        dq, dk, dv = (part[0].transpose(0, 1).contiguous() for part in torch.autograd.grad(result, leaves, given))
        return dq, dk, dv


def attend_row(shape: AttentionShape, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the causal attention of one row. All tensors are [1, heads or kv_heads, tokens, head_dim]."""
    tokens = query.shape[2]
    many = shape.heads != shape.kv_heads
    if shape.window is None or tokens <= shape.window:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=shape.scale, enable_gqa=many)
    place = torch.arange(tokens, device=query.device)
    distance = place[:, None] - place[None, :]
    seen = (distance >= 0) & (distance < shape.window)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=shape.scale, enable_gqa=many)
