"""Bases, quantisation and adapters: right names, right sizes, gradients, and files that others can read."""

import copy
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from ftlab import models
from ftlab.config import ExperimentConfig, LoraConfig, ModelConfig, QuantConfig
from ftlab.errors import ConfigError, WeightsError
from ftlab.generate import generate
from ftlab.models import (
    Bases,
    adapts_tied_weights,
    add_adapter,
    base_key,
    check_adapter,
    count,
    find_targets,
    leaves_base,
    load_adapter,
    load_base,
    load_result,
    load_tokenizer,
    planned_parameters,
    quantization_config,
    save_result,
    skeleton,
    switch_activation_checkpointing,
)
from ftlab.weights import WeightsFolder

CPU = torch.device("cpu")
QUANTS = {
    "none": QuantConfig(),
    "int8": QuantConfig(load_in_8bit=True),
    "nf4": QuantConfig(load_in_4bit=True),
    "fp4": QuantConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
}
IDS = torch.arange(20).reshape(2, 10)


def located(folder: Path) -> WeightsFolder:
    return WeightsFolder(folder, "folder", None, "")


def base_of(folder: Path, quant: str = "none", full: bool = False) -> Any:
    model = ModelConfig(name="x", id=str(folder), dtype="float32")
    return load_base(located(folder), model, QUANTS[quant], device=CPU, full=full)


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=64, n_layer=2, n_head=4, n_positions=128))


def train_a_little(model: torch.nn.Module, steps: int = 3) -> list[float]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits  # type: ignore[no-any-return]


# --- target modules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "llama", "gpt"),
    [
        (
            "all-linear",
            "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj",
            "c_attn c_proj c_fc",
        ),
        ("attention", "q_proj k_proj v_proj o_proj", "c_attn attn.c_proj"),
        ("mlp", "gate_proj up_proj down_proj", "mlp.c_proj c_fc"),
        ("qv", "q_proj v_proj", ""),
        (["lm_head", "q_proj"], "lm_head q_proj", None),
        (["c_fc"], None, "c_fc"),
        (["layers.0.self_attn.q_proj"], "layers.0.self_attn.q_proj", None),
    ],
)
def test_target_sets_mean_the_models_own_layers(
    targets: Any, llama: str | None, gpt: str | None, make_llama: Callable[..., Any]
) -> None:
    for model, names in ((make_llama(), llama), (gpt2(), gpt)):
        if names:
            assert find_targets(model, targets).modules == names.split()
        else:
            with pytest.raises(ConfigError, match=r"lora\.target_modules.*it has: "):
                find_targets(model, targets)


@pytest.mark.parametrize("targets", ["attention", "mlp"])
def test_a_set_adapts_only_its_own_layers(targets: str, make_llama: Callable[..., Any]) -> None:
    for model, own, other in ((make_llama(), "self_attn", "mlp"), (gpt2(), "attn", "mlp")):
        own, other = (own, other) if targets == "attention" else (other, own)
        adapted = add_adapter(model, LoraConfig(r=2, target_modules=targets))
        names = [name for name, p in adapted.named_parameters() if p.requires_grad]
        assert names
        assert [name for name in names if f".{own}." not in name or f".{other}." in name] == []


