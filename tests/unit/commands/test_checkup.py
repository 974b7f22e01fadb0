"""`doctor RUN|STUDY`: what is damaged, from where it would resume, and that the check changes nothing."""

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ftlab.sweep.study import Study

Cli = Callable[..., tuple[int, str, str]]


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(file: Path, at: float = 0.5, count: int = 1) -> None:
    data = bytearray(file.read_bytes())
    start = int(len(data) * at)
    data[start : start + count] = bytes(byte ^ 0x80 for byte in data[start : start + count])
    file.write_bytes(data)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_whole_run_ends_with_0(run: Path, cli: Cli) -> None:
    before = state(run)
    code, out, _ = cli("doctor", str(run))
    assert code == 0
    assert "finished after 4 steps: there is nothing to resume" in out
    assert "step-000004      intact" in out
    assert state(run) == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.yaml", "config.yaml      damaged"),
        ("metrics.jsonl", "metrics.jsonl    1 damaged lines"),
        ("checkpoints/step-000004/optimizer.pt", "step-000004      optimizer.pt changed or cut off"),
        ("summary.json", "the same command resumes from step 4"),
    ],
)
def test_damage_is_named_and_ends_with_1(name: str, said: str, run: Path, cli: Cli) -> None:
    flip(run / name)
    before = state(run)
    code, out, _ = cli("doctor", str(run))
    assert code == 1
    assert said in out
    assert state(run) == before


def test_a_damaged_adapter_can_be_saved_anew_as_it_is_told(run: Path, fit: Any, cli: Cli) -> None:
    adapter = run / "adapter/adapter_model.safetensors"
    whole = adapter.read_bytes()
    adapter.write_bytes(whole[:100])
    code, out, _ = cli("doctor", str(run))
    assert code == 1
    assert f"rename {run}/adapter/ and run the same command again" in out
    (run / "adapter").rename(run / "aside")
    fit(run_dir=run)
    assert adapter.read_bytes() == whole


def test_what_is_neither_run_nor_study_is_told_so(tmp_path: Path, cli: Cli) -> None:
    code, _, err = cli("doctor", str(tmp_path))
    assert code == 2
    assert "is not a run folder" in err


def test_a_study_says_how_it_stands_and_what_of_its_trials_is_damaged(
    cli: Cli, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--multirun", *small, "lora.r=2,4", "trainer.max_steps=2", "sweep.study=s"]
    assert cli(*words)[0] == 0
    code, out, _ = cli("doctor", "s")
    assert code == 0
    assert "intact, 2 trials" in out
    assert "2 finished, 0 failed, 0 running, 0 waiting; nothing is left to run" in out
    flip(Path("outputs/s/1/checkpoints/step-000002/trainable.safetensors"))
    code, out, _ = cli("doctor", "outputs/s")
    assert code == 1
    assert "trial 1          step-000002: trainable.safetensors changed or cut off" in out
    flip(Path("outputs/s/study.db"), at=0.3, count=4000)
    code, out, _ = cli("doctor", "outputs/s")
    assert code == 1
    assert "study.db         damaged" in out


def test_a_damaged_database_is_made_anew_from_the_folders(
    cli: Cli, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--multirun", *small, "trainer.lr=1e-2,3e-3,1e-3", "trainer.max_steps=4", "sweep.study=s"]
    assert cli(*words)[0] == 0
    with closing(Study.load("s")) as study:
        before = {row.number: (row.values, row.params, row.rungs, row.loss) for row in study.leaderboard()}
    flip(Path("outputs/s/study.db"), at=0.3, count=4000)
    damaged = Path("outputs/s/study.db").read_bytes()
    summary = json.loads(Path("outputs/s/1/summary.json").read_text())  # as if the sweep had been killed in trial 1
    Path("outputs/s/1/summary.json").write_text(json.dumps(summary | {"status": "running"}))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("outputs/s/[02]/summary.json")}
    code, out, err = cli(*words)
    assert code == 0, err
    assert (
        "study.db was damaged and is kept as study.db.damaged-1: 2 finished trials restored from their folders" in out
    )
    assert Path("outputs/s/study.db.damaged-1").read_bytes() == damaged
    with closing(Study.load("s")) as study:
        after = {row.number: (row.values, row.params, row.rungs, row.loss) for row in study.leaderboard()}
    assert after == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert "resumed from step 4 of 4" in Path("outputs/s/1/output.txt").read_text()
    assert cli("doctor", "s")[0] == 0
