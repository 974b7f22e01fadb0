"""Quantised weights: the fast step beside PEFT's own forward on the same bitsandbytes layers."""

from types import SimpleNamespace
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from ftlab.fast.decoder import Decoder
from ftlab.fast.frozen import Packed, Unrecognised, free_bytes

BOUND = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def four_bit(layer: nn.Linear, kind: str, nested: bool, dtype: torch.dtype) -> nn.Module:
    has_bias = layer.bias is not None
    made = bnb.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=has_bias, compute_dtype=dtype, quant_type=kind,
        compress_statistics=nested,
    )  # fmt: skip
    made.load_state_dict(layer.state_dict())
    made.support_avx512bf16_for_cpu = False  # as models.load_base does: repacked weights have no gradient
    return made.to("cpu").requires_grad_(False)


def eight_bit(layer: nn.Linear, threshold: float) -> nn.Module:
    made = bnb.nn.Linear8bitLt(
        layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False, threshold=threshold
    )
    made.load_state_dict(layer.state_dict())
    return made.to("cpu").requires_grad_(False)


def quantised(base: Any, made: Any, flag: str) -> Any:
    """The model with every linear layer but the last replaced."""
    for name, module in list(base.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            base.set_submodule(name, made(module))
    setattr(base, flag, True)
    return base


def in_4_bit(base: Any, kind: str = "nf4", nested: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    return quantised(base, lambda layer: four_bit(layer, kind, nested, dtype), "is_loaded_in_4bit")


def in_8_bit(base: Any, threshold: float = 0.0) -> Any:
    return quantised(base, lambda layer: eight_bit(layer, threshold), "is_loaded_in_8bit")


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("family", ["llama", "llama, tied, biases"])
def test_4_bit_gradients_are_autograds(kit: Any, kind: str, nested: bool, family: str) -> None:
    model, rows = kit.adapt(in_4_bit(kit.make(family), kind, nested)), kit.rows()
    assert type(model.base_model.model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    expected = kit.plain(model, rows)
    assert kit.fast(model, kit.step(model), rows).error(expected) <= BOUND[torch.float32]


def test_4_bit_products_in_bfloat16(kit: Any) -> None:
    model, rows = kit.adapt(in_4_bit(kit.make(), dtype=torch.bfloat16), r=4, lora_alpha=1), kit.rows()
    expected = kit.plain(model, rows)
    assert abs(float(kit.fast(model, kit.step(model), rows).loss / expected.loss) - 1) <= BOUND[torch.bfloat16]


def test_dequantized_weights_kept_in_memory_give_the_same_bits(kit: Any) -> None:
    model, rows = kit.adapt(in_4_bit(kit.make("llama, tied, biases"))), kit.rows()
    step = kit.step(model)
    each = kit.fast(model, step, rows)
    groups = step.decoder.packed()
    assert len(groups) == 4 * len(step.decoder.layers)
    for group in groups:
        group.keep_dequantized()
    assert kit.fast(model, step, rows).same(each)
    for group in groups:
        group.release()
    assert all(group.dequantized is None for group in groups)
    assert kit.fast(model, step, rows).same(each)


def test_keeping_dequantized_weights_takes_the_stated_memory(kit: Any) -> None:
    for group in Decoder(in_4_bit(kit.make())).packed():
        said = group.dequantized_bytes
        group.keep_dequantized()
        assert group.dequantized is not None
        assert said == group.dequantized.nbytes


def test_8_bit_gradients_are_those_of_pefts_own_forward(kit: Any) -> None:
    model, rows = kit.adapt(in_8_bit(kit.make("llama, tied, biases")), r=4, lora_alpha=2), kit.rows()
    assert type(model.base_model.model.model.layers[0].mlp.up_proj).__name__ == "Linear8bitLt"
    expected = kit.plain(model, rows, together=True)
    found = kit.fast(model, kit.step(model), rows)
    assert abs(float(found.loss / expected.loss) - 1) <= 2e-2
    assert found.error(expected) <= 0.2  # an activation rounded to its neighbour is one part of 127


def test_8_bit_cannot_be_captured_unless_merged_and_the_rest_can(kit: Any) -> None:
    decoder = Decoder(in_8_bit(kit.make()))
    assert not decoder.capturable
    with decoder.merged():
        assert decoder.capturable
    assert not decoder.capturable
    assert Decoder(in_4_bit(kit.make())).capturable


@pytest.mark.parametrize("quantise", [in_4_bit, in_8_bit])
def test_biases_are_in_the_merged_weights_product_too(kit: Any, quantise: Any) -> None:
    base = kit.make("llama, tied, biases")
    for name, parameter in base.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 1)
    decoder = Decoder(kit.adapt(quantise(base)))
    x = torch.randn(5, 32)
    for group in (decoder.layers[0].qkv, decoder.layers[1].gate_up):
        with torch.no_grad():
            apart, _ = group.forward(x, x)
            with group.merged():
                together, _ = group.forward(x, x)
        assert (together - apart).norm() <= 0.03 * apart.norm()


def test_different_kinds_of_layers_in_one_group_are_not_recognised(kit: Any) -> None:
    base = kit.make()
    base.model.layers[1].self_attn.k_proj = four_bit(base.model.layers[1].self_attn.k_proj, "nf4", True, torch.float32)
    with pytest.raises(Unrecognised, match="Linear and Linear4bit in one group"):
        Decoder(base)


def test_the_output_layer_may_be_packed(kit: Any) -> None:
    base = in_4_bit(kit.make())
    base.lm_head = four_bit(base.lm_head, "nf4", True, torch.float32)
    model, rows = kit.adapt(base, [*kit.linears, "lm_head"]), kit.rows()
    expected = kit.plain(model, rows)
    step = kit.step(model)
    assert isinstance(step.decoder.head.frozen, Packed)
    assert kit.fast(model, step, rows).error(expected) <= BOUND[torch.float32]


def test_stacked_weights_are_still_the_modules_own(kit: Any) -> None:
    """Stacking copies nothing that stays, changes no number, and is done once."""
    base = kit.make()
    before = {name: parameter.clone() for name, parameter in base.named_parameters()}
    first = Decoder(base)
    attention = base.model.layers[0].self_attn
    stack = first.layers[0].qkv.frozen.dense()
    assert stack.data_ptr() == attention.q_proj.weight.data_ptr()
    assert all(torch.equal(parameter, before[name]) for name, parameter in base.named_parameters())
    with torch.no_grad():
        attention.v_proj.weight[-1, -1] = 7.0
    assert stack[-1, -1] == 7.0
    assert Decoder(base).layers[0].qkv.frozen.dense().data_ptr() == stack.data_ptr()


def test_a_stack_is_made_anew_where_a_weight_moved(kit: Any) -> None:
    base = kit.make()
    Decoder(base)
    attention = base.model.layers[0].self_attn
    attention.k_proj.weight.data = torch.randn_like(attention.k_proj.weight)
    wanted = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert torch.equal(Decoder(base).layers[0].qkv.frozen.dense(), wanted)
    assert torch.equal(attention.k_proj.weight, wanted[32:48])


@pytest.mark.parametrize(("fraction", "free"), [(1.0, 60.0 + 5.0), (0.5, 50.0 - 20.0 + 5.0)])
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_what_is_free_is_within_what_torch_may_hold(
    device: str, fraction: float, free: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 of 100 bytes are the driver's, torch has 20 and uses 15 of them; the fraction wants a device by its number."""

    def fraction_of(number: int) -> float:
        assert number == 0
        return fraction

    for name, value in (
        ("mem_get_info", lambda device: (60, 100)),
        ("memory_reserved", lambda device: 20),
        ("memory_allocated", lambda device: 15),
        ("current_device", lambda: 0),
        ("get_per_process_memory_fraction", fraction_of),
        ("get_device_properties", lambda device: SimpleNamespace(total_memory=100)),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    assert free_bytes(torch.device(device)) == free
