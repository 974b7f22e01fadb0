"""What a micro-batch takes, for the planner of a step and for the forecast."""

from contextlib import suppress
from typing import Any

from ftlab.config import DTYPES

BYTES = dict(zip(DTYPES, (2, 2, 4), strict=True))
# Names of the MLP's width; an architecture with another has four times the hidden size, as GPT-2 has by default.
INNER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")


def batch_bytes(
    shape: Any, width: int, tokens: int, scored: int, share: float, dropout: bool, logits: float | None = None
) -> float:
    """What a micro-batch needs at most, in bytes: what the backward pass keeps of every layer (of a `share` of them
    their entrance only), one layer at work, and the logits of the scored positions.

    `shape` is a transformers configuration, `width` the bytes of an activation. Kept of a layer are the inputs of its
    norms and of its linear layers, query, key and value, and the MLP's two halves (ftlab/fast/decoder.py); PEFT's own
    path keeps about as much. `logits` are the bytes of logits held at a time where they are made in parts; else all are
    held in float32 with their gradient.
    """
    hidden, layers, vocabulary = (_size(shape, name) for name in ("hidden_size", "num_hidden_layers", "vocab_size"))
    heads = _size(shape, "num_attention_heads")
    inner = next((size for name in INNER if (size := _size(shape, name, 0))), 4 * hidden)
    head = _size(shape, "head_dim", hidden // heads)
    query = head * heads
    values = query + 2 * head * _size(shape, "num_key_value_heads", heads)
    layer = (4 * hidden + values + query * (2 if dropout else 1) + 3 * inner) * width
    kept = layers * ((1 - share) * layer + share * hidden * width)
    work = (layer if share else 0) + (4 * inner + 6 * hidden) * width
    whole = scored * vocabulary * 8 if logits is None else min(scored * vocabulary * width, logits)
    return float(tokens * (kept + work) + scored * 4 * hidden * width + whole)


def _size(shape: Any, name: str, otherwise: int = 1) -> int:
    """A number of an architecture, the largest where layers differ; `otherwise` where it is not told."""
    with suppress(AttributeError, ValueError, RuntimeError):
        sizes = getattr(shape.get_text_config(), name)
        return int(max(sizes) if isinstance(sizes, list | tuple) else sizes or otherwise)
    return otherwise
