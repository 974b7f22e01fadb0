"""Checks that weight files contain exactly the tensors that config.json describes.

transformers fills a tensor that is missing or of another shape with random values, and ignores an unexpected one.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ftlab.errors import WeightsError

# Tensors that older checkpoints store but newer architectures compute: rotary tables, causal masks, positions. They may
# be missing or unexpected, as may tied weights and tensors that a class of transformers declares as ignored.
COMPUTED = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|(attn|attention|self_attention)\.(masked_)?bias"
    r"|causal_mask|position_ids)$"
)
EXPERT = re.compile(r"(.*\.experts\.)(\d+)(\..*)")
SHOWN = 3  # names in a message


def check_complete(base: PreTrainedModel, loading: dict[str, Any], model_id: str) -> None:
    """Refuse a base if one of its tensors is random, or a stored tensor is unused. `loading` is transformers'
    `output_loading_info`.

    Raises:
        WeightsError: names the tensors that are missing, unexpected or of another shape.
    """
    missing = _named(loading["missing_keys"])
    unexpected = _named(loading["unexpected_keys"])
    shapes = {name: (tuple(stored), tuple(wanted)) for name, stored, wanted in loading["mismatched_keys"]}
    shapes |= dict(_quantised_shapes(base))
    problems = [
        *(_some(missing, "missing", "would be random") if missing else ()),
        *(_some(unexpected, "without a place in the model", "would be left out") if unexpected else ()),
        *(_some(list(map(_shape, sorted(shapes.items()))), "of another shape", "would be random") if shapes else ()),
    ]
    if problems:
        raise WeightsError(
            f"model.id={model_id}: its config.json describes other tensors ({type(base).__name__}) than its weight "
            f"files hold: {'; '.join(problems)}. Both must be of the same model (model_type, num_hidden_layers, sizes, "
            "tie_word_embeddings): restore the config.json that belongs to the weights, or copy or download the folder "
            "again"
        )


def check_class(config: PretrainedConfig, folder: Path) -> None:
    """Refuse a configuration whose `model_type` is not that of the class that wrote the weights: tensors of two
    families may have the same names and shapes but different meanings.

    Raises:
        WeightsError: names both.
    """
    for name in () if hasattr(config, "auto_map") else config.architectures or ():
        written = getattr(getattr(transformers, name, None), "config_class", None)
        if written is not None and written.model_type != config.model_type:
            raise WeightsError(
                f"{folder}: config.json has model_type={config.model_type}, but its weights were written by {name} "
                f"(architectures), which is of model_type {written.model_type}: restore the config.json that belongs "
                "to the weights"
            )


def absent_experts(folder: Path) -> str:
    """Return the names of missing tensors of experts that are stored one by one: those that other experts of the same
    layer have. transformers, which stacks them, does not report them. The text is empty if none is missing."""
    numbers: dict[tuple[str, str], set[str]] = {}
    layers: dict[str, set[str]] = {}
    for file in folder.glob("*.safetensors"):
        with suppress(SafetensorError, OSError), safe_open(file, framework="pt") as tensors:
            for match in filter(None, map(EXPERT.fullmatch, tensors.keys())):
                numbers.setdefault((match[1], match[3]), set()).add(match[2])
                layers.setdefault(match[1], set()).add(match[2])
    absent = [f"{at}{n}{end}" for (at, end), found in sorted(numbers.items()) for n in sorted(layers[at] - found)]
    more = f" and {len(absent) - SHOWN:,} more" if len(absent) > SHOWN else ""
    return ", ".join(absent[:SHOWN]) + more


def _named(keys: Iterable[str]) -> list[str]:
    return sorted(key for key in keys if not COMPUTED.search(key))


def _some(names: list[str], what: str, then: str) -> Iterator[str]:
    more = ", …" if len(names) > SHOWN else ""
    yield f"{len(names)} {what}, which {then} ({', '.join(names[:SHOWN])}{more})"


def _shape(item: tuple[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    name, (stored, wanted) = item
    return f"{name} {list(stored)} instead of {list(wanted)}"


def _quantised_shapes(base: nn.Module) -> Iterator[tuple[str, tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Yield the quantised layers whose weight does not have the layer's shape: transformers does not compare these."""
    for name, module in base.named_modules():
        weight: Any = getattr(module, "weight", None)
        if not isinstance(module, nn.Linear) or not type(module).__module__.startswith("bitsandbytes"):
            continue
        state = getattr(weight, "quant_state", None)
        stored = tuple(state.shape if state is not None else weight.shape)
        wanted = (module.out_features, module.in_features)
        if stored != wanted:
            yield f"{name}.weight", (stored, wanted)
