"""Loss and gradients of a step's rows, a micro-batch at a time: what the loop asks for, and the way that works for
every model, through its own forward pass and autograd."""

from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ftlab.config import TrainerConfig
from ftlab.data.encode import Encoded
from ftlab.fast.flat import Flat
from ftlab.train.attention import rows_of
from ftlab.train.batches import flatten
from ftlab.train.loss import summed_loss

# Without a GPU nothing is gained by longer flat batches.
CPU_BATCH_TOKENS = 4096


class Step(Protocol):
    """One way to compute gradients. `parameters` are what the optimizer steps, their gradients in place."""

    parameters: list[nn.Parameter]

    @property
    def micro(self) -> int:
        """Rows of a micro-batch."""

    def choose(self, longest: list[Encoded]) -> None:
        """Settle how the rows of a step go through the model, for the longest ones that a step can have."""

    def lighten(self) -> str | None:
        """Settle for less memory, after it ran out: what changed, as settings; None where nothing is left to change."""

    def shortage(self) -> str:
        """Why nothing lighter is left, in figures, where they are known; a sentence or nothing."""

    def pause(self, *, over: bool = False) -> None:
        """Give memory back before an evaluation needs it, or for good where training is `over`."""

    def begin(self) -> None:
        """A new optimizer step: the gradients so far are gone."""

    def accumulate(self, rows: list[Encoded], trained: int, seed: int, *, first: bool) -> Tensor:
        """The loss summed over the rows' trained tokens, float32, on the device. The gradient of that sum divided by
        `trained` is added to those of the step, of which this may be the `first` micro-batch. `seed` is for random
        numbers that are not torch's."""


class PlainStep:
    """The model's own forward pass, PEFT's adapters, autograd. `together` is false where rows must go one by one."""

    def __init__(
        self, model: nn.Module, cfg: TrainerConfig, accelerator: Accelerator, flat: Flat | None, *, together: bool
    ) -> None:
        self.model, self.cfg, self.accelerator, self.flat, self.together = model, cfg, accelerator, flat, together
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.parameters = [flat.parameter] if flat else trained
        self._micro = 1

    @property
    def micro(self) -> int:
        """See `Step`."""
        return self._micro

    def choose(self, longest: list[Encoded]) -> None:
        """The configured micro-batch; for `auto` on a GPU all rows, on a CPU as many as gain anything."""
        size = self.cfg.global_batch_size
        if not self.together:
            self._micro = 1
        elif self.cfg.micro_batch_size != "auto":
            self._micro = int(self.cfg.micro_batch_size)
        elif self.accelerator.device.type == "cpu":
            fitting = max(1, CPU_BATCH_TOKENS // len(longest[-1].input_ids))
            self._micro = max(d for d in divisors(size) if d <= fitting)
        else:
            self._micro = size

    def lighten(self) -> str | None:
        """The next smaller micro-batch that divides the step, where it may be chosen."""
        if self.cfg.micro_batch_size != "auto" or self._micro == 1:
            return None
        self._micro = max(d for d in divisors(self.cfg.global_batch_size) if d < self._micro)
        return f"trainer.micro_batch_size={self._micro}"

    def pause(self, *, over: bool = False) -> None:
        """See `Step`; nothing is held."""

    def shortage(self) -> str:
        """See `Step`; nothing is forecast here."""
        return ""

    def __str__(self) -> str:
        return f"plain step: PEFT's own forward pass, {self.micro} rows at a time"

    def begin(self) -> None:
        """See `Step`."""
        if self.flat:
            self.flat.gradient.zero_()
            return
        for parameter in self.parameters:
            parameter.grad = None

    def accumulate(self, rows: list[Encoded], trained: int, seed: int, *, first: bool) -> Tensor:
        """See `Step`."""
        batch = flatten(rows, self.accelerator.device)
        with rows_of(batch.lengths):  # in the backward pass too: activation checkpointing runs layers again there
            with self.accelerator.autocast():
                loss = summed_loss(self.model, batch)
            self.accelerator.backward(loss / trained)
        return loss.detach()


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def gradient_reaches(model: nn.Module) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Trained tensors with a gradient, and those whose gradient is absent or exactly 0, by the name of their module
    (all of `q_proj` together). LoRA's A matrices are left out: they have none as long as B is 0."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and ".lora_A." not in n]
    nothing = torch.zeros(())
    peaks = [nothing if p.grad is None else p.grad.abs().max().float() for _, p in named]
    found: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
    together = torch.stack([peak.to(peaks[-1].device) for peak in peaks]).tolist() if peaks else []
    for (name, _), peak in zip(named, together, strict=True):
        module = name.split(".lora_")[0].removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        found[peak == 0].setdefault(module, []).append(name)
    return found
