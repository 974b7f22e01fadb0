"""The fast step: loss and adapter gradients of a micro-batch, in whatever memory there is."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ftlab.config import TrainerConfig
from ftlab.data.encode import Encoded
from ftlab.fast.attention import ByRow, Varlen
from ftlab.fast.decoder import Batch, Decoder
from ftlab.fast.flat import Flat
from ftlab.fast.frozen import free_bytes
from ftlab.fast.graphs import Graphs
from ftlab.fast.layout import Layout
from ftlab.fast.plan import SHARES, Choices, Planner, Setting

# Without a GPU nothing is gained by longer flat batches.
CPU_BATCH_TOKENS = 4096
# Memory that nobody accounts for: kernels' workspaces, fragments, graphs.
MARGIN = 0.05
MARGIN_BYTES = 1 << 29

GIB = 1 << 30
# Bytes that a micro-batch of so many tokens, so many of them scored, needs with this share of layers checkpointed.
Need = Callable[[int, int, float], float]


class FastStep:
    """Runs micro-batches through a decoder by hand and leaves float32 gradients in `flat`. See `train.step.Step`.

    `longest` is the tokens of the longest row. Adapters are read from a copy in the decoder's dtype, which `begin`
    renews.
    """

    def __init__(self, decoder: Decoder, flat: Flat, cfg: TrainerConfig, *, longest: int, need: Need) -> None:
        self.decoder, self.flat, self.cfg, self.need = decoder, flat, cfg, need
        self.parameters: list[nn.Parameter] = [flat.parameter]
        self.cuda = decoder.device.type == "cuda"
        self.longest_row = longest
        self.longest = -(-max(longest, 512) // 128) * 128  # padding is a row too, of up to 511 tokens
        self.work, self.grad = flat.like(decoder.dtype), flat.like(decoder.dtype)
        self.setting = Setting(1, False, 0.0)
        self.planner: Planner | None = None
        decoder.reach(self.longest)
        decoder.attach(flat, self.work, self.grad)
        self.graphs = Graphs(self._run, decoder.device) if self.cuda and decoder.capturable else None

    @property
    def micro(self) -> int:
        """Rows of a micro-batch."""
        return self.setting.micro

    # --- how --------------------------------------------------------------------------------------------------

    def choose(self, longest: list[Encoded]) -> None:
        """See `Step`: the fastest setting whose estimated memory is free."""
        choices = self._choices(longest)
        scored = {m: sum(len(row.input_ids) - row.trained_from for row in longest[-m:]) for m in choices.micros}
        tokens = {m: sum(len(row.input_ids) for row in longest[-m:]) for m in choices.micros}
        copy = sum(weight.kept_bytes for weight in self.decoder.packed() if weight.kept is None)

        def need(setting: Setting) -> float:
            batch = self.need(tokens[setting.micro], scored[setting.micro], setting.share)
            return batch + (copy if setting.cached else 0)

        free = _free_bytes(self.decoder.device) - self._state_bytes()
        self.planner = Planner(choices, self.cfg.global_batch_size, tokens.__getitem__, need, free)
        if self._settle_best() is None:
            self._settle(self.planner.smallest())

    def lighten(self) -> str | None:
        """See `Step`."""
        if self.planner is None:
            return None
        if self.graphs is not None and len(self.graphs):  # their memory, and a batch without graph beside it
            self.graphs.drop(forget=True)
            return f"{self.setting}, CUDA graphs captured anew"
        self.planner.too_much(self.setting)
        return self._settle_best()

    def pause(self, *, over: bool = False) -> None:
        """Give the memory of the graphs back before something else needs it; with `over` that of unpacked weights
        too."""
        if self.graphs is not None:
            self.graphs.drop(forget=over)
        if over:
            for weight in self.decoder.packed():
                weight.release()

    def _settle_best(self) -> str | None:
        """The fastest setting that fits, tried; None where none does."""
        while self.planner is not None and (setting := self.planner.best()):
            try:
                self._settle(setting)
            except torch.cuda.OutOfMemoryError:
                self.planner.too_much(setting)
                continue
            return str(setting)
        return None

    def shortage(self) -> str:
        """Why not even the leanest setting fits, in figures, and what would."""
        if self.planner is None or not self.cuda:
            return ""
        least = self.planner.smallest()
        need, free, tokens = self.planner.need(least), max(self.planner.free, 0.0), self.planner.tokens(least.micro)
        held = torch.cuda.memory_allocated(self.decoder.device)
        lengths = range(self.longest_row // 8 * 8 - 8, 7, -8)
        fits = next((length for length in lengths if self.need(length, length, least.share) <= free), None)
        remedy = f"data.max_length={fits} would fit" if fits else "no data.max_length would fit"
        return (
            f"{held / GIB:.1f} GiB are held, {free / GIB:.1f} GiB were left for a batch; the least possible, {least} "
            f"({tokens:,} tokens), needs about {need / GIB:.1f} GiB; {remedy}. "
        )

    def _choices(self, longest: list[Encoded]) -> Choices:
        cfg, size = self.cfg, self.cfg.global_batch_size
        micros = [d for d in range(size, 0, -1) if size % d == 0]
        if cfg.micro_batch_size != "auto":
            micros = [int(cfg.micro_batch_size)]
        elif not self.cuda:
            fitting = max(1, CPU_BATCH_TOKENS // len(longest[-1].input_ids))
            micros = [max(m for m in micros if m <= fitting)]
        caches = [True, False] if cfg.weight_cache == "auto" else [bool(cfg.weight_cache)]
        if not self.decoder.packed():
            caches = [False]
        shares = list(SHARES) if self.cuda else [0.0]
        if cfg.activation_checkpointing != "auto":
            shares = [1.0 if cfg.activation_checkpointing else 0.0]
        return Choices(micros, caches, shares)

    def _settle(self, setting: Setting) -> None:
        if self.graphs is not None:
            self.graphs.drop(forget=True)
        for weight in self.decoder.packed():
            if not setting.cached:
                weight.release()
            elif weight.kept is None:
                weight.keep()
        self.setting = setting
        self.checkpointed = round(setting.share * len(self.decoder.layers))

    def _state_bytes(self) -> int:
        """The optimizer's state, which it takes at its first step."""
        return self.flat.gradient.numel() * (8 if self.cfg.optim == "adamw" else 2)

    def __str__(self) -> str:
        held = {True: "weights held unpacked", False: "weights unpacked before each product"}[self.setting.cached]
        parts = [f"{self.micro} rows at a time"]
        parts += [held] if self.decoder.packed() else []
        parts += [f"{self.checkpointed} of {len(self.decoder.layers)} layers computed twice"] * bool(self.checkpointed)
        parts += ["CUDA graphs"] * (self.graphs is not None)
        return "fast step: " + ", ".join(parts)

    # --- a step -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """See `Step`; takes over the adapters' present values."""
        self.work.copy_(self.flat.parameter.detach())

    @torch.no_grad()
    def accumulate(self, rows: list[Encoded], trained: int, seed: int, *, first: bool) -> Tensor:
        """See `Step`; `seed` draws the dropout masks."""
        layout = Layout.of(rows, self.micro, padded=self.cuda)
        packed = layout.pack(rows, trained, seed, pinned=self.cuda)
        if self.graphs is not None:
            loss = self.graphs(packed, layout)
        else:
            loss = self._run(packed.to(self.decoder.device), layout)
        if first:
            self.flat.gradient.copy_(self.grad)
        else:
            self.flat.gradient.add_(self.grad)
        return loss

    def _run(self, packed: Tensor, layout: Layout) -> Tensor:
        ids, positions, predict, targets, starts, trained, seed = layout.parts(packed)
        decoder = self.decoder
        attention = Varlen(starts.int(), self.longest) if self.cuda else ByRow(starts.diff().tolist())
        batch = Batch(decoder.rotations(positions), attention, seed if decoder.dropout else None)
        delta, stream, kept = decoder.forward(ids, batch, self.checkpointed)
        loss, g = decoder.loss_and_gradient(delta, stream, predict, targets, trained.float().reciprocal(), batch.seed)
        del delta, stream
        decoder.backward(g, kept, batch)
        return loss


def _free_bytes(device: torch.device) -> float:
    """Free memory of the GPU, what torch holds unused included, or of the host."""
    return free_bytes(device) * (1 - MARGIN) - MARGIN_BYTES
