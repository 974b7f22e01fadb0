"""A run of question and answer, from rows to a comparison: nothing of it knows SQL."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from ftlab import declared, run
from ftlab.commands import compare
from ftlab.composition import composition
from ftlab.experiment import Outcome
from ftlab.run_dir import RunDir
from ftlab.sweep.run_records import answers
from ftlab.terminal import Terminal

COLUMNS = ("exact", "f1", "extracted", "label", "said", "reason")


@pytest.fixture(scope="module")
def finished(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, str]:
    """A run on generated rows, and what it showed."""
    rest = [text for text in small if not text.startswith(("data", "eval.max_rows"))]
    rows = ["data=match_synth", "data.train_rows=16", "data.validation=6", "data.test_rows=8"]
    shown = io.StringIO()
    overrides = [*rest, *rows, f"run_dir={tmp_path_factory.mktemp('match') / 'run'}", "run_name=match"]
    return run(composition(overrides), Terminal(shown)), shown.getvalue()


def test_it_is_scored_by_its_own_metrics_alone(finished: tuple[Outcome, str]) -> None:
    outcome, shown = finished
    tuned = outcome.summary.tuned
    assert {"eval/match_exact", "test/match_exact", "test/match_f1", "eval/loss", "test/loss"} <= tuned.keys()
    assert all(declared.of(key).help for key in tuned)
    assert not any("sql" in key for key in tuned)
    assert outcome.objective == tuned["eval/match_exact"]
    assert "exact match (headline)" in shown
    assert "AST" not in shown
    assert 'question="What is the age of Tom?"' in shown  # the command that asks it
    rows = RunDir(outcome.folder).read_rows("predictions.jsonl")
    assert len(rows) == 8
    assert {*COLUMNS, *(f"base_{name}" for name in COLUMNS)} <= rows[0].keys()
    assert not {"ast_equal", "databases"} & rows[0].keys()


def test_two_runs_are_compared_by_the_declared_rates(
    finished: tuple[Outcome, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished[0].folder
    rows: list[dict[str, Any]] = RunDir(folder).read_rows("predictions.jsonl")
    for name, right in (("a", False), ("b", True)):
        judged = [{**row, "exact": right, "f1": 0.9 if right else 0.25} for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in judged))
    assert compare.main({}, [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.split()[:1] in (["exact"], ["F1"])}
    assert lines["exact"][1:4] == ["0.0", "100.0", "+100.0"]
    assert lines["exact"][-4:] == ["0.008", "B", "is", "better"]
    assert lines["F1"][1:4] == ["25.0", "90.0", "+65.0"]
    assert lines["F1"][-6:] == ["-", "-", "-", "B", "is", "better"]  # no McNemar: answers are partly right
    assert "8 rows in both; the bootstrap resamples" in out


def test_a_sweeps_report_pairs_its_answers_row_by_row(finished: tuple[Outcome, str], tmp_path: Path) -> None:
    rows = RunDir(finished[0].folder).read_rows("predictions.jsonl")
    folder = RunDir(tmp_path)
    (tmp_path / "evaluations").mkdir()
    half = [{**row, "split": "eval", "exact": i % 2 == 0, "f1": i / 10} for i, row in enumerate(rows)]
    folder.write_rows("evaluations/validation.jsonl", half)
    assert [answer.hit for answer in answers(folder, "eval/match_exact").values()] == [True, False] * 4
    assert [answer.hit for answer in answers(folder, "eval/match_f1").values()] == [i / 10 for i in range(8)]
    assert answers(folder, "eval/loss") == {}


def test_it_can_be_asked_without_a_context_as_it_was_trained(
    finished: tuple[Outcome, str], cli: Any, tmp_path: Path
) -> None:
    run = f"run={finished[0].folder}"
    code, answer, _ = cli("predict", run, "context=", "question=What is 2 plus 3?", "max_new_tokens=4")
    assert code == 0
    rows = [{"question": "What is 2 plus 3?", **more} for more in ({"context": ""}, {"context": None}, {})]
    (tmp_path / "ask.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, answers, _ = cli("predict", run, f"input={tmp_path / 'ask.jsonl'}", "max_new_tokens=4")
    assert (code, answers.splitlines()) == (0, [" ".join(answer.splitlines())] * 3)
    code, _, err = cli("predict", run, "question=What is 2 plus 3?")
    assert code == 2
    assert "predict needs context=TEXT (context= for none)" in err
