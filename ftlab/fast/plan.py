"""The setting of a step, chosen to be fast and to fit: micro-batches, dequantized weights, activation checkpointing."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ftlab.config import TrainerConfig
from ftlab.data.encode import Sample
from ftlab.fast.frozen import free_bytes
from ftlab.out_of_memory import is_out_of_memory

# The fixed cost of a micro-batch, in tokens: its small products and launches, and dequantizing all 4-bit weights twice.
# Measured on an H100 at 7B (bench/gpu.py). Both grow with the model in the same way as the cost of a token.
EACH = 150
DEQUANTIZING = 130
# The fractions of the layers that may be checkpointed: they are recomputed in the backward pass instead of saved.
CHECKPOINTED_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
# On a CPU longer flat batches are no faster.
CPU_BATCH_TOKENS = 4096
# Memory that no estimate contains: workspaces of kernels, fragmentation, graphs.
MARGIN = 0.05
MARGIN_BYTES = 1 << 29

GIB = 1 << 30
# Bytes that a micro-batch needs, given its tokens, its scored tokens, and the fraction of checkpointed layers.
Need = Callable[[int, int, float], float]


@dataclass(frozen=True)
class Setting:
    """The rows of a micro-batch, whether dequantized weights are kept in memory, and the fraction of the layers under
    activation checkpointing: these save only their input and are recomputed in the backward pass."""

    micro: int
    keep_dequantized: bool
    checkpointed_fraction: float

    def __str__(self) -> str:
        return self.overrides(packed=True)

    def overrides(self, *, packed: bool) -> str:
        """Return the setting as overrides of the configuration, with `trainer.weight_cache` if weights are `packed`."""
        cache = f"trainer.weight_cache={str(self.keep_dequantized).lower()}, " * packed
        part = f" for {self.checkpointed_fraction:.0%} of the layers" * (0 < self.checkpointed_fraction < 1)
        checkpointing = "true" if self.checkpointed_fraction else "false"
        return f"trainer.micro_batch_size={self.micro}, {cache}trainer.activation_checkpointing={checkpointing}{part}"

    def checkpointed_layers(self, layers: int) -> int:
        """Return how many of `layers` layers are checkpointed."""
        return round(self.checkpointed_fraction * layers)

    def described(self, layers: int, *, packed: bool) -> list[str]:
        """Return the parts of the setting's description for the user."""
        parts = [f"{self.micro} rows per micro-batch"]
        if packed:
            kept, anew = "dequantized weights kept in memory", "weights dequantized before each product"
            parts.append(kept if self.keep_dequantized else anew)
        if self.checkpointed_fraction:
            some = f"{self.checkpointed_layers(layers)} of {layers}" if self.checkpointed_fraction < 1 else "all"
            parts.append(f"activation checkpointing of {some} layers")
        return parts


@dataclass(frozen=True)
class Choices:
    """The values that may be chosen; a list of one value where the configuration fixes it."""

    micros: list[int]
    keep_dequantized: list[bool]
    fractions: list[float]

    def settings(self) -> list[Setting]:
        """Return all combinations."""
        return [Setting(m, c, s) for m in self.micros for c in self.keep_dequantized for s in self.fractions]


class Planner:
    """Chooses the fastest setting whose estimated memory fits.

    `tokens(micro)` is the number of tokens of the largest micro-batch. `need(setting)` is the memory that it needs in
    addition to what is already allocated, and `free` is the free memory, both in bytes.
    """

    def __init__(
        self, choices: Choices, rows: int, tokens: Callable[[int], int], need: Callable[[Setting], float], free: float
    ) -> None:
        self.choices, self.rows, self.tokens, self.need = choices, rows, tokens, need
        self.free = self.budget = free

    def best(self) -> Setting | None:
        """Return the fastest setting that fits, or None."""
        fitting = [setting for setting in self.choices.settings() if self.need(setting) <= self.budget]
        return min(fitting, key=self.cost, default=None)

    def smallest(self) -> Setting:
        """Return the setting that needs the least memory."""
        return min(self.choices.settings(), key=self.need)

    def cost(self, setting: Setting) -> tuple[float, Any]:
        """Return the time of a step, in units of one token's forward and backward pass; recomputing counts half a unit.
        Of equally fast settings the one with larger micro-batches comes first."""
        fixed = EACH + (0 if setting.keep_dequantized else DEQUANTIZING)
        each = self.tokens(setting.micro) * (1 + 0.5 * setting.checkpointed_fraction) + fixed
        return self.rows / setting.micro * each, -setting.micro

    def rule_out(self, setting: Setting) -> None:
        """Exclude a setting that ran out of memory, and all settings that are estimated to need as much."""
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
        """Apply the fastest setting whose estimated memory is free.

        `longest` are the longest rows that a step can have, in ascending order of length. `copy` is the number of bytes
        that keeping dequantized weights would add, None if no weights are packed. `coming` is the size in bytes of the
        gradients that every step will hold but that are not allocated yet.
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
        """Apply a lighter setting than `setting`, which ran out of memory. Return it as overrides, or None if the
        configuration allows no lighter one."""
        if self.planner is None:
            return None
        self._on_oom(setting)
        return self._apply_best()

    def oom_report(self) -> str:
        """Return why even the leanest setting does not fit, and which row length would; empty before a choice."""
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
            f"{self._held() / GIB:.1f} GiB are allocated, {free / GIB:.1f} GiB{limit} were left for a batch; the "
            f"leanest setting, {least.overrides(packed=self.packed)} ({tokens:,} tokens), needs about "
            f"{need / GIB:.1f} GiB; {remedy}. "
        )

    def remedies(self, setting: Setting) -> list[str]:
        """Return the overrides that would allow lighter settings than the configuration does."""
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
        """Apply the fastest setting that fits and return it as overrides; return None if none fits."""
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
    """Return the bytes that a batch may use: on a GPU including what torch holds unused, on a CPU those of the host."""
    return free_bytes(device) * (1 - MARGIN) - MARGIN_BYTES
