"""Attention inside the rows of a flat batch, row by row instead of under one mask (CPU).

transformers keeps rows apart with a mask over the whole flat batch, whose cost grows with the square of its
length. On a CPU it is cheaper to attend within each row and lay the results end to end. The function takes the
place of `sdpa` in transformers' registry and is the original one wherever no row lengths are known, as in
generation, or in the recomputation of a checkpointed layer, where the mask does the work.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

_lengths: ContextVar[list[int] | None] = ContextVar("lengths of the rows in the flat batch", default=None)


@contextmanager
def rows_of(lengths: list[int]) -> Iterator[None]:
    """Attend within rows of these lengths (tokens) while the block runs."""
    token = _lengths.set(lengths)
    try:
        yield
    finally:
        _lengths.reset(token)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """`sdpa` of query, key, value [1, heads, tokens, head size]; the result is [1, tokens, heads, head size]."""
    lengths = _lengths.get()
    if lengths is None or not _applies(lengths, query, kwargs.get("sliding_window")):
        whole: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return whole
    rows = zip(*(torch.split(part, lengths, dim=2) for part in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, q, k, v, None, **kwargs)[0] for q, k, v in rows], dim=1), None


def _applies(lengths: list[int], query: Tensor, window: int | None) -> bool:
    inside = window is None or max(lengths) <= window
    return query.device.type == "cpu" and query.shape[2] == sum(lengths) and inside


AttentionInterface.register("sdpa", attend)
