"""The base-model cache of a process: the last base stays loaded for the next experiment."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import asdict
from operator import itemgetter
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from ftlab.config import LoraConfig, ModelConfig, QuantConfig
from ftlab.weights import WeightsFolder


class Bases:
    """A cache of one base model between the experiments of a process, so that the next experiment need not load it.

    One experiment at a time checks the base out. It is checked in only if it is unchanged: its adapter is unloaded, its
    modules, hooks and flags are those after loading, and every tensor is the same bit for bit, by sums over the bits.
    Otherwise it is dropped.
    """

    def __init__(self) -> None:
        self._key = ""
        self._base: PreTrainedModel | None = None
        self._state: list[tuple[Any, ...]] = []
        self._hooks: Any = None  # the hooks by which a base passes gradients to its input

    def checkout(self, key: str, load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """Return the cached base if its key is `key`. Otherwise drop it, and return the base that `load` loads."""
        if self._base is None or self._key != key:
            self.drop()
            base = load()
            self._state, self._hooks = _state(base), getattr(base, "_require_grads_hooks", None)
            self._key, self._base = key, base  # last, since a time limit or a signal may interrupt this at any line
        base, self._base = self._base, None
        return base

    def checkin(self, model: nn.Module) -> bool:
        """Return the base of a model to the cache, unless it has changed; return whether it was cached."""
        base: Any = model.unload() if isinstance(model, PeftModel) else model
        if getattr(base, "_require_grads_hooks", None) is not self._hooks:  # PEFT added its own
            base.disable_input_require_grads()
            base._require_grads_hooks = self._hooks
        base.eval()
        self._base = base if _state(base) == self._state else None
        return self._base is not None

    def held_gib(self) -> float:
        """Return the GPU memory of the cached base, in GiB."""
        tensors = dict(_tensors(self._base)).values() if self._base is not None else ()
        return sum(tensor.nbytes for tensor in tensors if tensor.is_cuda) / (1 << 30)

    def drop(self) -> None:
        """Free the cached base."""
        self._base = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def base_key(located: WeightsFolder, model: ModelConfig, quant: QuantConfig, *more: object) -> str:
    """Return the cache key: everything that determines the loaded tensors and their device."""
    return repr((str(located.folder), located.revision, asdict(model) | {"name": ""}, asdict(quant), *more))


def leaves_base(lora: LoraConfig) -> bool:
    """Whether training with this adapter does not change the base's weights."""
    pissa = str(lora.init_lora_weights).startswith("pissa")
    return bool(lora.r) and not pissa and not lora.modules_to_save and lora.bias == "none"


def _state(base: nn.Module) -> list[tuple[Any, ...]]:
    """Return the modules with their numbers of hooks, and the tensors with their flags and sums of bits."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = [
        (name, type(module), *(len(getattr(module, kind)) for kind in kinds)) for name, module in base.named_modules()
    ]
    named = list(_tensors(base))
    sums = torch.stack([_sum_of_bits(tensor).cpu() for _, tensor in named]).tolist()
    tensors = [
        (name, tensor.dtype, tuple(tensor.shape), tensor.requires_grad, total)
        for (name, tensor), total in zip(named, sums, strict=True)
    ]
    # Sorted, since an adapter on a parameter moves it behind the other parameters of its module.
    return [*modules, *sorted(tensors, key=itemgetter(0))]


def _tensors(base: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield parameters, buffers, and the scales of quantised weights."""
    yield from base.named_buffers()
    for name, parameter in base.named_parameters():
        yield name, parameter
        quant_state = getattr(parameter, "quant_state", None)
        for state in (quant_state, getattr(quant_state, "state2", None)):
            for key, value in vars(state).items() if state is not None else ():
                if isinstance(value, torch.Tensor):
                    yield f"{name}.{key}", value


def _sum_of_bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor's 8-byte words, which any single changed bit changes. This needs no extra memory."""
    data = tensor.data.contiguous()
    if data.data_ptr() % 8 or data.storage_offset() * data.element_size() % 8:
        data = data.clone()
    flat = data.view(-1).view(torch.uint8)
    whole = flat.numel() // 8 * 8
    return flat[:whole].view(torch.int64).sum() + flat[whole:].sum()
