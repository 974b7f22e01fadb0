"""How a step's rows go through the model, so that it is fast and fits: micro-batches, unpacked weights, checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# What a micro-batch costs beside its tokens, in tokens: its small products and launches, and unpacking all 4-bit
# weights twice. Measured on an H100 at 7B (bench/gpu.py); both grow with the model as its tokens do.
EACH = 150
UNPACKING = 130
# Parts of the layers that may be computed a second time in the backward pass instead of being kept.
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Setting:
    """`micro` rows at a time; `cached`: weights are held unpacked; the `share` of layers that keep their entrance only
    and are computed again in the backward pass."""

    micro: int
    cached: bool
    share: float

    def __str__(self) -> str:
        return (
            f"trainer.micro_batch_size={self.micro}, trainer.weight_cache={str(self.cached).lower()}, "
            f"trainer.activation_checkpointing={'true' if self.share else 'false'}"
            + (f" for {self.share:.0%} of the layers" if 0 < self.share < 1 else "")
        )


@dataclass(frozen=True)
class Choices:
    """What may be chosen; a list of one where the configuration decides."""

    micros: list[int]
    cached: list[bool]
    shares: list[float]

    def settings(self) -> list[Setting]:
        """All combinations."""
        return [Setting(m, c, s) for m in self.micros for c in self.cached for s in self.shares]


class Planner:
    """Chooses the fastest setting whose estimated memory fits.

    `tokens(micro)` are those of the largest micro-batch; `need(setting)` is its memory in bytes beside what lies on the
    GPU already; `free` is what is free, in bytes.
    """

    def __init__(
        self, choices: Choices, rows: int, tokens: Callable[[int], int], need: Callable[[Setting], float], free: float
    ) -> None:
        self.choices, self.rows, self.tokens, self.need = choices, rows, tokens, need
        self.free = self.budget = free

    def best(self) -> Setting | None:
        """The fastest that fits; None where none does."""
        fitting = [setting for setting in self.choices.settings() if self.need(setting) <= self.budget]
        return min(fitting, key=self.cost, default=None)

    def smallest(self) -> Setting:
        """The one that needs the least."""
        return min(self.choices.settings(), key=self.need)

    def cost(self, setting: Setting) -> tuple[float, Any]:
        """Time of a step, counted in tokens that pass forward and backward; a second forward pass is half of one."""
        each = self.tokens(setting.micro) * (1 + 0.5 * setting.share) + EACH + (0 if setting.cached else UNPACKING)
        return self.rows / setting.micro * each, -setting.micro

    def too_much(self, setting: Setting) -> None:
        """The setting ran out of memory: what is estimated to need as much does not fit either."""
        self.budget = min(self.budget, 0.999 * self.need(setting))
