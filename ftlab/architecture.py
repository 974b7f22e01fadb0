"""What a model's config.json may describe, looked at before transformers builds anything of it. No torch.

A layer takes milliseconds to build even without weights, and a wrong size takes hours or all memory. So sizes must be
whole numbers within bounds that no published model comes near, and the weights on disk must be able to hold them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_BYTES = 10_000_000  # of a config.json: published ones have a few thousand

# What is limited, the names under which configurations have it, and the largest that is read. The largest published:
# 126 layers and a hidden size of 16,384 (Llama 3.1 405B), 512 experts a layer (Qwen3-Next), a vocabulary of 262,208
# (Gemma 3).
LIMITS = {
    "layers": (("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 512),
    "hidden size": (("hidden_size", "n_embd", "d_model"), 262_144),
    "vocabulary": (("vocab_size",), 4_000_000),
    "size of the MLP": (("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size"), 4_194_304),
    "attention heads": (("num_attention_heads", "n_head", "num_key_value_heads", "head_dim"), 65_536),
    "experts": (("num_experts", "num_local_experts", "n_routed_experts"), 4_096),
}
NEEDED = ("layers", "hidden size", "vocabulary")
MOST_MODULES = 200_000  # layers times experts
BITS = 8  # parameters in a byte at most: one bit each


def flaw(file: Path, weights: int | None) -> str | None:
    """Why a config.json cannot be used, as the rest of a sentence that begins with its folder's name; None where
    nothing speaks against it. `weights` are the bytes of the weight files, None where they are not here."""
    try:
        if file.stat().st_size > MOST_BYTES:
            return f"has a {file.name} of {file.stat().st_size:,} bytes, which is no model's configuration"
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"has a {file.name} that cannot be read ({error})"
    if not isinstance(config, dict):
        return f"has a {file.name} that holds no object {{...}}: copy or download it again"
    return next(_flaws(file.name, config, weights), None)


def _flaws(name: str, config: dict[str, Any], weights: int | None) -> Iterator[str]:
    if not isinstance(config.get("model_type"), str) and not config.get("auto_map"):
        yield f"has a {name} without model_type, which names the architecture: copy or download it again"
    sizes: dict[str, int] = {}
    parts = [config, *(part for key, part in config.items() if key.endswith("_config") and isinstance(part, dict))]
    for what, (keys, most) in LIMITS.items():
        for key, value in ((key, part[key]) for part in parts for key in keys if key in part):
            yield from _wrong(name, key, value, what, most)
            sizes[what] = max(sizes.get(what, 0), *(value if isinstance(value, list) else [value or 0]), 0)
    modules = sizes.get("layers", 0) * sizes.get("experts", 0)
    if modules > MOST_MODULES:
        yield f"has a {name} with {modules:,} experts in all layers: ftlab reads at most {MOST_MODULES:,}"
    needed = parameters(sizes)
    if weights is not None and needed > BITS * weights:
        told = ", ".join(f"{what} {size:,}" for what, size in sizes.items() if size)
        yield (
            f"has a {name} that describes at least {needed:,} parameters ({told}), but weight files of {weights:,} "
            "bytes only: they are of different models, so copy or download both again"
        )


def _wrong(name: str, key: str, value: Any, what: str, most: int) -> Iterator[str]:
    """null stands for the architecture's own default; some have a list, one size a layer."""
    for size in value if isinstance(value, list) else [value]:
        least = 1 if what in NEEDED else 0
        whole = isinstance(size, int) and not isinstance(size, bool) and size >= least
        if size is not None and not whole:
            wanted = f"which must be a whole number of at least {least}: copy it again"
            yield f"has a {name} with {key}={json.dumps(value)[:40]}, {wanted}"
        elif size is not None and size > most:
            yield f"has a {name} with {key}={size:,}: ftlab reads at most {most:,} ({what}); is it of this model?"


def parameters(sizes: dict[str, int]) -> int:
    """At least so many parameters: the embedding, and of each layer one square matrix and one of the MLP."""
    hidden = sizes.get("hidden size", 0)
    layer = hidden * (hidden + sizes.get("size of the MLP", 0))
    return sizes.get("vocabulary", 0) * hidden + sizes.get("layers", 0) * layer
