"""Two runs on the same rows: the difference, how sure it is, and in words whether it is one."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftlab.commands.compare import PairedRow, ScoreComparison, compare
from ftlab.sql.intervals import mcnemar
from ftlab.sql.rates import recorded
from ftlab.sql.verdict import Verdict
from ftlab.tasks.sql import TASK

Cli = Callable[..., tuple[int, str, str]]

WRONG = {"exact_string": False, "ast_equal": False, "exec_equal": False, "valid": True}
RIGHT = dict.fromkeys(WRONG, True)
REST = {"vacuous": None, "gold_broken": False, "databases": 0, "reason": ""}


def rows(right: int, total: int = 100, **more: Any) -> list[dict[str, Any]]:
    """The first `right` rows are right; four rows share a context."""
    return [
        {"id": i, "context": f"CREATE TABLE t{i // 4} (a INT)", "gold": f"SELECT {i}", **REST, **more}
        | (RIGHT if i < right else WRONG)
        for i in range(total)
    ]


def write(path: Path, found: list[dict[str, Any]], *left_out: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [{key: value for key, value in row.items() if key not in left_out} for row in found]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return str(path)


def run(folder: Path, found: list[dict[str, Any]]) -> str:
    write(folder / "predictions.jsonl", [{**row, "split": "test"} for row in found])
    (folder / "config.yaml").write_text("seed: 0\n")
    return str(folder)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def line(out: str, title: str) -> list[str]:
    (found,) = [words for words in map(str.split, out.splitlines()) if words[:1] == [title]]
    return found


# --- what is said -------------------------------------------------------------------------------------------


def test_a_clear_gain_is_told_with_its_numbers(cli: Cli, tmp_path: Path) -> None:
    run(tmp_path / "outputs/a", rows(40))
    run(tmp_path / "outputs/b", rows(70))
    code, out, err = cli("compare", "a", "b")
    assert (code, err) == (0, "")
    assert line(out, "AST")[1:4] == ["40.0", "70.0", "+30.0"]
    low, high = float(line(out, "AST")[4]), float(line(out, "AST")[6])
    assert 5 < low < 30 < high < 55
    assert line(out, "AST")[7:] == ["0", "30", "<.001", "B", "is", "better"]
    assert line(out, "valid")[1:] == ["100.0", "100.0", "+0.0", "+0.0", "to", "+0.0", "0", "0", "1.000", "inconclusive"]
    assert "100 rows in both; the bootstrap resamples 25 schemas" in out
    assert max(map(len, out.splitlines())) <= 80
    assert line(cli("compare", "b", "a")[1], "AST")[7:] == ["30", "0", "<.001", "A", "is", "better"]


def test_one_schema_is_counted_as_one(cli: Cli, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows(2, total=4))
    _, out, _ = cli("compare", file, file)
    assert "4 rows in both; the bootstrap resamples 1 schema\n" in out


def test_a_run_beside_itself_is_inconclusive(cli: Cli, tmp_path: Path) -> None:
    folder = run(tmp_path / "a", rows(40))
    code, out, _ = cli("compare", folder, folder)
    assert code == 0
    for title in ("string", "AST", "exec", "valid"):
        assert line(out, title)[3:] == ["+0.0", "+0.0", "to", "+0.0", "0", "0", "1.000", "inconclusive"]


def test_a_gain_of_a_few_rows_is_inconclusive(cli: Cli, tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", rows(40)), run(tmp_path / "b", rows(43))
    assert line(cli("compare", a, b)[1], "exec")[-2:] == ["0.250", "inconclusive"]


def pairs(only_a: int, only_b: int, both: int, size: int) -> list[PairedRow]:
    """Rows in clusters of `size`, those that part A and B first."""
    verdicts = [Verdict(hit, hit, hit, hit, None, False, 0, "") for hit in (True, False)]
    right, wrong = (TASK.judged(recorded(verdict), "") for verdict in verdicts)
    sides = [(right, wrong)] * only_a + [(wrong, right)] * only_b + [(right, right)] * both
    return [PairedRow(a, b, i // size) for i, (a, b) in enumerate(sides)]


def test_rows_of_few_schemas_are_weak_evidence_whatever_mcnemar_says() -> None:
    many = compare("sql_ast_match", pairs(0, 12, 108, size=1))
    few = compare("sql_ast_match", pairs(0, 12, 108, size=12))
    assert many.p == few.p == mcnemar(0, 12) < 0.05
    assert (many.conclusion, few.conclusion) == ("B is better", "inconclusive")
    assert compare("sql_ast_match", pairs(0, 12, 0, size=99)).conclusion == "inconclusive"


@pytest.mark.parametrize(
    ("low", "high", "p", "words"),
    [
        (0.01, 0.02, 0.049, "B is better"),
        (-0.02, -0.01, 0.049, "A is better"),
        (0.0, 0.02, 0.01, "inconclusive"),
        (-0.02, 0.0, 0.01, "inconclusive"),
        (0.01, 0.02, 0.05, "inconclusive"),
    ],
)
def test_better_means_both_tests_say_so(low: float, high: float, p: float, words: str) -> None:
    assert ScoreComparison(10, 1, 2, low, high, 0, 1, p).conclusion == words


def test_rows_that_say_nothing_of_execution_in_either_are_left_out_of_it(cli: Cli, tmp_path: Path) -> None:
    a, b = rows(50), rows(50)
    a[0] |= {"exec_equal": None, "gold_broken": True}
    b[1] |= {"exec_equal": True, "vacuous": True}
    b[0] |= {"exec_equal": None, "gold_broken": True}
    _, out, _ = cli("compare", write(tmp_path / "a.jsonl", a), write(tmp_path / "b.jsonl", b))
    assert line(out, "exec")[1] == f"{100 * 48 / 98:.1f}"
    assert line(out, "AST")[1] == "50.0"
    assert "2 rows left out of exec" in out


def test_a_score_without_rows_is_said_to_have_none(cli: Cli, tmp_path: Path) -> None:
    broken = [{**row, "exec_equal": None, "gold_broken": True} for row in rows(5)]
    file = write(tmp_path / "a.jsonl", broken)
    code, out, _ = cli("compare", file, file)
    assert (code, line(out, "exec")[-4:]) == (0, ["no", "row", "to", "compare"])


@pytest.mark.parametrize("metric", ["exec", "EXEC", "exec_equal", "sql_exec_match", "test/sql_exec_match"])
def test_one_score_can_be_asked_for_by_any_of_its_names(cli: Cli, tmp_path: Path, metric: str) -> None:
    file = write(tmp_path / "a.jsonl", rows(5))
    _, out, _ = cli("compare", file, file, f"metric={metric}")
    assert line(out, "exec")
    assert "AST" not in out


def test_the_headline_is_the_ast_match(cli: Cli, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows(5))
    assert "AST" in cli("compare", file, file, "metric=eval/sql_exact_match")[1]


# --- which rows ---------------------------------------------------------------------------------------------


def test_rows_of_one_alone_are_counted_and_left_out(cli: Cli, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", rows(40)[:60]), write(tmp_path / "b.jsonl", rows(40)[59:][::-1])
    _, out, _ = cli("compare", a, b)
    assert "1 row in both" in out
    assert "59 rows only in A, left out" in out
    assert "40 rows only in B, left out" in out


def test_files_of_score_know_no_schemas_unless_the_scored_file_is_named(cli: Cli, tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", rows(40), "context", "gold")
    b = write(tmp_path / "b.jsonl", rows(70), "context", "gold")
    assert "resamples single rows" in cli("compare", a, b)[1]
    scored = write(tmp_path / "in.jsonl", rows(0))
    assert "resamples 25 schemas" in cli("compare", a, b, f"rows={scored}")[1]
    assert "resamples 25 schemas" in cli("compare", a, run(tmp_path / "run", rows(70)))[1]


def test_validation_is_what_was_evaluated_last(cli: Cli, tmp_path: Path) -> None:
    folder = run(tmp_path / "a", rows(40))
    for stamp, split, right in (("1", "eval", 10), ("2", "eval", 20), ("3", "test", 90)):
        write(tmp_path / f"a/evaluations/{stamp}.jsonl", rows(right, split=split))
    assert line(cli("compare", folder, folder, "split=validation")[1], "AST")[1] == "20.0"
    assert line(cli("compare", folder, folder)[1], "AST")[1] == "40.0"


def test_what_was_written_last_counts_whatever_its_name(cli: Cli, tmp_path: Path) -> None:
    """A clock that was set back, and a folder that was copied: the time recorded beside the answers decides."""
    folder = run(tmp_path / "a", rows(40))
    for name, right, written in (("20261101-030000", 10, 100.0), ("20261101-020000", 30, 200.0)):
        write(tmp_path / f"a/evaluations/{name}.jsonl", rows(right, split="eval"))
        (tmp_path / f"a/evaluations/{name}.json").write_text(json.dumps({"written": written}))
    write(tmp_path / "a/evaluations/validation.jsonl", rows(90, split="eval"))  # a trial's own: older than any other
    assert line(cli("compare", folder, folder, "split=validation")[1], "AST")[1] == "30.0"


def test_older_records_without_a_time_count_by_that_of_their_file(cli: Cli, tmp_path: Path) -> None:
    folder = run(tmp_path / "a", rows(40))
    for stamp, right, written in (("2", 10, 100), ("1", 20, 200)):
        os.utime(write(tmp_path / f"a/evaluations/{stamp}.jsonl", rows(right, split="eval")), (written, written))
    assert line(cli("compare", folder, folder, "split=validation")[1], "AST")[1] == "20.0"


def test_answers_of_weights_that_were_trained_on_are_left_out(cli: Cli, tmp_path: Path) -> None:
    folder = run(tmp_path / "a", rows(40))
    (tmp_path / "a/summary.json").write_text(json.dumps({"step": 200}))
    for step, right, written in ((200, 10, 1.0), (100, 20, 2.0)):
        write(tmp_path / f"a/evaluations/{step}.jsonl", rows(right, split="eval"))
        (tmp_path / f"a/evaluations/{step}.json").write_text(json.dumps({"written": written, "step": step}))
    assert line(cli("compare", folder, folder, "split=validation")[1], "AST")[1] == "10.0"


def test_runs_of_other_test_rows_are_refused_though_their_ids_and_answers_are_the_same(
    cli: Cli, tmp_path: Path
) -> None:
    one, other = (run(tmp_path / name, rows(40, question=f"{name}?")) for name in ("a", "b"))
    code, _, err = cli("compare", one, other)
    assert (code, err.count("\n")) == (2, 1)
    assert "its question differs" in err


def test_an_older_run_is_compared_once_it_was_evaluated_again(cli: Cli, tmp_path: Path) -> None:
    old = run(tmp_path / "a", rows(40))
    write(tmp_path / "a/predictions.jsonl", rows(40, split="test"), "ast_equal", "exec_equal", "valid")
    code, _, err = cli("compare", old, old)
    assert (code, err.count("\n")) == (2, 1)
    assert f"python -m ftlab eval run={old} split=test" in err
    write(tmp_path / "a/evaluations/1.jsonl", rows(60, split="test"))
    assert line(cli("compare", old, old)[1], "AST")[1] == "60.0"


def test_a_real_run_can_be_compared(cli: Cli, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    code, out, err = cli("compare", str(finished), "run")
    assert code == 0, err
    assert "inconclusive" in line(out, "AST")
    assert "4 rows in both" in out


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "two runs or files, got none: python -m ftlab compare"),
        (["a.jsonl"], "got 1"),
        (["a.jsonl", "a.jsonl", "a.jsonl"], "got 3"),
        (["a.jsonl", "absent"], "absent is not a run folder"),
        (["a.jsonl", "a.jsonl", "split=train"], "split=train must be test or validation"),
        (["a.jsonl", "a.jsonl", "metric=accuracy"], "must be one of string, AST, exec, valid"),
        (["a.jsonl", "a.jsonl", "metrics=exec"], "Did you mean: metric?"),
        (["a.jsonl", "a.jsonl", "rows=absent.jsonl"], "absent.jsonl cannot be read"),
        (["a.jsonl", "other.jsonl"], "no id in common"),
        (["a.jsonl", "gold.jsonl"], "id 3: its gold differs between a.jsonl and gold.jsonl"),
        (["a.jsonl", "context.jsonl"], "id 3: its context differs"),
        (["a.jsonl", "a.jsonl", "rows=context.jsonl"], "id 3: its context differs"),
        (["a.jsonl", "twice.jsonl"], "twice.jsonl:101: id 3 occurs twice"),
        (["a.jsonl", "bare.jsonl"], "bare.jsonl holds no scores"),
        (["a.jsonl", "broken.jsonl"], "broken.jsonl:1: broken JSON"),
        (["a.jsonl", "noid.jsonl"], "noid.jsonl:1: no id, by which rows are paired (the row has context"),
        (["a.jsonl", "unfinished"], "unfinished holds no scored answers on test"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_what_cannot_be_compared_is_one_message(cli: Cli, tmp_path: Path, words: list[str], said: str) -> None:
    good = rows(40)
    write(tmp_path / "a.jsonl", good)
    write(tmp_path / "other.jsonl", [{**row, "id": str(row["id"])} for row in good])
    write(tmp_path / "gold.jsonl", [{**row, "gold": "x" if row["id"] == 3 else row["gold"]} for row in good])
    write(tmp_path / "context.jsonl", [{**row, "context": "x" if row["id"] == 3 else row["context"]} for row in good])
    write(tmp_path / "twice.jsonl", [*good, good[3]])
    write(tmp_path / "bare.jsonl", good, *RIGHT)
    write(tmp_path / "noid.jsonl", good, "id")
    (tmp_path / "broken.jsonl").write_text("{")
    run(tmp_path / "unfinished", [{**row, **dict.fromkeys(RIGHT)} for row in good])
    code, out, err = cli("compare", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_a_score_that_one_of_the_two_lacks_is_left_out(cli: Cli, tmp_path: Path) -> None:
    """As a run of an older ftlab lacks a newer score."""
    write(tmp_path / "a.jsonl", rows(40))
    write(tmp_path / "older.jsonl", rows(40), "valid")
    code, out, _ = cli("compare", "a.jsonl", "older.jsonl")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert code == 0
    assert "no row to compare" in lines["valid"]
    assert "no row to compare" not in lines["AST"]


def test_it_needs_no_torch(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows(4))
    program = "import sys; from ftlab.__main__ import main\nmain(sys.argv[1:])\nsys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, "compare", file, file], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