def test_a_partly_wrong_list_is_refused_with_the_models_names(make_llama: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        find_targets(make_llama(), ["q_proj", "v_prj", "dense"])
    first, second = str(caught.value).splitlines()
    assert "v_prj" in first
    assert "nearest: v_proj" in first
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head" in second
    assert "q_proj is no" not in str(caught.value)


def test_an_adapter_on_a_gpt2_of_conv1d_layers_trains(make_llama: Callable[..., Any]) -> None:
    model = add_adapter(gpt2().requires_grad_(False), LoraConfig(r=4))
    losses = train_a_little(model)
    assert losses[-1] < losses[0]


def test_modules_to_save_are_trained_whole(make_llama: Callable[..., Any]) -> None:
    model = add_adapter(make_llama(tie_word_embeddings=False), LoraConfig(r=2, modules_to_save=["lm_head"]))
    trained = [name for name, p in model.named_parameters() if p.requires_grad and "lora" not in name]
    assert len(trained) == 1
    assert "lm_head" in trained[0]
    with pytest.raises(ConfigError, match=r"lora\.modules_to_save=lm_haed.*nearest: lm_head"):
        add_adapter(make_llama(), LoraConfig(modules_to_save=["lm_haed"]))


def test_names_are_checked_on_an_architecture_without_weights(base_folder: Path) -> None:
    bare = skeleton(located(base_folder), False)
    assert next(bare.parameters()).is_meta
    check_adapter(bare, LoraConfig(r=0, target_modules=["nothing"]))
    with pytest.raises(ConfigError, match="nothing"):
        check_adapter(bare, LoraConfig(target_modules=["nothing"]))


def test_planned_parameters_are_those_of_the_loaded_model(base_folder: Path) -> None:
    for lora in (
        LoraConfig(r=4),
        LoraConfig(r=4, use_dora=True),
        LoraConfig(init_lora_weights="pissa"),
        LoraConfig(r=0),
    ):
        base = base_of(base_folder, full=lora.r == 0)
        model = add_adapter(base, lora) if lora.r else base
        assert planned_parameters(skeleton(located(base_folder), False), lora) == count(model)


def test_a_shared_output_layer_under_an_adapter_is_noticed(make_llama: Callable[..., Any]) -> None:
    for tied, targets, noticed in ((True, ["lm_head"], True), (False, ["lm_head"], False), (True, "qv", False)):
        base = make_llama(tie_word_embeddings=tied)
        model = add_adapter(base, LoraConfig(target_modules=targets))
        assert adapts_tied_weights(base, model) is noticed


# --- quantisation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("quant", QUANTS)
def test_it_loads_and_trains_after_an_evaluation(quant: str, base_folder: Path, byte_tokens: Any) -> None:
    base = base_of(base_folder, quant)
    torch.manual_seed(0)
    model = add_adapter(base, LoraConfig(r=4))
    first = generate(model, byte_tokens, [[5, 6, 7]], max_new_tokens=4, batch_size=1)
    losses = train_a_little(model, steps=8)
    assert losses[-1] < losses[0] - 0.05
    assert len(first) == 1


@pytest.mark.parametrize("quant", ["nf4", "fp4"])
def test_an_evaluation_leaves_the_gradients_as_they_were(quant: str, base_folder: Path, byte_tokens: Any) -> None:
    """On some CPUs bitsandbytes packs 4-bit weights anew in the first evaluation, without gradients."""

    def gradients(evaluate_first: bool) -> dict[str, torch.Tensor]:
        base = base_of(base_folder, quant)
        if evaluate_first:
            generate(base, byte_tokens, [[1, 2, 3]], max_new_tokens=3, batch_size=1)
            logits(base)
        torch.manual_seed(1)
        model = add_adapter(base, LoraConfig(r=4, init_lora_weights="gaussian")).train()
        model(input_ids=IDS, labels=IDS).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}

    fresh, after = gradients(False), gradients(True)
    assert fresh.keys() == after.keys()
    first = [name for name in fresh if "layers.0" in name and "lora_B" in name]
    assert first
    assert all(fresh[name].abs().max() > 0 for name in first)
    assert all(torch.equal(fresh[name], after[name]) for name in fresh)


def test_quantised_weights_are_smaller_and_counted_in_full(base_folder: Path) -> None:
    plain, packed = base_of(base_folder), base_of(base_folder, "nf4")
    assert count(packed)[1] == count(plain)[1]
    size = {id(m): sum(p.numel() * p.element_size() for p in m.parameters()) for m in (plain, packed)}
    assert size[id(packed)] < size[id(plain)] * 0.6


