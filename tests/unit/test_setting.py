"""What a run does with the settings of its step: what it says, what it records, and what it leaves behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab import run
from ftlab.composition import composition
from ftlab.errors import ConfigError, Pruned
from ftlab.experiment import Trial
from ftlab.models import Bases

Fit = Callable[..., Any]


@pytest.fixture
def trial(small: list[str], tmp_path: Path, terminal: Any) -> Fit:
    """One of several trials that lend each other the base; pruned at its first evaluation where asked."""
    bases = Bases()

    def trial(name: str, *more: str, prune: bool = False) -> Any:
        def watch(metrics: dict[str, float], step: int) -> None:
            if prune:
                raise Pruned("enough")

        return run(composition([*small, f"run_dir={tmp_path / name}", *more]), terminal, Trial(watch, bases))

    trial.bases = bases  # type: ignore[attr-defined]
    return trial


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["quant=none"], "the base has no 4-bit weights"),
        (["quant=int8"], "the base has no 4-bit weights"),
        (["quant=nf4", "lora=dora"], "the slower path dequantizes 4-bit weights at each product"),
    ],
)
def test_dequantized_weights_that_cannot_be_kept_are_one_warning(
    fit: Fit, terminal: Any, overrides: list[str], reason: str
) -> None:
    fit(*overrides, "trainer.weight_cache=true", "trainer.max_steps=1")
    told = [line for line in terminal.warnings if "weight_cache" in line]
    assert len(told) == 1
    assert told[0].startswith(f"trainer.weight_cache=true changes nothing: {reason}")


@pytest.mark.parametrize(
    "overrides",
    [["quant=nf4", "trainer.weight_cache=true"], ["quant=none"], ["quant=none", "trainer.weight_cache=false"]],
)
def test_a_setting_that_applies_is_no_warning(fit: Fit, terminal: Any, overrides: list[str]) -> None:
    outcome = fit(*overrides, "trainer.max_steps=1")
    assert not [line for line in terminal.warnings if "weight_cache" in line]
    assert outcome.summary.setting.cached == ("quant=nf4" in overrides)


def test_a_model_without_activation_checkpointing_refuses_it(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    options = ("lora=dora", "trainer.max_steps=1")
    monkeypatch.setattr(
        "transformers.models.llama.modeling_llama.LlamaPreTrainedModel.supports_gradient_checkpointing", False
    )
    assert not PreTrainedModel.supports_gradient_checkpointing
    with pytest.raises(ConfigError, match=r"=true: LlamaForCausalLM does not support it.*auto"):
        fit(*options, "trainer.activation_checkpointing=true")
    assert fit(*options, "force=true").summary.setting.share == 0.0


@pytest.mark.parametrize("prune", [False, True])
def test_the_setting_is_recorded_however_a_trial_ends(trial: Fit, tmp_path: Path, prune: bool) -> None:
    trial("a", "lora=dora", "trainer.activation_checkpointing=true", prune=prune)
    summary = json.loads((tmp_path / "a/summary.json").read_text())
    assert summary["status"] == ("pruned" if prune else "finished")
    assert summary["setting"] == {"micro": 2, "cached": False, "share": 1.0, "ran_out": False}


@pytest.mark.parametrize("prune", [False, True])
def test_trials_with_and_without_activation_checkpointing_share_the_cached_base(
    trial: Fit, monkeypatch: pytest.MonkeyPatch, prune: bool, tmp_path: Path
) -> None:
    from ftlab import models

    loads, load = [], models.load_base
    monkeypatch.setattr(models, "load_base", lambda *a, **k: loads.append(1) or load(*a, **k))
    alone = trial("alone", "lora=dora", "trainer.activation_checkpointing=false")
    trial("checkpointed", "lora=dora", "trainer.activation_checkpointing=true", prune=prune)
    after = trial("after", "lora=dora", "trainer.activation_checkpointing=false")
    assert after.summary.tuned == alone.summary.tuned
    assert loads == [1]
