"""The first thing a new user runs: offline, no GPU, a minute, and a model that has learnt to write SQL."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ftlab as package

TINY = Path(package.__file__).parent / "tiny" / "model.safetensors"
needs_tiny = pytest.mark.skipif(not TINY.exists(), reason="the embedded base is not in this checkout")

Ftlab = Callable[..., Any]

OFFLINE = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "WANDB_API_KEY": ""}
ADAPTER = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "generation_config.json",
    "prompt.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
CHECKPOINT = {"manifest.json", "optimizer.pt", "state.json", "trainable.safetensors"}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow  # minutes beside other tests
@needs_tiny
@pytest.mark.timeout(600)
def test_the_quickstart_teaches_the_embedded_base_sql(ftlab: Ftlab, tmp_path: Path) -> None:
    done = ftlab(**OFFLINE, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    assert "experiment=quickstart" in done.stdout
    (run,) = [path for path in (tmp_path / "outputs").iterdir() if path.is_dir()]
    summary = json.loads((run / "summary.json").read_text())
    for key in ("eval/sql_exact_match", "test/sql_exact_match"):
        assert summary["base"][key] <= 0.05
        assert summary["tuned"][key] >= 0.50
    assert summary["model"]["origin"] == "embedded"
    assert f"python -m ftlab predict run=outputs/{run.name}" in done.stdout
    assert "Warning" not in done.stdout + done.stderr
    own = {name for name in files(run) if not name.startswith("wandb/")}
    assert own == (
        {"config.yaml", "metrics.jsonl", "predictions.jsonl", "summary.json"}
        | {f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")}
        | {f"adapter/{name}" for name in ADAPTER}
        | {f"checkpoints/step-{step:06d}/{name}" for step in (120, 130) for name in CHECKPOINT}
    )
    assert list((run / "wandb").rglob("*.wandb"))
    assert sorted(os.listdir(tmp_path)) == ["outputs"]

    asked = ftlab(
        "predict",
        f"run=outputs/{run.name}",
        "question=How many cities are there?",
        "context=CREATE TABLE city (name VARCHAR)",
    )
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.startswith("SELECT")


@needs_tiny
def test_without_steps_nothing_is_learnt(ftlab: Ftlab, tmp_path: Path) -> None:
    done = ftlab(
        "experiment=quickstart", "trainer.max_steps=0", "run_dir=r", "tracker=none", "eval.max_rows=16", **OFFLINE
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "r/summary.json").read_text())
    assert summary["base"] == summary["tuned"]


def test_wandb_offline_is_recorded_without_a_key(ftlab: Ftlab, small: list[str], tmp_path: Path) -> None:
    words = [word for word in small if word != "tracker=none"]
    done = ftlab(*words, "tracker=wandb", "run_dir=r", **OFFLINE)
    assert done.returncode == 0, done.stderr
    assert "wandb sync" in done.stdout
    run = tmp_path / "r"
    top = {path.name for path in run.iterdir()}
    records = {"config.yaml", "metrics.jsonl", "predictions.jsonl", "summary.json"}
    assert top == records | {".hydra", "adapter", "checkpoints", "wandb"}
    assert json.loads((run / "summary.json").read_text())["tracker_ids"]["wandb"]
    assert sorted(os.listdir(tmp_path)) == ["r"]


@needs_tiny
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quickstart_teaches_the_embedded_base_to_look_things_up(ftlab: Ftlab, tmp_path: Path) -> None:
    done = ftlab("experiment=quickstart", "data=match_synth", "run_dir=run", **OFFLINE, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    for key in ("eval/match_exact", "test/match_exact"):
        assert summary["tuned"][key] >= summary["base"][key] + 0.20
