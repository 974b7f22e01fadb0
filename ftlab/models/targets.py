"""Which layers of an architecture `lora.target_modules` names."""

import difflib
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ftlab.errors import ConfigError

# A linear layer belongs to attention or to the MLP by the name of the module that holds it.
ATTENTION_PARENTS = ("attn", "attention")
MLP_PARENTS = ("mlp", "ffn", "feed_forward", "experts")
QUERY_VALUE = ("q_proj", "v_proj", "query", "value", "wq", "wv", "q", "v")


def linear_names(model: nn.Module) -> dict[str, list[str]]:
    """Short names of the linear layers, each with the full names that end in it, in the model's order."""
    found: dict[str, list[str]] = {}
    for full, module in model.named_modules():
        is_linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's linear
        if is_linear and full:
            found.setdefault(full.rpartition(".")[2], []).append(full)
    return found


def target_names(model: PreTrainedModel, targets: Any) -> list[str]:
    """Module names for PEFT: a named set resolved on this model, or a list of which every entry exists.

    Raises:
        ConfigError: an entry that names no linear layer, or a set that this architecture does not have.
    """
    linears = linear_names(model)
    head = model.get_output_embeddings()
    inner = {name: full for name, full in linears.items() if not _is_head(model, full, head)}
    if isinstance(targets, list):
        return _checked(targets, linears)
    chosen = [found for name, full in inner.items() for found in _members(targets, name, full)]
    if not chosen:
        raise ConfigError(
            f"lora.target_modules={targets} names no linear layer of this model; it has: {', '.join(linears)}"
        )
    return chosen


def _is_head(model: nn.Module, names: list[str], head: nn.Module | None) -> bool:
    return head is not None and any(model.get_submodule(name) is head for name in names)


def _members(targets: str, name: str, full: list[str]) -> list[str]:
    """The name where all layers so called are in the set; where some are (GPT-2's attention and MLP both have a
    `c_proj`), the name together with the module that holds it."""
    members = [layer for layer in full if _in_set(targets, name, layer)]
    if len(members) == len(full):
        return [name]
    return list(dict.fromkeys(".".join(layer.split(".")[-2:]) for layer in members))


def _in_set(targets: str, name: str, full: str) -> bool:
    parents = full.lower().split(".")[:-1]
    attention = any(mark in parent for parent in parents for mark in ATTENTION_PARENTS)
    mlp = any(mark in parent for parent in parents for mark in MLP_PARENTS)
    return {
        "all-linear": True,
        "attention": attention,
        "mlp": mlp and not attention,
        "qv": attention and name in QUERY_VALUE,
    }[targets]


def _checked(targets: list[str], linears: dict[str, list[str]]) -> list[str]:
    problems = []
    for target in targets:
        full = [name for names in linears.values() for name in names]
        if target in linears or any(name == target or name.endswith("." + target) for name in full):
            continue
        near = difflib.get_close_matches(target, linears, n=1, cutoff=0.3)
        hint = f" (nearest: {near[0]})" if near else ""
        problems.append(
            f"lora.target_modules={target} is no linear layer of this model{hint}; it has: {', '.join(linears)}"
        )
    if problems:
        raise ConfigError(*problems)
    return targets
