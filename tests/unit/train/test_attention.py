"""Attention by rows gives what transformers' mask over the whole batch gives, and that mask is not made."""

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import create_causal_mask, create_chunked_causal_mask, create_sliding_window_causal_mask

from ftlab.data.encode import Encoded
from ftlab.models import switch_activation_checkpointing
from ftlab.train import attention
from ftlab.train.attention import RowMask, attend, rows_of
from ftlab.train.batches import lay_flat
from ftlab.train.loss import rows_interact, summed_loss

CPU = torch.device("cpu")
WINDOW = 6  # shorter than some rows
SMALL = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": WINDOW, "layer_types": KINDS},
    "phi3": {"head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
TARGETS = {"phi3": ["qkv_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}


def make(family: str, **lora: Any) -> Any:
    """A tiny random model in its adapter, in training mode."""
    torch.manual_seed(0)
    shape = {**SMALL, **FAMILIES[family]}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape), dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    targets = TARGETS.get(family, ["q_proj", "v_proj", "down_proj"])
    fan = family == "gpt2"
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets, fan_in_fan_out=fan, **lora)
    adapted = get_peft_model(model.requires_grad_(False), config).train()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            parameter.data.normal_(0, 0.2)
    return adapted


def row(seed: int, length: int, trained_from: int = 1) -> Encoded:
    draw = torch.Generator().manual_seed(seed)
    return Encoded(str(seed), torch.randint(1, 101, (length,), generator=draw).tolist(), ((trained_from, length),))


ROWS = [row(1, 7, 3), row(2, 12), row(3, 4, 2), row(4, 9, 8), row(5, 12)]


def gradients(model: Any, parts: list[list[Encoded]], *, thread: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """The summed loss of `parts`, each in one flat batch, and its gradients; the backward pass as on a GPU in a thread
    of its own where asked."""
    model.zero_grad()
    losses = torch.stack([summed_loss(model, lay_flat(part, CPU)) for part in parts]).sum()
    if thread:
        failures: list[BaseException] = []

        def backward() -> None:
            try:
                losses.backward()
            except BaseException as error:
                failures.append(error)

        worker = threading.Thread(target=backward)
        worker.start()
        worker.join()
        assert not failures
    else:
        losses.backward()
    return losses.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def close(found: tuple[Tensor, dict[str, Tensor]], wanted: tuple[Tensor, dict[str, Tensor]]) -> bool:
    assert found[1].keys() == wanted[1].keys()
    apart = [float((found[1][name] - grad).norm() / grad.norm()) for name, grad in wanted[1].items()]
    return max(*apart, float((found[0] - wanted[0]).abs() / wanted[0])) <= 1e-5


@pytest.fixture
def no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither transformers nor a `RowMask` makes the mask of a whole batch."""
    whole = RowMask.whole.func

    def refused(mask: RowMask) -> Tensor:
        assert len(mask.lengths) == 1, "the mask over all rows was made"
        return whole(mask)

    made = attention.sdpa_mask

    def own(*args: Any, **kwargs: Any) -> Any:
        mask = made(*args, **kwargs)
        assert mask is None or kwargs["q_length"] <= 12, "transformers made a mask over several rows"
        return mask

    monkeypatch.setattr(RowMask, "whole", property(refused))
    monkeypatch.setattr(attention, "sdpa_mask", own)


def flash(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, key_starts: Tensor, longest: int, key_longest: int,
    dropout: float, causal: bool, debug: bool, *, scale: float | None = None,
    window_size_left: int | None = None, window_size_right: int | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What torch.ops.aten._flash_attention_forward computes, in float32 on a CPU."""
    assert query.dim() == key.dim() == 3
    assert query.dtype == key.dtype == value.dtype  # which F.scaled_dot_product_attention would see to itself
    assert starts.dtype == torch.int32
    assert torch.equal(starts, key_starts)
    assert causal
    assert window_size_right in (None, 0)
    assert longest == key_longest == int(starts.diff().max())
    parts = []
    for start, end in zip(starts.tolist(), starts.tolist()[1:], strict=False):
        q, k, v = (part[start:end].transpose(0, 1)[None] for part in (query, key, value))
        back = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = (back >= 0) & (back <= (end if window_size_left is None else window_size_left))
        many = q.shape[1] != k.shape[1]
        parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=many)[0])
    return (torch.cat([part.transpose(0, 1) for part in parts]), *(torch.zeros(()) for _ in range(4)))


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As on a GPU that has FlashAttention; the longest row of each call."""
    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[5])
        return flash(*args, **kwargs)

    monkeypatch.setattr(attention, "flash_supports", lambda query, value: True)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", counted)
    return calls


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_together_give_what_rows_alone_give(family: str, checkpointing: bool) -> None:
    model = make(family)
    alone = gradients(model, [[one] for one in ROWS])
    switch_activation_checkpointing(model.get_base_model(), checkpointing)
    assert close(gradients(model, [ROWS], thread=True), alone)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_mask_over_the_whole_batch_is_made(family: str, checkpointing: bool, no_mask: None) -> None:
    model = make(family)
    switch_activation_checkpointing(model.get_base_model(), checkpointing)
    gradients(model, [ROWS], thread=True)
    assert not rows_interact(model, ROWS, CPU)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_flash_attention_is_given_rows_heads_and_windows(
    family: str, checkpointing: bool, on_gpu: list[int], no_mask: None
) -> None:
    model = make(family, use_dora=family != "gpt2")
    alone = gradients(model, [[one] for one in ROWS])
    assert not on_gpu  # one row needs no mask
    switch_activation_checkpointing(model.get_base_model(), checkpointing)
    assert close(gradients(model, [ROWS], thread=True), alone)
    layers = len(on_gpu) // (2 if checkpointing else 1)
    assert on_gpu == [12] * len(on_gpu)
    assert layers == model.config.num_hidden_layers


def test_flash_attention_is_given_what_autocast_would_give(on_gpu: list[int]) -> None:
    """Rotations leave queries and keys in float32, which the kernel does not take."""
    mask = RowMask.of([3, 5], None, CPU)
    query, value = torch.randn(1, 4, 8, 16), torch.randn(1, 2, 8, 16, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attend(torch.nn.Module(), query, query[:, :2], value, mask, scaling=0.25)
    assert found.dtype == torch.bfloat16
    assert found.shape == (1, 8, 4, 16)


@pytest.mark.parametrize("window", [None, 3, 64])
def test_the_mask_on_demand_is_transformers_own(window: int | None) -> None:
    lengths = [5, 1, 8]
    config = AutoConfig.for_model("mistral", **SMALL, sliding_window=window or 1)
    config._attn_implementation = "sdpa"
    batch = lay_flat([row(n, length) for n, length in enumerate(lengths)], CPU)
    create = create_causal_mask if window is None else create_sliding_window_causal_mask
    given = {"config": config, "inputs_embeds": torch.zeros(1, 14, 8), "attention_mask": None, "past_key_values": None}
    wanted = create(**given, position_ids=batch.position_ids)
    with rows_of(lengths):
        mask = create(**given, position_ids=batch.position_ids)
    assert isinstance(mask, RowMask)
    assert type(wanted) is Tensor
    with torch._C.DisableTorchFunctionSubclass():
        assert mask.untyped_storage().nbytes() == 1
    assert mask.shape == wanted.shape
    assert torch.equal(mask.whole, wanted)
    sliced = mask[:, :, :, :7]
    assert type(sliced) is Tensor
    assert torch.equal(sliced, wanted[:, :, :, :7])


def test_an_attention_of_the_models_own_gets_the_mask() -> None:
    """Not every architecture asks transformers' registry."""
    query = torch.randn(1, 2, 8, 16)
    mask = RowMask.of([3, 5], None, CPU)
    torch.testing.assert_close(
        F.scaled_dot_product_attention(query, query, query, attn_mask=mask).transpose(1, 2),
        attend(torch.nn.Module(), query, query, query, mask)[0],
    )


