"""Decides whether a model can take the fast path: its parts are known, and each layer's output matches the model's."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ftlab.errors import first_line
from ftlab.fast import ops
from ftlab.fast.attention import inside
from ftlab.fast.decoder import Attend, Decoder
from ftlab.fast.frozen import Int8, Unrecognised

# Lengths in tokens of the rows on which the fast path and the model are compared.
ROWS = (9, 17)
# Relative rounding tolerance of what one layer adds to a token, and of the token's residual stream. The two differ
# because they round in another order. A wrong architecture differs by tens of per cent.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}
STREAM_TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}
# Exceptions that reading an unknown model may raise. Such a model takes the slower path.
READING_ERRORS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)


def fast_path(model: nn.Module, autocast: Any) -> tuple[Decoder | None, str | None]:
    """Return the model's decoder and None, or None and the reason why the model cannot take the fast path.

    `autocast()` is the precision context in which the model's own forward pass runs.
    """
    try:
        decoder = Decoder(model)
        _check_device(decoder)
        _check_layers(model, decoder, autocast())
    except Unrecognised as reason:
        return None, str(reason)
    except torch.cuda.OutOfMemoryError:
        raise
    except READING_ERRORS as error:
        return None, f"which fails on this model or machine: {first_line(error)}"
    return decoder, None


def adapter_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the trained tensors in the order in which they lie in the shared buffer. The order is the same on every
    machine and on both paths, so that a checkpoint's optimizer state always fits."""
    try:
        return Decoder(model).parameters()
    except (Unrecognised, *READING_ERRORS):
        return [[parameter] for parameter in model.parameters() if parameter.requires_grad]


def _check_device(decoder: Decoder) -> None:
    if decoder.dtype == torch.float16:
        raise Unrecognised("float16 needs a scaled loss")
    if decoder.device.type != "cuda":
        return
    if not ops.on_gpu():
        raise Unrecognised("the package triton is missing")
    if torch.cuda.get_device_capability(decoder.device) < (8, 0):
        raise Unrecognised("its kernels need a GPU of compute capability 8.0 or newer")
    multiple = 4 if decoder.dtype == torch.float32 else 8
    if any(layer.attention.head_dim % multiple or layer.attention.head_dim > 256 for layer in decoder.layers):
        raise Unrecognised(f"attention on a GPU needs a head size of at most 256 and a multiple of {multiple}")


@torch.no_grad()
def _check_layers(model: nn.Module, decoder: Decoder, autocast: AbstractContextManager[Any]) -> None:
    """Compare the embedding, each layer and the output layer with the model's own parts, on the same inputs.

    Raises:
        Unrecognised: an output differs by more than rounding tolerance.
    """
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(decoder.vocab_size, (length,), generator=generator).to(decoder.device) for length in ROWS]
    states, logits = _own_states(model, rows, autocast, decoder.dtype)
    if len(states) != len(decoder.layers) + 1:
        raise Unrecognised("a model that does not run each of its layers once")
    positions = torch.cat([torch.arange(length, device=decoder.device) for length in ROWS])
    decoder.prepare_positions(max(ROWS))
    rotations, attend = decoder.rotations(positions), _attend(decoder)
    nothing = torch.zeros_like(states[0])
    _check_same(decoder, "embedding", decoder.embed(torch.cat(rows)), states[0], nothing)
    for layer, before, after in zip(decoder.layers, states, states[1:], strict=False):
        delta, stream = layer.infer(before, None, rotations, attend)
        if layer is decoder.layers[-1]:
            _check_same(decoder, "last layer", decoder.norm.forward(delta, stream)[0], after, nothing)
        else:
            _check_same(decoder, f"layer {layer.number}", stream + delta, after, before)
    _check_same(decoder, "output layer", decoder.logits(states[-1]), logits, torch.zeros_like(logits))


def _own_states(
    model: nn.Module, rows: list[Tensor], autocast: AbstractContextManager[Any], dtype: torch.dtype
) -> tuple[list[Tensor], Tensor]:
    """Return the inputs of every layer and of the output layer, each [tokens of all rows, hidden], and the logits.

    The inputs are recorded by temporary hooks: the hooks that transformers uses for hidden states would stay.
    """
    whole: Any = model
    causal: Any = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    parts: list[nn.Module] = [*causal.model.layers, causal.lm_head]
    given: dict[nn.Module, list[Tensor]] = {part: [] for part in parts}

    def keep(part: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given[part].append((arguments[0] if arguments else named["hidden_states"])[0].to(dtype))

    hooks = [part.register_forward_pre_hook(keep, with_kwargs=True) for part in parts]
    training = model.training
    model.eval()
    try:
        with autocast:
            logits = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in rows])
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return [torch.cat(kept) for kept in given.values() if len(kept) == len(rows)], logits


def _check_same(decoder: Decoder, part: str, found: Tensor, wanted: Tensor, before: Tensor) -> None:
    """Raise Unrecognised if `found` [tokens, width] differs from `wanted` by more than rounding tolerance.

    Each token is measured by itself. In trained models one token may be a hundred times as large as all others, and
    would hide their differences.
    """
    difference, added, whole = (
        (one.float() - other).norm(dim=1)
        for one, other in ((found, wanted.float()), (wanted, before.float()), (wanted, 0.0))
    )
    dtypes = [decoder.dtype, *(weight.dtype for weight in decoder.packed())]
    if any(isinstance(group.frozen, Int8) for group in decoder.groups):
        dtypes.append(torch.bfloat16)  # LLM.int8() chooses its outlier columns by batch
    allowed = (
        max(TOLERANCE[dtype] for dtype in dtypes) * added + max(STREAM_TOLERANCE[dtype] for dtype in dtypes) * whole
    )
    excess = float((difference / allowed.clamp(min=1e-30)).square().mean().sqrt())
    if not excess <= 1:
        apart = float((difference / added.clamp(min=1e-30)).square().mean().sqrt())
        raise Unrecognised(
            f"an architecture whose output differs by more than rounding tolerance ({part}: by {apart:.1%})"
        )


def _attend(decoder: Decoder) -> Attend:
    starts = torch.tensor([0, *ROWS], device=decoder.device).cumsum(0)
    attention = inside(starts, max(ROWS), decoder.dtype)

    def attend(layer: int, qkv: Tensor) -> Tensor:
        return attention.forward(decoder.layers[layer].attention, qkv)[0]

    return attend
