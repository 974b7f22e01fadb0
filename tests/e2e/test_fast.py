"""Whole runs on the fast path beside the same runs through PEFT's own forward and autograd."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from ftlab import models
from ftlab.errors import Stopped
from ftlab.experiment import base

Fit = Callable[..., Any]
STEPS = ("trainer.max_steps=60", "trainer.lr=5e-3", "eval.every=60", "trainer.save_every=60", "eval.max_new_tokens=2")


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on no run takes the fast path."""
    return lambda: monkeypatch.setattr(base, "fast_path", lambda *model: (None, "the test says so"))


def both(fit: Fit, plainly: Callable[[], None], tmp_path: Path, terminal: Any, *options: str) -> tuple[Any, Any]:
    """The outcome of a run on the fast path, and of the same through PEFT."""
    fast = fit(*options, run_dir=tmp_path / "fast")
    assert not [note for note in terminal.notes if "slower path" in note]
    plainly()
    plain = fit(*options, run_dir=tmp_path / "plain")
    assert [note for note in terminal.notes if note == "slower path, the test says so"]
    return fast, plain


def training_losses(outcome: Any) -> list[float]:
    lines = (json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


def near(fast: Any, plain: Any, share: float) -> bool:
    """Both learned, and end at the same loss up to this share of it."""
    losses = [outcome.summary.tuned["eval/loss"] for outcome in (fast, plain)]
    assert losses[1] < 0.7 * plain.summary.base["eval/loss"]
    return bool(losses[0] == pytest.approx(losses[1], rel=share))


def test_both_paths_end_at_the_same_loss(fit: Fit, plainly: Callable[[], None], tmp_path: Path, terminal: Any) -> None:
    fast, plain = both(fit, plainly, tmp_path, terminal, *STEPS)
    assert fast.summary.base["eval/loss"] == pytest.approx(plain.summary.base["eval/loss"], rel=1e-5)
    assert training_losses(fast)[:5] == pytest.approx(training_losses(plain)[:5], rel=1e-3)
    assert near(fast, plain, 0.01)


@pytest.mark.slow
def test_both_paths_end_at_the_same_loss_after_200_steps(
    fit: Fit, plainly: Callable[[], None], tmp_path: Path, terminal: Any
) -> None:
    options = [*STEPS, "trainer.max_steps=200", "trainer.lr=2e-3", "eval.every=200", "trainer.save_every=200"]
    fast, plain = both(fit, plainly, tmp_path, terminal, *options)
    assert near(fast, plain, 0.01)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 40)[None]).logits


def test_adapters_of_either_path_load_in_the_other_and_in_peft(
    fit: Fit, plainly: Callable[[], None], tmp_path: Path, base_folder: Path
) -> None:
    options = ["trainer.max_steps=3", "eval.every=3"]
    first = fit(*options, run_dir=tmp_path / "first")
    adapter = first.folder / "adapter"

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)

    in_peft = logits(PeftModel.from_pretrained(base(), str(adapter)))
    assert torch.equal(in_peft, logits(models.load_adapter(base(), adapter, trainable=False)))
    assert not torch.allclose(in_peft, logits(base()))
    again = [*options, f"lora.init_from={first.folder}", "trainer.lr=1e-9"]
    fast = fit(*again, run_dir=tmp_path / "fast")
    plainly()
    plain = fit(*again, run_dir=tmp_path / "plain")
    for outcome in (fast, plain):  # nothing learned since: what the first run ended with was loaded
        assert outcome.summary.tuned["test/loss"] == pytest.approx(first.summary.tuned["test/loss"], rel=1e-4)
        found = logits(PeftModel.from_pretrained(base(), str(outcome.folder / "adapter")))
        torch.testing.assert_close(found, in_peft, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("plain", [False, True])
def test_interrupted_under_dropout_a_run_ends_bit_identical(
    fit: Fit, plainly: Callable[[], None], tmp_path: Path, terminal: Any, plain: bool
) -> None:
    if plain:
        plainly()
    options = ["lora.lora_dropout=0.3", "eval.every=4", "trainer.save_every=1", "trainer.micro_batch_size=2"]
    whole = fit(*options, run_dir=tmp_path / "whole")

    def stop(step: int, metrics: dict[str, float]) -> None:
        if step == 2 and "train/loss" in metrics:
            os.kill(os.getpid(), 15)

    terminal.on_update = stop
    with pytest.raises(Stopped, match="stopped after step 2"):
        fit(*options, run_dir=tmp_path / "cut")
    cut = fit(*options, run_dir=tmp_path / "cut")
    files = [outcome.folder / "adapter/adapter_model.safetensors" for outcome in (whole, cut)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert cut.summary.tuned == whole.summary.tuned
    assert training_losses(cut) == training_losses(whole)


def test_dropout_has_an_effect_and_a_seed(fit: Fit, tmp_path: Path) -> None:
    kinds = {
        "none": [],
        "some": ["lora.lora_dropout=0.3"],
        "again": ["lora.lora_dropout=0.3"],
        "other": ["lora.lora_dropout=0.3", "seed=5"],
    }
    found = {name: training_losses(fit(*options, run_dir=tmp_path / name)) for name, options in kinds.items()}
    assert found["some"] == found["again"]
    assert found["some"][1:] != found["none"][1:]
    assert found["some"] != found["other"]


def test_a_model_that_is_not_known_trains_and_says_why(fit: Fit, terminal: Any) -> None:
    outcome = fit("lora.use_dora=true")
    assert outcome.summary.status == "finished"
    assert [note for note in terminal.notes if "slower path" in note] == ["slower path, DoRA"]


def test_answers_are_the_same_on_both_paths(
    fit: Fit, plainly: Callable[[], None], tmp_path: Path, terminal: Any
) -> None:
    """Greedy answers in float32, and the scores that follow from them."""
    outcomes = both(fit, plainly, tmp_path, terminal, "trainer.max_steps=0", "eval.max_new_tokens=12")
    rows = [[json.loads(line) for line in (o.folder / "predictions.jsonl").read_text().splitlines()] for o in outcomes]
    assert [row["pred"] for row in rows[0]] == [row["pred"] for row in rows[1]]
    assert len({row["pred"] for row in rows[0]}) > 1
