"""A run is resumed, extended or reported only with the data, template and tokenizer that it was started with."""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab.errors import RunDirError, Stopped
from ftlab.run_dir import RunDir

Fit = Callable[..., Any]
STEPS = "trainer.max_steps=6"


@pytest.fixture
def mine(rows_folder: Path, tmp_path: Path) -> Path:
    """Data of one's own: train, validation and test."""
    folder = tmp_path / "data"
    shutil.copytree(rows_folder, folder)
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:36]))
    (folder / "validation.jsonl").write_text("".join(lines[36:]))
    return folder


@pytest.fixture
def killed(fit: Fit, mine: Path, terminal: Any) -> Path:
    """The folder of a run that was stopped after its checkpoint of step 2."""

    def stop(step: int, metrics: dict[str, float]) -> None:
        if step == 3 and "train/loss" in metrics:
            raise Stopped("SIGTERM")

    terminal.on_update = stop
    with pytest.raises(Stopped):
        fit(f"data.path={mine}")
    terminal.on_update = lambda step, metrics: None
    folder = mine.parent / "run"
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-000002"]
    return folder


def edit(file: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))


def reworded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**rows[0], "answer": "SELECT 1"}, *rows[1:]]


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


@pytest.mark.parametrize(
    ("split", "change", "said"),
    [
        ("train", lambda rows: rows[:-1], "train: 36 rows in the folder, 35 now"),
        ("train", reworded, "train: 36 rows in the folder and now, but they differ"),
        ("validation", reworded, "validation: 4 rows in the folder and now, but they differ"),
        ("test", lambda rows: rows[1:], "test: 6 rows in the folder, 5 now"),
    ],
)
def test_a_killed_run_does_not_go_on_with_other_rows(
    split: str, change: Any, said: str, fit: Fit, killed: Path, mine: Path
) -> None:
    before = summary(killed)
    edit(mine / f"{split}.jsonl", change)
    with pytest.raises(RunDirError) as caught:
        fit(f"data.path={mine}")
    message = str(caught.value)
    assert said in message
    assert "restore its data, choose another run_dir=DIR" in message
    assert sum(name in message for name in ("  train:", "  validation:", "  test:", "template", "tokenizer")) == 1
    assert summary(killed) == before


@pytest.mark.parametrize("more", [(), (STEPS,)], ids=["reported", "extended"])
def test_a_finished_run_is_neither_reported_nor_extended_on_another_test_file(
    more: tuple[str, ...], fit: Fit, mine: Path
) -> None:
    folder = fit(f"data.path={mine}").folder
    before = (folder / "summary.json").read_bytes()
    edit(mine / "test.jsonl", reworded)
    with pytest.raises(RunDirError, match="test: 6 rows in the folder and now, but they differ"):
        fit(f"data.path={mine}", *more)
    assert (folder / "summary.json").read_bytes() == before


def test_the_command_line_refuses_to_report_it_too(cli: Any, small: list[str], fit: Fit, mine: Path) -> None:
    folder = fit(f"data.path={mine}").folder
    edit(mine / "test.jsonl", reworded)
    code, out, err = cli(*small, f"data.path={mine}", f"run_dir={folder}")
    assert code == 2
    assert "test: 6 rows" in err
    assert "finished" not in out


def test_files_touched_and_packed_otherwise_are_the_same(fit: Fit, killed: Path, mine: Path, terminal: Any) -> None:
    for name in ("train", "validation", "test"):
        file = mine / f"{name}.jsonl"
        with gzip.open(mine / f"{name}.jsonl.gz", "wb") as packed:
            packed.write(file.read_bytes())
        file.unlink()
        os.utime(mine / f"{name}.jsonl.gz", (1, 1))
    outcome = fit(f"data.path={mine}")
    assert "resumed from step 2 of 4" in terminal.notes
    assert outcome.summary.status == "finished"


def test_another_tokenizer_is_refused_and_one_written_in_another_layout_is_not(
    fit: Fit, mine: Path, base_folder: Path, tmp_path: Path, terminal: Any
) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_folder, base)
    folder = fit(f"data.path={mine}", f"model.id={base}", run_dir=tmp_path / "own").folder
    file = base / "tokenizer.json"
    node = json.loads(file.read_text())
    file.write_text(json.dumps({**dict(reversed(node.items())), "padding": {"strategy": "BatchLongest"}}, indent=8))
    terminal.notes.clear()
    fit(f"data.path={mine}", f"model.id={base}", run_dir=folder)
    assert any("force=true runs it again" in note for note in terminal.notes)
    vocabulary = node["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(node))
    with pytest.raises(RunDirError, match="tokenizer: another one now than in the folder"):
        fit(f"data.path={mine}", f"model.id={base}", STEPS, run_dir=folder)


def test_a_folder_of_an_older_ftlab_goes_on_with_one_line(fit: Fit, killed: Path, mine: Path, terminal: Any) -> None:
    """It kept one hash for all rows, or none."""
    old = summary(killed)
    del old["sources"]
    (killed / "summary.json").write_text(json.dumps(old))
    terminal.notes.clear()
    fit(f"data.path={mine}")
    assert [note for note in terminal.notes if "older version" in note] == [
        f"{killed} has no hash of template, tokenizer (it is damaged, or from an older version): "
        "changes to them cannot be detected"
    ]
    assert "resumed from step 2 of 4" in terminal.notes
    assert summary(killed)["sources"].keys() >= {"train", "validation", "test", "template", "tokenizer"}


def test_a_folder_of_an_older_ftlab_is_refused_where_its_one_hash_differs(fit: Fit, killed: Path, mine: Path) -> None:
    old = summary(killed)
    del old["sources"]
    (killed / "summary.json").write_text(json.dumps(old))
    edit(mine / "test.jsonl", reworded)
    with pytest.raises(RunDirError, match="data: another one now than in the folder"):
        fit(f"data.path={mine}")


def test_without_a_checkpoint_there_is_nothing_to_lose_and_nothing_old_is_kept(
    fit: Fit, killed: Path, mine: Path, terminal: Any
) -> None:
    """The base's scores of an interrupted run are of its own test rows."""
    shutil.rmtree(killed / "checkpoints")
    edit(mine / "test.jsonl", reworded)
    terminal.phases.clear()
    outcome = fit(f"data.path={mine}")
    assert "evaluate base on test" in terminal.phases
    assert {row["gold"] for row in RunDir(outcome.folder).read_rows("predictions.jsonl")} >= {"SELECT 1"}


def test_a_finished_run_whose_data_are_gone_is_reported_with_a_line(fit: Fit, mine: Path, terminal: Any) -> None:
    fit(f"data.path={mine}")
    shutil.rmtree(mine)
    terminal.notes.clear()
    fit(f"data.path={mine}")
    assert any("cannot check whether the data have changed" in note for note in terminal.notes)
    assert any("force=true runs it again" in note for note in terminal.notes)
