"""Every file of conf/ and sweeps/ composes, is short, and says what its name promises."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from ftlab import compose
from ftlab.composition import (
    CONF,
    SWEEPS,
    check_overrides,
    composition,
    config_groups,
    flatten,
    hydra_session,
    to_tree,
)
from ftlab.config import ExperimentConfig, is_key
from ftlab.sweep.space import Space

FILES = sorted(CONF.rglob("*.yaml"))
GROUPS = ("model", "quant", "lora", "data", "trainer", "eval")
OPTIONS = sorted((file.parent.name, file.stem) for file in FILES if file.parent.name in GROUPS)
EXPERIMENTS = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
SWEEP_FILES = sorted(SWEEPS.glob("*.yaml"))

PROMISED = {
    "model": "tiny smollm2_135m smollm2_360m qwen3_0_6b qwen3_4b llama3_2_1b llama3_1_8b mistral7b",
    "quant": "none int8 nf4 fp4",
    "lora": "none r4 r8 r16 r32 r64 tutorial qlora_paper rslora dora pissa",
    "data": "sql_synth sql_create_context jsonl",
    "trainer": "default quick tutorial",
    "tracker": "wandb csv tensorboard none",
    "experiment": "quickstart smollm2_sql mistral7b_tutorial",
}


def typed(group: str, option: str) -> ExperimentConfig:
    """The defaults with one option replaced; what the option cannot stand beside is taken away."""
    needs = {
        ("lora", "none"): ["quant=none"],
        ("lora", "pissa"): ["quant=none"],
    }
    text = (CONF / group / f"{option}.yaml").read_text(encoding="utf-8")
    own_rows = group == "data" and "source: table" in text and "hub_id" not in text
    path = ["data.path=rows.jsonl"] if own_rows else []
    return compose([f"{group}={option}", *path, *needs.get((group, option), [])])


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda part: str(part))
def test_every_option_composes_alone(group: str, option: str) -> None:
    cfg = typed(group, option)
    assert flatten(to_tree(cfg)).keys() == flatten(dataclasses.asdict(cfg)).keys()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str) -> None:
    assert compose([f"experiment={name}"]).objective == "eval/sql_exact_match"


@pytest.mark.parametrize("file", SWEEP_FILES, ids=lambda file: file.stem)
def test_every_sweep_composes_at_every_value_it_searches(file: Path) -> None:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    with hydra_session():
        loader: Any = GlobalHydra.instance().hydra
        whole = loader.compose_config("config", [f"sweep={file.stem}"], run_mode=RunMode.MULTIRUN)
        params = OmegaConf.to_container(whole.hydra.sweeper.params)
    space, _ = Space.read([], params)
    assert space.dimensions
    fixed = [f"sweep={file.stem}", *(["data.path=rows"] if "data.path=DIR" in file.read_text() else [])]
    for dimension in space.dimensions:
        for value in dimension.grid() or [dimension.low, dimension.high]:
            compose([*fixed, dimension.override(value)])
    for guess in compose(fixed).sweep.first:
        assert space.values(guess)


def test_an_experiment_on_the_command_line_wins_over_the_sweeps() -> None:
    assert compose(["sweep=lora_sql", "experiment=quickstart"]).model.name == "tiny"


@pytest.mark.parametrize("file", [*FILES, *SWEEP_FILES], ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_files_are_short_and_readable(file: Path) -> None:
    limit = 40 if file in SWEEP_FILES or file.parent.name in ("help", "conf") else 15
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= limit
    assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)


def test_a_sweep_starts_with_its_command() -> None:
    for file in SWEEP_FILES:
        head = file.read_text(encoding="utf-8").split("defaults:")[0]
        assert f"# python -m ftlab --multirun sweep={file.stem}" in head


def test_the_promised_options_are_there() -> None:
    with hydra_session():
        groups = config_groups()
    for group, names in PROMISED.items():
        assert set(names.split()) <= set(groups[group]), group
    assert set(groups["sweep"]) == {file.stem for file in SWEEP_FILES}


def test_the_schema_knows_every_key_of_every_file() -> None:
    for file in FILES:
        group = file.parent.name
        if group not in (*GROUPS, "experiment"):
            continue
        text = file.read_text(encoding="utf-8")
        tree = {key: value for key, value in yaml.safe_load(text).items() if key != "defaults"}
        prefix = "" if group == "experiment" or "@package _global_" in text else f"{group}."
        assert all(is_key(prefix + key) for key in flatten(tree)), file


def test_config_yaml_holds_the_defaults_that_the_command_means() -> None:
    cfg = compose(["model=mistral7b", "lora=r32"])
    assert (cfg.model.id, cfg.lora.r, cfg.lora.lora_alpha) == ("mistralai/Mistral-7B-v0.1", 32, 64)
    assert (cfg.quant.load_in_4bit, cfg.quant.bnb_4bit_quant_type) == (True, "nf4")
    assert (cfg.data.name, cfg.model.trust_remote_code, list(cfg.tracker)) == (
        "sql_create_context",
        False,
        ["project", "group", "tags", "wandb"],
    )
    assert compose([]).lora.r == 16


def test_the_tutorial_recipe_is_the_published_one() -> None:
    cfg = compose(["experiment=mistral7b_tutorial"])
    trainer = cfg.trainer
    assert (trainer.optim, trainer.lr, trainer.lr_scheduler_type, trainer.warmup_steps) == (
        "paged_adamw_8bit",
        2e-5,
        "constant_with_warmup",
        5,
    )
    assert (trainer.micro_batch_size, trainer.global_batch_size, trainer.max_steps) == (2, 8, 500)
    assert (trainer.save_every, trainer.log_every, trainer.loss_on) == (100, 100, "all")
    assert (trainer.activation_checkpointing, cfg.data.max_length, cfg.model.dtype) == (True, 256, "bfloat16")
    assert (cfg.lora.r, cfg.lora.lora_alpha, cfg.lora.lora_dropout, cfg.lora.bias) == (32, 64, 0.1, "none")
    assert "lm_head" in cfg.lora.target_modules
    assert len(cfg.lora.target_modules) == 8


def test_the_tutorial_trainer_alone_sets_its_length_too() -> None:
    assert compose(["trainer=tutorial", "data=sql_synth"]).data.max_length == 256


def test_the_tutorial_adapter_has_the_published_number_of_parameters() -> None:
    import torch
    from transformers import AutoModelForCausalLM, MistralConfig

    from ftlab.models import planned_parameters

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(MistralConfig(vocab_size=32000))
    lora = compose(["experiment=mistral7b_tutorial"]).lora
    assert planned_parameters(model, lora) == (85_041_152, 7_326_773_248)


def test_every_group_option_survives_the_check_of_overrides() -> None:
    with hydra_session():
        check_overrides([f"{group}={option}" for group, option in OPTIONS])


def test_values_that_differ_from_the_defaults_are_marked() -> None:
    found = composition(["lora=r32", "trainer.lr=1e-3"])
    assert found.changed == {"lora.r", "lora.lora_alpha", "trainer.lr"}
