"""Runs and a study that an earlier commit left: they are reported, asked, resumed and gone on with."""

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from golden.make_material import FINISHED, STOPPED, SWEEP
from golden.records import digest, digests, read_json, read_lines

Ok = Callable[..., str]
ADAPTER = "adapter/adapter_model.safetensors"
RUN = (*FINISHED, "run_name=finished", "run_dir=finished")


def test_the_material_is_small_and_names_no_place() -> None:
    folder = Path(__file__).parent / "material"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 350_000
    place = re.compile(rb"/(?:work|tmp|root|home|opt|usr|mnt|Users)/")
    assert [str(path) for path in files if place.search(path.read_bytes())] == []


def test_a_finished_run_is_reported_and_not_run_again(material: Path, ok: Ok) -> None:
    before = digests(material / "finished")
    shown = ok(*RUN)
    assert "finished already holds this run, finished" in shown
    assert "step 1/6" not in shown
    assert digests(material / "finished") == before


def test_runs_lists_what_an_earlier_ftlab_left(material: Path, ok: Ok) -> None:
    listed = {line.split()[0]: line.split()[1] for line in ok("runs", ".").splitlines() if line}
    trials = {"study/0": "finished", "study/1": "pruned", "study/2": "stopped"}
    assert listed == {"name": "status", "finished": "finished", "stopped": "stopped", **trials}


def test_a_finished_run_answers_and_scores_as_it_did(material: Path, ok: Ok) -> None:
    rows = read_lines(material / "finished/predictions.jsonl")
    told = next(row for row in rows if row["pred"] != row["base_pred"])  # the adapter's own answer
    asked = ok("predict", "run=finished", f"question={told['question']}", f"context={told['context']}")
    assert asked.strip() == told["pred"].strip()
    summary = read_json(material / "finished/summary.json")
    for split, prefix in (("validation", "eval/"), ("test", "test/")):
        known = set((material / "finished").glob("evaluations/*.json"))
        ok("eval", "run=finished", f"split={split}")
        (written,) = set((material / "finished").glob("evaluations/*.json")) - known
        before = {key: value for key, value in summary["tuned"].items() if key.startswith(prefix)}
        now = read_json(written)["metrics"]
        assert now.keys() == before.keys()
        # Another processor rounds otherwise.
        assert now == {key: pytest.approx(value, rel=1e-3) for key, value in before.items()}
    assert "2 tensors" in ok("doctor", "finished")


def test_a_finished_run_is_extended(material: Path, ok: Ok) -> None:
    before = read_lines(material / "finished/metrics.jsonl")
    assert "resumed from step 6" in ok(*RUN, "trainer.max_steps=8")
    after = read_lines(material / "finished/metrics.jsonl")
    kept = [row for row in before if not any(key.startswith("test/") for key in row)]
    assert after[: len(kept)] == kept
    summary = read_json(material / "finished/summary.json")
    assert (summary["status"], summary["step"]) == ("finished", 8)


