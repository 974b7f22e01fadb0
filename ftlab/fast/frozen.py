"""The frozen weights of linear layers that share their input, stacked so that one product computes them all."""

from typing import Any, Protocol

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

from ftlab.fast import ops


class Unrecognised(Exception):
    """A part of a model that the fast path does not support; the message names it."""


class Frozen(Protocol):
    """The stacked weight [out, in] of some linear layers, and their biases [out], or None if no layer has a bias."""

    bias: Tensor | None

    def product(self, x: Tensor) -> Tensor:
        """Return x [tokens, in] times the weight, plus the bias: [tokens, out]."""

    def back(self, dy: Tensor) -> Tensor:
        """Return the gradient [tokens, in] of the input of `product`, given the gradient dy [tokens, out]."""

    def dense(self) -> Tensor:
        """Return the weight in the dtype of the product. It may lie in a buffer that the next call of another layer
        overwrites."""


class Scratch:
    """One buffer for each dtype, which holds the 4-bit weight that is in use, dequantized."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: dict[torch.dtype, Tensor] = {}

    def room(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Return a buffer [rows, columns], which the next caller overwrites."""
        size = rows * columns
        held = self._buffers.get(dtype)
        if held is None or held.numel() < size:
            held = self._buffers[dtype] = torch.empty(size, dtype=dtype, device=self.device)
        return held[:size].view(rows, columns)


class Dense:
    """Plain weights. The parameters of stacked layers become views of the stack, so that it costs no memory."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self.weight = _stacked(layers)
        self.bias = _bias(layers, self.weight.dtype)

    def product(self, x: Tensor) -> Tensor:
        return _product(x, self.weight, self.bias)

    def back(self, dy: Tensor) -> Tensor:
        return dy.to(self.weight.dtype).mm(self.weight).to(dy.dtype)

    def dense(self) -> Tensor:
        return self.weight


class Packed:
    """4-bit weights (bitsandbytes), dequantized before each product, or only once after `keep_dequantized`."""

    def __init__(self, layers: list[Any], scratch: Scratch) -> None:
        self.layers, self.scratch = layers, scratch
        self.dtype: torch.dtype = layers[0].compute_dtype or layers[0].weight.quant_state.dtype
        self.rows = [layer.out_features for layer in layers]
        self.columns: int = layers[0].in_features
        self.bias = _bias(layers, self.dtype)
        self.dequantized: Tensor | None = None

    def product(self, x: Tensor) -> Tensor:
        return _product(x, self.dense(), self.bias)

    def back(self, dy: Tensor) -> Tensor:
        return dy.to(self.dtype).mm(self.dense()).to(dy.dtype)

    def dense(self) -> Tensor:
        if self.dequantized is not None:
            return self.dequantized
        return self._dequantize(self.scratch.room(sum(self.rows), self.columns, self.dtype))

    def keep_dequantized(self) -> None:
        """Keep the dequantized weight in memory from now on."""
        room = torch.empty(sum(self.rows), self.columns, dtype=self.dtype, device=self.scratch.device)
        self.dequantized = self._dequantize(room)

    def release(self) -> None:
        """Free the dequantized weight, and dequantize before each product again."""
        self.dequantized = None

    @property
    def dequantized_bytes(self) -> int:
        """The memory that `keep_dequantized` takes, in bytes."""
        return int(sum(self.rows) * self.columns * self.dtype.itemsize)

    def _dequantize(self, room: Tensor) -> Tensor:
        for layer, part in zip(self.layers, torch.split(room, self.rows), strict=True):
            ops.dequantise(layer.weight, part)
        return room


class Int8:
    """LLM.int8() layers (bitsandbytes). The forward pass is their own, which treats outliers separately. The gradient
    uses the dequantized weight, as in bitsandbytes."""

    def __init__(self, layers: list[Any], dtype: torch.dtype) -> None:
        self.layers, self.dtype = layers, dtype
        self.bias = _bias(layers, dtype)  # the layers add it themselves; a merged copy of them does not

    def product(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.layers], dim=1)

    def back(self, dy: Tensor) -> Tensor:
        return dy.mm(self.dense().to(dy.dtype))

    def dense(self) -> Tensor:
        return torch.cat([self._dequantize(layer) for layer in self.layers])

    def _dequantize(self, layer: Any) -> Tensor:
        weight = layer.weight
        packed = layer.state.CB if weight.CB is None else weight.CB
        scale = layer.state.SCB if weight.SCB is None else weight.SCB
        dequantized: Tensor = packed.float() * (scale.float() / 127).unsqueeze(1)
        return dequantized.to(self.dtype)


def frozen(layers: list[nn.Module], dtype: torch.dtype, scratch: Scratch) -> Frozen:
    """Return the weights of `layers`, which must be of one kind. `dtype` is that of the activations.

    Raises:
        Unrecognised: a layer of an unsupported kind, or several kinds in one group.
    """
    kinds = {type(layer).__name__ for layer in layers}
    if len(kinds) > 1:
        raise Unrecognised(f"{' and '.join(sorted(kinds))} in one group")
    kind = kinds.pop()
    if kind == "Linear":
        return Dense(layers)
    if kind == "Linear4bit":
        return Packed(layers, scratch)
    if kind == "Linear8bitLt":
        return Int8(layers, dtype)
    raise Unrecognised(f"a {kind} where a linear layer is expected")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = nn.functional.linear(x.to(weight.dtype), weight, bias)
    return y.to(x.dtype)


def _stacked(layers: list[nn.Module]) -> Tensor:
    weights: list[Any] = [layer.weight for layer in layers]
    if len(weights) == 1:
        alone: Tensor = weights[0].detach()
        return alone
    first = weights[0]
    parts = first.untyped_storage().nbytes() // first.element_size() // first.shape[1]
    if parts == sum(weight.shape[0] for weight in weights) and _side_by_side(weights):
        return torch.as_strided(first.detach(), (parts, first.shape[1]), first.stride(), 0)
    stack = torch.cat([weight.detach() for weight in weights])
    for weight, part in zip(weights, torch.split(stack, [weight.shape[0] for weight in weights]), strict=True):
        weight.data = part
    return stack


def _side_by_side(weights: list[Tensor]) -> bool:
    """Whether the weights are already views of one stack, in this order."""
    start = weights[0].data_ptr()
    for weight in weights:
        if weight.data_ptr() != start:
            return False
        start += weight.numel() * weight.element_size()
    return weights[0].storage_offset() == 0


def _bias(layers: list[Any], dtype: torch.dtype) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    parts = [
        layer.weight.new_zeros(layer.out_features, dtype=dtype) if layer.bias is None else layer.bias.detach().to(dtype)
        for layer in layers
    ]
    return torch.cat(parts)


def free_bytes(device: torch.device) -> float:
    """Return the memory that can still be allocated, in bytes. On a GPU this is the free memory plus what torch holds
    unused, within the fraction of the GPU that torch may use. On a CPU it is the host's available memory."""
    if device.type != "cuda":
        return float(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    number = torch.cuda.current_device() if device.index is None else device.index
    most = torch.cuda.get_per_process_memory_fraction(number) * torch.cuda.get_device_properties(number).total_memory
    return min(free, most - reserved) + reserved - torch.cuda.memory_allocated(device)
