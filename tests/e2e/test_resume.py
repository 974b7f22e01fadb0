"""A run killed at any moment, started again by the same command, ends as if nothing had happened."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

OPTIONS = (
    "trainer.max_steps=12",
    "trainer.save_every=1",
    "trainer.keep=2",
    "eval.every=4",
    "lora.lora_dropout=0.2",
)


def start(small: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ftlab", *small, *OPTIONS, f"run_dir={folder}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    return output


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def metrics(folder: Path) -> list[dict[str, Any]]:
    clocks = ("time", "perf/tokens_per_second", "perf/tokens_per_second_mean")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in clocks} for line in lines]


def assert_same(folder: Path, whole: Path) -> None:
    assert digest(folder / "adapter/adapter_model.safetensors") == digest(whole / "adapter/adapter_model.safetensors")
    assert digest(folder / "predictions.jsonl") == digest(whole / "predictions.jsonl")
    assert metrics(folder) == metrics(whole)
    mine, theirs = (json.loads((f / "summary.json").read_text()) for f in (folder, whole))
    for key in ("base", "tuned", "intervals", "objective", "best_step"):
        assert mine[key] == theirs[key]
    assert mine["status"] == "finished"
    assert not list(folder.rglob("*.part"))


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        saved = [path.name for path in (folder / "checkpoints").glob("step-*") if not path.suffix]
        if any(int(name.removeprefix("step-")) >= step for name in saved):
            return
        time.sleep(0.002)
    pytest.fail(f"no checkpoint of step {step}: {process.communicate()[0]}")


@pytest.fixture(scope="module")
def whole(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(start(small, folder))
    return folder


def test_killed_twice_it_ends_bit_identical(whole: Path, small: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for step in (3, 7):
        process = start(small, folder)
        wait_for_step(process, folder, step)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert json.loads((folder / "summary.json").read_text())["status"] == "running"
    assert "resumed from step" in finish(start(small, folder))
    assert_same(folder, whole)


def test_sigterm_leaves_a_whole_checkpoint_and_exit_code_75(whole: Path, small: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(small, folder)
    wait_for_step(process, folder, 2)
    began = time.monotonic()
    process.terminate()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert time.monotonic() - began < 10
    assert "stopped" in output
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"
    assert not (folder / ".lock").exists()
    finish(start(small, folder))
    assert_same(folder, whole)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_at_random_times_it_always_ends_bit_identical(whole: Path, small: list[str], tmp_path: Path) -> None:
    """Times are drawn over the whole run, start and end included; every fourth kill waits for a save."""
    draw = random.Random(int(os.environ.get("FTLAB_SEED", "0")))
    began = time.monotonic()
    finish(start(small, tmp_path / "timed"))
    seconds = time.monotonic() - began
    for run in range(4):
        folder = tmp_path / f"run{run}"
        for kill in range(5):
            process = start(small, folder)
            if kill % 4 == 3:
                while process.poll() is None and not list(folder.glob("checkpoints/*.part")):
                    time.sleep(0.0005)
            else:
                time.sleep(draw.uniform(0.3, 1.0) * seconds)
            process.kill()
            process.communicate()
        finish(start(small, folder))
        assert_same(folder, whole)