def test_quantisation_settings_are_mapped_by_name() -> None:
    assert quantization_config(QUANTS["none"]) is None
    made = quantization_config(replace(QUANTS["fp4"], bnb_4bit_compute_dtype="float16"))
    assert made
    assert (made.bnb_4bit_quant_type, made.bnb_4bit_compute_dtype) == ("fp4", torch.float16)
    assert made.bnb_4bit_use_double_quant is True


def test_a_frozen_base_keeps_its_dtype_and_a_full_one_is_float32(base_folder: Path) -> None:
    model = ModelConfig(name="x", id=str(base_folder), dtype="bfloat16")
    frozen = load_base(located(base_folder), model, QuantConfig(), device=CPU, full=False)
    full = load_base(located(base_folder), model, QuantConfig(), device=CPU, full=True)
    assert {p.dtype for p in frozen.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in full.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in full.parameters())


# --- adapters and their files -----------------------------------------------------------------------------

ADAPTERS = {
    "lora": LoraConfig(r=4),
    "rslora": LoraConfig(r=4, use_rslora=True),
    "dora": LoraConfig(r=4, use_dora=True),
    "pissa": LoraConfig(r=4, lora_alpha=4, init_lora_weights="pissa"),
    "pissa_fast": LoraConfig(r=4, lora_alpha=4, init_lora_weights="pissa_niter_4"),
    "head_saved": LoraConfig(r=4, modules_to_save=["lm_head"]),
    "head_adapted": LoraConfig(r=4, target_modules=["lm_head", "q_proj"]),
    "bias": LoraConfig(r=4, bias="lora_only"),
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_saved_adapter_is_a_plain_peft_adapter(
    kind: str, tied: bool, make_base: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_base(tie_word_embeddings=tied)
    torch.manual_seed(0)
    model = add_adapter(base_of(folder), ADAPTERS[kind])
    before = logits(base_of(folder))
    assert (logits(model) - before).abs().max() < 1e-3  # training starts at the base
    train_a_little(model)
    wanted = logits(model)
    assert (wanted - before).abs().max() > 1e-2
    save_result(model, tmp_path / "adapter", "org/base")
    assert torch.equal(logits(model), wanted)  # saving changes nothing
    assert not list(tmp_path.rglob("*.bin"))
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    assert torch.allclose(logits(plain), wanted, atol=2e-4)
    ours = load_adapter(base_of(folder), tmp_path / "adapter", trainable=False)
    assert torch.allclose(logits(ours), wanted, atol=2e-4)
    assert not any(p.requires_grad for p in ours.parameters())


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_of_a_result_have_the_mode_of_the_umask(umask: int, base_folder: Path, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        save_result(add_adapter(base_of(base_folder), ADAPTERS["lora"]), tmp_path / "adapter", "x")
        save_result(base_of(base_folder, full=True), tmp_path / "model", "x")
    finally:
        os.umask(before)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.name for file in files} >= {"adapter_model.safetensors", "model.safetensors"}
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~umask}


def test_only_the_trained_adapter_is_saved(base_folder: Path, tmp_path: Path) -> None:
    model = add_adapter(base_of(base_folder), ADAPTERS["lora"])
    model.add_adapter("another", model.peft_config["default"])
    save_result(model, tmp_path, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.fixture
def saved(base_folder: Path, tmp_path: Path) -> Path:
    """A trained adapter of rank 4."""
    torch.manual_seed(0)
    model = add_adapter(base_of(base_folder), ADAPTERS["lora"])
    train_a_little(model)
    save_result(model, tmp_path / "run" / "adapter", "x")
    return tmp_path / "run"


@pytest.mark.parametrize(
    "shape",
    [{"hidden_size": 32}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"intermediate_size": 96}],
    ids=str,
)
def test_an_adapter_of_another_base_is_refused(
    shape: dict[str, int], saved: Path, make_base: Callable[..., Path]
) -> None:
    with pytest.raises(WeightsError, match="another base"):
        load_adapter(base_of(make_base(**shape)), saved / "adapter", trainable=False)


def test_init_from_goes_on_from_the_adapter(saved: Path, base_folder: Path) -> None:
    before = logits(load_adapter(base_of(base_folder), saved / "adapter", trainable=False))
    for folder in (saved, saved / "adapter"):
        lora = replace(ADAPTERS["lora"], init_from=str(folder), lora_dropout=0.5)
        check_adapter(skeleton(located(base_folder), False), lora)
        model = add_adapter(base_of(base_folder), lora)
        assert torch.equal(logits(model), before)
        assert count(model)[0] > 0
        assert model.peft_config["default"].lora_dropout == 0.5
        losses = train_a_little(model.eval())
        assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"r": 8}, r"lora\.r=8 must be 4"),
        ({"lora_alpha": 4}, r"lora\.lora_alpha=4 must be 32"),
        ({"target_modules": "qv"}, r"lora\.target_modules"),
        ({"use_dora": True}, r"lora\.use_dora=True must be False"),
        ({"modules_to_save": ["lm_head"]}, r"lora\.modules_to_save"),
    ],
    ids=str,
)
def test_init_from_an_adapter_of_another_kind_is_refused(
    change: dict[str, Any], said: str, saved: Path, base_folder: Path
) -> None:
    lora = replace(ADAPTERS["lora"], init_from=str(saved), **change)
    with pytest.raises(ConfigError, match=said):
        check_adapter(skeleton(located(base_folder), False), lora)


