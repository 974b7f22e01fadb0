"""The score command: one output line per input line, and no output for an invalid file."""

import gzip
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ftlab.commands import score
from ftlab.sql.scorer import NOT_JUDGED
from ftlab.sql.verdict import Verdict

FIELDS = [
    *("id", "exact_string", "ast_equal", "exec_equal", "valid", "vacuous", "gold_broken", "databases", "reason"),
]
CONTEXT = "CREATE TABLE head (name VARCHAR, age INTEGER)"
GOLD = "SELECT name FROM head WHERE age > 5"

Cli = Callable[..., tuple[int, str, str]]


def row(id: Any = 1, pred: Any = GOLD, **more: Any) -> dict[str, Any]:
    return {"id": id, "context": CONTEXT, "gold": GOLD, "pred": pred, **more}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- what comes out -----------------------------------------------------------------------------------------


def test_every_row_gets_its_line_in_order_with_its_id(cli: Cli, tmp_path: Path) -> None:
    ids = ["a", 1, 1.5, None, True, [1, {"x": "ü"}], {"k": [None]}, "\ud800", 10**30, "a"]
    write(tmp_path / "in.jsonl", *(row(id, extra={"ignored": 1}, split="x") for id in ids))
    code, out, err = cli("score", "in.jsonl", "out.jsonl")
    assert (code, err) == (0, "")
    found = lines(tmp_path / "out.jsonl")
    assert [one["id"] for one in found] == ids
    assert all(list(one) == FIELDS for one in found)
    assert found[0] | {"id": 0, "reason": ""} == {
        **{"id": 0, "exact_string": True, "ast_equal": True, "exec_equal": True, "valid": True},
        **{"vacuous": None, "gold_broken": False, "databases": 0, "reason": ""},
    }
    assert "out.jsonl" in out
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


def test_a_prediction_that_is_no_text_is_false_with_a_reason(cli: Cli, tmp_path: Path) -> None:
    preds = [None, 5, True, [GOLD], {"sql": GOLD}, "", "\ud800", "\0", "DROP TABLE head"]
    write(tmp_path / "in.jsonl", *(row(pred=pred) for pred in preds))
    assert cli("score", "in.jsonl", "out.jsonl", "--extract")[0] == 0
    found = lines(tmp_path / "out.jsonl")
    assert len(found) == len(preds)
    for one in found:
        assert [one[name] for name in FIELDS[1:5]] == [False] * 4
        assert one["gold_broken"] is False
        assert one["reason"]


def test_a_gold_that_cannot_run_is_apart_from_the_misses(cli: Cli, tmp_path: Path) -> None:
    write(
        tmp_path / "in.jsonl", row(1), {**row(2), "gold": "SELECT no FROM head"}, {**row(3, None), "gold": "nonsense"}
    )
    code, out, _ = cli("score", "in.jsonl", "out.jsonl")
    assert code == 0
    assert [(one["gold_broken"], one["exec_equal"]) for one in lines(tmp_path / "out.jsonl")] == [
        (False, True),
        (True, None),
        (True, None),
    ]
    assert re.search(r"^exec +1 +1 +100\.0 %", out, re.MULTILINE)
    assert "2 broken, 0 vacuous" in out


