"""Loss and gradients of a step's rows, one micro-batch at a time: the interface that the loop uses, and the plain step,
which works for every model through its own forward pass and autograd."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ftlab.config import TrainerConfig
from ftlab.data.encode import Encoded, Sample
from ftlab.fast.flat import Trainable
from ftlab.fast.plan import Chooser, Need, Setting
from ftlab.train.batches import lay_flat
from ftlab.train.loss import summed_loss

# A function that returns the summed loss of samples of one kind, for `PlainStep`.
Loss = Callable[[nn.Module, Sequence[Any], torch.device], Tensor]
# Switches activation checkpointing of a model on or off.
Switch = Callable[[bool], None]


class Step(Protocol):
    """A way to compute the gradients of the tensors that are attached to it."""

    setting: Setting
    chooser: Chooser
    can_keep_dequantized: bool  # whether there are 4-bit weights, and the step can keep them dequantized in memory

    @property
    def micro(self) -> int:
        """Rows of a micro-batch."""

    def attach(self, trained: Trainable) -> None:
        """Compute the gradients of these tensors from now on, in place, until other tensors are attached."""

    def choose(self, longest: Sequence[Sample]) -> None:
        """Apply the fastest setting that fits into memory. `longest` are the longest samples that a step can have, in
        ascending order of length."""

    def lighten(self) -> str | None:
        """Apply a lighter setting after an out-of-memory error. Return what changed, as overrides; None if there is no
        lighter setting."""

    def pause(self, *, over: bool = False) -> None:
        """Free memory before an evaluation needs it; if training is `over`, free all that the step holds."""

    def begin(self) -> None:
        """Begin a new optimizer step: clear the gradients."""

    def accumulate(self, rows: Sequence[Any], trained: int, seed: int, *, first: bool) -> Tensor:
        """Return the loss summed over the rows' trained tokens, float32, on the device. The gradient of that sum
        divided by `trained` is added to the step's gradients; `first` says that this is the step's first micro-batch.
        `seed` is for random numbers that are not torch's."""


class PlainStep:
    """The model's own forward pass, PEFT's adapters, autograd.

    `loss(model, samples, device)` returns the loss summed over the samples' trained tokens, [] in float32. By default
    the samples are rows, and the loss is the cross entropy of their spans. `together` is false if rows must go through
    the model one by one. `checkpoint` switches activation checkpointing, and is None if the model does not support it.
    For `need` and `limit` see `Chooser`.
    """

    can_keep_dequantized = False

    def __init__(
        self,
        model: nn.Module,
        cfg: TrainerConfig,
        accelerator: Accelerator,
        *,
        need: Need,
        loss: Loss | None = None,
        together: bool = True,
        checkpoint: Switch | None = None,
        limit: float = math.inf,
    ) -> None:
        self.model, self.accelerator, self.checkpoint = model, accelerator, checkpoint
        self.loss = loss or completion_loss
        self.setting = Setting(1, False, 0.0)
        fractions = (0.0, 1.0) if checkpoint else (0.0,)
        self.chooser = Chooser(
            cfg, accelerator.device, need, self._apply, fractions=fractions, together=together, limit=limit
        )

    @property
    def micro(self) -> int:
        """See `Step`."""
        return self.setting.micro

    def attach(self, trained: Trainable) -> None:
        """See `Step`."""
        trained.activate()
        self.trained = trained

    def choose(self, longest: Sequence[Sample]) -> None:
        """See `Step`."""
        gradients = sum(parameter.nbytes for parameter in self.trained.parameters if parameter.grad is None)
        self.chooser.choose(longest, coming=gradients)

    def lighten(self) -> str | None:
        """See `Step`."""
        return self.chooser.lighten(self.setting)

    def pause(self, *, over: bool = False) -> None:
        """See `Step`. There is no memory to free; after training, activation checkpointing is switched off again."""
        if over and self.checkpoint:
            self.checkpoint(False)

    def _apply(self, setting: Setting) -> None:
        if self.checkpoint:
            self.checkpoint(bool(setting.checkpointed_fraction))
        self.setting = setting

    def __str__(self) -> str:
        parts = self.setting.described(1, packed=False)
        return "plain step: " + ", ".join(["PEFT's own forward pass", *parts])

    def begin(self) -> None:
        """See `Step`."""
        self.trained.clear()

    def accumulate(self, rows: Sequence[Any], trained: int, seed: int, *, first: bool) -> Tensor:
        """See `Step`."""
        with self.accelerator.autocast():
            loss = self.loss(self.model, rows, self.accelerator.device)
        self.accelerator.backward(loss / trained)
        return loss.detach()


def completion_loss(model: nn.Module, rows: Sequence[Encoded], device: torch.device) -> Tensor:
    """Return the cross entropy summed over the rows' trained tokens."""
    return summed_loss(model, lay_flat(rows, device))


def gradient_reaches(tensors: Mapping[str, nn.Parameter]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the names of the trained tensors with a gradient, and of those whose gradient is absent or exactly 0, both
    grouped by the name of their module (such as `q_proj`). LoRA's A matrices are left out: their gradient is 0 as long
    as B is 0."""
    named = [(name, parameter) for name, parameter in tensors.items() if ".lora_A." not in name]
    nothing = torch.zeros(())
    peaks = [nothing if p.grad is None else p.grad.abs().max().float() for _, p in named]
    found: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
    together = torch.stack([peak.to(peaks[-1].device) for peak in peaks]).tolist() if peaks else []
    for (name, _), peak in zip(named, together, strict=True):
        module = name.split(".lora_")[0].removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        found[peak == 0].setdefault(module, []).append(name)
    return found
