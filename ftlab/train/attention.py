"""Attention within the rows of a flat batch, without a mask over the whole batch: torch's own varlen FlashAttention on
a GPU, row by row on a CPU.

transformers separates rows by a boolean mask [tokens, tokens], whose cost grows with the square of the batch's length.
This module replaces the entry `sdpa` of transformers' two registries. The mask function returns a description of the
rows (`RowMask`) instead of the mask. It is passed to the layers as the mask would be, also when a checkpointed layer is
recomputed, and turns into the mask itself as soon as anything but our attention computes with it. The attention
function computes row by row if it gets such a description and supports the case. All other calls, such as those of
generation, are unchanged.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# What FlashAttention supports: the head size is a multiple of HEAD_MULTIPLE and at most HEAD_MOST; the minimum compute
# capability of the GPU.
HEAD_MULTIPLE, HEAD_MOST, CAPABILITY = 8, 256, (8, 0)
# Arguments of `sdpa` that change the result and that attention by rows does not support.
UNKNOWN = ("position_bias", "softcap", "s_aux", "cache")

_lengths: ContextVar[list[int] | None] = ContextVar("lengths of the rows in the flat batch", default=None)


@contextmanager
def rows_of(lengths: list[int]) -> Iterator[None]:
    """Declare that forward passes in the block are of a flat batch whose rows have these lengths, in tokens."""
    token = _lengths.set(lengths)
    try:
        yield
    finally:
        _lengths.reset(token)


class RowMask(Tensor):
    """The mask [1, 1, tokens, tokens] of causal attention within rows of these `lengths`, limited to a sliding window
    of `window` tokens. It takes one byte of memory. Any torch function that is called with it gets `whole` instead."""

    lengths: list[int]
    window: int | None

    @staticmethod
    def of(lengths: list[int], window: int | None, device: torch.device) -> "RowMask":
        """Return the mask without computing its values."""
        tokens = sum(lengths)
        mask = torch.zeros((), dtype=torch.bool, device=device).expand(1, 1, tokens, tokens).as_subclass(RowMask)
        mask.lengths, mask.window = lengths, None if window is None or window >= max(lengths) else window
        return mask

    @cached_property
    def starts(self) -> Tensor:
        """The first positions of the rows, and the end of the batch: [rows + 1], int32."""
        lengths = torch.tensor([0, *self.lengths], dtype=torch.int32)
        return lengths.cumsum(0, dtype=torch.int32).to(self.device, non_blocking=True)

    @cached_property
    def whole(self) -> Tensor:
        """The mask as a plain tensor; True where a token is attended to."""
        rows = torch.arange(len(self.lengths), device=self.device)
        row = rows.repeat_interleave(torch.tensor(self.lengths, device=self.device))
        place = torch.arange(sum(self.lengths), device=self.device)
        back = place[:, None] - place
        seen = (row[:, None] == row) & (back >= 0)
        return (seen if self.window is None else seen & (back < self.window))[None, None]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if getattr(function, "__name__", "") == "__get__":  # shape, dtype, device
                return function(*args, **(kwargs or {}))
            made = tree_map(lambda value: value.whole if isinstance(value, RowMask) else value, (args, kwargs or {}))
            return function(*made[0], **made[1])

    def __repr__(self) -> str:  # type: ignore[override]
        return f"RowMask(lengths={self.lengths}, window={self.window})"


def mask_of_rows(*args: Any, config: Any = None, **kwargs: Any) -> Tensor | None:
    """Replace transformers' `sdpa_mask`: return a `RowMask` if the mask only separates the rows of a flat batch."""
    lengths = _lengths.get()
    if args or lengths is None or not _is_of_rows(lengths, config, **kwargs):
        mask: Tensor | None = sdpa_mask(*args, config=config, **kwargs)
        return mask
    return RowMask.of(lengths, kwargs.get("local_size"), torch.device(kwargs.get("device", "cpu")))


def _is_of_rows(
    lengths: list[int],
    config: Any,
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    **_: Any,
) -> bool:
    """Whether the mask consists only of the rows and of the configuration's sliding window: no other mask function
    (which transformers would map), no padding, no chunks. A single row needs no `RowMask`."""
    flat = batch_size == 1 and q_length == kv_length == sum(lengths) and len(lengths) > 1
    window = local_size is None or local_size == getattr(config, "sliding_window", None)
    return flat and window and attention_mask is None and not use_vmap


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Replace `sdpa` for query, key, value [1, heads, tokens, head size]; return [1, tokens, heads, head size]."""
    if not isinstance(attention_mask, RowMask):
        return _sdpa(module, query, key, value, attention_mask, **kwargs)
    if any(kwargs.get(name) is not None for name in UNKNOWN) or query.shape[2] != attention_mask.shape[2]:
        return _sdpa(module, query, key, value, attention_mask.whole, **kwargs)
    if flash_supports(query, value):
        return _flash(query, key, value, attention_mask, **kwargs), None
    if query.device.type == "cpu":
        return _by_row(module, query, key, value, attention_mask, **kwargs)
    return _sdpa(module, query, key, value, attention_mask.whole, **kwargs)


def flash_supports(query: Tensor, value: Tensor) -> bool:
    """Whether FlashAttention supports this head size, this dtype and this GPU."""
    if query.device.type != "cuda" or torch.cuda.get_device_capability(query.device) < CAPABILITY:
        return False
    size = query.shape[-1]
    heads = size == value.shape[-1] and size % HEAD_MULTIPLE == 0 and size <= HEAD_MOST
    return heads and _compute_dtype(query) in (torch.bfloat16, torch.float16)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: RowMask,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> Tensor:
    longest = max(mask.lengths)
    dtype = _compute_dtype(query)
    query, key, value = (part[0].transpose(0, 1).to(dtype) for part in (query, key, value))
    window = {} if mask.window is None else {"window_size_left": mask.window - 1, "window_size_right": 0}
    found = torch.ops.aten._flash_attention_forward(
        query, key, value, mask.starts, mask.starts, longest, longest, dropout, True, False, scale=scaling, **window
    )
    result: Tensor = found[0][None]
    return result


def _by_row(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: RowMask, **kwargs: Any
) -> tuple[Tensor, None]:
    rows = zip(*(torch.split(part, mask.lengths, dim=2) for part in (query, key, value)), strict=True)
    masks = {length: _window(length, mask) for length in set(mask.lengths)}
    parts = [_sdpa(module, q, k, v, masks[q.shape[2]], **kwargs)[0] for q, k, v in rows]
    return torch.cat(parts, dim=1), None


def _window(length: int, mask: RowMask) -> Tensor | None:
    """Return the mask of one row of this length; None if the row is no longer than the window."""
    alone = RowMask.of([length], mask.window, mask.device)
    return None if alone.window is None else alone.whole


def _compute_dtype(part: Tensor) -> torch.dtype:
    """Return the dtype that autocast would use for torch's own attention. It does not apply to the kernel itself."""
    kind = part.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else part.dtype


def _sdpa(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    whole: tuple[Tensor, None] = sdpa_attention_forward(*args, **kwargs)
    return whole


AttentionInterface.register("sdpa", attend)
AttentionMaskInterface.register("sdpa", mask_of_rows)
