"""Trainable tensors laid end to end in one buffer, so that one kernel launch processes them all."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

# bitsandbytes' 8-bit optimizers use one scale for this many numbers. No two groups of tensors share a scale.
BLOCK = 256


class Flat:
    """Float32 parameters as views of one buffer, and their gradients as views of another.

    `groups` lists the parameters in order; those of one group lie without a gap. `parameter` [numbers] is what the
    optimizer updates; its gradient is `parameter.grad`. In the gaps, values and gradients stay 0.
    """

    def __init__(self, groups: list[list[nn.Parameter]]) -> None:
        self._places: dict[int, tuple[int, torch.Size]] = {}
        self.members = [parameter for group in groups for parameter in group]
        size = 0
        for group in groups:
            for parameter in group:
                self._places[id(parameter)] = size, parameter.shape
                size += parameter.numel()
            size = -(-size // BLOCK) * BLOCK
        device = self.members[0].device
        self.parameter = nn.Parameter(torch.zeros(size, device=device))
        self.gradient = torch.zeros(size, device=device)
        self.parameter.grad = self.gradient
        with torch.no_grad():
            for parameter in self.members:
                place = self.view(self.parameter.detach(), parameter)
                place.copy_(parameter)
                parameter.data = place
                parameter.grad = self.view(self.gradient, parameter)

    @classmethod
    def fits(cls, parameters: list[nn.Parameter]) -> bool:
        """Whether these parameters can share a buffer."""
        return {(p.dtype, p.device) for p in parameters} == {(torch.float32, parameters[0].device)}

    def like(self, dtype: torch.dtype) -> Tensor:
        """Return another buffer of the same layout, filled with zeros."""
        return torch.zeros(self.gradient.numel(), dtype=dtype, device=self.gradient.device)

    def view(self, buffer: Tensor, parameter: nn.Parameter) -> Tensor:
        """Return the parameter's part of a buffer of this layout, in the parameter's shape."""
        start, shape = self._places[id(parameter)]
        return buffer[start : start + shape.numel()].view(shape)

    def stack(self, buffer: Tensor, parameters: list[nn.Parameter]) -> Tensor:
        """Return the parts of matrices of one group and equal width, stacked: [sum of rows, width]."""
        start, _ = self._places[id(parameters[0])]
        rows, width = sum(parameter.shape[0] for parameter in parameters), parameters[0].shape[1]
        return buffer[start : start + rows * width].view(rows, width)

    def release(self) -> None:
        """Detach the parameters from the buffer: each gets its own memory again."""
        for parameter in self.members:
            parameter.data = parameter.data.clone()
            parameter.grad = None


class Trainable:
    """Tensors that are trained together, by name: those of one adapter, or all tensors of a model.

    `parameters` are what the optimizer updates: the parameter of `flat` if the tensors share a buffer, else the tensors
    themselves. `activate` makes the model compute with these tensors if it has several adapters.
    """

    def __init__(
        self,
        tensors: Mapping[str, nn.Parameter],
        flat: Flat | None = None,
        activate: Callable[[], object] = lambda: None,
    ) -> None:
        self.tensors, self.flat, self.activate = dict(tensors), flat, activate
        self.parameters = [flat.parameter] if flat else list(self.tensors.values())

    def clear(self) -> None:
        """Clear the gradients."""
        if self.flat:
            self.flat.gradient.zero_()
            return
        for parameter in self.parameters:
            parameter.grad = None
