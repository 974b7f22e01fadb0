"""Checks a model's config.json before transformers builds anything from it. No torch.

A layer takes milliseconds to build even without weights, and a wrong size takes hours or all memory. So sizes must be
whole numbers within bounds far beyond any published model, and the weight files must be large enough for them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_BYTES = 10_000_000  # largest config.json; published ones have a few thousand bytes

# Each limited size: its keys in config.json, and the largest value that is accepted. The largest published values: 126
# layers and a hidden size of 16,384 (Llama 3.1 405B), 512 experts per layer (Qwen3-Next), a vocabulary of 262,208
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
MOST_MODULES = 200_000  # largest number of layers times experts
BITS = 8  # largest number of parameters per byte: one bit each


def flaw(file: Path, weights: int | None) -> str | None:
    """Return why a config.json cannot be used, as the rest of a sentence that begins with its folder's name, or None if
    it can. `weights` are the bytes of the weight files, None if they are not on this machine."""
    try:
        if file.stat().st_size > MOST_BYTES:
            size = file.stat().st_size
            return f"has a {file.name} of {size:,} bytes, too large for a model's configuration: copy it again"
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"has a {file.name} that cannot be read ({error}): copy or download it again"
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
        yield f"has a {name} with {modules:,} experts in all layers, but ftlab accepts at most {MOST_MODULES:,}"
    needed = parameters(sizes)
    if weights is not None and needed > BITS * weights:
        listed = ", ".join(f"{what} {size:,}" for what, size in sizes.items() if size)
        yield (
            f"has a {name} that describes at least {needed:,} parameters ({listed}), but weight files of only "
            f"{weights:,} bytes: they are of different models, so copy or download both again"
        )


def _wrong(name: str, key: str, value: Any, what: str, most: int) -> Iterator[str]:
    """Check one size. null means the architecture's own default; some models have a list with a size per layer."""
    for size in value if isinstance(value, list) else [value]:
        least = 1 if what in NEEDED else 0
        whole = isinstance(size, int) and not isinstance(size, bool) and size >= least
        if size is not None and not whole:
            wanted = f"which must be a whole number of at least {least}: copy it again"
            yield f"has a {name} with {key}={json.dumps(value)[:40]}, {wanted}"
        elif size is not None and size > most:
            yield (
                f"has a {name} with {key}={size:,}, but ftlab accepts at most {most:,} ({what}): check that it is the "
                "file of this model"
            )


def parameters(sizes: dict[str, int]) -> int:
    """Return a lower bound of the parameters: the embedding, and per layer one square matrix and one of the MLP."""
    hidden = sizes.get("hidden size", 0)
    layer = hidden * (hidden + sizes.get("size of the MLP", 0))
    return sizes.get("vocabulary", 0) * hidden + sizes.get("layers", 0) * layer