def test_gzip_goes_in_by_content_and_comes_out_by_name(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.dat").write_bytes(gzip.compress(b"\xef\xbb\xbf" + json.dumps(row("ü")).encode() + b"\n\n\n"))
    assert cli("score", "in.dat", "out.jsonl.gz")[0] == 0
    with gzip.open("out.jsonl.gz", "rt", encoding="utf-8") as file:
        assert [json.loads(line)["id"] for line in file] == ["ü"]


def test_extraction_is_a_switch(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", row(pred=f"```sql\n{GOLD}\n```"))
    for words, right in (([], False), (["--extract"], True), (["--extract=false"], False), (["--extract=true"], True)):
        assert cli("score", "in.jsonl", "out.jsonl", *words)[0] == 0
        assert lines(tmp_path / "out.jsonl")[0]["exact_string"] is right


@pytest.mark.parametrize("words", [["--databases", "3"], ["--databases=3"]])
def test_the_number_of_databases_is_the_users(cli: Cli, tmp_path: Path, words: list[str]) -> None:
    write(tmp_path / "in.jsonl", row(pred=GOLD + " AND age > 4"))
    assert cli("score", *words, "in.jsonl", "out.jsonl")[0] == 0
    assert lines(tmp_path / "out.jsonl")[0]["databases"] == 3


def test_rows_with_a_database_of_their_own_are_executed_there(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for name in ("real/heads", "outside"):
        with closing(sqlite3.connect(tmp_path / f"{name}.sqlite")) as file:
            file.executescript(f"{CONTEXT}; INSERT INTO head VALUES ('a', 6), ('b', 7);")
    pred = GOLD + " AND age > 4"
    ids = ["heads", "../outside", "absent", 5, None, "x" * 300, "a\0b", str(tmp_path / "outside")]
    write(tmp_path / "in.jsonl", *(row(pred=pred, db_id=id) for id in ids))
    code, out, err = cli("score", "in.jsonl", "out.jsonl", "--databases", "2", "--rows", "real")
    assert code == 0, err
    assert [one["databases"] for one in lines(tmp_path / "out.jsonl")] == [3, *[2] * 7]
    assert "real rows    1 with a database" in out


def test_the_labelled_examples_come_out_as_labelled(cli: Cli, tmp_path: Path, root: Path) -> None:
    file = root / "tests/material/sql_examples.jsonl"
    examples = lines(file)
    code, _, err = cli("score", str(file), "out.jsonl")
    assert code == 0, err
    wrong = [
        (example["id"], name)
        for example, found in zip(examples, lines(tmp_path / "out.jsonl"), strict=True)
        for name in FIELDS[1:5]
        if found[name] != example[name] and name not in example.get("contested", [])
    ]
    assert wrong == []
    cli("score", str(file), "extracted.jsonl", "--extract")
    found = {one["id"]: one for one in lines(tmp_path / "extracted.jsonl")}
    for example in examples:
        for name, value in example.get("after_extraction", {}).items():
            assert found[example["id"]][name] == value


# --- the summary --------------------------------------------------------------------------------------------


class Fake:
    """Stands in for the scorer: the prediction is the verdict's fields as JSON."""

    def __init__(self, databases: int) -> None:
        self.databases = databases

    def __enter__(self) -> "Fake":
        return self

    def __exit__(self, *error: object) -> None: ...

    def score(self, gold: str, pred: Any, context: str, rows_file: Path | None = None) -> Verdict:
        if pred == "interrupt":
            raise KeyboardInterrupt
        default = Verdict(False, False, False, True, False, False, 2, "database 2: 1 row instead of 2", ("nested",))
        return Verdict(**{**vars(default), **pred})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "Scorer", Fake)


def test_the_summary_counts_every_kind_apart(fake: None, cli: Cli, tmp_path: Path) -> None:
    preds = [
        {"exact_string": True, "ast_equal": True, "exec_equal": True, "vacuous": None, "databases": 0},
        {},
        {"exec_equal": True, "databases": 32},
        {"exec_equal": True, "vacuous": True, "databases": 32},
        {"exec_equal": None, "vacuous": None, "gold_broken": True, "databases": 0, "valid": False},
        {"reason": "database 1: over the budget: more than 5 steps", "databases": 1, "buckets": ["order"]},
    ]
    write(tmp_path / "in.jsonl", *(row(pred=pred) for pred in preds))
    code, out, _ = cli("score", "in.jsonl", "out.jsonl")
    assert code == 0
    words = [line.split() for line in out.splitlines()]
    assert ["string", "1", "6", "16.7", "%", "3.0", "to", "56.4"] in words
    assert ["exec", "2", "4", "50.0", "%", "15.0", "to", "85.0"] in words
    assert ["valid", "5", "6", "83.3", "%", "43.6", "to", "97.0"] in words
    assert ["nested", "5", "20.0", "(4-62)", "20.0", "(4-62)", "66.7", "(21-94)", "80.0", "(38-96)"] in words
    assert "gold queries 1 broken, 1 vacuous" in out
    assert "executed     4 pairs, 2 of them with different results" in out
    assert "over budget  1\n" in out
    assert "not judged" not in out
    assert re.search(r"time +\d+\.\d s, [\d,]+ rows/s", out)
    assert re.search(r"budgets +2 s and \d+ MB per pair", out)
    assert max(map(len, out.splitlines())) <= 80


def test_rows_that_were_not_judged_are_counted_and_no_rows_of_exec(fake: None, cli: Cli, tmp_path: Path) -> None:
    reason = f"{NOT_JUDGED}: the scoring process was ended twice from outside (SIGKILL)"
    lost = {"exec_equal": None, "valid": False, "vacuous": None, "databases": 0, "reason": reason}
    write(tmp_path / "in.jsonl", row(pred=lost), row(pred={"reason": 'no such column: "not judged"'}))
    _, out, _ = cli("score", "in.jsonl", "out.jsonl")
    assert "not judged   1: the scoring process was killed from outside" in out
    assert "gold queries 0 broken" in out
    assert "over budget  0\n" in out
    assert re.search(r"^exec +0 +1 ", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 80


def test_ctrl_c_ends_with_130_and_leaves_the_old_file(fake: None, cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", row(pred={}), row(pred="interrupt"))
    (tmp_path / "out.jsonl").write_text("old")
    code, _, err = cli("score", "in.jsonl", "out.jsonl")
    assert (code, err) == (130, "ftlab: interrupted\n")
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


def test_fifteen_thousand_rows_cost_the_command_itself_little(fake: None, cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", *(row(i, {}) for i in range(15_716)))
    began = time.process_time()
    assert cli("score", "in.jsonl", "out.jsonl")[0] == 0
    assert time.process_time() - began < 3  # well below one on an idle machine
    assert len(lines(tmp_path / "out.jsonl")) == 15_716


# --- what is refused ----------------------------------------------------------------------------------------


def refused(cli: Cli, tmp_path: Path, *words: str) -> str:
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    code, out, err = cli("score", *words)
    assert (code, out) == (2, "")
    assert err.startswith("ftlab: ")
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    return err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps(row()) + '\n{"id": 2, "gold"', "in.jsonl:2: broken JSON"),
        (json.dumps(row()) + "\n[1]\n", "in.jsonl:2: not a JSON object"),
        *(
            (json.dumps({k: v for k, v in row().items() if k != name}) + "\n", f"in.jsonl:1: no {name} (the row has")
            for name in ("id", "context", "gold", "pred")
        ),
        (json.dumps({**row(), "gold": None}), "in.jsonl:1: gold must be text, not null"),
        (json.dumps({**row(), "context": ["x"]}), 'in.jsonl:1: context must be text, not ["x"]'),
        (json.dumps(row("X")).replace('"X"', "1e400"), "in.jsonl:1: id is out of range"),
        (json.dumps(row(["X"])).replace('"X"', "-1e400"), "in.jsonl:1: id is out of range"),
        *(
            (
                json.dumps(row()) + "\n" + json.dumps(row(**{name: [float(number)]})),
                f"in.jsonl:2: broken JSON ({number} is",
            )
            for name, number in (("id", "NaN"), ("pred", "Infinity"), ("more", "-Infinity"))
        ),
        ("", "in.jsonl: the file is empty"),
        ("\n \n", "in.jsonl: the file is empty"),
    ],
)
def test_a_broken_row_stops_it_before_anything_is_scored(
    cli: Cli, tmp_path: Path, text: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "Scorer", lambda databases: pytest.fail("it was scored"))
    (tmp_path / "in.jsonl").write_text(text)
    assert said in refused(cli, tmp_path, "in.jsonl", "out.jsonl")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "two files, got none: python -m ftlab score IN"),
        (["in.jsonl"], "two files, got 1"),
        (["in.jsonl", "out.jsonl", "more"], "two files, got 3"),
        (["absent.jsonl", "out.jsonl"], "absent.jsonl cannot be read (No such file"),
        (["in.jsonl", "in.jsonl"], "is the input file"),
        (["in.jsonl", "./link.jsonl"], "is the input file"),
        (["in.jsonl", "absent/out.jsonl"], "there is no folder absent"),
        (["in.jsonl", "."], "is a folder"),
        (["in.jsonl", "out.jsonl", "--databases", "0"], "--databases=0 must be a whole number from 1 to 1000"),
        (["in.jsonl", "out.jsonl", "--databases", "-3"], "--databases=-3"),
        (["in.jsonl", "out.jsonl", "--databases=1e2"], "--databases=1e2"),
        (["in.jsonl", "out.jsonl", "--databases=²"], "--databases=²"),
        (["in.jsonl", "out.jsonl", "--databases=1001"], "--databases=1001"),
        (["in.jsonl", "out.jsonl", f"--databases={'9' * 5000}"], "must be a whole number"),
        (["in.jsonl", "out.jsonl", "--databases"], "--databases needs a value"),
        (["in.jsonl", "out.jsonl", "--databases=1", "--databases=2"], "--databases is given twice"),
        (["in.jsonl", "out.jsonl", "--databses", "3"], "Did you mean: --databases?"),
        (["in.jsonl", "out.jsonl", "-d", "3"], "-d is not an option of score"),
        (["in.jsonl", "out.jsonl", "--extrakt=true"], "Did you mean: --extract?"),
        (["in.jsonl", "out.jsonl", "extract=true"], "two files, got 3 (in.jsonl, out.jsonl, extract=true)"),
        (["in.jsonl", "out.jsonl", "--extract=maybe"], "true or false"),
        (["in.jsonl", "out.jsonl", "--rows", "absent"], "--rows=absent is not a folder"),
        (["in.jsonl", "out.jsonl", "--rows", "."], "--rows=. contains no .sqlite file"),
    ],
    ids=lambda part: " ".join(part)[:60] if isinstance(part, list) else "",
)
def test_a_call_that_makes_no_sense_is_one_message(cli: Cli, tmp_path: Path, words: list[str], said: str) -> None:
    write(tmp_path / "in.jsonl", row())
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    assert said in refused(cli, tmp_path, *words)


