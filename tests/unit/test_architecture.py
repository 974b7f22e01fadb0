"""Configurations that describe no model are refused before anything of them is built."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab import weights
from ftlab.architecture import LIMITS, flaw, parameters
from ftlab.config import ModelConfig
from ftlab.errors import WeightsError

GOOD = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 300, "intermediate_size": 128}


def said(tmp_path: Path, config: Any, weights: int | None = None) -> str | None:
    file = tmp_path / "config.json"
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    return flaw(file, weights)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("", "cannot be read"),
        ('{"model_type"', "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[1, 2]", "holds no object"),
        ("null", "holds no object"),
        ({}, "without model_type"),
        ({**GOOD, "model_type": 7}, "without model_type"),
        ({**GOOD, "num_hidden_layers": 1_000_000}, "num_hidden_layers=1,000,000, but ftlab accepts at most 512"),
        ({**GOOD, "num_hidden_layers": "two"}, 'num_hidden_layers="two", which must be a whole number'),
        ({**GOOD, "num_hidden_layers": -2}, "num_hidden_layers=-2, which must be a whole number"),
        ({**GOOD, "hidden_size": 0}, "hidden_size=0, which must be a whole number of at least 1"),
        ({**GOOD, "num_hidden_layers": True}, "num_hidden_layers=true, which must"),
        ({**GOOD, "hidden_size": 64.5}, "hidden_size=64.5, which must"),
        ({**GOOD, "hidden_size": 10**9}, "hidden_size=1,000,000,000, but ftlab accepts at most 262,144"),
        ({**GOOD, "vocab_size": 10**12}, "vocab_size=1,000,000,000,000, but ftlab accepts at most"),
        ({**GOOD, "vocab_size": {}}, "vocab_size={}, which must"),
        ({**GOOD, "intermediate_size": [128, 10**10]}, "intermediate_size=10,000,000,000, but ftlab accepts at most"),
        ({"model_type": "x", "text_config": {"n_layer": 10**6}}, "n_layer=1,000,000, but ftlab accepts at most"),
        ({**GOOD, "num_hidden_layers": 500, "num_experts": 900}, "450,000 experts in all layers"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_configuration_of_no_model_is_refused_with_the_key(tmp_path: Path, config: Any, words: str) -> None:
    assert words in (said(tmp_path, config) or "")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    assert "10,000,001 bytes" in (said(tmp_path, "x" * 10_000_001) or "")


def test_weights_must_be_able_to_hold_what_is_described(tmp_path: Path) -> None:
    needed = parameters({"hidden size": 64, "layers": 2, "vocabulary": 300, "size of the MLP": 128})
    assert needed == 300 * 64 + 2 * 64 * (64 + 128)
    assert said(tmp_path, GOOD, weights=needed) is None
    assert said(tmp_path, GOOD, weights=None) is None
    assert "weight files of only 5,000 bytes" in (said(tmp_path, GOOD, weights=5_000) or "")


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "n_embd": 12_288, "n_layer": 96, "n_head": 96, "n_inner": None, "vocab_size": 50_257},
        {"model_type": "llama", "hidden_size": 16_384, "num_hidden_layers": 126, "intermediate_size": 53_248},
        {"model_type": "deepseek_v3", "num_hidden_layers": 61, "n_routed_experts": 256, "moe_intermediate_size": 2_048},
        {"model_type": "gemma3", "text_config": {"hidden_size": 5_376, "num_hidden_layers": 62, "vocab_size": 262_208}},
        {"auto_map": {"AutoConfig": "configuration_own.Own"}},
    ],
    ids=lambda config: str(config.get("model_type")),
)
def test_the_largest_published_models_are_far_within(tmp_path: Path, config: dict[str, Any]) -> None:
    assert said(tmp_path, config) is None
    for part in (config, config.get("text_config", {})):
        assert all(3 * part.get(key, 0) <= most for keys, most in LIMITS.values() for key in keys if part.get(key))


@pytest.fixture
def model(tmp_path: Path, base_folder: Path) -> Callable[..., ModelConfig]:
    """A copy of the base whose config.json has other values."""

    def changed(**values: Any) -> ModelConfig:
        folder = tmp_path / "model"
        shutil.copytree(base_folder, folder)
        config = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(config))
        return ModelConfig(name="m", id=str(folder))

    return changed


@pytest.mark.parametrize("what", ["weights", "tokenizer"])
def test_a_million_layers_are_refused_at_once(model: Callable[..., ModelConfig], what: weights.What) -> None:
    began = time.monotonic()
    with pytest.raises(WeightsError, match=r"model has a config.json with num_hidden_layers=1,000,000"):
        weights.find(model(num_hidden_layers=1_000_000), what=what)
    assert time.monotonic() - began < 5


def test_more_layers_than_the_weights_hold_are_refused(model: Callable[..., ModelConfig]) -> None:
    with pytest.raises(
        WeightsError, match=r"describes at least [\d,]+ parameters \(layers 512, .* of different models"
    ):
        weights.find(model(num_hidden_layers=512))