def test_arguments_that_rows_do_not_know_go_through_the_mask() -> None:
    query, mask = torch.randn(1, 2, 8, 16), RowMask.of([3, 5], None, CPU)
    bias = torch.randn(1, 2, 8, 8)
    found, _ = attend(torch.nn.Module(), query, query, query, mask, position_bias=bias)
    seen = torch.where(mask.whole, bias, torch.finfo(torch.float32).min)
    torch.testing.assert_close(found.transpose(1, 2), F.scaled_dot_product_attention(query, query, query, seen))


def test_masks_that_are_not_of_rows_alone_are_transformers_own() -> None:
    """Chunks, padding, other functions of places, a batch of other rows, one row, and anything outside a flat batch."""
    config = AutoConfig.for_model("llama", **SMALL, attention_chunk_size=3)
    config._attn_implementation = "sdpa"
    batch = lay_flat([row(1, 5), row(2, 8)], CPU)

    def made(create: Any = create_causal_mask, lengths: tuple[int, ...] = (5, 8), **more: Any) -> Any:
        given = {"config": config, "inputs_embeds": torch.zeros(1, 13, 8), "attention_mask": None}
        given |= {"past_key_values": None, "position_ids": batch.position_ids} | more
        with rows_of(list(lengths)):
            return create(**given)

    assert isinstance(made(), RowMask)
    assert not isinstance(made(create_chunked_causal_mask), RowMask)
    assert not isinstance(made(attention_mask=torch.ones(1, 13)), RowMask)
    assert not isinstance(made(or_mask_function=lambda b, h, q, kv: q < kv), RowMask)
    assert not isinstance(made(lengths=(5, 9)), RowMask)
    assert not isinstance(made(lengths=(13,)), RowMask)


def test_rows_interact_if_attention_has_the_wrong_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    of = RowMask.of
    monkeypatch.setattr(RowMask, "of", lambda lengths, window, device: of([sum(lengths)], window, device))
    assert rows_interact(model, ROWS, CPU)
