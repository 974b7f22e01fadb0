"""The run folder: one process at a time, one configuration, no secret, nothing half-written."""

import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftlab.composition import composition
from ftlab.disk import write_atomic
from ftlab.errors import RunDirError
from ftlab.run_dir import RunDir, find_run, tree_of
from ftlab.summary import finite

Fit = Callable[..., Any]

HOLD = """
import sys, time
from ftlab.run_dir import RunDir
with RunDir(sys.argv[1]).claim():
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder `run`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.communicate("\n", timeout=30)


# --- the lock ---------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_and_told_the_first_ones_pid(
    holder: subprocess.Popen[str], tmp_path: Path, cli: Any, small: list[str]
) -> None:
    began = time.perf_counter()
    code, _, err = cli(*small, f"run_dir={tmp_path / 'run'}")
    assert time.perf_counter() - began < 2
    assert code == 2
    assert f"in use by process {holder.pid}" in err
    assert sorted(os.listdir(tmp_path / "run")) == [".lock"]


def test_the_lock_of_a_killed_process_binds_nobody(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    with RunDir(tmp_path / "run").claim():
        assert (tmp_path / "run" / ".lock").read_text() == str(os.getpid())


def test_the_lock_goes_with_its_holder_even_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunDir(tmp_path).claim():
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_removed_by_its_last_holder_is_not_taken_for_the_folders_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder may leave between another's opening of the file and its locking."""
    flock, first = fcntl.flock, [True]

    def late(handle: int, operation: int) -> None:
        if first.pop() if first else False:
            (tmp_path / ".lock").unlink()
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with RunDir(tmp_path).claim():
        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(RunDirError, match="in use"), RunDir(tmp_path).claim():
            pass


@pytest.mark.parametrize("where", ["file/run", "/proc/run"])
def test_an_unwritable_folder_costs_one_line(
    where: str, tmp_path: Path, cli: Any, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    began = time.perf_counter()
    code, _, err = cli(*small, f"run_dir={where}")
    assert time.perf_counter() - began < 5
    assert code == 2
    assert "cannot be written" in err
    assert "run_dir=DIR" in err
    assert len(err.splitlines()) == 1


# --- one configuration ------------------------------------------------------------------------------------


def trees(small: list[str], *more: str) -> dict[str, Any]:
    return composition([*small, "run_dir=x", *more]).tree


def test_another_configuration_is_refused_with_the_differences(finished: Path, fit: Fit, small: list[str]) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in finished.iterdir() if file.is_file()}
    with pytest.raises(RunDirError) as caught:
        fit("trainer.lr=5e-3", "lora.lora_dropout=0.5", run_dir=finished)
    message = str(caught.value)
    assert "trainer.lr: 0.01 in the folder, 0.005 now" in message
    assert "lora.lora_dropout: 0.0 in the folder, 0.5 now" in message
    assert "force=true" in message
    assert "trainer.max_steps" not in message
    assert before == {file.name: file.stat().st_mtime_ns for file in finished.iterdir() if file.is_file()}


@pytest.mark.parametrize(
    "override",
    [
        "trainer.max_steps=9",
        "trainer.log_every=3",
        "trainer.keep=1",
        "tracker=[wandb,csv]",
        "tracker.project=other",
        "tracker.tags=[a]",
        "run_name=other",
    ],
)
def test_what_does_not_change_what_is_learnt_may_differ(override: str, finished: Path, small: list[str]) -> None:
    RunDir(finished).check_same(trees(small, override))


@pytest.mark.parametrize("override", ["trainer.max_steps=3", "seed=1", "trainer.epochs=2", "eval.every=3"])
def test_what_changes_what_is_learnt_may_not(override: str, finished: Path, small: list[str]) -> None:
    with pytest.raises(RunDirError, match=override.partition("=")[0]):
        RunDir(finished).check_same(trees(small, override))


