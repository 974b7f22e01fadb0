"""Whether a model can go the fast path: its parts are known, and what they compute is what the model computes."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ftlab.fast.attention import ByRow, Varlen
from ftlab.fast.decoder import TOLERANCE, Decoder
from ftlab.fast.frozen import Int8, Unrecognised

# Tokens of the rows on which logits are compared.
ROWS = (9, 17)


def fast_path(model: nn.Module, autocast: Any) -> tuple[Decoder | None, str | None]:
    """The model's decoder, or the reason why it has none.

    `autocast()` is the precision in which the model's own forward runs.
    """
    try:
        decoder = Decoder(model)
        _check_device(decoder)
        _check_logits(model, decoder, autocast())
    except Unrecognised as reason:
        return None, str(reason)
    return decoder, None


def _check_device(decoder: Decoder) -> None:
    if decoder.device.type == "cuda" and decoder.dtype not in (torch.bfloat16, torch.float16):
        raise Unrecognised("FlashAttention takes bfloat16 or float16: model.dtype is another")
    if decoder.dtype == torch.float16:
        raise Unrecognised("float16 needs a scaled loss")


@torch.no_grad()
def _check_logits(model: nn.Module, decoder: Decoder, autocast: AbstractContextManager[Any]) -> None:
    """Raises Unrecognised where the logits differ from those of the model's own forward by more than rounding."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(decoder.vocab_size, (length,), generator=generator).to(decoder.device) for length in ROWS]
    training = model.training
    model.eval()
    try:
        with autocast:
            wanted = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in rows]).float()
    finally:
        model.train(training)
    found = _logits(decoder, rows).float()
    error = float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))
    if not error <= tolerance(decoder):
        raise Unrecognised(
            f"an architecture that computes something else than its parts say (logits differ {error:.1%})"
        )


def tolerance(decoder: Decoder) -> float:
    """How far logits may differ from the model's own, as a part of their size: rounding in another order."""
    dtypes = [decoder.dtype, *(weight.dtype for weight in decoder.packed())]
    coarse = max(TOLERANCE[dtype] for dtype in dtypes)
    eight = any(isinstance(group.frozen, Int8) for group in decoder.groups)
    return max(coarse, TOLERANCE[torch.bfloat16]) if eight else coarse


def _logits(decoder: Decoder, rows: list[Tensor]) -> Tensor:
    lengths = [len(row) for row in rows]
    places = [torch.arange(length, device=decoder.device) for length in lengths]
    decoder.reach(max(lengths))
    if decoder.device.type == "cuda":
        starts = torch.tensor([0, *lengths], device=decoder.device).cumsum(0).int()
        attention: Any = Varlen(starts, max(lengths))
    else:
        attention = ByRow(lengths)

    def attend(layer: int, qkv: Tensor) -> Tensor:
        result: Tensor = attention.forward(decoder.layers[layer].attention, qkv)[0]
        return result

    return decoder.logits(decoder.hidden(torch.cat(rows), torch.cat(places), attend))