def test_other_rows_and_another_base_than_the_recorded_ones_are_refused(
    material: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    words = (*STOPPED, "run_name=stopped", "run_dir=stopped")
    before = digests(material / "stopped")
    file = material / "rows/train.jsonl"
    text = file.read_text()
    file.write_text(text.replace("cat0", "cow0"))
    code, _, told = cli(*words)
    assert (code, "train: " in told, "they differ" in told) == (2, True, True), told
    file.write_text(text)
    summary = material / "stopped/summary.json"
    base = read_json(summary)["model"]["sha256"]["model.safetensors"]
    summary.write_text(summary.read_text().replace(base, base[::-1]))
    code, _, told = cli(*words)
    assert (code, "model.safetensors" in told) == (2, True), told
    assert digests(material / "stopped").keys() >= before.keys()


def test_a_stopped_run_ends_as_one_that_was_never_stopped(material: Path, ok: Ok) -> None:
    saved = digest(material / "stopped/checkpoints/step-000004/trainable.safetensors")
    before = read_lines(material / "stopped/metrics.jsonl")
    assert "resumed from step 5" in ok(*STOPPED, "run_name=stopped", "run_dir=stopped")
    ok(*STOPPED, "run_name=stopped", "run_dir=whole", "trainer.keep=12")
    resumed, whole = material / "stopped", material / "whole"
    assert read_lines(resumed / "metrics.jsonl")[: len(before)] == before
    if digest(whole / "checkpoints/step-000004/trainable.safetensors") == saved:
        assert digest(resumed / ADAPTER) == digest(whole / ADAPTER)
        assert digest(resumed / "predictions.jsonl") == digest(whole / "predictions.jsonl")
        tolerance = 0.0
    else:  # this processor rounds otherwise than the one that made the material
        assert_near(resumed / ADAPTER, whole / ADAPTER)
        tolerance = 2e-2
    ends = [read_json(run / "summary.json") for run in (resumed, whole)]
    assert [end["status"] for end in ends] == ["finished"] * 2
    for kind in ("base", "tuned"):
        assert ends[0][kind] == {key: pytest.approx(value, rel=tolerance) for key, value in ends[1][kind].items()}
    assert ends[0]["sources"] == ends[1]["sources"]
    assert ends[0]["model"] == ends[1]["model"]


def assert_near(one: Path, other: Path) -> None:
    """Two adapters that differ by rounding alone."""
    import torch
    from safetensors.torch import load_file

    mine, theirs = load_file(one), load_file(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=5e-2, atol=1e-3)


def trials(folder: Path) -> dict[int, tuple[Any, ...]]:
    """State, value, rungs and times of each trial in a study's database, by its number."""
    with closing(sqlite3.connect(folder / "study.db")) as database:
        rungs: dict[int, list[tuple[int, float]]] = {}
        for trial, step, value in database.execute(
            "SELECT trial_id, step, intermediate_value FROM trial_intermediate_values ORDER BY step"
        ):
            rungs.setdefault(trial, []).append((step, value))
        rows = database.execute(
            "SELECT number, state, value, datetime_start, datetime_complete, trials.trial_id FROM trials "
            "LEFT JOIN trial_values ON trial_values.trial_id = trials.trial_id ORDER BY number"
        ).fetchall()
    return {number: (*row, rungs.get(trial, [])) for number, *row, trial in rows}


def test_a_stopped_study_is_reported_and_gone_on_with(material: Path, ok: Ok) -> None:
    study = material / "study"
    known, files = trials(study), {name: digests(study / name) for name in "01"}
    curve = read_lines(study / "2/metrics.jsonl")
    assert [known[number][0] for number in range(4)] == ["COMPLETE", "PRUNED", "FAIL", "WAITING"]
    # A stopped trial is not counted: another one resumes it.
    assert "Sweep golden: 2 of 4 trials finished: 1 complete, 1 pruned" in ok("report", "study").splitlines()
    assert "from step 5" in ok("doctor", "study")

    words = ("--multirun", *SWEEP, "run_dir=study")
    shown = ok(*words)
    assert "trial 0" not in shown.split("rank")[0]
    assert {name: digests(study / name) for name in "01"} == files
    after = trials(study)
    assert {number: after[number] for number in (0, 1, 2)} == {number: known[number] for number in (0, 1, 2)}
    assert len(after) == 5
    assert [after[number][0] in ("COMPLETE", "PRUNED") for number in (3, 4)] == [True, True]
    # The interrupted trial was resumed in its own folder, renamed, from its checkpoint.
    assert not (study / "2").exists()
    assert "resumed from step 5" in (study / "3/output.txt").read_text()
    resumed = read_lines(study / "3/metrics.jsonl")
    assert resumed[: len(curve)] == curve
    assert after[3][0] == "COMPLETE"
    assert [step for step, _ in after[3][-1]] == [2, 4, 6, 8]

    reported = ok("report", "study")
    assert re.search(r"^Sweep golden: 4 of 4 trials finished: [23] complete, [12] pruned$", reported, re.MULTILINE), (
        reported
    )
    assert ok(*words).count("done") == 0  # nothing is left to run
    assert trials(study) == after
    assert "lr" in ok("--config-dir", "study", "experiment=best", "--dry-run")


def test_a_study_of_other_rows_or_another_space_is_refused(
    material: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    words = [word for word in SWEEP if not word.startswith("trainer.lr=")]
    known = trials(material / "study")
    code, _, told = cli("--multirun", *words, "trainer.lr=5e-3,1e-6", "run_dir=study")
    assert (code, "trainer.lr" in told) == (2, True), told
    code, _, told = cli("--multirun", *SWEEP, "run_dir=study", "trainer.weight_decay=0.1")
    assert (code, "trainer.weight_decay" in told) == (2, True), told
    rows = material / "rows/train.jsonl"
    rows.write_text(rows.read_text().replace("cat0", "cow0"))
    code, _, told = cli("--multirun", *SWEEP, "run_dir=study")
    assert (code, "train: " in told) == (2, True), told
    assert trials(material / "study") == known
