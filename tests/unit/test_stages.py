"""Stages: what `trainer.stage` names is found, and one from outside trains, resumes and is swept like the first."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ftlab import compose, stages
from ftlab.config import SweepConfig
from ftlab.data.encode import Tokens
from ftlab.errors import ConfigError, Stopped
from ftlab.sweep.space import Space
from ftlab.sweep.study import Study
from ftlab.sweep.trial import search
from ftlab.train.loop import Trainer

Fit = Callable[..., Any]
MARGIN = ["trainer.stage=margin"]


@pytest.fixture
def margin(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The overrides that choose the stage of tests/material/stages, once that folder is one of stages."""
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(root / "tests/material/stages")])
    yield MARGIN
    sys.modules.pop("ftlab.stages.margin", None)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter/adapter_model.safetensors")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_stage_is_a_module_of_the_folder(margin: list[str]) -> None:
    assert stages.names() == ["margin", "sft"]
    assert stages.get("margin").needs == "completion"


def test_stages_are_looked_up_without_torch(root: Path) -> None:
    """Whoever asks for help does not wait for it."""
    code = (
        "import sys; from ftlab import stages; import ftlab.stages.stage; stages.get('sft'); print(sys.modules.keys())"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "'ftlab.stages.sft'" in ran.stdout
    assert "'torch'" not in ran.stdout


def test_an_unknown_stage_is_refused_with_the_nearest_name(small: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.stage=sfd does not exist\. Did you mean: sft\?"):
        compose([*small, "run_dir=x", "trainer.stage=sfd"])


def test_what_is_not_measured_is_no_objective(small: list[str], margin: list[str]) -> None:
    """This stage has the model answer nothing, and measures no loss."""
    for objective in ("eval/loss", "eval/sql_exact_match"):
        with pytest.raises(ConfigError, match=r"objective=\S+ must be one of eval/margin"):
            compose([*small, "run_dir=x", *margin, f"objective={objective}"])


def test_rows_that_the_task_cannot_give_are_refused(
    small: list[str], margin: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    import ftlab.stages.margin as module  # type: ignore[import-not-found]

    monkeypatch.setattr(module, "STAGE", dataclasses.replace(module.STAGE, needs="pair"))
    monkeypatch.setattr(stages, "__path__", list(reversed(stages.__path__)))  # looked up anew
    with pytest.raises(ConfigError, match=r"trainer\.stage=margin needs rows of the kind pair, which data\.task=sql"):
        compose([*small, "run_dir=x", *margin])


def test_it_trains_by_its_own_loss_and_is_scored_by_its_own_metric(fit: Fit, margin: list[str], tmp_path: Path) -> None:
    found = fit(*margin, "trainer.max_steps=12", "eval.every=4")
    told = {line["step"]: line["eval/margin"] for line in lines(tmp_path / "run") if "eval/margin" in line}
    assert list(told) == [4, 8, 12]
    assert found.objective == max(told.values())
    assert found.summary.tuned["test/margin"] > found.summary.base["test/margin"]
    assert not any("loss" in key or "sql" in key for key in found.summary.tuned)
    assert weights(tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert {row["pred"] for row in rows} == {None}


def test_stopped_and_resumed_it_ends_the_same(
    fit: Fit, margin: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*margin, "lora.lora_dropout=0.2", "trainer.save_every=1"]
    whole = fit(*options, run_dir=tmp_path / "whole")
    update = Trainer.update

    def stopping(self: Any, learner: Any) -> float:
        lr = update(self, learner)
        if learner.progress.step == 3:
            self.stop.name = "SIGTERM"
        return lr

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", stopping)
        with pytest.raises(Stopped, match="after step 3"):
            fit(*options, run_dir=tmp_path / "parts")
    parts = fit(*options, run_dir=tmp_path / "parts")
    assert parts.metrics["eval/margin"] == whole.metrics["eval/margin"]
    before, after = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_it_is_swept(small: list[str], margin: list[str], tmp_path: Path) -> None:
    space, _ = Space.read(["trainer.lr=choice(1e-2,1e-9)"], {})
    cfg = SweepConfig(n_trials=2, sampler="grid", pruner="none", rung_metric="eval/margin")
    study = Study.open("margins", tmp_path / "margins", cfg, space, ["eval/margin"], [*small, *margin])
    search(study)
    trials = {trial.params["trainer.lr"]: trial for trial in study.trials()}
    assert [trial.state.name for trial in trials.values()] == ["COMPLETE", "COMPLETE"]
    assert trials[1e-2].value > trials[1e-9].value
    assert list(trials[1e-2].intermediate_values) == [2, 4]
    assert study.best().params == trials[1e-2].params
    assert all("loss" not in trial.user_attrs for trial in trials.values())


def test_supervised_fine_tuning_makes_each_row_a_sample(small: list[str]) -> None:
    cfg = compose([*small, "run_dir=x"])
    turns = Tokens("t", [0, 1, 2, 3, 4], ((1, 2), (3, 5)), (0, 1))
    (row,) = stages.get("sft").encode([turns], cfg).rows
    assert (row.id, row.spans, list(row.rows)) == ("t", ((1, 2), (3, 5)), [row])
