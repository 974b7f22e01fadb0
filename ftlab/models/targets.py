"""The layers of an architecture that `lora.target_modules` names, and whether they can have an adapter.

Experts of newer versions of transformers are not linear layers but parameters [experts, out, in] of one module. PEFT
adapts these by `target_parameters`. Two kinds of linear layers are left out of a named set, and refused in a list:
those whose weights a state-space layer passes to its kernel without calling the layer, and those whose names PEFT
mistakes for experts of older versions of transformers.
"""

import difflib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from peft import LoraConfig as PeftLoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel

from ftlab.errors import ConfigError

# A linear layer belongs to attention or to the MLP by the name of the module that holds it.
ATTENTION_PARENTS = ("attn", "attention")
MLP_PARENTS = ("mlp", "ffn", "feed_forward", "experts", "moe")
QUERY_VALUE = ("q_proj", "v_proj", "query", "value", "wq", "wv", "q", "v")

Names = dict[str, list[str]]  # a short name, with the full names that end in it


@dataclass(frozen=True)
class Targets:
    """The modules and parameters to adapt, by names for PEFT, and one line for each kind of layer that is left out."""

    modules: list[str]
    parameters: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_targets(model: PreTrainedModel, targets: Any) -> Targets:
    """Resolve a named set on this model, or check that every entry of a list exists.

    Raises:
        ConfigError: an entry names neither linear layers nor experts, or only layers that cannot have an adapter; or
            the architecture has no layer of the set.
    """
    linears, experts = linear_names(model), expert_names(model)
    barred = dict(_barred(model, linears))
    if isinstance(targets, list):
        return _listed(targets, linears, experts, barred)
    head = model.get_output_embeddings()
    inner = {name: full for name, full in linears.items() if not _is_head(model, full, head)}
    free = {name: [layer for layer in full if layer not in barred] for name, full in inner.items()}
    modules = [found for name, full in free.items() for found in _members(targets, name, full, linears[name])]
    parameters = [name for name, full in experts.items() if _in_set(targets, name, full[0])]
    left_out = [layer for full in inner.values() for layer in full if layer in barred]
    asked = [layer for layer in left_out if _in_set(targets, layer.rpartition(".")[2], layer)]
    if not modules and not parameters:
        raise ConfigError(
            f"lora.target_modules={targets} names no linear layer of this model{_that_can(asked)}; "
            f"it has: {', '.join(linears)}"
        )
    return Targets(modules, parameters, list(_left_out(targets, asked, barred)))


def linear_names(model: nn.Module) -> Names:
    """Return the short names of the linear layers, each with the full names that end in it, in the model's order."""
    found: Names = {}
    for full, module in model.named_modules():
        if full and is_linear(module):
            found.setdefault(full.rpartition(".")[2], []).append(full)
    return found


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's linear


def expert_names(model: nn.Module) -> Names:
    """Return the short names (`experts.down_proj`) of experts that are 3-dimensional parameters, with full names."""
    found: Names = {}
    for module_name, module in model.named_modules():
        holder = module_name.rpartition(".")[2]
        for name, parameter in module.named_parameters(recurse=False) if "expert" in holder else ():
            if parameter.ndim == 3:
                found.setdefault(f"{holder}.{name}", []).append(f"{module_name}.{name}")
    return found


def _is_head(model: nn.Module, names: list[str], head: nn.Module | None) -> bool:
    return head is not None and any(model.get_submodule(name) is head for name in names)


def _members(targets: str, name: str, free: list[str], full: list[str]) -> list[str]:
    """Return the layers of a name that are in the set: the name if all of them (`full`) are, else each name with its
    parent module. GPT-2's attention and MLP, for example, both have a `c_proj`."""
    members = [layer for layer in free if _in_set(targets, name, layer)]
    if members and len(members) == len(full):
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


# --- layers that cannot have an adapter -----------------------------------------------------------------


def _barred(model: PreTrainedModel, linears: Names) -> Iterator[tuple[str, str]]:
    """Yield the full names of linear layers that cannot have an adapter, each with the reason."""
    for name, full in linears.items():
        renamed = _renamed_by_peft(model, name)
        for layer in full:
            if renamed:
                yield layer, "PEFT mistakes them for experts, which had this name in older versions of transformers"
            elif uncalled(model, layer):
                holder = model.get_submodule(layer.rpartition(".")[0])
                yield layer, f"{type(holder).__name__} uses the weights without calling the layer"


def uncalled(model: nn.Module, layer: str) -> bool:
    """Whether a state-space layer passes the weight of its linear layer `layer` to a kernel, which would ignore an
    adapter and quantisation. The source of its class shows this."""
    parent, _, name = layer.rpartition(".")
    holder = model.get_submodule(parent)
    one: Any = type(holder)  # mypy takes a class for one without a hash
    return hasattr(holder, "A_log") and _reads_weight(one, name)


@cache
def _reads_weight(holder: type[nn.Module], name: str) -> bool:
    """Whether a class's own code reads the weight of its layer `name`."""
    own = [one for one in holder.__mro__ if not one.__module__.startswith(("torch", "builtins"))]
    try:
        source = "".join(map(inspect.getsource, own))
    except (OSError, TypeError):
        return False
    return re.search(rf"\.{name}\.weight\b(?!\.(dtype|device|shape))", source) is not None


def _renamed_by_peft(model: PreTrainedModel, name: str) -> bool:
    """Whether PEFT renames a layer because experts of older versions of transformers had its name."""
    config = PeftLoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # one of several that were merged into one
        return True
    return name not in (config.target_modules or ())


def _left_out(targets: str, layers: list[str], barred: dict[str, str]) -> Iterator[str]:
    for reason in dict.fromkeys(barred[layer] for layer in layers):
        names = dict.fromkeys(layer.rpartition(".")[2] for layer in layers if barred[layer] == reason)
        yield f"lora.target_modules={targets} leaves out {', '.join(names)}: {reason}"


def _that_can(layers: list[str]) -> str:
    names = ", ".join(dict.fromkeys(layer.rpartition(".")[2] for layer in layers))
    return f" that can have an adapter ({names} cannot)" if layers else ""


def _listed(targets: list[str], linears: Names, experts: Names, barred: dict[str, str]) -> Targets:
    problems, modules, parameters = [], [], []
    layers = [layer for full in linears.values() for layer in full]
    stacked = [name for full in experts.values() for name in full]
    for target in targets:
        meant = [layer for layer in layers if _ends(layer, target)]
        reasons = sorted({barred[layer] for layer in meant if layer in barred})
        if reasons:
            problems.append(f"lora.target_modules={target} cannot have an adapter: {reasons[0]}; leave it out")
        elif meant:
            modules.append(target)
        elif any(_ends(name, target) for name in stacked):
            parameters.append(target)
        else:
            problems.append(_unknown(target, [*linears, *experts]))
    if problems:
        raise ConfigError(*problems)
    return Targets(modules, parameters)


def _ends(full: str, target: str) -> bool:
    return full == target or full.endswith("." + target)


def _unknown(target: str, known: list[str]) -> str:
    near = difflib.get_close_matches(target, known, n=1, cutoff=0.3)
    hint = f" (nearest: {near[0]})" if near else ""
    return f"lora.target_modules={target} is not a linear layer of this model{hint}; it has: {', '.join(known)}"
