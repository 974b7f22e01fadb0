"""Several processes that train one model end with the adapter of one, and end together, whatever happens to them."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

LAUNCHER = ("-m", "torch.distributed.run", "--standalone")
TOGETHER = "adapter/adapter_model.safetensors"

# Runs a command line in which process 1, or FAILING, fails at its third batch, in the way that FAIL names. The others
# take longer to say so than the launcher takes to see a process die, and to send the rest SIGTERM.
FAILING = """
import os, time
from ftlab.__main__ import entry
from ftlab.errors import TrainingError
from ftlab.fast.step import FastStep
from ftlab.train.ranks import Ranks

accumulate, calls = FastStep.accumulate, []

def failing(*arguments, **options):
    calls.append(1)
    if len(calls) == 3 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        if os.environ["FAIL"] == "killed":
            os.kill(os.getpid(), 9)
        raise TrainingError("no luck") if os.environ["FAIL"] == "user" else ValueError("a mistake")
    return accumulate(*arguments, **options)

def slow(ranks):
    first = first_to_report(ranks)
    time.sleep(0.5)
    return first

first_to_report, Ranks._first_to_report = Ranks._first_to_report, slow
if os.environ["RANK"] == os.environ.get("FAILING", "1"):
    FastStep.accumulate = failing
entry()
"""


def start(processes: int, *words: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *LAUNCHER, f"--nproc_per_node={processes}", *words],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert "arning" not in output
    return output


def said(output: str) -> str:
    """The output of our processes, without the failure message that torchrun adds."""
    return "\n".join(line for line in output.splitlines() if " torch" not in line).partition("ChildFailedError")[0]


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def furthest(one: Path, other: Path) -> float:
    """The greatest difference of two tensors' numbers."""
    mine, theirs = load_file(one), load_file(other)
    assert mine.keys() == theirs.keys()
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)


CASES = {
    "fast": (2, ("lora.lora_dropout=0",), TOGETHER),
    "plain": (2, ("lora.lora_dropout=0", "lora.use_dora=true"), TOGETHER),
    "fewer rows than processes": (
        3,
        ("lora.lora_dropout=0", "trainer.global_batch_size=2", "trainer.micro_batch_size=1"),
        TOGETHER,
    ),
    "all weights": (2, ("lora=none", "trainer.lr=1e-4"), "model/model.safetensors"),
}
SLOW = ("fast", "all weights")


