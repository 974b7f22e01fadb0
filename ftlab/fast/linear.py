"""Linear layers that share their input, with their LoRA adapters, as one stacked layer: forward and backward by hand.

    y = x W^T + s * (dropout(x) A^T) B^T        W [out, in] frozen, A [r, in], B [out, r] trained

The layers of a group (query, key and value; gate and up) share the dropout mask of their input.
Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ftlab.fast import ops
from ftlab.fast.flat import Flat
from ftlab.fast.frozen import Dense, Frozen, Packed, Scratch, Unrecognised, frozen
from ftlab.fast.operands import Dropout
from ftlab.fast.streams import SideStream


@dataclass(frozen=True)
class Adapter:
    """The LoRA adapter of one layer. The layer's outputs are the columns `start` to `end` of its group's output."""

    a: nn.Parameter
    b: nn.Parameter
    start: int
    end: int


class LinearGroup:
    """Stacked linear layers. `x` is their input and `xd` the input after dropout, both [tokens, in]."""

    def __init__(self, layers: list[nn.Module], dtype: torch.dtype, scratch: Scratch) -> None:
        bases: list[Any] = [getattr(layer, "base_layer", layer) for layer in layers]
        self.frozen: Frozen = frozen(bases, dtype, scratch)
        self.dtype = dtype
        self.adapters: list[Adapter] = []
        self.scale, self.dropout = 1.0, 0.0
        start = 0
        for layer, base in zip(layers, bases, strict=True):
            end = start + int(base.out_features)
            if layer is not base:
                self._adopt(layer, start, end)
            start = end
        self.width = start
        self.columns = int(bases[0].in_features)
        self._merged: Tensor | None = None
        self._copied()

    def _adopt(self, layer: Any, start: int, end: int) -> None:
        plain_lora(layer)
        name = layer.active_adapters[0]
        probability = float(getattr(layer.lora_dropout[name], "p", 0.0))
        scale = float(layer.scaling[name])
        if self.adapters and (probability, scale) != (self.dropout, self.scale):
            raise Unrecognised("adapters of different dropout or scale in one group")
        self.dropout, self.scale = probability, scale
        self.adapters.append(Adapter(layer.lora_A[name].weight, layer.lora_B[name].weight, start, end))

    # --- where adapters are read and their gradients written ---------------------------------------------------

    def parameters(self) -> list[list[nn.Parameter]]:
        """Trained tensors, in the groups that must lie in the buffer without a gap."""
        return [[one.a for one in self.adapters], *([one.b] for one in self.adapters)] if self.adapters else []

    def attach(self, flat: Flat, work: Tensor, grad: Tensor) -> None:
        """Read the adapters from `work` and write gradients into `grad`. Both are buffers of `flat`'s layout."""
        if not self.adapters:
            return
        stack = [one.a for one in self.adapters]
        self.a, self.da = flat.stack(work, stack), flat.stack(grad, stack)
        self._members([flat.view(work, one.b) for one in self.adapters])
        self.db = [flat.view(grad, one.b) for one in self.adapters]

    def refresh(self) -> None:
        """Copy the parameters' current values."""
        if self.adapters:
            torch.cat([one.a.detach().to(self.dtype) for one in self.adapters], out=self.a)
            for one, (_, _, _, _, b) in zip(self.adapters, self.members, strict=True):
                b.copy_(one.b.detach())

    def _copied(self) -> None:
        if not self.adapters:
            return
        self.a = torch.cat([one.a.detach().to(self.dtype) for one in self.adapters])
        self._members([one.b.detach().to(self.dtype, copy=True) for one in self.adapters])

    def _members(self, matrices: list[Tensor]) -> None:
        self.members: list[tuple[int, int, int, int, Tensor]] = []
        start = 0
        for one, b in zip(self.adapters, matrices, strict=True):
            self.members.append((one.start, one.end, start, start + b.shape[1], b))
            start += b.shape[1]

    # --- the layer ---------------------------------------------------------------------------------------------

    def drop(self, seed: Tensor | None, site: int) -> Dropout | None:
        """Return the dropout of this group's input at one site of the model, or None if there is none."""
        return Dropout(self.dropout, seed, site) if seed is not None and self.adapters and self.dropout else None

    def forward(self, x: Tensor, xd: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return y [tokens, out], and the inner activations of all adapters [tokens, sum of ranks] for `backward`."""
        if self._merged is not None:
            return nn.functional.linear(x, self._merged, self._merged_bias), None
        y = self.frozen.product(x)
        if not self.adapters:
            return y, None
        h = xd.mm(self.a.t())
        ops.lora_up_(y, h, self.members, self.scale)
        return y, h

    def backward(
        self, dy: Tensor, xd: Tensor, h: Tensor | None, drop: Dropout | None, side: SideStream, *, wanted: bool = True
    ) -> Tensor | None:
        """Return the gradient of x if it is `wanted`. The adapters' gradients are written on the side stream."""
        if h is None:
            return self.frozen.back(dy) if wanted else None
        dh = self.inner_gradient(dy, h)
        side(lambda: self.adapter_gradients(dy, xd, h, dh), dy, xd, h, dh)
        if not wanted:
            return None
        dx = self.frozen.back(dy)
        self.pass_back_(dx, dh, drop)
        return dx

    def inner_gradient(self, dy: Tensor, h: Tensor) -> Tensor:
        """Return the gradient of h, [tokens, sum of ranks]."""
        dh = torch.empty_like(h)
        for start, end, first, last, b in self.members:
            part = dh[:, first:last]
            torch.addmm(part, dy[:, start:end], b, beta=0, alpha=self.scale, out=part)
        return dh

    def adapter_gradients(self, dy: Tensor, xd: Tensor, h: Tensor, dh: Tensor, *, add: bool = False) -> None:
        """Write the adapters' gradients, or `add` to them."""
        kept = float(add)
        for (start, end, first, last, _), db in zip(self.members, self.db, strict=True):
            torch.addmm(db, dy[:, start:end].t(), h[:, first:last], beta=kept, alpha=self.scale, out=db)
        torch.addmm(self.da, dh.t(), xd, beta=kept, out=self.da)

    def pass_back_(self, dx: Tensor, dh: Tensor, drop: Dropout | None) -> None:
        """Add the part of the input gradient that passes through the adapters to dx [tokens, in]."""
        ops.lora_dx_(dx, dh, self.a, drop)

    # --- merged ------------------------------------------------------------------------------------------------

    @property
    def is_merged(self) -> bool:
        """Whether this is called inside `merged`."""
        return self._merged is not None

    def merged_bytes(self) -> int:
        """The memory that merging takes, in bytes."""
        shares = isinstance(self.frozen, Dense) and not self.adapters
        return 0 if shares else self.width * self.columns * self.dtype.itemsize

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Use one dense weight with the adapters merged into it, while the block runs."""
        self.refresh()
        bias = self.frozen.bias
        self._merged, self._merged_bias = self._sum(), None if bias is None else bias.to(self.dtype)
        try:
            yield
        finally:
            self._merged = self._merged_bias = None

    def _sum(self) -> Tensor:
        weight = self.frozen.dense()
        if isinstance(self.frozen, Dense) and not self.adapters:
            return weight
        merged = weight.to(self.dtype, copy=True)
        for one in self.adapters:
            part = merged[one.start : one.end]
            delta = one.b.detach().float().mm(one.a.detach().float()).mul_(self.scale)
            part.copy_(delta.add_(part))
        return merged


def plain_lora(layer: Any) -> None:
    """Check that a PEFT layer is plain LoRA or rsLoRA with one active adapter.

    Raises:
        Unrecognised: it is another kind of adapter.
    """
    if not hasattr(layer, "lora_A") or len(layer.active_adapters) != 1:
        raise Unrecognised(f"an adapter of kind {type(layer).__name__}")
    if layer.merged:
        raise Unrecognised("an adapter that is already merged")
    name = layer.active_adapters[0]
    if name not in layer.lora_A or layer.disable_adapters:
        raise Unrecognised("an adapter that is switched off")
    if layer.use_dora.get(name, False) or getattr(layer, "lora_variant", {}).get(name):
        raise Unrecognised("DoRA")
    if layer.lora_bias.get(name, False) or getattr(layer, "fan_in_fan_out", False):
        raise Unrecognised("an adapter with a bias of its own")


def packed(groups: list[LinearGroup]) -> list[Packed]:
    """Return the 4-bit weights of these groups."""
    return [group.frozen for group in groups if isinstance(group.frozen, Packed)]