def test_a_record_older_than_a_key_is_as_that_key_is_by_default(
    finished: Path, small: list[str], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    record = folder / "config.yaml"
    tree = yaml.safe_load(record.read_text())
    del tree["eval"]["databases"]
    record.write_text(yaml.safe_dump(tree))
    RunDir(folder).check_same(composition([*small, f"run_dir={folder}"]).tree)
    with pytest.raises(RunDirError, match=r"eval\.databases: 32 in the folder, 4 now"):
        RunDir(folder).check_same(composition([*small, f"run_dir={folder}", "eval.databases=4"]).tree)


def test_a_finished_run_is_reported_not_repeated(finished: Path, fit: Fit, terminal: Any) -> None:
    before = (finished / "summary.json").stat().st_mtime_ns
    outcome = fit(run_dir=finished)
    assert outcome.summary.tree() == json.loads((finished / "summary.json").read_text())
    assert (finished / "summary.json").stat().st_mtime_ns == before
    assert any("force=true" in note for note in terminal.notes)
    assert "train" not in terminal.phases
    assert len(terminal.rows) == 4


def test_force_removes_what_trackers_wrote(fit: Fit) -> None:
    """A record of the earlier run must not stand beside the new run's."""
    first = fit("tracker=[csv,tensorboard]", "trainer.max_steps=1")
    written = ("metrics.csv", "predictions.csv", "tensorboard")
    assert all((first.folder / name).exists() for name in written)
    fit("force=true", "trainer.max_steps=1", "trainer.lr=1e-3")
    assert not any((first.folder / name).exists() for name in written)


def test_force_runs_again_and_leaves_the_users_own_files(fit: Fit, terminal: Any) -> None:
    first = fit()
    (first.folder / "my notes.txt").write_text("mine")
    again = fit("force=true", "trainer.lr=1e-3")
    assert "train" in terminal.phases
    assert again.summary.started >= first.summary.started
    assert yaml.safe_load((again.folder / "config.yaml").read_text())["trainer"]["lr"] == 1e-3
    assert (again.folder / "my notes.txt").read_text() == "mine"
    assert len((again.folder / "metrics.jsonl").read_text().splitlines()) == 7  # 4 train, 2 eval, test


def test_more_steps_go_on_from_a_finished_run(fit: Fit, terminal: Any) -> None:
    fit()
    outcome = fit("trainer.max_steps=6")
    assert "resumed from step 4 of 6" in terminal.notes
    assert (outcome.summary.step, outcome.summary.planned_steps) == (6, 6)
    steps = [json.loads(line)["step"] for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


# --- secrets ----------------------------------------------------------------------------------------------


def test_no_secret_reaches_the_folder(fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, terminal: Any) -> None:
    planted = "pl4nted-s3cret-value"
    monkeypatch.setenv("MY_API_KEY", planted)
    fit(
        f"tracker.tags=[{planted}]",
        f"tracker.project={planted}",
        "tracker.group=hf_" + "A1" * 20,
        "+hydra.job.env_set.HF_TOKEN=s3cretenv",
        "trainer.max_steps=1",
    )
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"config.yaml", "hydra.yaml", "overrides.yaml", "summary.json"} <= {path.name for path in files}
    for secret in (planted, "hf_" + "A1" * 20, "s3cretenv"):
        assert [path.name for path in files if secret.encode() in path.read_bytes()] == []
    assert "***" in (tmp_path / "run/config.yaml").read_text()
    assert "***" in (tmp_path / "run/.hydra/overrides.yaml").read_text()


def test_a_run_with_a_masked_value_is_still_its_own(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "pl4nted-s3cret-value")
    override = "model.revision=pl4nted-s3cret-value"
    fit(override, "trainer.max_steps=1")
    fit(override, "trainer.max_steps=2")


# --- files ------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.json"
    write_atomic(file, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(file, "new")
    assert file.read_text() == "old"


def test_numbers_that_json_has_no_word_for_become_null() -> None:
    assert finite({"a": [float("nan"), (1.0, float("inf"))], "b": "x"}) == {"a": [None, [1.0, None]], "b": "x"}


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"status": "finis'])
def test_a_broken_summary_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    assert RunDir(tmp_path).summary.damage == "not readable"


def test_torn_predictions_count_as_none(tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_text('{"id": 1}\n{"id"')
    assert RunDir(tmp_path).read_rows("predictions.jsonl") == []


def test_a_run_is_found_by_its_folder_or_its_name(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("outputs").mkdir()
    Path("outputs/named").symlink_to(finished)
    assert tree_of(find_run(str(finished)))["seed"] == 0
    assert find_run("named").path == Path("outputs/named")
    with pytest.raises(RunDirError, match="python -m ftlab runs"):
        find_run("absent")


def test_config_yaml_alone_rebuilds_the_experiment(finished: Path, small: list[str]) -> None:
    from ftlab import compose
    from ftlab.composition import typed_from_tree

    mine = compose([*small, f"run_dir={finished}"])
    theirs = typed_from_tree(tree_of(RunDir(finished)))
    assert dataclasses.replace(theirs, run_name=mine.run_name) == mine