@pytest.mark.parametrize("case", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
def test_several_processes_end_like_one(case: str, small: list[str], fit: Callable[..., Any], tmp_path: Path) -> None:
    processes, options, result = CASES[case]
    launched = start(processes, "-m", "ftlab", *small, *options, f"run_dir={tmp_path / 'several'}")
    fit(*options, run_dir=tmp_path / "one")
    output = finish(launched)
    assert output.count("train ...") == 1
    assert f"{processes} processes share the rows of each step" in output
    assert furthest(tmp_path / "one" / result, tmp_path / "several" / result) < 1e-6
    one, several = summary(tmp_path / "one"), summary(tmp_path / "several")
    assert several["status"] == "finished"
    assert several["processes"] == processes
    assert several["best_step"] == one["best_step"]
    assert several["tuned"] == pytest.approx(one["tuned"], abs=1e-5)
    assert not (tmp_path / "several" / ".lock").exists()


def workers(launcher: subprocess.Popen[str]) -> list[int]:
    """The processes that a launcher has started, by rank."""
    found = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    ranks = {}
    for pid in map(int, found):
        pairs = dict(text.split("=", 1) for text in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in text)
        ranks[int(pairs["RANK"])] = pid
    return [ranks[rank] for rank in sorted(ranks)]


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        saved = [path.name for path in (folder / "checkpoints").glob("step-*") if not path.suffix]
        if any(int(name.removeprefix("step-")) >= step for name in saved):
            return
        time.sleep(0.002)
    pytest.fail(f"no checkpoint of step {step}: {process.communicate()[0]}")


@pytest.mark.slow
def test_stopped_and_killed_they_resume_to_the_same_end(small: list[str], tmp_path: Path) -> None:
    """A signal to any process stops all after a whole step; killed at once they lose what was not saved."""
    options = ("trainer.max_steps=12", "trainer.save_every=1", "lora.use_dora=true", "lora.lora_dropout=0.2")
    words = ("-m", "ftlab", *small, *options)
    folder, whole = tmp_path / "run", tmp_path / "whole"
    finish(start(2, *words, f"run_dir={whole}"))

    process = start(2, *words, f"run_dir={folder}")
    wait_for_step(process, folder, 2)
    os.kill(workers(process)[1], 15)
    output = process.communicate(timeout=60)[0]
    assert said(output).count("SIGTERM: stopped after step") == 1, output
    assert summary(folder)["status"] == "stopped"

    process = start(2, *words, f"run_dir={folder}")
    wait_for_step(process, folder, 8)
    for pid in (process.pid, *workers(process)):
        os.kill(pid, 9)
    process.communicate(timeout=60)

    assert "resumed from step" in finish(start(2, *words, f"run_dir={folder}"))
    assert digest(folder / TOGETHER) == digest(whole / TOGETHER)


@pytest.mark.slow
def test_without_their_launcher_they_stop(small: list[str], tmp_path: Path) -> None:
    """Killed itself it can end nobody, and they would hold their GPUs unseen."""
    folder = tmp_path / "run"
    process = start(2, "-m", "ftlab", *small, "trainer.max_steps=100000", f"run_dir={folder}")
    wait_for_step(process, folder, 2)
    process.kill()
    output = process.communicate(timeout=60)[0]  # until the last one that may write has gone
    assert output.count("SIGTERM: stopped") == 1, output
    assert summary(folder)["status"] == "stopped"
    assert not (folder / ".lock").exists()


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("fail", "message", "traces"),
    [
        ("user", "ftlab: no luck", 0),
        pytest.param("mistake", "ValueError: a mistake", 1, marks=pytest.mark.slow),
        pytest.param("killed", "ended without reporting", 0, marks=pytest.mark.slow),
    ],
)
def test_when_one_fails_all_end(fail: str, message: str, traces: int, small: list[str], tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    folder = tmp_path / "run"
    root = str(Path(__file__).resolve().parents[2])
    process = start(2, str(script), *small, f"run_dir={folder}", FAIL=fail, PYTHONPATH=root)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert said(output).count(message) == 1, output
    found = summary(folder)
    assert found["status"] == "failed"
    assert message.removeprefix("ftlab: ") in found["error"]
    assert output.count("Traceback") == traces + 1  # torchrun's own
    assert not (folder / ".lock").exists()


@pytest.mark.slow
def test_when_the_first_is_killed_another_says_so(small: list[str], tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    root = str(Path(__file__).resolve().parents[2])
    words = (str(script), *small, f"run_dir={tmp_path / 'run'}")
    process = start(3, *words, FAIL="killed", FAILING="0", PYTHONPATH=root)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert said(output).count("ended without reporting") == 1, output
    assert output.count("Traceback") == 1  # torchrun's own


@pytest.mark.slow
def test_a_launcher_that_tries_again_goes_on_from_the_checkpoint(small: list[str], tmp_path: Path) -> None:
    """Its store still holds what those of the first attempt said there."""
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    folder = tmp_path / "run"
    root = str(Path(__file__).resolve().parents[2])
    process = start(2, "--max_restarts=1", str(script), *small, f"run_dir={folder}", FAIL="killed", PYTHONPATH=root)
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 0, output
    assert said(output).count("ended without reporting") == 1, output
    assert "resumed from step 2 of 4" in output
    assert summary(folder)["status"] == "finished"


def test_a_sweep_is_refused_once(small: list[str], tmp_path: Path) -> None:
    process = start(2, "-m", "ftlab", "--multirun", *small, "trainer.lr=1e-3,1e-2", f"run_dir={tmp_path / 'sweep'}")
    output = process.communicate(timeout=60)[0]
    assert said(output).count("the launcher started 2: start it with python -m ftlab") == 1, output
    assert not (tmp_path / "sweep").exists()


DIFFERING = """
import os, sys
from ftlab.__main__ import main
sys.exit(main([*sys.argv[1:], "trainer.lr=" + ("1e-2", "2e-2")[int(os.environ["RANK"])]]))
"""


def test_processes_of_different_configurations_are_refused_once(small: list[str], tmp_path: Path) -> None:
    script = tmp_path / "differing.py"
    script.write_text(DIFFERING)
    root = str(Path(__file__).resolve().parents[2])
    process = start(2, str(script), *small, f"run_dir={tmp_path / 'run'}", PYTHONPATH=root)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert said(output).count("trainer.lr: 0.01 in process 0, 0.02 in process 1") == 1, output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_command_is_refused_once(finished: Path) -> None:
    process = start(2, "-m", "ftlab", "predict", str(finished), "question=x", "context=y")
    output = process.communicate(timeout=60)[0]
    assert said(output).count("predict runs in one process, and the launcher started 2") == 1, output


@pytest.mark.slow
def test_accelerate_launch_of_one_process_is_a_plain_run(small: list[str], finished: Path, tmp_path: Path) -> None:
    """It speaks of a precision, of torch.compile and of a CPU on its own account."""
    words = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu", "-m", "ftlab"]
    done = subprocess.run(
        [*words, *small, f"run_dir={tmp_path / 'run'}"], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "run" / TOGETHER) == digest(finished / TOGETHER)


def test_a_launcher_of_one_process_changes_nothing(small: list[str], monkeypatch: pytest.MonkeyPatch, cli: Any) -> None:
    """The launcher's variables are not passed on: workers of a sweep do not communicate with others."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    code, _, _ = cli("--dry-run", *small)
    assert code == 0
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"} & os.environ.keys()
