"""Weight files and config.json of different models: refused by the names of the tensors, however they are loaded."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel

from ftlab.config import ModelConfig, QuantConfig
from ftlab.errors import WeightsError
from ftlab.models import check_forward, load_base, skeleton
from ftlab.weights import WeightsFolder

QUANTS = {
    "none": QuantConfig(),
    "nf4": QuantConfig(load_in_4bit=True),
    "int8": QuantConfig(load_in_8bit=True),
}


def located(folder: Path) -> WeightsFolder:
    return WeightsFolder(folder, "folder", None, "")


def load(folder: Path, quant: str = "none") -> Any:
    model = ModelConfig(name="x", id="some/model", dtype="float32")
    return load_base(located(folder), model, QUANTS[quant], device=torch.device("cpu"), full=False)


def copy_of(folder: Path, target: Path, **config: Any) -> Path:
    """A copy of a model's folder whose config.json says something else."""
    shutil.copytree(folder, target)
    file = target / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return target


def with_tensors(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a model's folder with other tensors in its weight file."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_hidden_layers": 3}, r"9 missing, which would be random \(model\.layers\.2\.input_layernorm\.weight, "),
        ({"num_hidden_layers": 1}, r"9 without a place in the model, .*\(model\.layers\.1\.input_layernorm\.weight, "),
        (
            {"intermediate_size": 96},
            r"6 of another shape, .*\(model\.layers\.0\.mlp\.down_proj\.weight \[64, 128\] instead of \[64, 96\], ",
        ),
        ({"tie_word_embeddings": False}, r"1 missing, which would be random \(lm_head\.weight\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_tensors_than_described_are_refused_by_name(
    quant: str, config: dict[str, Any], said: str, base_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=r"model\.id=some/model: .*restore the config\.json") as caught:
        load(copy_of(base_folder, tmp_path / "base", **config), quant)
    assert caught.match(said)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("kind", "config"), [("qwen2", {"model_type": "llama"}), ("gemma", {"model_type": "llama"})], ids=["qwen2", "gemma"]
)
def test_another_model_type_is_refused_before_weights_are_read(
    kind: str, config: dict[str, Any], make_kind: Callable[..., Path], tmp_path: Path
) -> None:
    """Gemma's tensors have the names and shapes of Llama's, and are computed with otherwise."""
    folder = copy_of(make_kind(kind), tmp_path / "base", **config)
    with pytest.raises(WeightsError, match=r"model_type=llama, but its weights were written by .*ForCausalLM"):
        skeleton(located(folder), False)


def test_one_tensor_too_few_or_too_many_is_refused(base_folder: Path, tmp_path: Path) -> None:
    few = with_tensors(base_folder, tmp_path / "few", lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(WeightsError, match=r"1 missing, which would be random \(model\.norm\.weight\)"):
        load(few)
    many = with_tensors(
        base_folder, tmp_path / "many", lambda tensors: tensors.update({"v_head.weight": torch.ones(3)})
    )
    with pytest.raises(
        WeightsError, match=r"1 without a place in the model, which would be left out \(v_head\.weight\)"
    ):
        load(many)


def test_experts_that_others_of_their_layer_have_are_missed_by_name(
    make_kind: Callable[..., Path], tmp_path: Path
) -> None:
    name = "model.layers.0.block_sparse_moe.experts.2.w1.weight"
    folder = with_tensors(make_kind("mixtral"), tmp_path / "base", lambda tensors: tensors.pop(name))
    with pytest.raises(WeightsError, match=f"weight files lack {re.escape(name)}: copy or download") as caught:
        load(folder)
    assert "above report" not in str(caught.value)


def test_weights_that_predict_nan_are_refused_before_they_train(base_folder: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][:] = torch.nan

    model = load(with_tensors(base_folder, tmp_path / "base", spoil))
    with pytest.raises(WeightsError, match=r"model\.id=some/model: LlamaForCausalLM predicts NaN: "):
        check_forward(model, "some/model", QUANTS["none"])


@pytest.mark.parametrize("decoder", [True, False])
def test_a_model_whose_tokens_see_later_ones_is_refused(decoder: bool) -> None:
    """BERT's weights load as those of a decoder, without a word."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = BertConfig(vocab_size=64, initializer_range=0.2, is_decoder=decoder, **shape)
    model = BertLMHeadModel(config).eval()
    if decoder:
        check_forward(model, "some/model", QUANTS["none"])
        return
    with pytest.raises(WeightsError, match=r"BertLMHeadModel attend to later ones, .* set is_decoder=true"):
        check_forward(model, "some/model", QUANTS["none"])
    assert not model.training


def test_what_newer_architectures_compute_themselves_may_be_stored(base_folder: Path, tmp_path: Path) -> None:
    older = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.layers.1.attn.masked_bias": torch.ones(()),
        "model.layers.1.attn.attention.bias": torch.ones(1, 1, 4, 4),
    }
    load(with_tensors(base_folder, tmp_path / "base", lambda tensors: tensors.update(older)))


@pytest.mark.parametrize("change", [{"hidden_size": "wide"}, {"model_type": "nonsense"}, {"pad_token_id": 999}])
def test_a_config_that_describes_nothing_is_one_message(
    change: dict[str, Any], base_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=r"config\.json describes no usable decoder "):
        skeleton(located(copy_of(base_folder, tmp_path / "base", **change)), False)


@pytest.mark.parametrize("stored", ["nf4", "int8"])
def test_weights_that_are_stored_quantised_load_without_a_warning(
    stored: str, base_folder: Path, tmp_path: Path
) -> None:
    load(base_folder, stored).save_pretrained(tmp_path)
    for quant in QUANTS:
        assert load(tmp_path, quant).model.layers[0].mlp.up_proj.weight.dtype in (torch.uint8, torch.int8)
