"""How a step's rows go through the model, so that it is fast and fits: micro-batches, unpacked weights, checkpoints."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ftlab.config import TrainerConfig
from ftlab.data.encode import Sample
from ftlab.fast.frozen import free_bytes
from ftlab.out_of_memory import is_out_of_memory

# What a micro-batch costs beside its tokens, in tokens: its small products and launches, and unpacking all 4-bit
# weights twice. Measured on an H100 at 7B (bench/gpu.py); both grow with the model as its tokens do.
EACH = 150
UNPACKING = 130
# Parts of the layers that may be computed a second time in the backward pass instead of being kept.
CHECKPOINTED_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Without a GPU nothing is gained by longer flat batches.
CPU_BATCH_TOKENS = 4096
# Memory that nobody accounts for: kernels' workspaces, fragments, graphs.
MARGIN = 0.05
MARGIN_BYTES = 1 << 29

GIB = 1 << 30
# Bytes that a micro-batch of so many tokens, so many of them scored, needs with this share of layers computed twice.
Need = Callable[[int, int, float], float]


@dataclass(frozen=True)
class Setting:
    """`micro` rows at a time; `cached`: weights are held unpacked; the `share` of layers that keep their entrance only
    and are computed again in the backward pass."""

    micro: int
    keep_dequantized: bool
    checkpointed_fraction: float

    def __str__(self) -> str:
        return self.overrides(packed=True)

    def overrides(self, *, packed: bool) -> str:
        """As overrides of the configuration; unpacked weights are spoken of where some are `packed`."""
        cache = f"trainer.weight_cache={str(self.keep_dequantized).lower()}, " * packed
        part = f" for {self.checkpointed_fraction:.0%} of the layers" * (0 < self.checkpointed_fraction < 1)
        checkpointing = "true" if self.checkpointed_fraction else "false"
        return f"trainer.micro_batch_size={self.micro}, {cache}trainer.activation_checkpointing={checkpointing}{part}"

    def checkpointed_layers(self, layers: int) -> int:
        """How many of so many layers are computed twice."""
        return round(self.checkpointed_fraction * layers)

    def described(self, layers: int, *, packed: bool) -> list[str]:
        """What a person reads of it."""
        parts = [f"{self.micro} rows at a time"]
        if packed:
            parts.append("weights held unpacked" if self.keep_dequantized else "weights unpacked before each product")
        if self.checkpointed_fraction:
            some = f"{self.checkpointed_layers(layers)} of {layers}" if self.checkpointed_fraction < 1 else "all"
            parts.append(f"{some} layers computed twice")
        return parts


@dataclass(frozen=True)
class Choices:
    """What may be chosen; a list of one where the configuration decides."""

    micros: list[int]
    keep_dequantized: list[bool]
    fractions: list[float]

    def settings(self) -> list[Setting]:
        """All combinations."""
        return [Setting(m, c, s) for m in self.micros for c in self.keep_dequantized for s in self.fractions]


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
        each = (
            self.tokens(setting.micro) * (1 + 0.5 * setting.checkpointed_fraction)
            + EACH
            + (0 if setting.keep_dequantized else UNPACKING)
        )
        return self.rows / setting.micro * each, -setting.micro

    def rule_out(self, setting: Setting) -> None:
        """The setting ran out of memory: what is estimated to need as much does not fit either."""
        self.budget = min(self.budget, 0.999 * self.need(setting))


class Chooser:
    """Chooses the setting of a step, and a lighter one after an out-of-memory error (OOM). It serves any kind of step.

    `need` returns the memory of a micro-batch, and `apply` puts a setting into effect. `fractions` are the fractions of
    the layers that the step can checkpoint. `together` is false where rows must go through the model one by one.
    `limit` is the number of bytes that torch may hold in total.
    """

    def __init__(
        self,
        cfg: TrainerConfig,
        device: torch.device,
        need: Need,
        apply: Callable[[Setting], None],
        *,
        fractions: Sequence[float],
        together: bool = True,
        limit: float = math.inf,
    ) -> None:
        self.cfg, self.device, self.need, self.apply = cfg, device, need, apply
        self.fractions, self.together, self.limit = fractions, together, limit
        self.cuda = device.type == "cuda"
        self.packed = False
        self.longest = 0  # tokens of the longest row
        self.planner: Planner | None = None
        self.had_oom = False

    def choose(self, longest: Sequence[Sample], *, copy: float | None = None, coming: float = 0.0) -> None:
        """Settle for the fastest setting whose estimated memory is free, for the `longest` rows that a step can have,
        in ascending order.

        `copy` are the bytes that unpacked weights take beside what is held already, None where none are packed;
        `coming` those of gradients that will be held at every step and are not yet.
        """
        self.packed, self.longest = copy is not None, longest[-1].tokens
        choices = self._choices(self.longest)
        scored = {m: sum(row.trained for row in longest[-m:]) for m in choices.micros}
        tokens = {m: sum(row.tokens for row in longest[-m:]) for m in choices.micros}

        def need(setting: Setting) -> float:
            batch = self.need(tokens[setting.micro], scored[setting.micro], setting.checkpointed_fraction)
            return batch + (copy or 0.0) * setting.keep_dequantized

        free = self._free() - coming
        self.planner = Planner(choices, self.cfg.global_batch_size, tokens.__getitem__, need, free)
        if self._apply_best() is None:
            self.apply(self.planner.smallest())

    def lighten(self, setting: Setting) -> str | None:
        """Settle for less than `setting`, with which memory ran out; what was settled for, as overrides, or None where
        nothing that needs less may be chosen."""
        if self.planner is None:
            return None
        self._on_oom(setting)
        return self._apply_best()

    def oom_report(self) -> str:
        """Why not even the leanest setting fits, in figures, and what would; nothing where nothing was chosen."""
        if self.planner is None or not self.cuda:
            return ""
        least = self.planner.smallest()
        need, free, tokens = self.planner.need(least), max(self.planner.free, 0.0), self.planner.tokens(least.micro)
        lengths = range(self.longest // 8 * 8 - 8, 7, -8)
        fits = next(
            (length for length in lengths if self.need(length, length, least.checkpointed_fraction) <= free), None
        )
        remedy = f"data.max_length={fits} would fit" if fits else "no data.max_length would fit"
        limit = f" of sweep.vram_limit_gib={self.limit / GIB:g}" * math.isfinite(self.limit)
        return (
            f"{self._held() / GIB:.1f} GiB are held, {free / GIB:.1f} GiB{limit} were left for a batch; the least "
            f"possible, {least.overrides(packed=self.packed)} ({tokens:,} tokens), needs about {need / GIB:.1f} GiB; "
            f"{remedy}. "
        )

    def remedies(self, setting: Setting) -> list[str]:
        """Overrides that allow lighter settings than the configuration does."""
        cfg, ways = self.cfg, []
        if cfg.micro_batch_size != "auto" and setting.micro > 1:
            ways.append("trainer.micro_batch_size=auto")
        if cfg.weight_cache is True and setting.keep_dequantized:
            ways.append("trainer.weight_cache=auto")
        if cfg.activation_checkpointing is False and max(self.fractions):
            ways.append("trainer.activation_checkpointing=auto")
        return ways

    def _choices(self, longest: int) -> Choices:
        cfg, size = self.cfg, self.cfg.global_batch_size
        micros = [d for d in range(size, 0, -1) if size % d == 0]
        if not self.together:
            micros = [1]
        elif cfg.micro_batch_size != "auto":
            micros = [int(cfg.micro_batch_size)]
        elif not self.cuda:
            micros = [max(m for m in micros if m <= max(1, CPU_BATCH_TOKENS // longest))]
        caches = [True, False] if cfg.weight_cache == "auto" else [bool(cfg.weight_cache)]
        fractions = list(self.fractions) if self.cuda else [0.0]
        if cfg.activation_checkpointing != "auto":
            fractions = [1.0 if cfg.activation_checkpointing else 0.0]
        return Choices(micros, caches if self.packed else [False], fractions)

    def _apply_best(self) -> str | None:
        """The fastest setting that fits, tried; None where none does."""
        while self.planner is not None and (setting := self.planner.best()):
            try:
                self.apply(setting)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._on_oom(setting)
                continue
            return setting.overrides(packed=self.packed)
        return None

    def _on_oom(self, setting: Setting) -> None:
        self.had_oom = True
        if self.planner is not None:
            self.planner.rule_out(setting)

    def _free(self) -> float:
        return min(available(self.device), self.limit - self._held())

    def _held(self) -> float:
        return float(torch.cuda.memory_allocated(self.device)) if self.cuda else 0.0


def available(device: torch.device) -> float:
    """Bytes of the GPU that a batch may count on, what torch holds unused included, or of the host."""
    return free_bytes(device) * (1 - MARGIN) - MARGIN_BYTES
