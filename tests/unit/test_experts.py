"""Experts that are parameters of one module get adapters, through PEFT's `target_parameters`."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from ftlab.config import LoraConfig, ModelConfig, QuantConfig
from ftlab.errors import ConfigError, Stopped
from ftlab.models import add_adapter, check_adapter, find_targets, load_adapter, load_base, save_result, skeleton
from ftlab.weights import WeightsFolder

IDS = torch.arange(20).reshape(2, 10)
MakeKind = Callable[..., Path]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def base_of(folder: Path, quant: str = "none") -> Any:
    settings = QuantConfig(load_in_4bit=quant == "nf4")
    model = ModelConfig(name="x", id=str(folder), dtype="float32", attn_implementation="eager")
    return load_base(WeightsFolder(folder, "folder", None, ""), model, settings, device=torch.device("cpu"), full=False)


def bare(folder: Path) -> Any:
    return skeleton(WeightsFolder(folder, "folder", None, ""), False)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits  # type: ignore[no-any-return]


def trained(base: Any) -> Any:
    torch.manual_seed(0)
    model = add_adapter(base, LoraConfig(r=2))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    for _ in range(4):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters)
    return model


@pytest.mark.parametrize("quant", ["none", "nf4"])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_adapters_of_experts_are_trained_saved_loaded_and_merged(
    kind: str, quant: str, make_kind: MakeKind, tmp_path: Path
) -> None:
    folder = make_kind(kind)
    before = logits(base_of(folder, quant))
    model = trained(base_of(folder, quant))
    assert any(".experts." in name for name, p in model.named_parameters() if p.requires_grad)
    wanted = logits(model)
    assert (wanted - before).abs().max() > 1e-2
    save_result(model, tmp_path, "x")
    assert torch.equal(logits(load_adapter(base_of(folder, quant), tmp_path, trainable=False)), wanted)
    if quant == "none":
        plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        loaded = PeftModel.from_pretrained(plain, tmp_path)
        assert torch.allclose(logits(loaded), wanted, atol=1e-5)
        assert torch.allclose(logits(loaded.merge_and_unload()), wanted, atol=1e-5)


def test_an_interrupted_run_with_experts_ends_with_the_same_adapter(
    fit: Callable[..., Any], terminal: Any, make_kind: MakeKind, tmp_path: Path
) -> None:
    settings = [f"model.id={make_kind('mixtral')}", "model.dtype=float32", "trainer.save_every=1"]
    whole = fit(*settings, run_dir=tmp_path / "whole").folder / "adapter/adapter_model.safetensors"

    def stop(step: int, metrics: dict[str, float]) -> None:
        if terminal.phases[-1] == "train" and step == 3:
            os.kill(os.getpid(), 15)

    terminal.on_update = stop
    with pytest.raises(Stopped):
        fit(*settings, run_dir=tmp_path / "cut")
    terminal.on_update = lambda step, metrics: None
    resumed = fit(*settings, run_dir=tmp_path / "cut").folder / "adapter/adapter_model.safetensors"
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("targets", "modules", "parameters"),
    [
        ("all-linear", ["q_proj", "k_proj", "v_proj", "o_proj"], EXPERTS),
        ("mlp", [], EXPERTS),
        ("attention", ["q_proj", "k_proj", "v_proj", "o_proj"], []),
        (["q_proj", "experts.down_proj"], ["q_proj"], ["experts.down_proj"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_sets_and_lists_name_experts(
    kind: str, targets: Any, modules: list[str], parameters: list[str], make_kind: MakeKind
) -> None:
    found = find_targets(bare(make_kind(kind)), targets)
    assert (found.modules, found.parameters, found.notes) == (modules, parameters, [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"lora_dropout": 0.1},
            r"lora\.lora_dropout=0\.1: experts \(.*\) support plain LoRA only: set lora\.lora_d",
        ),
        ({"use_dora": True}, r"lora\.use_dora=True: experts .*: set lora\.use_dora=False,"),
        ({"init_lora_weights": "pissa"}, r"lora\.init_lora_weights=pissa: experts"),
    ],
    ids=str,
)
def test_what_experts_do_not_take_is_refused_before_weights_load(
    change: dict[str, Any], said: str, make_kind: MakeKind
) -> None:
    lora = replace(LoraConfig(r=2), **change)
    with pytest.raises(ConfigError, match=said) as caught:
        check_adapter(bare(make_kind("mixtral")), lora)
    assert caught.match(r"or leave the experts out with lora\.target_modules=attention")
    check_adapter(bare(make_kind("mixtral")), replace(lora, target_modules="attention"))


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("jamba", "dt_proj", "JambaMambaMixer uses the weights without calling the layer"),
        ("qwen3_next", "gate_proj", "PEFT mistakes them for experts"),
    ],
)
def test_a_list_may_not_name_a_layer_that_cannot_have_an_adapter(
    kind: str, name: str, reason: str, make_kind: MakeKind
) -> None:
    with pytest.raises(ConfigError, match=rf"lora\.target_modules={name} cannot have an adapter: {reason}"):
        find_targets(bare(make_kind(kind)), [name])


def test_layers_that_are_not_called_are_not_quantised(make_kind: MakeKind) -> None:
    """Mamba multiplies with the weights of these itself."""
    model = base_of(make_kind("mamba"), "nf4")
    mixer = model.backbone.layers[0].mixer
    assert mixer.in_proj.weight.dtype == torch.uint8
    assert {layer.weight.dtype for layer in (mixer.x_proj, mixer.dt_proj, mixer.out_proj)} == {torch.float32}
    assert logits(model).isfinite().all()
