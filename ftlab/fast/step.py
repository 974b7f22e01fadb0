"""The fast step: loss and adapter gradients of a micro-batch, in a setting that fits into GPU memory."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ftlab.config import TrainerConfig
from ftlab.data.encode import Encoded, Sample
from ftlab.fast.attention import inside
from ftlab.fast.decoder import BatchContext, Decoder
from ftlab.fast.flat import Flat, Trainable
from ftlab.fast.graphs import Graphs
from ftlab.fast.layout import Layout, padded_sizes
from ftlab.fast.plan import CHECKPOINTED_FRACTIONS, Chooser, Need, Setting


class FastStep:
    """Computes micro-batches with the hand-written decoder and leaves float32 gradients in the buffer of the attached
    adapter, which must be the decoder's. See `train.step.Step`.

    `longest` is the number of tokens of the longest row; for `need` and `limit` see `Chooser`. Adapters are read from a
    copy in the decoder's dtype, which `begin` updates.
    """

    def __init__(
        self,
        decoder: Decoder,
        cfg: TrainerConfig,
        *,
        longest: int,
        need: Need,
        limit: float = math.inf,
    ) -> None:
        self.decoder = decoder
        self.can_keep_dequantized = bool(decoder.packed())
        self.cuda = decoder.device.type == "cuda"
        self.longest = -(-max(longest, 512) // 128) * 128  # padding is a row too, of up to 511 tokens
        self.setting = Setting(1, False, 0.0)
        self.recaptured: Setting | None = None
        padded = (lambda tokens, scored, share: need(*padded_sizes(tokens, scored), share)) if self.cuda else need
        self.chooser = Chooser(cfg, decoder.device, padded, self._apply, fractions=CHECKPOINTED_FRACTIONS, limit=limit)
        decoder.prepare_positions(self.longest)
        self.graphs = Graphs(self._run, decoder.device) if self.cuda and decoder.capturable else None

    def attach(self, trained: Trainable) -> None:
        """See `Step`. CUDA graphs captured on another adapter's buffers are dropped."""
        if trained.flat is None:
            raise ValueError("the fast step needs the trained tensors in one buffer")
        if self.graphs is not None:
            self.graphs.drop(forget=True)
        self.flat: Flat = trained.flat
        self.work, self.grad = self.flat.like(self.decoder.dtype), self.flat.like(self.decoder.dtype)
        self.decoder.attach(self.flat, self.work, self.grad)

    @property
    def micro(self) -> int:
        """Rows of a micro-batch."""
        return self.setting.micro

    # --- the setting ------------------------------------------------------------------------------------------

    def choose(self, longest: Sequence[Sample]) -> None:
        """See `Step`."""
        copy = sum(weight.dequantized_bytes for weight in self.decoder.packed() if weight.dequantized is None)
        self.chooser.choose(longest, copy=copy if self.can_keep_dequantized else None)

    def lighten(self) -> str | None:
        """See `Step`."""
        if self.graphs is not None and len(self.graphs) and self.recaptured != self.setting:
            self.recaptured = self.setting  # try this once: batches of many shapes may only have fragmented the memory
            self.graphs.drop(forget=True)
            self.chooser.had_oom = True
            return f"{self.setting}, CUDA graphs captured anew"
        return self.chooser.lighten(self.setting)

    def pause(self, *, over: bool = False) -> None:
        """Free the memory of the CUDA graphs before something else needs it; if training is `over`, also that of the
        dequantized weights."""
        if self.graphs is not None:
            self.graphs.drop(forget=over)
        if over:
            for weight in self.decoder.packed():
                weight.release()

    def _apply(self, setting: Setting) -> None:
        if self.graphs is not None:
            self.graphs.drop(forget=True)
        for weight in self.decoder.packed():
            if not setting.keep_dequantized:
                weight.release()
            elif weight.dequantized is None:
                weight.keep_dequantized()
        self.setting = setting
        self.checkpointed = setting.checkpointed_layers(len(self.decoder.layers))

    def __str__(self) -> str:
        parts = self.setting.described(len(self.decoder.layers), packed=self.can_keep_dequantized)
        return "fast step: " + ", ".join(parts + ["CUDA graphs"] * (self.graphs is not None))

    # --- a step -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """See `Step`. Copies the adapters' current values."""
        self.work.copy_(self.flat.parameter.detach())

    @torch.no_grad()
    def accumulate(self, rows: Sequence[Encoded], trained: int, seed: int, *, first: bool) -> Tensor:
        """See `Step`. `seed` determines the dropout masks."""
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
        attention = inside(starts, self.longest, decoder.dtype)
        batch = BatchContext(decoder.rotations(positions), attention, seed if decoder.dropout else None)
        delta, stream, kept = decoder.forward(ids, batch, self.checkpointed)
        loss, g = decoder.loss_and_gradient(delta, stream, predict, targets, trained.float().reciprocal(), batch.seed)
        del delta, stream
        decoder.backward(g, kept, batch)
        return loss
