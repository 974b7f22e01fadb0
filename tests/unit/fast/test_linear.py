"""A stacked linear layer with its adapters: PEFT's output and gradients, merging, and adapters that are not known."""

from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model

from ftlab.fast.flat import Flat
from ftlab.fast.frozen import Scratch, Unrecognised
from ftlab.fast.linear import LinearGroup
from ftlab.fast.streams import SideStream

CPU = torch.device("cpu")
NAMES = ("q_proj", "k_proj", "v_proj")


def attention(kit: Any, targets: list[str], **lora: Any) -> Any:
    model = kit.adapt(kit.make("llama, tied, biases"), targets, **lora)
    return model.base_model.model.model.layers[0].self_attn


def group_of(part: Any) -> LinearGroup:
    return LinearGroup([getattr(part, name) for name in NAMES], torch.float32, Scratch(CPU))


def attached(group: LinearGroup) -> Flat:
    flat = Flat(group.parameters())
    group.attach(flat, flat.parameter.detach(), flat.gradient)
    return flat


@pytest.mark.parametrize("targets", [["q_proj", "k_proj", "v_proj"], ["q_proj", "v_proj"], ["k_proj"]])
def test_output_and_gradients_are_those_of_pefts_layers(kit: Any, targets: list[str]) -> None:
    part = attention(kit, targets)
    x, dy = torch.randn(7, 32, requires_grad=True), torch.randn(7, 64)
    expected = torch.cat([getattr(part, name)(x) for name in NAMES], dim=1)
    expected.backward(dy)
    gradients = {name: p.grad.clone() for name, p in part.named_parameters() if p.grad is not None}
    group = group_of(part)
    attached(group)
    with torch.no_grad():
        y, h = group.forward(x, x)
        dx = group.backward(dy, x, h, None, SideStream(CPU))
    torch.testing.assert_close(y, expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dx, x.grad, rtol=1e-5, atol=1e-5)
    assert len(gradients) == 2 * len(targets)
    for name, parameter in part.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-5)


def test_a_gradient_at_the_input_is_computed_only_where_wanted(kit: Any) -> None:
    group = group_of(attention(kit, list(NAMES)))
    flat = attached(group)
    x, dy = torch.randn(7, 32), torch.randn(7, 64)
    with torch.no_grad():
        _, h = group.forward(x, x)
        assert group.backward(dy, x, h, None, SideStream(CPU), wanted=False) is None
    assert flat.gradient.any()


def test_what_lay_in_the_gradient_before_has_no_effect(kit: Any) -> None:
    group = group_of(attention(kit, list(NAMES)))
    flat = attached(group)
    x, dy = torch.randn(7, 32), torch.randn(7, 64)
    with torch.no_grad():
        _, h = group.forward(x, x)
        group.backward(dy, x, h, None, SideStream(CPU))
        first = flat.gradient.clone()
        flat.gradient.fill_(torch.nan)
        group.backward(dy, x, h, None, SideStream(CPU))
    for one in group.adapters:
        for parameter in (one.a, one.b):
            assert torch.equal(flat.view(flat.gradient, parameter), flat.view(first, parameter))


def test_merged_it_is_one_dense_layer(kit: Any) -> None:
    part = attention(kit, ["q_proj", "v_proj"])
    group = group_of(part)
    x = torch.randn(7, 32)
    with torch.no_grad():
        expected = torch.cat([getattr(part, name)(x) for name in NAMES], dim=1)
        with group.merged():
            y, h = group.forward(x, x)
    assert h is None
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert group.forward(x, x)[1] is not None


def test_merging_takes_the_stated_memory(kit: Any) -> None:
    with_adapter, without = group_of(attention(kit, ["q_proj"])), group_of(attention(kit, ["o_proj"]))
    assert with_adapter.merged_bytes() == 64 * 32 * 4
    assert without.merged_bytes() == 0
    with without.merged():
        assert without._merged is not None
        assert without._merged.data_ptr() == without.frozen.dense().data_ptr()


def test_an_error_inside_leaves_nothing_merged(kit: Any) -> None:
    group = group_of(attention(kit, ["q_proj"]))
    with pytest.raises(RuntimeError), group.merged():
        raise RuntimeError
    assert group._merged is None


# --- adapters that are not plain LoRA ------------------------------------------------------------------------------


def test_dora_is_named(kit: Any) -> None:
    with pytest.raises(Unrecognised, match="DoRA"):
        group_of(attention(kit, ["q_proj"], use_dora=True))


def test_a_bias_of_the_adapters_own_is_named(kit: Any) -> None:
    with pytest.raises(Unrecognised, match="bias of its own"):
        group_of(attention(kit, ["q_proj"], lora_bias=True))


def test_another_kind_of_adapter_is_named(kit: Any) -> None:
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj"], feedforward_modules=[])
    model = get_peft_model(kit.make(), config)
    with pytest.raises(Unrecognised, match="an adapter of kind Linear"):
        group_of(model.base_model.model.model.layers[0].self_attn)


def test_different_scales_in_one_group_are_named(kit: Any) -> None:
    with pytest.raises(Unrecognised, match="different dropout or scale"):
        group_of(attention(kit, ["q_proj", "v_proj"], rank_pattern={"v_proj": 3}))


def test_two_active_adapters_are_too_many(kit: Any) -> None:
    model = kit.adapt(kit.make(), ["q_proj"])
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(Unrecognised, match="an adapter of kind"):
        group_of(model.base_model.model.model.layers[0].self_attn)


def test_merged_and_switched_off_adapters_are_named(kit: Any) -> None:
    model = kit.adapt(kit.make(), ["q_proj"])
    part = model.base_model.model.model.layers[0].self_attn
    with model.disable_adapter(), pytest.raises(Unrecognised, match="switched off"):
        group_of(part)
    assert group_of(part).adapters
    model.merge_adapter()
    with pytest.raises(Unrecognised, match="already merged"):
        group_of(part)
