"""What only a GPU can show: 4-bit steps, memory by phase, running out of it, resuming."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ftlab.errors import Stopped

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

Fit = Callable[..., Any]


@pytest.mark.parametrize("quant", ["none", "int8", "nf4", "fp4"])
@pytest.mark.parametrize("optim", ["adamw", "paged_adamw_8bit"])
def test_every_quantisation_learns(fit: Fit, quant: str, optim: str) -> None:
    summary = fit(
        f"quant={quant}", f"trainer.optim={optim}", "trainer.max_steps=20", "model.dtype=bfloat16", "eval.every=20"
    ).summary
    assert summary["tuned"]["eval/loss"] < summary["base"]["eval/loss"] - 0.3
    assert "cpu" not in summary["device"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_precisions_learn(fit: Fit, dtype: str) -> None:
    summary = fit(f"model.dtype={dtype}", "trainer.max_steps=20", "eval.every=20").summary.tree()
    assert summary["tuned"]["eval/loss"] < summary["base"]["eval/loss"] - 0.3


def test_memory_is_recorded_by_phase(fit: Fit, tmp_path: Path) -> None:
    vram = fit().summary.vram
    assert {"load", "train", "eval"} <= vram.keys()
    for phase in ("load", "train", "eval"):
        peaks = vram[phase]
        assert 0 < peaks["allocated"] <= peaks["reserved"]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert any(line.get("vram/peak_allocated_gib", 0) > 0 for line in lines)


def test_auto_finds_a_micro_batch_that_fits_and_leaves_the_step(
    fit: Fit, make_base: Any, terminal: Any, tmp_path: Path
) -> None:
    """With little memory allowed, the same losses come out of a lighter setting, chosen before memory runs out."""
    base = make_base(hidden_size=512, intermediate_size=2048, num_hidden_layers=8)
    options = [f"model.id={base}", "trainer.micro_batch_size=auto", "trainer.global_batch_size=32"]
    wanted = fit(*options, run_dir=tmp_path / "free").summary
    peak = wanted["vram"]["train"]["reserved"] * 2**30
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.6 * peak / total)
    try:
        found = fit(*options, run_dir=tmp_path / "tight").summary
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    lighter = found["setting"]["micro"] < wanted["setting"]["micro"] or found["setting"]["share"] > 0
    assert lighter, (wanted["setting"], found["setting"])
    assert found["tuned"]["eval/loss"] == pytest.approx(wanted["tuned"]["eval/loss"], rel=1e-2)


def test_too_little_memory_for_one_row_is_one_message(fit: Fit, make_base: Any) -> None:
    from ftlab.errors import TrainingError

    base = make_base(hidden_size=512, intermediate_size=2048, num_hidden_layers=8)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()

    from ftlab.train.loop import Trainer

    train = Trainer.train

    def tight(self: Any, learner: Any) -> Any:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**20) / total)
        return train(self, learner)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", tight)
        try:
            with pytest.raises(TrainingError, match="out of GPU memory"):
                fit(f"model.id={base}", "trainer.micro_batch_size=auto")
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= before + 2**28


@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_a_stopped_run_resumes(fit: Fit, quant: str, terminal: Any, tmp_path: Path) -> None:
    options = [f"quant={quant}", "lora.lora_dropout=0.2", "trainer.save_every=1"]
    whole = fit(*options, run_dir=tmp_path / "whole")

    def stop(step: int, metrics: dict[str, float]) -> None:
        if step == 3 and "train/loss" in metrics:
            os.kill(os.getpid(), 15)

    terminal.on_update = stop
    with pytest.raises(Stopped):
        fit(*options, run_dir=tmp_path / "cut")
    terminal.on_update = lambda step, metrics: None
    again = fit(*options, run_dir=tmp_path / "cut")
    assert "resumed from step 3 of 4" in terminal.notes
    assert again.summary.tuned["eval/loss"] == pytest.approx(whole.summary.tuned["eval/loss"], rel=1e-3)