def test_init_from_a_folder_without_an_adapter_is_refused(tmp_path: Path, base_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora\.init_from=.*adapter_config\.json"):
        add_adapter(base_of(base_folder), LoraConfig(init_from=str(tmp_path)))


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_adapter_file_is_one_message(damage: str, saved: Path, base_folder: Path) -> None:
    file = saved / "adapter" / "adapter_model.safetensors"
    data = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(data[:100])
    with pytest.raises(WeightsError, match="adapter"):
        load_adapter(base_of(base_folder), saved / "adapter", trainable=False)


def test_a_pickled_adapter_is_not_read(saved: Path, base_folder: Path) -> None:
    adapter = saved / "adapter"
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(WeightsError):
        load_adapter(base_of(base_folder), adapter, trainable=False)


# --- tokenizer and bases that cannot be used --------------------------------------------------------------


def test_a_tokenizer_without_a_pad_token_gets_one(byte_tokens: Any, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(byte_tokens)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(located(tmp_path), False)
    assert loaded.pad_token_id == loaded.eos_token_id


def test_a_tokenizer_that_cannot_end_is_refused(byte_tokens: Any, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(byte_tokens)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="eos_token"):
        load_tokenizer(located(tmp_path), False)


def test_a_folder_without_a_tokenizer_is_one_message(base_folder: Path, tmp_path: Path) -> None:
    shutil.copy(base_folder / "config.json", tmp_path)
    with pytest.raises(WeightsError, match="its tokenizer files"):
        load_tokenizer(located(tmp_path), False)


@pytest.mark.parametrize("damage", ["config", "weights"])
def test_a_broken_base_is_one_message(damage: str, base_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(base_folder, folder)
    if damage == "config":
        (folder / "config.json").write_text("{")
    else:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"model\.id=|config\.json"):
        base_of(folder)


def test_code_in_a_model_folder_is_not_run(base_folder: Path, tmp_path: Path) -> None:
    import json

    folder = tmp_path / "base"
    shutil.copytree(base_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(WeightsError):
        base_of(folder)
    assert not (tmp_path / "ran").exists()


# --- results ----------------------------------------------------------------------------------------------


def test_a_run_without_a_result_says_how_to_get_one(finished: Path, tmp_path: Path, small: list[str]) -> None:
    from ftlab import compose

    cfg: ExperimentConfig = compose([*small, f"run_dir={tmp_path}"])
    with pytest.raises(WeightsError, match="has not finished"):
        load_result(tmp_path, cfg, CPU)


def test_a_whole_model_is_saved_and_loads(base_folder: Path, tmp_path: Path) -> None:
    model = base_of(base_folder, full=True)
    train_a_little(model)
    models.save_result(model, tmp_path, "x")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))


# --- a base kept for the next experiment --------------------------------------------------------------------


def bits(model: Any) -> dict[str, Any]:
    return {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}


def hooks(model: Any) -> dict[str, list[int]]:
    return {name: [*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks] for name, m in model.named_modules()}


@pytest.mark.parametrize("quant", ["none", "nf4"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_base_comes_back_as_it_was_loaded(quant: str, checkpointing: bool, base_folder: Path) -> None:
    bases = Bases()
    base = base_of(base_folder, quant)
    if checkpointing:
        switch_activation_checkpointing(base, True)
    before, names, hooked = bits(base), [name for name, _ in base.named_modules()], hooks(base)
    model = add_adapter(bases.checkout("a", lambda: base), LoraConfig(r=4, use_dora=True))
    train_a_little(model, steps=3)
    assert bases.checkin(model)
    again = bases.checkout("a", lambda: pytest.fail("loaded again"))
    assert again is base
    after = bits(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name][0], after[name][0]) for name in before)
    assert [flag for _, flag in after.values()] == [flag for _, flag in before.values()]
    assert [name for name, _ in again.named_modules()] == names
    assert hooks(again) == hooked
    assert not again.training


@pytest.mark.parametrize("change", ["bit", "flag", "hook"])
def test_a_base_that_was_touched_is_dropped(change: str, base_folder: Path) -> None:
    bases = Bases()
    model = add_adapter(bases.checkout("a", lambda: base_of(base_folder)), LoraConfig(r=4))
    weight = model.base_model.model.model.norm.weight
    if change == "bit":
        weight.data.view(torch.uint8)[-1] ^= 1
    elif change == "flag":
        weight.requires_grad_(True)
    else:
        model.base_model.model.model.norm.register_forward_hook(lambda *arguments: None)
    assert not bases.checkin(model)
    loaded = base_of(base_folder)
    assert bases.checkout("a", lambda: loaded) is loaded


def test_a_base_serves_only_its_own_kind(base_folder: Path) -> None:
    bases = Bases()
    first, other = base_of(base_folder), base_of(base_folder, "nf4")
    bases.checkin(bases.checkout("a", lambda: first))
    assert bases.checkout("b", lambda: other) is other
    where = located(base_folder)
    model, quant = ModelConfig(name="x", id=str(base_folder)), QuantConfig()
    keys = {
        base_key(where, model, quant, False),
        base_key(where, model, quant, True),
        base_key(where, ModelConfig(name="x", id=str(base_folder), dtype="float32"), quant, False),
        base_key(where, model, QuantConfig(load_in_4bit=True), False),
    }
    assert len(keys) == 4
    assert base_key(where, ModelConfig(name="y", id=str(base_folder)), quant, False) in keys


def test_a_lent_base_that_does_not_come_back_is_loaded_again(base_folder: Path) -> None:
    bases, loads = Bases(), [base_of(base_folder), base_of(base_folder)]
    assert bases.checkout("a", loads.pop) is not bases.checkout("a", loads.pop)


@pytest.mark.parametrize(
    ("lora", "leaves"),
    [
        (LoraConfig(r=4), True),
        (LoraConfig(r=4, use_dora=True), True),
        (LoraConfig(r=0), False),
        (LoraConfig(init_lora_weights="pissa_niter_4"), False),
        (LoraConfig(bias="all"), False),
        (LoraConfig(modules_to_save=["lm_head"]), False),
    ],
)
def test_which_adapters_leave_the_base_alone(lora: LoraConfig, leaves: bool) -> None:
    assert leaves_base(lora) is leaves