def test_a_path_may_hold_an_equals_sign(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "date=2024").mkdir()
    write(tmp_path / "date=2024/in.jsonl", row())
    assert cli("score", "date=2024/in.jsonl", "databases=3", "--databases", "4")[0] == 0
    assert len(lines(tmp_path / "databases=3")) == 1


def test_a_number_out_of_range_beside_the_id_costs_nothing_or_its_row(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(row(pred="X", more="X")).replace('"X"', "1e400"))
    assert cli("score", "in.jsonl", "out.jsonl")[0] == 0
    assert lines(tmp_path / "out.jsonl")[0]["reason"] == "not text: number"


def test_a_word_after_two_dashes_is_a_file(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "a=b.jsonl", row())
    assert cli("score", "--databases", "4", "--", "a=b.jsonl", "--out")[0] == 0
    assert len(lines(tmp_path / "--out")) == 1


# --- in a process of its own --------------------------------------------------------------------------------


def test_usage_is_answered_and_torch_never_imported(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", row())
    program = (
        "import sys; from ftlab.__main__ import main\n"
        "codes = [main(['score', '--help']), main(['score', 'in.jsonl', 'out.jsonl'])]\n"
        "sys.exit(99 if 'torch' in sys.modules else max(codes))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "score IN.jsonl OUT.jsonl" in done.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_while_it_scores_leaves_no_file(tmp_path: Path, number: signal.Signals, code: int) -> None:
    preds = [f"{GOLD} AND age > {i} - {i}" for i in range(20_000)]
    write(tmp_path / "in.jsonl", *(row(i, pred) for i, pred in enumerate(preds)))
    process = subprocess.Popen(
        [sys.executable, "-m", "ftlab", "score", "in.jsonl", "out.jsonl"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 30
    while children.exists() and not children.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (code, "ftlab: interrupted\n" if code == 130 else "")
    assert os.listdir(tmp_path) == ["in.jsonl"]
