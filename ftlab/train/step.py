"""Loss and gradients of a step's rows, a micro-batch at a time: what the loop asks for, and the way that works for
every model, through its own forward pass and autograd."""

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

# The summed loss of samples of one kind, as `PlainStep` takes it.
Loss = Callable[[nn.Module, Sequence[Any], torch.device], Tensor]
# Switches activation checkpointing of a model on or off.
Switch = Callable[[bool], None]


class Step(Protocol):
    """One way to compute gradients, of whatever tensors it serves."""

    setting: Setting
    chooser: Chooser
    can_keep_dequantized: bool  # whether it can hold 4-bit weights unpacked, and there are some

    @property
    def micro(self) -> int:
        """Rows of a micro-batch."""

    def attach(self, trained: Trainable) -> None:
        """Compute the gradients of these tensors from here on, each in its place, until others are to be served."""

    def choose(self, longest: Sequence[Sample]) -> None:
        """Settle how the rows of a step go through the model: as fast as fits, for the longest ones that a step can
        have, in ascending order."""

    def lighten(self) -> str | None:
        """Settle for less memory, after it ran out: what changed, as settings; None where nothing is left to change."""

    def pause(self, *, over: bool = False) -> None:
        """Give memory back before an evaluation needs it, or for good where training is `over`."""

    def begin(self) -> None:
        """A new optimizer step: the gradients so far are gone."""

    def accumulate(self, rows: Sequence[Any], trained: int, seed: int, *, first: bool) -> Tensor:
        """The loss summed over the rows' trained tokens, float32, on the device. The gradient of that sum divided by
        `trained` is added to those of the step, of which this may be the `first` micro-batch. `seed` is for random
        numbers that are not torch's."""


class PlainStep:
    """The model's own forward pass, PEFT's adapters, autograd.

    `loss(model, samples, device)` is the loss summed over the samples' trained tokens, [] in float32; by default the
    samples are rows, and it is the cross entropy of their spans. `together` is false where rows must go one by one;
    `checkpoint` is None where the model cannot compute its layers twice. `need` and `limit` are the `Chooser`'s.
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
        """See `Step`; of what is held nothing can be spared. The model is left as it was where training is `over`."""
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
    """Cross entropy summed over the rows' trained tokens."""
    return summed_loss(model, lay_flat(rows, device))


def gradient_reaches(tensors: Mapping[str, nn.Parameter]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Trained tensors with a gradient, and those whose gradient is absent or exactly 0, by the name of their module
    (all of `q_proj` together). LoRA's A matrices are left out: they have none as long as B is 0."""
    named = [(name, parameter) for name, parameter in tensors.items() if ".lora_A." not in name]
    nothing = torch.zeros(())
    peaks = [nothing if p.grad is None else p.grad.abs().max().float() for _, p in named]
    found: tuple[dict[str, list[str]], dict[str, list[str]]] = ({}, {})
    together = torch.stack([peak.to(peaks[-1].device) for peak in peaks]).tolist() if peaks else []
    for (name, _), peak in zip(named, together, strict=True):
        module = name.split(".lora_")[0].removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        found[peak == 0].setdefault(module, []).append(name)
    return found
