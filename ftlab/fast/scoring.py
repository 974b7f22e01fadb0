"""Evaluation with a decoder: the loss of given answers, and generated answers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from ftlab.data.encode import Encoded, in_chunks
from ftlab.fast import ops
from ftlab.fast.attention import inside
from ftlab.fast.decoder import LOGITS_BYTES, Decoder
from ftlab.fast.frozen import free_bytes
from ftlab.fast.generator import Generator
from ftlab.fast.layout import Layout

# Tokens of the rows that go through the model together.
TOKENS = 8192
# After an OOM fewer tokens go through the model, down to about this number.
LEAST_TOKENS = 512
# A merged copy of the weights may take this fraction of the GPU's free memory; the KV cache needs the rest.
MERGED_SHARE = 0.6


@contextmanager
def ready(decoder: Decoder) -> Iterator[None]:
    """Prepare the decoder for evaluation with the adapters' current values. If memory allows, they are merged into a
    copy of the weights."""
    decoder.refresh()
    with ExitStack() as stack:
        if decoder.merged_bytes() <= MERGED_SHARE * free_bytes(decoder.device):
            try:
                stack.enter_context(decoder.merged())
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
        yield


def answers(
    decoder: Decoder,
    prompts: list[list[int]],
    *,
    end: int,
    max_new_tokens: int,
    batch_size: int,
    on_done: Callable[[int], None],
) -> list[list[int]]:
    """Return the token ids that the decoder generates for each prompt; see `Generator`."""
    generator = Generator(decoder, end=end, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return generator.run(prompts, on_done)


@torch.no_grad()
def mean_loss(decoder: Decoder, rows: Sequence[Encoded]) -> float:
    """Return the mean cross entropy over the trained tokens of `rows`, in nats."""
    decoder.prepare_positions(max(row.tokens for row in rows))
    tokens = TOKENS
    while True:
        try:
            total = sum(float(_summed_loss(decoder, part)) for part in in_chunks(rows, tokens))
        except torch.cuda.OutOfMemoryError:
            if tokens < LEAST_TOKENS:
                raise
            tokens //= 2
        else:
            return total / sum(row.trained for row in rows)


def _summed_loss(decoder: Decoder, rows: list[Encoded]) -> Tensor:
    layout = Layout.of(rows, len(rows), padded=False)
    packed = layout.pack(rows, 1, 0, pinned=False).to(decoder.device)
    ids, positions, predict, targets, starts, _, _ = layout.parts(packed)
    attention = inside(starts, max(row.tokens for row in rows), decoder.dtype)

    def attend(layer: int, qkv: Tensor) -> Tensor:
        return attention.forward(decoder.layers[layer].attention, qkv)[0]

    hidden = decoder.hidden(ids, positions, attend)[predict]
    total = torch.zeros((), device=decoder.device)
    part = max(1, LOGITS_BYTES // (decoder.vocab_size * hidden.element_size()))
    for start in range(0, len(hidden), part):
        chosen = slice(start, start + part)
        total = total + ops.cross_entropy_(decoder.logits(hidden[chosen]), targets[chosen], 1.0)
    return total
