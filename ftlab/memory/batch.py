"""The memory of a micro-batch, for the planner of a step and for the estimate of a run."""

from contextlib import suppress
from typing import Any

from ftlab.config import DTYPES

BYTES = dict(zip(DTYPES, (2, 2, 4), strict=True))
# Names of the MLP's width. If none is there, it is four times the hidden size, as in GPT-2 by default.
INNER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")


def batch_bytes(
    shape: Any,
    width: int,
    tokens: int,
    scored: int,
    checkpointed_fraction: float,
    dropout: bool,
    logits: float | None = None,
) -> float:
    """Return the most memory that a micro-batch needs, in bytes: what every layer saves for the backward pass (its
    input only, for the `checkpointed_fraction` of the layers), the layer that is being computed, and the logits of the
    scored positions.

    `shape` is a transformers configuration, `width` the bytes of one activation. A layer saves the inputs of its norms
    and of its linear layers, query, key and value, and the MLP's two halves (ftlab/fast/decoder.py). The plain step
    saves about as much. `logits` is the largest size in bytes of a chunk if logits are computed in chunks; otherwise
    all are held in float32 with their gradient.
    """
    hidden, layers, vocabulary = (_size(shape, name) for name in ("hidden_size", "num_hidden_layers", "vocab_size"))
    heads = _size(shape, "num_attention_heads")
    inner = next((size for name in INNER if (size := _size(shape, name, 0))), 4 * hidden)
    head = _size(shape, "head_dim", hidden // heads)
    query = head * heads
    values = query + 2 * head * _size(shape, "num_key_value_heads", heads)
    layer = (4 * hidden + values + query * (2 if dropout else 1) + 3 * inner) * width
    saved = layers * ((1 - checkpointed_fraction) * layer + checkpointed_fraction * hidden * width)
    work = (layer if checkpointed_fraction else 0) + (4 * inner + 6 * hidden) * width
    whole = scored * vocabulary * 8 if logits is None else min(scored * vocabulary * width, logits)
    return float(tokens * (saved + work) + scored * 4 * hidden * width + whole)


def _size(shape: Any, name: str, otherwise: int = 1) -> int:
    """Return a size of an architecture, the largest one if layers differ; `otherwise` if it is not given."""
    with suppress(AttributeError, ValueError, RuntimeError):
        sizes = getattr(shape.get_text_config(), name)
        return int(max(sizes) if isinstance(sizes, list | tuple) else sizes or otherwise)
    return otherwise
