"""Model and adapter folders of others that hold something else than they should: one message that names the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab import models, weights
from ftlab.config import LoraConfig, ModelConfig, QuantConfig
from ftlab.errors import FtlabError, InputError, WeightsError

JUNK = {"empty": "", "cut": '{"a":', "list": "[1, 2]", "null": "null", "number": "7", "other": '{"a": {"b": [null]}}'}
SMALL_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json")

Copy = Callable[..., Path]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """A copy of a folder in which some files hold other text, or JSON objects other values."""

    def copied(folder: Path, **files: str | dict[str, Any]) -> Path:
        target = tmp_path / "copy"
        shutil.copytree(folder, target)
        for name, content in files.items():
            file = target / name
            if isinstance(content, dict):
                content = json.dumps(json.loads(file.read_text()) | content)
            file.write_text(content)
        return target

    return copied


def skeleton_of(folder: Path) -> Any:
    found = weights.find(ModelConfig(name="m", id=str(folder)), what="tokenizer")
    models.load_tokenizer(found, False)
    return models.skeleton(found, False)


@pytest.mark.parametrize("junk", [name for name in JUNK if name != "other"])
@pytest.mark.parametrize("file", SMALL_FILES)
def test_a_small_file_that_is_no_object_is_named(file: str, junk: str, copy: Copy, base_folder: Path) -> None:
    with pytest.raises(WeightsError, match=rf"copy has a {file} that (cannot be read|holds no object)"):
        skeleton_of(copy(base_folder, **{file: JUNK[junk]}))


@pytest.mark.parametrize("junk", JUNK)
def test_a_tokenizer_that_is_none_is_refused(junk: str, copy: Copy, base_folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"its tokenizer files, or the config\.json that names their class"):
        skeleton_of(copy(base_folder, **{"tokenizer.json": JUNK[junk]}))


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "nonsense"},
        {"model_type": "t5"},
        {"rope_parameters": {"rope_type": "nope", "rope_theta": 1.0}},
        {"rope_parameters": 7},
        {"hidden_act": "nope"},
        {"num_attention_heads": 7},
        {"num_attention_heads": 0},
        {"quantization_config": 5},
        {"rms_norm_eps": "a"},
        {"layer_types": ["nope", "nope"]},
        {"dtype": "int3"},
    ],
    ids=str,
)
def test_an_architecture_that_nobody_knows_is_refused(values: dict[str, Any], copy: Copy, base_folder: Path) -> None:
    with pytest.raises(WeightsError) as error:
        skeleton_of(copy(base_folder, **{"config.json": values}))
    assert "config.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("junk", JUNK)
def test_an_adapter_without_its_settings_is_refused(junk: str, copy: Copy, finished: Path, base_folder: Path) -> None:
    adapter = copy(finished / "adapter", **{"adapter_config.json": JUNK[junk]})
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        models.check_adapter(skeleton_of(base_folder), LoraConfig(r=4, init_from=str(adapter)))
    with pytest.raises(WeightsError, match=r"adapter_config\.json"):
        models.load_adapter(skeleton_of(base_folder), adapter, trainable=False)


@pytest.mark.parametrize(
    "values",
    [
        {"peft_type": "NOPE"},
        {"peft_type": "IA3"},
        {"r": "x"},
        {"r": -1},
        {"r": 10**12},
        {"r": None},
        {"target_modules": 7},
        {"target_modules": ["nope"]},
        {"lora_alpha": "x"},
        {"lora_dropout": "x"},
        {"bias": "nope"},
        {"rank_pattern": 7},
        {"layers_to_transform": "x"},
    ],
    ids=str,
)
def test_an_adapter_with_odd_settings_is_refused(
    values: dict[str, Any], copy: Copy, finished: Path, base_folder: Path
) -> None:
    adapter = copy(finished / "adapter", **{"adapter_config.json": values})
    like = LoraConfig(r=4, target_modules=["q_proj"], init_from=str(adapter))
    with pytest.raises(InputError):
        models.check_adapter(skeleton_of(base_folder), like)
    with pytest.raises(FtlabError) as error:
        models.load_adapter(skeleton_of(base_folder), adapter, trainable=False)
    assert error.value.exit_code == 2
    assert str(adapter) in str(error.value)


def test_an_adapter_of_another_width_is_refused_by_eval(
    cli: Callable[..., tuple[int, str, str]], finished: Path, make_base: Callable[..., Path]
) -> None:
    other = make_base(hidden_size=32)
    code, _, err = cli("eval", f"run={finished}", f"model.id={other}", "eval.max_rows=1")
    assert code == 2
    assert "the adapter was made for another base" in err


@pytest.mark.parametrize(("quant", "said"), [("none", "about 362 kB"), ("nf4", "about 45 kB")])
def test_weights_beyond_all_memory_are_refused(
    quant: str, said: str, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil
    import torch

    memory = type("Memory", (), {"total": 10_000})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(psutil, "swap_memory", lambda: memory)
    model = ModelConfig(name="m", id=str(base_folder), dtype="float32")
    found, settings = weights.find(model), QuantConfig(load_in_4bit=quant == "nf4")
    with pytest.raises(WeightsError) as error:
        models.load_base(found, model, settings, device=torch.device("cpu"), full=False)
    assert said in str(error.value)
    assert "this machine has 20 kB of memory" in str(error.value)
